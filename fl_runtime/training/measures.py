"""Loss, accuracy and full gradient on many samples, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fl_runtime.training.job import Check
from fl_runtime.training.layout import Layout
from fl_runtime.training.limits import is_out_of_memory
from fl_runtime.training.stacked import activation_floats
from fl_runtime.training.team import Task, ThreadTeam
from schedopt.errors import InputError, SolverError

__all__ = ["Measures"]

_T = TypeVar("_T")

#: Numbers of a piece's activations on a CPU and on a GPU, and samples of a piece at most.
MOST = {"cpu": 4_000_000, "cuda": 250_000_000}
LARGEST = 8192


class Measures:
    """Sums over samples, piece by piece on the threads of ``team``, added in the order of the pieces and in double precision."""

    def __init__(self, model: nn.Module, layout: Layout, device: torch.device, team: ThreadTeam, memory_bytes: int | None) -> None:
        self.model, self.layout, self.device, self.team = model, layout, device, team
        self.memory_bytes = memory_bytes
        self._piece: dict[tuple[int, ...], int] = {}

    def evaluate(self, parameters: Tensor, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy."""
        named = self._named(parameters)

        def of_piece(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                logits = functional_call(self.model, named, (x,))
                return functional.cross_entropy(logits, y, reduction="sum").double(), (logits.argmax(1) == y).sum()

        pieces = self._pieces(of_piece, features, labels)
        loss = float(sum(loss for loss, _ in pieces)) / len(labels)
        return loss, int(sum(right for _, right in pieces)) / len(labels)

    def gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient (P,) of the mean cross-entropy."""
        named = {name: value.requires_grad_() for name, value in self._named(parameters).items()}

        def of_piece(x: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                loss = functional.cross_entropy(functional_call(self.model, named, (x,)), y, reduction="sum")
                return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(named.values()))])

        total = torch.zeros(self.layout.total, dtype=torch.float64, device=self.device)
        for part in self._pieces(of_piece, features, labels):
            total += part
        return (total / len(labels)).float()

    def _named(self, parameters: Tensor) -> dict[str, Tensor]:
        flat = parameters.detach().to(self.device, torch.float32)
        return {name: view.clone() for name, view in zip(self.layout.names, self.layout.views(flat), strict=True)}

    def _pieces(self, of_piece: Callable[[Tensor, Tensor], _T], features: Tensor, labels: Tensor) -> list[_T]:
        if len(labels) != len(features) or not len(labels):
            raise InputError(f"{len(features)} samples with {len(labels)} labels; must be as many, at least one")
        size = self._size(tuple(features.shape[1:]))
        while True:
            try:
                return self._run(of_piece, features, labels, size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise SolverError(f"one sample does not fit into the memory of {self.device}; use a smaller model") from error
            size = (size + 1) // 2
            self._piece[tuple(features.shape[1:])] = size

    def _run(self, of_piece: Callable[[Tensor, Tensor], _T], features: Tensor, labels: Tensor, size: int) -> list[_T]:
        found: dict[int, _T] = {}

        def task(first: int) -> Task:
            def run(worker: int, check: Check) -> None:
                check()
                chosen = slice(first, first + size)
                found[first] = of_piece(features[chosen].to(self.device), labels[chosen].to(self.device))

            return run

        self.team.run([task(first) for first in range(0, len(labels), size)])
        return [found[first] for first in sorted(found)]

    def _size(self, shape: tuple[int, ...]) -> int:
        if shape not in self._piece:
            sample = int(torch.Size(shape).numel()) + activation_floats(self.model, shape, self.device)
            most = MOST[self.device.type]
            if self.memory_bytes is not None:
                most = min(most, self.memory_bytes // (8 * self.team.workers))
            self._piece[shape] = max(1, min(LARGEST, most // sample))
        return self._piece[shape]
