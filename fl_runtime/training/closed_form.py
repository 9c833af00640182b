"""Hand-derived gradients, several jobs of one chunk at a time: no autograd, no optimiser, hardly an allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fl_runtime.training.batches import Batches
from fl_runtime.training.job import Check, Data, LocalJob
from fl_runtime.training.layers import Flatten, Flow, Stacks, Workspace, flow_of
from fl_runtime.training.layout import Layout

__all__ = ["ClosedFormKernel"]

#: Numbers kept for one piece of a batch on a CPU: more would leave the caches of a core. Pieces are of a multiple of so many samples.
PIECE, PIECE_OF = 5_000_000, 32


class ClosedFormKernel:
    """Trains sequences of the layers in :mod:`fl_runtime.training.layers`; not for use by two threads at once.

    Raises ValueError for another model: ask :func:`~fl_runtime.training.layers.flow_of` first.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], learning_rate: float, prox: float, device: torch.device) -> None:
        flow = flow_of(model, shape)
        if flow is None:
            raise ValueError("the model has layers without hand-derived gradients")
        self.flat = isinstance(flow[0], Flatten)  # then samples are flat from the start: nothing to flatten at every step
        self.flow: list[Flow] = flow[1:] if self.flat else flow
        self.layout = Layout.of(model)
        self.learning_rate, self.prox, self.device = learning_rate, prox, device
        self.work = Workspace(device)
        self.classes = self.layout.shapes[-1][0]  # of the last layer's bias or weight
        kept = self._kept((math.prod(shape),) if self.flat else shape)
        self.piece = max(PIECE_OF, PIECE // kept // PIECE_OF * PIECE_OF) if device.type == "cpu" else None

    def footprint(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Numbers held per job, and per job and sample of a batch: two copies of the parameters, activations, the batch itself."""
        size = math.prod(shape)
        return 2 * self.layout.total, size + self._kept((size,) if self.flat else shape)

    def _kept(self, shape: tuple[int, ...]) -> int:
        total = 0
        for layer in self.flow:
            shape, kept = layer.floats(shape)
            total += kept
        return total

    def train(self, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check) -> None:
        """Train ``jobs`` from ``start`` (P,), the ones with most steps first; job k's update goes to ``out[k]`` (P,).

        ``data[k]``: the samples of job k on the device. ``check`` is called before every step.
        """
        with torch.inference_mode():
            anchors = self.layout.views(start)
            values = [anchor.expand(len(jobs), *anchor.shape).clone(memory_format=torch.contiguous_format) for anchor in anchors]
            stacks = Stacks(values, anchors, self.learning_rate, self.learning_rate * self.prox)
            if self.flat:
                data = [(features.flatten(1), labels) for features, labels in data]
            batches = Batches(jobs, data, self.device, lambda shape: self.work.take(self, "features", shape))
            for step in range(jobs[0].steps):
                check()
                count = batches.load(step)
                self._step(stacks if count == len(jobs) else stacks.first(count), batches, count)
            for row, flat in enumerate(out):
                for value, anchor, view in zip(values, anchors, self.layout.views(flat), strict=True):
                    torch.sub(value[row], anchor, out=view)

    def _step(self, stacks: Stacks, batches: Batches, count: int) -> None:
        features, labels, weights = batches.features[:count], batches.labels[:count], batches.weights[:count]
        # -weight at the label, 0 elsewhere: (n, classes, B)
        targets = torch.zeros(count, self.classes, batches.most, device=self.device).scatter_(1, labels, -weights)
        piece = self.piece or batches.most
        if count > 1 or batches.most <= piece:
            self._descend(stacks, features, targets, weights)
            return
        stacks.collect()
        for first in range(0, batches.most, piece):
            chosen = slice(first, first + piece)
            self._descend(stacks, features[:, chosen], targets[:, :, chosen], weights[:, :, chosen])
        stacks.apply()

    def _descend(self, stacks: Stacks, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        """One gradient of Σ_b weight_b · cross-entropy_b; weights (n, 1, B)."""
        context: dict[int, Tensor] = {}
        values = features.movedim(1, -1)
        if features.dim() > 3:
            values = self.work.take(self, "inputs", values.shape).copy_(values)
        for layer in self.flow:
            values = layer.forward(values, stacks, context, self.work)
        delta = torch.addcmul(targets, torch.softmax(values, 1), weights)
        for k in range(len(self.flow) - 1, -1, -1):
            delta = self.flow[k].backward(delta, stacks, context, self.work, k > 0)
