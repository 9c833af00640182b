"""One job at a time by autograd: the reference, and what a worker does for models without hand-derived gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_runtime.training.batches import draw_batches
from fl_runtime.training.job import Check, Data, LocalJob
from fl_runtime.training.layout import Layout

__all__ = ["SequentialKernel"]


class SequentialKernel:
    """A private copy of a model whose parameters are views into one flat vector; not for use by two threads at once."""

    def __init__(self, model: nn.Module, learning_rate: float, prox: float, device: torch.device) -> None:
        self.learning_rate, self.pull = learning_rate, learning_rate * prox
        self.model = copy.deepcopy(model).to(device)
        layout = Layout.of(model)
        self.flat = torch.empty(layout.total, device=device)
        self.parameters: list[Tensor] = list(self.model.parameters())
        for parameter, view in zip(self.model.parameters(), layout.views(self.flat), strict=True):
            parameter.data = view
            parameter.requires_grad_(True)

    def train(self, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check) -> None:
        """Train each of ``jobs`` from ``start`` (P,); job k's update goes to ``out[k]`` (P,).

        ``data[k]``: the samples of job k on the device. ``check`` is called before every step.
        """
        for job, (features, labels), update in zip(jobs, data, out, strict=True):
            batches = torch.from_numpy(draw_batches(job.seed, job.steps, job.batch, job.samples)).to(self.flat.device)
            self.flat.copy_(start)
            for chosen in batches:
                check()
                self._step(start, features[chosen], labels[chosen])
            torch.sub(self.flat, start, out=update)

    def _step(self, start: Tensor, features: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            loss = functional.cross_entropy(self.model(features), labels)
            gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            if self.pull:
                self.flat.lerp_(start, self.pull)
            torch._foreach_add_(self.parameters, gradients, alpha=-self.learning_rate)
