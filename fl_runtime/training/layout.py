"""Where each parameter lies in the flat vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's parameters in the order of ``model.parameters()``."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of ``model``."""
        named = list(model.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(tuple(parameter.shape) for _, parameter in named))

    @property
    def total(self) -> int:
        """Number of parameters P."""
        return sum(math.prod(shape) for shape in self.shapes)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views into ``flat`` (..., P), one per parameter: (..., *shape)."""
        pieces = flat.split([math.prod(shape) for shape in self.shapes], dim=-1)
        return [piece.unflatten(-1, shape) if shape else piece[..., 0] for piece, shape in zip(pieces, self.shapes, strict=True)]
