"""One job at a time by autograd: the reference, and what each worker does for models without hand-derived gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_runtime.training.batches import draw_batches
from fl_runtime.training.job import LocalJob
from fl_runtime.training.layout import Layout

__all__ = ["SequentialKernel"]


class SequentialKernel:
    """A private copy of a model whose parameters are views into one flat vector; not for use by two threads at once."""

    def __init__(self, model: nn.Module, learning_rate: float, prox: float, device: torch.device) -> None:
        self.learning_rate, self.prox = learning_rate, prox
        self.model = copy.deepcopy(model).to(device)
        self.layout = Layout.of(model)
        self.flat = torch.empty(self.layout.total, device=device)
        self.parameters = list(self.model.parameters())
        for parameter, view in zip(self.parameters, self.layout.views(self.flat), strict=True):
            parameter.data = view
            parameter.requires_grad_(True)

    def train(self, start: Tensor, job: LocalJob, features: Tensor, labels: Tensor, out: Tensor) -> None:
        """Train from ``start`` (P,) on the job's data as they lie on the device; the update goes to ``out`` (P,)."""
        batches = torch.from_numpy(draw_batches(job.seed, job.steps, job.batch, job.samples)).to(self.flat.device)
        pull = self.learning_rate * self.prox
        with torch.no_grad():
            self.flat.copy_(start)
        for chosen in batches:
            logits = self.model(features[chosen])
            loss = functional.cross_entropy(logits, labels[chosen])
            gradients = torch.autograd.grad(loss, self.parameters)
            with torch.no_grad():
                if pull:
                    self.flat.lerp_(start, pull)
                torch._foreach_add_(self.parameters, gradients, alpha=-self.learning_rate)
        torch.sub(self.flat.detach(), start, out=out)
