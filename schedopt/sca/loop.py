"""Column generation and convex–concave iteration in one loop: master, prices, better columns, new iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.errors import SolverError
from schedopt.formulation.candidates import Candidates, Paths, Priced, best_paths, price
from schedopt.problem import FloatArray, Problem
from schedopt.sca.master import MasterPoint, MasterScale, solve_master
from schedopt.sca.pool import ColumnPool, first_columns, promising_columns
from schedopt.sca.surrogates import RatioModel, fixed_terms, majorant

__all__ = ["RelaxedSolution", "relaxed_objective", "solve_relaxation"]


@dataclass(frozen=True)
class RelaxedSolution:
    """Where the loop ended: the last master, its columns, the last pricing, the merit per iteration and the remaining gap.

    ``gap``: how much the best plans at the last prices could still gain, relative to the objective (column generation);
    ``step``: last relative change of (H, N), which is zero at a stationary point of the relaxed problem.
    """

    point: MasterPoint
    pool: ColumnPool
    priced: Priced
    paths: Paths
    merit: tuple[float, ...]
    gap: float
    step: float

    @property
    def iterations(self) -> int:
        """Masters solved."""
        return len(self.merit)


def relaxed_objective(problem: Problem, point: MasterPoint) -> float:
    """Objective of a master's solution with the exact ratios (stale terms apart), plus its priced slack."""
    a, mode = problem.arrays, problem.objective.mode
    if mode == "min_energy":
        return point.value
    ratios = FACTOR * a.weight * (fixed_terms(a) + point.error) / np.maximum(point.h, 1e-300)
    total = float(ratios[a.weight > 0].sum())
    return total + (problem.objective.energy_weight * point.energy_j if mode == "weighted" else 0.0)


def _model(problem: Problem, point: MasterPoint | None, guess: FloatArray) -> RatioModel | None:
    if problem.objective.mode == "min_energy":
        return None
    fixed = fixed_terms(problem.arrays)
    h = guess if point is None else np.maximum(point.h, 1e-9 * guess)
    error = 0.1 * fixed if point is None else np.maximum(point.error, 1e-6 * fixed)
    return majorant(problem.arrays, h, error)


def _scale(problem: Problem, point: MasterPoint | None, guess: FloatArray) -> MasterScale:
    if point is None:
        a = problem.arrays
        unit = float(np.sum(FACTOR * a.weight * fixed_terms(a) / guess)) or 1.0
        if problem.objective.mode == "min_energy":
            unit = float(np.sum(a.max_power_w) * a.slot_s)
        return MasterScale(unit, guess)
    return MasterScale(max(abs(relaxed_objective(problem, point)), 1e-12), np.maximum(point.h, 1e-6 * guess))


def solve_relaxation(
    problem: Problem,
    candidates: Candidates,
    *,
    backend: str,
    max_iterations: int = 60,
    tolerance: float = 1e-4,
    prox: float = 1e-3,
    on_iteration: Callable[[int, MasterPoint, float], None] | None = None,
) -> RelaxedSolution:
    """Stationary point of the relaxed problem over all candidates.

    ``tolerance`` is relative: on what column generation can still gain and on the step in (H, N). ``on_iteration(k, point, merit)`` may
    raise to stop the loop. Raises SolverError if the backend fails on a master.
    """
    pool = ColumnPool(first_columns(problem, candidates))
    guess = _first_guess(problem, pool, candidates)
    point: MasterPoint | None = None
    merit: list[float] = []
    while True:
        centre = guess if point is None else point.h
        scale, model = _scale(problem, point, guess), _model(problem, point, guess)
        use_prox = 0.0 if point is None else prox
        new = solve_master(problem, candidates, pool.columns, model, scale, backend=backend, prox=use_prox, centre=centre)
        if new is None:
            raise SolverError(f"backend {backend} failed on a master of {len(pool)} columns; try another --backend")
        step = np.inf if point is None else float(np.max(np.abs(new.h - point.h) / np.maximum(point.h, 1e-12)))
        point = new
        merit.append(relaxed_objective(problem, point))
        if on_iteration is not None:
            on_iteration(len(merit), point, merit[-1])
        priced = price(candidates, point.prices)
        paths = best_paths(candidates, priced.cost)
        gap = (-float(paths.value.sum()) - point.slot_value) / max(abs(merit[-1]), 1e-12)
        done = gap < tolerance and step < 10 * tolerance and point.slack < 1e-6
        if done or len(merit) >= max_iterations:
            return RelaxedSolution(point, pool, priced, paths, tuple(merit), gap, step)
        pool.forget(point.weights)
        pool.add(promising_columns(candidates, priced, paths))


def _first_guess(problem: Problem, pool: ColumnPool, candidates: Candidates) -> FloatArray:
    """H of each task if every device spent an equal share of its slots on an average column of it, shape (J,)."""
    a, columns = problem.arrays, pool.columns
    task = candidates.task[columns.candidate]
    length = (candidates.end - candidates.start)[columns.candidate]
    rate = np.bincount(task, weights=columns.h / length, minlength=a.num_tasks)
    count = np.maximum(np.bincount(task, minlength=a.num_tasks), 1)
    return np.maximum(rate / count * a.slots * a.num_devices / a.num_tasks, 1e-12)
