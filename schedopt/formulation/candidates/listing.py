"""What counts as a candidate assignment: all (device, task, start, end) that some choice of resources makes possible."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from schedopt.bounds.async_schedule import C1_LIMIT, data_error
from schedopt.errors import InputError
from schedopt.formulation.resources import MARGIN
from schedopt.formulation.uplink import Uploads, uploads_of
from schedopt.problem import TERMS, FloatArray, IntArray, Problem, ProblemArrays

__all__ = [
    "MAX_ASSIGNMENTS",
    "MAX_STEP_GRID",
    "Candidates",
    "build_candidates",
    "candidates_among",
    "check_size",
    "step_grid",
    "steps_limit",
]

#: Up to this many numbers of steps are all tried; beyond, a geometric grid of about this size.
MAX_STEP_GRID = 48
#: More possible assignments than this are refused: :func:`build_candidates` alone takes about 200 bytes for each.
MAX_ASSIGNMENTS = 20_000_000
#: Pairs of a candidate and its steps whose constants are kept between pricings.
REMEMBERED = 1 << 22


@dataclass(frozen=True)
class Candidates:
    """All assignments that can be carried out alone, parallel arrays of shape (n,), and the grid of steps, shape (J, m).

    ``available_s``: time for compute plus upload; ``uploads``: constants of the uploads; ``scale``: multipliers of the terms.
    """

    arrays: ProblemArrays
    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    available_s: FloatArray
    uploads: Uploads
    #: (J, m): steps tried per task (0 = no entry), ascending, and the first steps of the block that each entry ends
    steps: IntArray
    block: IntArray
    #: error terms that are linear in h (scaled): shape (n,)
    linear_error: FloatArray
    scale: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.device)

    @property
    def staleness(self) -> IntArray:
        """κ, shape (n,)."""
        return self.end - 1 - self.start

    @cached_property
    def _codes(self) -> IntArray:
        """One number per candidate, ascending (candidates are ordered by device, task, end and length)."""
        return self._code(self.device, self.task, self.start, self.end)

    def _code(self, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> IntArray:
        slots = self.arrays.slots + 1
        return ((device * self.arrays.num_tasks + task) * slots + end) * slots + (end - start)

    def find(self, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> IntArray:
        """Index of each (device, task, start, end). Raises KeyError if one is not a candidate."""
        codes = self._code(device, task, start, end)
        index = np.searchsorted(self._codes, codes)
        if np.any(index >= len(self)) or np.any(self._codes[index] != codes):
            raise KeyError("not a candidate assignment")
        return index

    @property
    def remembered(self) -> bool:
        """Whether what does not depend on prices is kept for all candidates."""
        return len(self) * self.steps.shape[1] <= REMEMBERED

    @cached_property
    def templates(self) -> tuple[Candidates, IntArray]:
        """The best case of every (device, task, length), with the best channel of the horizon; and which of them each candidate has."""
        a = self.arrays
        codes = (self.device * a.num_tasks + self.task) * (a.slots + 1) + self.end - self.start
        _, first, of = np.unique(codes, return_index=True, return_inverse=True)
        best = self.take(first)
        noise, error = np.full(len(first), np.inf), np.full(len(first), np.inf)
        np.minimum.at(noise, of, self.uploads.noise_over_gain)
        np.minimum.at(error, of, self.linear_error)
        return replace(best, uploads=replace(best.uploads, noise_over_gain=noise), linear_error=error), of.astype(np.int32)

    @property
    def compute_templates(self) -> tuple[Candidates, IntArray]:
        """The same where all candidates of a template must cost the same at any prices, but for their uploads."""
        # by windows, what h is worth and what its data cost depends on when it is uploaded
        return self.templates if self.arrays.windows is None else (self, np.arange(len(self), dtype=np.int32))

    @cached_property
    def memory(self) -> dict[tuple[int, int, bool], Any]:
        """What :func:`~.cells.chunk_of` remembers."""
        return {}

    def take(self, index: object) -> Candidates:
        """The candidates at ``index``."""
        names = ("device", "task", "start", "end", "available_s", "linear_error")
        cut = {name: getattr(self, name)[index] for name in names}
        return Candidates(self.arrays, **cut, uploads=self.uploads.take(index), steps=self.steps, block=self.block, scale=self.scale)


def steps_limit(problem: Problem) -> IntArray:
    """Largest number of steps of each task: ``max_steps``, and C1 where conditions are enforced; shape (J,), 0 = none allowed."""
    a = problem.arrays
    limit = a.max_steps.astype(float)
    if a.enforced == "theorem":
        limit = np.minimum(limit, np.floor(C1_LIMIT / (a.learning_rate * a.smoothness) * (1.0 + MARGIN)))
    return limit.astype(np.int64)


def step_grid(limits: IntArray) -> tuple[IntArray, IntArray]:
    """Steps to try per task and the block of steps that each stands for, both (J, m); unused entries are zero."""
    rows = []
    for limit in limits:
        if limit <= MAX_STEP_GRID:
            rows.append(np.arange(1, limit + 1))
        else:
            rows.append(np.unique(np.round(np.geomspace(1, limit, MAX_STEP_GRID)).astype(np.int64)))
    width = max((len(row) for row in rows), default=0)
    steps = np.zeros((len(rows), max(width, 1)), dtype=np.int64)
    block = np.zeros_like(steps)
    for j, row in enumerate(rows):
        steps[j, : len(row)] = row
        block[j, : len(row)] = np.concatenate([[1], row[:-1] + 1])[: len(row)]
    return steps, block


def check_size(pairs: int, slots: int, lengths: int = 1) -> None:
    """Refuse what would exhaust memory: more than :data:`MAX_ASSIGNMENTS` of pairs (device, task) x slots x lengths.

    Raises :class:`~schedopt.errors.InputError`.
    """
    product = pairs * slots * lengths
    if product > MAX_ASSIGNMENTS:
        factors = f"{pairs:,} pairs of device and task x {slots:,} slots"
        if lengths > 1:
            factors += f" x {lengths:,} lengths (max_staleness + 1)"
        raise InputError(f"problem too large: {factors} = {product:,}; must be at most {MAX_ASSIGNMENTS:,}")


def build_candidates(problem: Problem) -> Candidates:
    """All (device, task, start, end) that some choice of resources makes possible, ordered by device, task, end and length.

    Raises :class:`~schedopt.errors.InputError` if there are too many (see :func:`check_size`).
    """
    a = problem.arrays
    pair_device, pair_task = np.nonzero(a.has_data)
    longest = int(min(a.max_staleness.max() + 1, a.slots))
    check_size(len(pair_device), a.slots, longest)
    pair, end, length = (x.ravel() for x in np.indices((len(pair_device), a.slots, longest), dtype=np.int64))
    device, task, end, length = pair_device[pair], pair_task[pair], end + 1, length + 1
    return candidates_among(problem, device, task, end, length)


def candidates_among(
    problem: Problem, device: IntArray, task: IntArray, end: IntArray, length: IntArray, *, anywhere: bool = False
) -> Candidates:
    """Those of the given assignments (index arrays of one shape, instants and slots) that some choice of resources makes possible.

    ``anywhere``: they stand for all of their length, so that they may seem to start before instant 0.
    """
    a = problem.arrays
    limit = steps_limit(problem)
    keep = (anywhere | (length <= end)) & (length - 1 <= a.max_staleness[task]) & (limit[task] >= 1)
    keep &= (a.samples[device, task] >= a.min_batch[task]) & (a.aggregation_weight[device, task] > 0)
    device, task, end, length = device[keep], task[keep], end[keep], length[keep]
    uploads = uploads_of(a, device, task, end)
    available = (length * a.slot_s - a.model_bits[task] / a.downlink_bps[device]) * (1.0 - MARGIN)
    fastest = a.cycles_per_sample[device, task] * a.min_batch[task] / a.freq_max_hz[device] * (1.0 + MARGIN)
    shortest = uploads.shortest_s * (1.0 + MARGIN)
    possible = (shortest <= a.slot_s * (1.0 - MARGIN)) & (shortest + fastest <= available)
    steps, block = step_grid(limit)
    scale = dict(zip(TERMS, a.term_scale.tolist(), strict=True))
    linear = scale["data"] * 2.0 * data_error(a, device, task, end - length, end)
    if problem.objective.participation == "instant":
        linear = linear + scale["part"] * 2.0 * a.dissimilarity[device, task] ** 2
    everything = Candidates(a, device, task, end - length, end, available, uploads, steps, block, linear, scale)
    return everything.take(possible)
