"""FLGo: its basic server and client (FedAvg), on a task of our own benchmark package; no evaluation, no log.

``parallel`` is its option num_parallels with threads; with processes it would send every client's samples through a pipe each round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import LEARNING_RATE, Task
from fl_runtime.training.limits import default_workers

__all__ = ["run"]

ENDLESS = 10**9


def _write_task(folder: Path, task: Task) -> None:
    """What ``flgo.gen_task`` leaves behind."""
    for name in ("record", "log"):
        (folder / name).mkdir(parents=True)
    names = [f"Client{k:04d}" for k in range(task.clients)]
    (folder / "info").write_text(json.dumps({"benchmark": "benchmarks.runtime_peers.flgo_benchmark"}))
    (folder / "data.json").write_text(json.dumps({"client_names": names, "task": task.to_json()}))


def _options(task: Task) -> dict[str, Any]:
    return {
        "num_rounds": ENDLESS,
        "proportion": task.per_round / task.clients,
        "num_steps": task.steps,
        "batch_size": float(task.batch),
        "learning_rate": LEARNING_RATE,
        "aggregate": "uniform",
        "train_holdout": 0.0,
        "eval_interval": 0,
        "torch_num_threads": 1 if task.one_thread else default_workers(),
        "num_parallels": task.workers,
        "parallel_type": "t",
        "log_level": "ERROR",
        "no_log_console": True,
        "no_tqdm": True,
    }


def run(task: Task, gate: Gate) -> None:
    """Train by the runner of ``flgo.init``."""
    import flgo
    from flgo.algorithm.fedbase import BasicClient, BasicServer

    class Algorithm:
        """What ``flgo.init`` takes: FedAvg that passes the gate."""

        class Server(BasicServer):  # type: ignore[misc]
            def iterate(self) -> bool:
                self.selected_clients = self.sample()
                received = self.communicate(self.selected_clients)
                self.model = self.aggregate(received["model"])
                gate.after_round(sum(received["steps"]), lambda: nn.utils.parameters_to_vector(self.model.parameters()))
                return True

        class Client(BasicClient):  # type: ignore[misc]
            taken = 0

            def get_batch_data(self) -> Any:
                self.taken += 1
                return super().get_batch_data()

            def pack(self, model: nn.Module, *arguments: Any, **options: Any) -> dict[str, Any]:
                taken, self.taken = self.taken, 0
                return {"model": model, "steps": taken}

    folder = Path("task").resolve()
    _write_task(folder, task)
    runner = flgo.init(str(folder), Algorithm, _options(task), model=flgo.convert_model(lambda: task.model()))
    gate.ready(lambda: nn.utils.parameters_to_vector(runner.model.parameters()))
    runner.run()
