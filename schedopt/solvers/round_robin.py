"""Round robin: every device works in turn, at a fixed rhythm, on its tasks in turn; uploads are spread evenly over the slots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schedopt.problem import Problem
from schedopt.result import SolveResult
from schedopt.solvers.base import ProgressCallback, SolverSettings
from schedopt.solvers.heuristics import Context, Search, Skeleton, length_grid, run_heuristic, search_grid

__all__ = ["RoundRobin", "round_robin_skeleton"]

#: Periods tried, as multiples of the length of an assignment.
PERIODS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


def round_robin_skeleton(context: Context, length: int, period: int) -> Skeleton:
    """One assignment of ``length`` slots every ``period`` slots and device; device k of n begins at slot k·period/n.

    A task whose staleness limit is shorter than ``length`` gets shorter assignments.
    """
    a = context.arrays
    devices = np.flatnonzero(context.usable.any(axis=1))
    rows = []
    for rank, i in enumerate(devices):
        tasks = context.tasks_of(int(i))
        start = np.arange(rank * period // len(devices), a.slots, period)
        task = tasks[(rank + np.arange(len(start))) % len(tasks)]
        end = start + np.minimum(length, a.max_staleness[task] + 1)
        rows.append(np.stack([np.full(len(start), i), task, start, end])[:, end <= a.slots])
    return Skeleton(*np.concatenate(rows, axis=1).astype(np.int64))


def _skeletons(context: Context) -> Iterator[Skeleton]:
    slots = context.arrays.slots
    for length in length_grid(context):
        periods = {min(int(np.ceil(factor * length)), slots) for factor in PERIODS} | {slots}
        for period in sorted(periods):
            yield round_robin_skeleton(context, int(length), period)


class RoundRobin:
    """The best round robin over lengths, periods, steps and batches."""

    name = "round_robin"

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """See :class:`schedopt.solvers.base.Solver`; the seed changes nothing."""

        def explore(search: Search, rng: np.random.Generator) -> None:
            search_grid(search, _skeletons(search.context))

        return run_heuristic(self.name, problem, explore, settings=settings, seed=seed, progress=progress)
