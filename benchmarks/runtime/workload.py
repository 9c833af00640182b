"""The common workload: 100 clients of 600 MNIST images, 20 of them a round, 10 local steps with batches of 32."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fl_runtime.datasets import load_dataset
from fl_runtime.training import LocalJob
from schedopt.errors import SchedOptError

__all__ = ["LEARNING_RATE", "Setting", "Workload", "load_workload", "plain_round"]

LEARNING_RATE = 0.05
SHAPE, CLASSES = (1, 28, 28), 10


@dataclass(frozen=True)
class Setting:
    """Clients a round, local steps and batch."""

    clients: int = 20
    steps: int = 10
    batch: int = 32

    @property
    def total(self) -> int:
        """Client-local steps of a round."""
        return self.clients * self.steps


@dataclass(frozen=True)
class Workload:
    """Samples of every client, and where they come from."""

    features: Sequence[Tensor]
    labels: Sequence[Tensor]
    source: str

    def jobs(self, setting: Setting, number: int) -> list[LocalJob]:
        """The jobs of round ``number``: clients drawn anew."""
        chosen = np.random.default_rng((number, 1)).choice(len(self.features), setting.clients, replace=False)
        return [
            LocalJob(self.features[k], self.labels[k], setting.steps, min(setting.batch, len(self.labels[k])), (number, int(k)))
            for k in chosen
        ]


def load_workload(clients: int = 100, samples: int = 600) -> Workload:
    """MNIST from SCHEDOPT_DATA_DIR, ../shared/data or the cache, in order; random numbers of its shape if it is not there."""
    folder = os.environ.get("SCHEDOPT_DATA_DIR") or Path(__file__).resolve().parents[2].parent / "shared" / "data"
    try:
        dataset = load_dataset("mnist", data_dir=folder if Path(folder).is_dir() else None, download=False)
    except SchedOptError:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(clients * samples, *SHAPE, generator=generator)
        labels = torch.randint(0, CLASSES, (clients * samples,), generator=generator)
        source = "random numbers of MNIST's shape (MNIST not found)"
    else:
        size = clients * samples
        features = torch.from_numpy(dataset.standardize(dataset.train_features[:size]))
        labels = torch.from_numpy(np.array(dataset.train_labels[:size], dtype=np.int64))
        source = "MNIST"
    # a copy each: clients of a simulation do not lie in one array
    parts = range(0, clients * samples, samples)
    return Workload([features[k : k + samples].clone() for k in parts], [labels[k : k + samples].clone() for k in parts], source)


def plain_round(model: nn.Module, start: Tensor, jobs: Sequence[LocalJob]) -> Tensor:
    """What one writes without a framework: a module, ``torch.optim.SGD``, a batch by index, one client after the other."""
    updates = []
    for job in jobs:
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for _ in range(job.steps):
            chosen = torch.randperm(job.samples)[: job.batch]
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(job.features[chosen]), job.labels[chosen])
            loss.backward()
            optimiser.step()
        updates.append(nn.utils.parameters_to_vector(model.parameters()).detach() - start)
    return torch.stack(updates)
