"""FLGo's two classes of a benchmark. Batches are taken by index, which is faster than the data loader of FLGo's own benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flgo.benchmark.base
import torch
from torch import Tensor, nn

from benchmarks.runtime_peers.task import Task, batches

__all__ = ["TaskCalculator", "TaskPipe"]


@dataclass
class _Loader:
    features: Tensor
    labels: Tensor
    batch: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.features, self.labels, self.batch)


class TaskPipe(flgo.benchmark.base.BasicTaskPipe):  # type: ignore[misc]
    """Hands each client its samples; the file of the task has their names and the sizes."""

    def load_data(self, running_time_option: dict[str, Any]) -> dict[str, Any]:
        """Data of the server (none) and of the clients."""
        workload = Task.from_json(self.feddata["task"]).workload
        data: dict[str, Any] = {"server": {"test": None, "val": None}}
        for name, features, labels in zip(self.feddata["client_names"], workload.features, workload.labels, strict=True):
            data[name] = {"train": torch.utils.data.TensorDataset(features, labels), "val": None, "test": None}
        return data


class TaskCalculator(flgo.benchmark.base.BasicTaskCalculator):  # type: ignore[misc]
    """Cross-entropy."""

    def get_dataloader(self, dataset: Any, batch_size: int = 64, *arguments: Any, **options: Any) -> _Loader:
        """Batches of a client's samples."""
        return _Loader(*dataset.tensors, batch_size)

    def compute_loss(self, model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The mean over a batch."""
        return {"loss": nn.functional.cross_entropy(model(data[0]), data[1])}
