"""Loss, accuracy and full gradient on many samples, a piece at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
        # a module cannot be called with other parameters by two threads at once: each has a copy
        self._copies: dict[int, nn.Module] = {}
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

    def loss_and_gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy and its gradient (P,), from one pass over the samples."""

        def of_piece(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                loss = functional.cross_entropy(model(x), y, reduction="sum")
                gradients = torch.autograd.grad(loss, list(model.parameters()))
            return loss.detach().double(), torch.cat([gradient.flatten() for gradient in gradients])

        total = torch.zeros(self.layout.total, dtype=torch.float64, device=self.device)
        pieces = self._pieces(of_piece, parameters, features, labels)
        for _, part in pieces:
            total += part
        return float(sum(loss for loss, _ in pieces)) / len(labels), (total / len(labels)).float()

    def clear(self) -> None:
        """Let the copies of the model go."""
        self._copies.clear()

    def _copy(self, worker: int, flat: Tensor) -> nn.Module:
        """The model of a worker, with parameters that look at ``flat``."""
        if worker not in self._copies:
            self._copies[worker] = copy.deepcopy(self.model)
        model = self._copies[worker]
        for parameter, view in zip(model.parameters(), self.layout.views(flat), strict=True):
            parameter.data = view
            parameter.requires_grad_(True)
        return model

    def _pieces(self, of_piece: _OfPiece[_T], parameters: Tensor, features: Tensor, labels: Tensor) -> list[_T]:
        if len(labels) != len(features) or not len(labels):
            raise InputError(f"{len(features)} samples with {len(labels)} labels; must be as many, at least one")
        size = self._size(tuple(features.shape[1:]))
        flat = parameters.detach().to(self.device, torch.float32)
        while True:
            try:
                return self._run(of_piece, flat, features, labels, size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise SolverError(f"one sample does not fit into the memory of {self.device}; use a smaller model") from error
            size = (size + 1) // 2
            self._piece[tuple(features.shape[1:])] = size

    def _run(self, of_piece: _OfPiece[_T], flat: Tensor, features: Tensor, labels: Tensor, size: int) -> list[_T]:
        found: dict[int, _T] = {}
        models: dict[int, nn.Module] = {}

        def task(first: int) -> Task:
            def run(worker: int, check: Check) -> None:
                check()
                if worker not in models:
                    models[worker] = self._copy(worker, flat)
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
