"""All jobs of a chunk at once: parameters stacked along a leading axis, per-job gradients by ``torch.func``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fl_runtime.training.job import LocalJob
from fl_runtime.training.layout import Layout

__all__ = ["StackedKernel"]


class StackedKernel:
    """Trains any model that ``torch.func.vmap`` can map over."""

    def __init__(self, model: nn.Module, learning_rate: float, prox: float, device: torch.device) -> None:
        self.learning_rate, self.prox, self.device = learning_rate, prox, device
        self.layout = Layout.of(model)

        def loss(parameters: dict[str, Tensor], features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            logits = functional_call(model, parameters, (features,))
            return functional.cross_entropy(logits, labels, reduction="none") @ weights

        self._gradients = vmap(grad(loss))

    def train(self, start: Tensor, jobs: Sequence[LocalJob], batches: Sequence[Tensor], data: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Updates (n, P) of ``jobs``, which must come with the most steps first.

        Jobs of fewer steps leave the stack as they finish; samples that pad a smaller batch have weight 0.
        """
        active = [sum(job.steps > step for job in jobs) for step in range(jobs[0].steps)]
        most = max(job.batch for job in jobs)
        weights = torch.zeros(len(jobs), most, device=self.device)
        labels = torch.zeros(len(jobs), most, dtype=torch.int64, device=self.device)
        features = torch.zeros(len(jobs), most, *jobs[0].features.shape[1:], device=self.device)
        for row, job in enumerate(jobs):
            weights[row, : job.batch] = 1.0 / job.batch
        anchors = self.layout.views(start)
        stacks = [anchor.expand(len(jobs), *anchor.shape).clone() for anchor in anchors]
        for step, count in enumerate(active):
            for row in range(count):
                chosen = batches[row][step]
                torch.index_select(data[row][0], 0, chosen, out=features[row, : len(chosen)])
                torch.index_select(data[row][1], 0, chosen, out=labels[row, : len(chosen)])
            now = [stack[:count] for stack in stacks]
            gradients = self._gradients(dict(zip(self.layout.names, now, strict=True)), features[:count], labels[:count], weights[:count])
            for value, anchor, name in zip(now, anchors, self.layout.names, strict=True):
                if self.prox:
                    value.lerp_(anchor.expand_as(value), self.learning_rate * self.prox)
                value.sub_(gradients[name], alpha=self.learning_rate)
        return torch.cat([(stack - anchor).flatten(1) for stack, anchor in zip(stacks, anchors, strict=True)], dim=1)
