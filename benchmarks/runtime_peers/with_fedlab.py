"""FedLab: its ``StandalonePipeline`` with the FedAvg server, and its serial trainer with local training that stops after so many steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.stubs import stub_torchvision
from benchmarks.runtime_peers.task import Task, sgd

__all__ = ["run"]

ENDLESS = 10**9


def run(task: Task, gate: Gate) -> None:
    """Train by ``StandalonePipeline.main``."""
    gate.remark = stub_torchvision()
    from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
    from fedlab.contrib.algorithm.basic_server import SyncServerHandler
    from fedlab.core.standalone import StandalonePipeline

    features, labels = task.workload.features, task.workload.labels

    class Trainer(SGDSerialClientTrainer):  # type: ignore[misc]
        taken = 0

        def local_process(self, payload: list[Tensor], id_list: list[int]) -> None:
            for client in id_list:
                self.set_model(payload[0])
                self.taken += sgd(self.model, features[client], labels[client], task.steps, task.batch)
                self.cache.append([self.model_parameters])

    class Handler(SyncServerHandler):  # type: ignore[misc]
        def global_update(self, buffer: Any) -> None:
            super().global_update(buffer)
            taken, trainer.taken = trainer.taken, 0
            gate.after_round(taken, lambda: self.model_parameters)

    class Pipeline(StandalonePipeline):  # type: ignore[misc]
        def evaluate(self) -> None:
            """Nothing; FedLab's own prints a line."""

    trainer = Trainer(task.model(), task.clients)
    handler = Handler(task.model(), ENDLESS, task.per_round / task.clients)
    gate.ready(lambda: handler.model_parameters)
    Pipeline(handler, trainer).main()
