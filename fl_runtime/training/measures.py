"""Loss, accuracy and full gradient on many samples, a piece at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_runtime.training.job import Check
from fl_runtime.training.layout import Layout
from fl_runtime.training.limits import is_out_of_memory
from fl_runtime.training.stacked import activation_floats
from fl_runtime.training.team import Task, ThreadTeam
from schedopt.errors import InputError, SolverError

__all__ = ["Measures"]

_T = TypeVar("_T")
_OfPiece = Callable[[nn.Module, Tensor, Tensor], _T]

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

        def of_piece(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                logits = model(x)
                return functional.cross_entropy(logits, y, reduction="sum").double(), (logits.argmax(1) == y).sum()

        pieces = self._pieces(of_piece, parameters, features, labels)
        loss = float(sum(loss for loss, _ in pieces)) / len(labels)
        return loss, int(sum(right for _, right in pieces)) / len(labels)

    def gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient (P,) of the mean cross-entropy."""

        def of_piece(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                loss = functional.cross_entropy(model(x), y, reduction="sum")
                return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))])

        total = torch.zeros(self.layout.total, dtype=torch.float64, device=self.device)
        for part in self._pieces(of_piece, parameters, features, labels):
            total += part
        return (total / len(labels)).float()

    def _set(self, model: nn.Module, flat: Tensor) -> nn.Module:
        for parameter, view in zip(model.parameters(), self.layout.views(flat), strict=True):
            parameter.data = view
            parameter.requires_grad_(True)
        return model

    def _pieces(self, of_piece: _OfPiece[_T], parameters: Tensor, features: Tensor, labels: Tensor) -> list[_T]:
        if len(labels) != len(features) or not len(labels):
            raise InputError(f"{len(features)} samples with {len(labels)} labels; must be as many, at least one")
        size = self._size(tuple(features.shape[1:]))
        flat = parameters.detach().to(self.device, torch.float32)
        # a module cannot be called with other parameters by two threads at once: each has a copy, with parameters that look at `flat`
        models = [self._set(copy.deepcopy(self.model), flat) for _ in range(self.team.workers)]
        while True:
            try:
                return self._run(of_piece, models, features, labels, size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise SolverError(f"one sample does not fit into the memory of {self.device}; use a smaller model") from error
            size = (size + 1) // 2
            self._piece[tuple(features.shape[1:])] = size

    def _run(self, of_piece: _OfPiece[_T], models: Sequence[nn.Module], features: Tensor, labels: Tensor, size: int) -> list[_T]:
        found: dict[int, _T] = {}

        def task(first: int) -> Task:
            def run(worker: int, check: Check) -> None:
                check()
                chosen = slice(first, first + size)
                found[first] = of_piece(models[worker], features[chosen].to(self.device), labels[chosen].to(self.device))

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
