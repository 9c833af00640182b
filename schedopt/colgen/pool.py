"""Columns of many devices that a master chooses among, without duplicates, and for how many masters each has been idle."""

from __future__ import annotations

import numpy as np

from schedopt.formulation.tables import PlanColumns
from schedopt.problem import FloatArray

__all__ = ["SharedPool"]

_MAX_AGE = 2
#: Odd 64-bit numbers that a column's fields are multiplied with to tell columns apart.
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD], dtype=np.uint64)


class SharedPool:
    """``columns``; ``idle``: masters in a row in which each was not used."""

    def __init__(self, columns: PlanColumns) -> None:
        self.columns = columns.take(slice(0, 0))
        self.idle = np.zeros(0, dtype=np.int64)
        self._codes = np.zeros(0, dtype=np.uint64)
        self.add(columns)

    def __len__(self) -> int:
        return len(self.columns)

    def add(self, columns: PlanColumns) -> int:
        """Add the columns that are new (to about four digits); returns how many were."""
        codes = _codes(columns)
        different, first = np.unique(codes, return_index=True)
        first = np.sort(first[~np.isin(different, self._codes)])
        self.columns = PlanColumns.join([self.columns, columns.take(first)])
        self.idle = np.concatenate([self.idle, np.zeros(len(first), dtype=np.int64)])
        self._codes = np.concatenate([self._codes, codes[first]])
        return len(first)

    def forget(self, weights: FloatArray) -> None:
        """Count the masters in which each column was idle (weight ≈ 0), and drop those that have been idle for long."""
        self.idle = np.where(weights > 1e-6, 0, self.idle + 1)
        keep = self.idle <= _MAX_AGE
        self.columns, self.idle, self._codes = self.columns.take(keep), self.idle[keep], self._codes[keep]


def _codes(columns: PlanColumns) -> np.ndarray:
    """A number per column that says which assignment it is and with which resources."""
    places = ((columns.device * 4096 + columns.task) * 65536 + columns.start) * 65536 + columns.end
    values = (columns.work, columns.upload_s, columns.bandwidth_hz)
    digits = [np.round(np.log(np.maximum(value, 1e-300)) * 1e4).astype(np.int64) for value in values]
    code = np.zeros(len(columns), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part, mix in zip([places, columns.steps.astype(np.int64), *digits], _MIX, strict=True):
            code = (code ^ part.astype(np.uint64)) * mix
            code ^= code >> np.uint64(29)
    return code
