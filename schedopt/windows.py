"""Windows of the horizon, over which participation may be judged: instants mP+1..(m+1)P form window m, the last one may be shorter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["WINDOW_TAG", "Windows"]

#: What errors call the branch of a ``participation`` that is an object.
WINDOW_TAG = "window object"

Instants = TypeVar("Instants", int, NDArray[np.int64])


@dataclass(frozen=True)
class Windows:
    """``slots`` G cut into windows of ``length`` P instants. Window m starts from the model of instant mP."""

    slots: int
    length: int

    @property
    def count(self) -> int:
        """Number of windows M = ceil(G/P)."""
        return -(-self.slots // self.length)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Instant of the model that each window starts from, shape (M,)."""
        return np.arange(self.count, dtype=np.int64) * self.length

    def of_upload(self, end: Instants) -> Instants:
        """Window in which an upload due at instant ``end`` = 1..G is aggregated."""
        return (end - 1) // self.length

    def of_model(self, start: Instants) -> Instants:
        """Window whose models w^{mP}..w^{(m+1)P−1} hold the one of instant ``start``; the first model belongs to it."""
        return start // self.length

    def distance(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots between the reception at ``start`` and the start of the window of the upload at ``end``."""
        return np.abs(self.of_upload(end) * self.length - start)
