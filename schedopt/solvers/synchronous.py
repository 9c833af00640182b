"""Synchronous rounds (FedAvg with several models): the devices of a round receive together and are aggregated together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schedopt.problem import IntArray, Problem
from schedopt.result import SolveResult
from schedopt.solvers.base import ProgressCallback, SolverSettings
from schedopt.solvers.heuristics import Context, Search, Skeleton, length_grid, run_heuristic, search_grid

__all__ = ["Synchronous", "synchronous_skeleton"]

#: Periods tried, as multiples of a round's length, and fractions of the devices in a round (FedAvg's C).
PERIODS = (1.0, 2.0, 4.0)
FRACTIONS = (1.0, 0.5, 0.25)


def synchronous_skeleton(context: Context, length: int, period: int, fraction: float, *, alternate: bool) -> Skeleton:
    """Rounds of ``length`` slots that begin every ``period`` slots, with ``fraction`` of the devices each, in rotation.

    ``alternate``: each round trains one task, in turn; otherwise the devices of a round are spread over the tasks, and move on to
    their next task from round to round. A task whose staleness limit is shorter than the round is received later.
    """
    a = context.arrays
    starts = np.arange(0, a.slots - length + 1, period)
    rows = []
    for number, start in enumerate(starts):
        device, task = (_one_task if alternate else _all_tasks)(context, number, fraction)
        begin = start + length - np.minimum(length, a.max_staleness[task] + 1)
        rows.append(np.stack([device, task, begin, np.full(len(device), start + length)]))
    return Skeleton(*np.concatenate(rows, axis=1).astype(np.int64))


def _rotation(devices: IntArray, number: int, fraction: float) -> IntArray:
    """The devices of turn ``number``, in rotation."""
    count = max(1, int(np.ceil(fraction * len(devices))))
    return devices[(number * count + np.arange(count)) % len(devices)]


def _one_task(context: Context, number: int, fraction: float) -> tuple[IntArray, IntArray]:
    tasks = np.flatnonzero(context.usable.any(axis=0))
    task = tasks[number % len(tasks)]
    device = _rotation(np.flatnonzero(context.usable[:, task]), number // len(tasks), fraction)
    return device, np.full(len(device), task)


def _all_tasks(context: Context, number: int, fraction: float) -> tuple[IntArray, IntArray]:
    devices = np.flatnonzero(context.usable.any(axis=1))
    chosen = _rotation(devices, number, fraction)
    # the device's place, not its rank in the round: otherwise a device would meet the same task in every round
    tasks = [context.tasks_of(int(i)) for i in chosen]
    turn = number if fraction == 1.0 else int(number * fraction)
    task = np.array([mine[(int(i) + turn) % len(mine)] for i, mine in zip(chosen, tasks, strict=True)], dtype=np.int64)
    return chosen, task


def _skeletons(context: Context) -> Iterator[Skeleton]:
    slots = context.arrays.slots
    for length in length_grid(context):
        for period in sorted({min(int(np.ceil(factor * length)), slots) for factor in PERIODS} | {slots}):
            for fraction in FRACTIONS:
                for alternate in (True, False):
                    yield synchronous_skeleton(context, int(length), period, fraction, alternate=alternate)


class Synchronous:
    """The best synchronous plan over round lengths, periods, fractions of the devices, steps and batches."""

    name = "synchronous"

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """See :class:`schedopt.solvers.base.Solver`; the seed changes nothing."""

        def explore(search: Search, rng: np.random.Generator) -> None:
            search_grid(search, _skeletons(search.context))

        return run_heuristic(self.name, problem, explore, settings=settings, seed=seed, progress=progress)
