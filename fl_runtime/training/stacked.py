"""All jobs of a chunk at once: parameters stacked along a leading axis, per-job gradients by ``torch.func``."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fl_runtime.training.batches import Batches
from fl_runtime.training.job import Check, Data, LocalJob
from fl_runtime.training.layout import Layout

__all__ = ["StackedKernel", "activation_floats"]


class StackedKernel:
    """Trains any model that ``torch.func.vmap`` can map over; not for use by two threads at once."""

    def __init__(self, model: nn.Module, learning_rate: float, prox: float, device: torch.device) -> None:
        self.learning_rate, self.pull, self.device = learning_rate, learning_rate * prox, device
        self.model = copy.deepcopy(model).to(device)
        self.layout = Layout.of(model)

        def loss(parameters: dict[str, Tensor], features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            logits = functional_call(self.model, parameters, (features,))
            return functional.cross_entropy(logits, labels[0], reduction="none") @ weights[0]

        self._gradients = vmap(grad(loss))

    def footprint(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Numbers held per job, and per job and sample of a batch: parameters and gradients; activations and theirs; the batch itself."""
        sample = shape_floats(shape)
        return 3 * self.layout.total, sample + 3 * activation_floats(self.model, shape, self.device)

    def train(self, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check) -> None:
        """Train ``jobs`` from ``start`` (P,), the ones with most steps first; job k's update goes to ``out[k]`` (P,).

        Jobs of fewer steps leave the stack as they finish; samples that pad a smaller batch have weight 0. ``data[k]``: the samples of
        job k on the device. ``check`` is called before every step.
        """
        batches = Batches(jobs, data, self.device)
        anchors = dict(zip(self.layout.names, self.layout.views(start), strict=True))
        stacks = {name: anchor.expand(len(jobs), *anchor.shape).clone() for name, anchor in anchors.items()}
        for step in range(jobs[0].steps):
            check()
            count = batches.load(step)
            now = {name: stack[:count] for name, stack in stacks.items()}
            gradients = self._gradients(now, batches.features[:count], batches.labels[:count], batches.weights[:count])
            for name, value in now.items():
                if self.pull:
                    value.lerp_(anchors[name].expand_as(value), self.pull)
                value.sub_(gradients[name], alpha=self.learning_rate)
        updates = torch.cat([(stacks[name] - anchor).flatten(1) for name, anchor in anchors.items()], dim=1)
        for row, update in enumerate(out):
            update.copy_(updates[row])


def shape_floats(shape: tuple[int, ...]) -> int:
    """Numbers of one sample."""
    return int(torch.Size(shape).numel())


def activation_floats(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    """Numbers that the layers of ``model`` put out for one sample of ``shape``."""
    total = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel()

    handles = [module.register_forward_hook(count) for module in model.modules() if not list(module.children())]
    try:
        with torch.no_grad():
            model(torch.zeros(1, *shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return total
