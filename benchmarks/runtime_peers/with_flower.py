"""Flower: a ``ServerApp`` with the strategy FedAvg and a ``ClientApp``, in its simulation on Ray.

``parallel`` gives each client one core, so that Flower starts as many actors as there are cores; by default it is two cores a client.
Data and model are kept in the actors from round to round.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import Task, sgd

__all__ = ["run"]

ENDLESS = 10**9


@lru_cache(maxsize=1)
def _kept(text: str) -> tuple[Task, nn.Module]:
    """The task and a model of this actor."""
    task = Task.from_json(text)
    return task, task.model()


def _vector(arrays: Any) -> Tensor:
    return torch.cat([array.reshape(-1) for array in arrays.to_torch_state_dict().values()])


def run(task: Task, gate: Gate) -> None:
    """Train by ``run_simulation``."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    text = task.to_json()
    client = ClientApp()
    server = ServerApp()

    @client.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        known, model = _kept(text)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        number = int(context.node_config["partition-id"])
        taken = sgd(model, known.workload.features[number], known.workload.labels[number], known.steps, known.batch)
        metrics = MetricRecord({"num-examples": known.samples, "steps": taken})
        return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    steps = [0]

    def add(records: list[RecordDict], key: str) -> MetricRecord:
        steps[0] = sum(int(record["metrics"]["steps"]) for record in records)
        return MetricRecord({"steps": steps[0]})

    def passing(number: int, arrays: ArrayRecord) -> None:
        if number == 0:
            gate.ready(lambda: _vector(arrays))
        else:
            gate.after_round(steps[0], lambda: _vector(arrays))

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=task.per_round / task.clients,
            fraction_evaluate=0.0,
            min_available_nodes=task.clients,
            train_metrics_aggr_fn=add,
        )
        strategy.start(grid, ArrayRecord(task.model().state_dict()), num_rounds=ENDLESS, evaluate_fn=passing)

    settings: dict[str, Any] = {"init_args": {"include_dashboard": False}}  # it would only take time from the actors
    if task.parallel:
        settings["client_resources"] = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(server, client, task.clients, backend_config=settings)
