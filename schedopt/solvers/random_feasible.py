"""Random feasible schedules: many seeded draws, the best is kept."""

from __future__ import annotations

import numpy as np

from schedopt.problem import FloatArray, Problem
from schedopt.result import SolveResult
from schedopt.solvers.base import ProgressCallback, SolverSettings
from schedopt.solvers.heuristics import Context, Search, Skeleton, fit, prepare, run_heuristic

__all__ = ["RandomFeasible", "random_skeleton"]

#: Steps and batches of a draw vary by this factor around the draw's own level.
SPREAD = 2.0
#: Draws whose resources are optimised exactly.
FINISHED = 6


def random_skeleton(context: Context, rng: np.random.Generator, activity: float, mean_length: float) -> Skeleton:
    """Every device walks through the slots: with probability ``activity`` it starts a random task, of geometric length.

    Lengths have about the mean ``mean_length`` and respect staleness limits and the horizon.
    """
    a = context.arrays
    rows = []
    for i in np.flatnonzero(context.usable.any(axis=1)):
        tasks = context.tasks_of(int(i))
        start = 0
        while start < a.slots:
            if rng.random() >= activity:
                start += 1
                continue
            task = int(tasks[rng.integers(len(tasks))])
            end = start + min(int(rng.geometric(1.0 / mean_length)), int(a.max_staleness[task]) + 1)
            if end <= a.slots:
                rows.append((i, task, start, end))
            start = end
    return Skeleton(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)

#: Schedules that are drawn.
DRAWS = 200

def _level(rng: np.random.Generator, low: float, high: float, count: int) -> FloatArray:
    """Whole numbers around a level that is log-uniform from ``low`` to ``high``, shape (count,)."""
    level = np.exp(rng.uniform(np.log(low), np.log(max(low, high))))
    return np.maximum(np.round(level * SPREAD ** rng.uniform(-1.0, 1.0, count)), 1.0)


def _explore(search: Search, rng: np.random.Generator) -> None:
    context, a = search.context, search.context.arrays
    most_steps = float(context.steps_limit[context.needed].max())
    longest = min(int(a.max_staleness[context.needed].max()) + 1, a.slots)
    least_batch = float(a.min_batch[context.needed].min())
    most_batch = min(float(a.samples[context.usable].max()), 64.0 * least_batch)
    for draw in range(search.incumbent.settings.max_iterations or DRAWS):
        activity, mean_length = float(rng.uniform(0.05, 1.0)), float(rng.uniform(1.0, longest))
        skeleton = random_skeleton(context, rng, activity, mean_length)
        steps, batch = _level(rng, 1.0, most_steps, len(skeleton)), _level(rng, least_batch, most_batch, len(skeleton))
        search.incumbent.iteration += 1
        search.consider(draw, fit(context, prepare(context, skeleton), steps, batch), "draw")
    search.finish(FINISHED)


class RandomFeasible:
    """The best of ``max_iterations`` (:data:`DRAWS` unless set) random schedules, each with its own activity, length, steps and batch."""

    name = "random_feasible"

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """See :class:`schedopt.solvers.base.Solver`."""
        return run_heuristic(self.name, problem, _explore, settings=settings, seed=seed, progress=progress)
