"""Local training of one task on many devices."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_runtime.training.batches import draw_batches
from fl_runtime.training.job import LocalJob, check_jobs
from fl_runtime.training.layout import Layout
from fl_runtime.training.sequential import SequentialKernel
from fl_runtime.training.stacked import StackedKernel
from schedopt.errors import InputError

__all__ = ["PATHS", "LocalTrainer"]

PATHS = ("auto", "sequential", "stacked")
#: Samples of a chunk of evaluate and gradient.
CHUNK = 1000


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LocalTrainer:
    """All local jobs of one task that start from the same global model: w <- w - η [g(w) + ρ (w - w_start)]."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        prox: float = 0.0,
        device: str | torch.device = "cpu",
        path: str = "auto",
        workers: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        if path not in PATHS:
            raise InputError(f"path = {path!r}; must be one of {', '.join(PATHS)}")
        self.device = torch.device(device)
        self.model = copy.deepcopy(model).to(self.device)
        self.layout = Layout.of(model)
        self.learning_rate, self.prox = learning_rate, prox
        self.chosen_path = "sequential" if path == "auto" else path

    def train(self, start: Tensor, jobs: Sequence[LocalJob]) -> Tensor:
        """Updates w_end - w_start, (n, P) in the order of ``jobs``."""
        check_jobs(list(jobs))
        out = torch.empty(len(jobs), self.layout.total, device=self.device)
        start = start.to(self.device)
        with one_thread():
            if self.chosen_path == "sequential":
                kernel = SequentialKernel(self.model, self.learning_rate, self.prox, self.device)
                for row, job in enumerate(jobs):
                    kernel.train(start, job, job.features.to(self.device), job.labels.to(self.device), out[row])
            elif jobs:
                order = sorted(range(len(jobs)), key=lambda k: -jobs[k].steps)
                stack = StackedKernel(self.model, self.learning_rate, self.prox, self.device)
                sorted_jobs = [jobs[k] for k in order]
                batches = [torch.from_numpy(draw_batches(j.seed, j.steps, j.batch, j.samples)).to(self.device) for j in sorted_jobs]
                data = [(j.features.to(self.device), j.labels.to(self.device)) for j in sorted_jobs]
                out[torch.tensor(order)] = stack.train(start, sorted_jobs, batches, data)
        return out

    def evaluate(self, parameters: Tensor, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on (n, *shape) features and (n,) labels."""
        loss, right = 0.0, 0
        nn.utils.vector_to_parameters(parameters.to(self.device), self.model.parameters())
        with torch.no_grad():
            for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
                logits, y = self.model(x.to(self.device)), y.to(self.device)
                loss += float(functional.cross_entropy(logits, y, reduction="sum"))
                right += int((logits.argmax(1) == y).sum())
        return loss / len(labels), right / len(labels)

    def gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient (P,) of the mean cross-entropy."""
        total = torch.zeros(self.layout.total, device=self.device)
        nn.utils.vector_to_parameters(parameters.to(self.device), self.model.parameters())
        values = list(self.model.parameters())
        for x, y in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            loss = functional.cross_entropy(self.model(x.to(self.device)), y.to(self.device), reduction="sum")
            total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, values)])
        return total / len(labels)

    def close(self) -> None:
        """End what the trainer started."""
