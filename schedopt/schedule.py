"""The schedule: a set of assignments with their resources, and the scheduling tensors R, U, Π made from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from schedopt.problem import FloatArray, IntArray, Problem

__all__ = ["SCHEDULE_SCHEMA", "Schedule", "Tensors"]

SCHEDULE_SCHEMA = "schedopt.schedule/1"


@dataclass(frozen=True)
class Tensors:
    """Scheduling tensors of the paper, each of shape (I, J, G+1), int8: ``receive`` R, ``upload`` U, ``occupancy`` Π."""

    receive: np.ndarray
    upload: np.ndarray
    occupancy: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """Assignments as parallel arrays of one length n, in the order of the file.

    ``device``, ``task`` index the problem's lists; the device receives at instant ``start`` and its update is aggregated at instant
    ``end``; ``steps`` local SGD steps of mini-batch ``batch`` at ``freq_hz``, upload at ``power_w`` over ``bandwidth_hz``.
    ``steps`` and ``batch`` are whole numbers in a schedule that is written; formulas accept fractions of a relaxed one.
    """

    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    steps: FloatArray
    batch: FloatArray
    freq_hz: FloatArray
    power_w: FloatArray
    bandwidth_hz: FloatArray

    def __post_init__(self) -> None:
        lengths = set()
        for field in fields(self):
            dtype = np.int64 if field.name in ("device", "task", "start", "end") else np.float64
            array = np.array(getattr(self, field.name), dtype=dtype).reshape(-1)
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)
            lengths.add(len(array))
        if len(lengths) != 1:
            raise ValueError(f"arrays of a schedule must have one length, got {sorted(lengths)}")

    @classmethod
    def empty(cls) -> Schedule:
        """A schedule without assignments."""
        nothing: list[Any] = [[]] * 9
        return cls(*nothing)

    @classmethod
    def from_records(cls, records: Iterable[Sequence[float]]) -> Schedule:
        """From rows ``(device, task, start, end, steps, batch, freq_hz, power_w, bandwidth_hz)``."""
        rows = np.array(list(records), dtype=float).reshape(-1, 9)
        return cls(*rows.T)

    def __len__(self) -> int:
        return len(self.device)

    @property
    def length(self) -> IntArray:
        """Slots b − a that each assignment occupies, shape (n,)."""
        return self.end - self.start

    @property
    def staleness(self) -> IntArray:
        """κ = b − 1 − a, aggregation instants missed by each assignment, shape (n,)."""
        return self.end - 1 - self.start

    def take(self, index: np.ndarray | Sequence[int]) -> Schedule:
        """The assignments at ``index`` (positions or a mask)."""
        return Schedule(*(getattr(self, field.name)[index] for field in fields(self)))

    def sorted(self) -> Schedule:
        """The same assignments ordered by start, end, device and task: the order in which files are written."""
        return self.take(np.lexsort((self.task, self.device, self.end, self.start)))

    def replace(self, **arrays: Any) -> Schedule:
        """A copy with some arrays exchanged."""
        return replace(self, **arrays)

    def concat(self, other: Schedule) -> Schedule:
        """Both schedules' assignments."""
        return Schedule(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def tensors(self, problem: Problem) -> Tensors:
        """R, U and Π[i,j,g] = Σ_{h≤g} (R − U) of this schedule (formulation section 1)."""
        arrays = problem.arrays
        shape = (arrays.num_devices, arrays.num_tasks, arrays.slots + 1)
        receive, upload = np.zeros(shape, dtype=np.int8), np.zeros(shape, dtype=np.int8)
        np.add.at(receive, (self.device, self.task, self.start), 1)
        np.add.at(upload, (self.device, self.task, self.end), 1)
        return Tensors(receive, upload, np.cumsum(receive - upload, axis=2, dtype=np.int8))

    @property
    def digest(self) -> str:
        """SHA-256 of the assignments in file order, hexadecimal."""
        h = hashlib.sha256()
        for field in fields(self):
            h.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return h.hexdigest()
