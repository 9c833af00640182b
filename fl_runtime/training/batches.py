"""Which samples each local step uses: drawn on the CPU from the job's seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_batches"]


def draw_batches(seed: Sequence[int], steps: int, batch: int, samples: int) -> NDArray[np.int64]:
    """Indices (steps, batch): every row a uniform draw of ``batch`` of ``samples`` without replacement, rows independent.

    The order within a row carries no meaning.
    """
    if batch == samples:
        return np.broadcast_to(np.arange(samples), (steps, samples))
    generator = np.random.default_rng(seed)
    if batch == 1:
        return generator.integers(0, samples, (steps, 1))
    rows = np.empty((steps, batch), dtype=np.int64)
    for row in rows:
        row[:] = generator.choice(samples, batch, replace=False, shuffle=False)
    return rows
