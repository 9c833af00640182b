"""What a child process is to train: the common workload, and the model that all start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.runtime.workload import LEARNING_RATE, Setting, Workload, load_workload
from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training.limits import default_workers

__all__ = ["LEARNING_RATE", "Task", "batches", "sgd"]

#: Samples of each client that the loss is computed on.
JUDGED = 50


@dataclass(frozen=True)
class Task:
    """A model and the sizes of the workload; ``one_thread`` and ``parallel`` as in :class:`~benchmarks.runtime_peers.registry.Mode`."""

    model_name: str
    clients: int = 100
    samples: int = 600
    per_round: int = 20
    steps: int = 10
    batch: int = 32
    one_thread: bool = True
    parallel: bool = False

    def to_json(self) -> str:
        """The task as one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        """The task of ``to_json``."""
        return Task(**json.loads(text))

    @property
    def setting(self) -> Setting:
        """Clients a round, steps and batch."""
        return Setting(self.per_round, self.steps, self.batch)

    @property
    def workers(self) -> int:
        """Processes, threads or actors of a peer that has some."""
        return default_workers() if self.parallel else 1

    @cached_property
    def workload(self) -> Workload:
        """Samples of every client; read at first use, so that processes which need none read none."""
        return load_workload(self.clients, self.samples)

    def model(self) -> nn.Module:
        """A new module with the parameters that all start from."""
        model = build_model(self.model_name, (1, 28, 28), 10)
        nn.utils.vector_to_parameters(initial_parameters(model, 0), model.parameters())
        return model

    def loss(self, parameters: Tensor) -> float:
        """Mean cross-entropy of parameters (P,) on the first samples of every client."""
        model = self.model()
        nn.utils.vector_to_parameters(parameters.detach().clone(), model.parameters())
        features = torch.cat([part[:JUDGED] for part in self.workload.features])
        labels = torch.cat([part[:JUDGED] for part in self.workload.labels])
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(features), labels))


def batches(features: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples in random order, a batch at a time, by index: what is faster than ``torch.utils.data.DataLoader`` and as short."""
    order = torch.randperm(len(labels))
    for begin in range(0, len(labels), batch):
        chosen = order[begin : begin + batch]
        yield features[chosen], labels[chosen]


def sgd(model: nn.Module, features: Tensor, labels: Tensor, steps: int, batch: int) -> int:
    """The local training of peers whose users write it themselves; steps that were taken."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    taken = 0
    while taken < steps:
        for some, wanted in batches(features, labels, batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(some), wanted).backward()
            optimiser.step()
            taken += 1
            if taken == steps:
                break
    return taken
