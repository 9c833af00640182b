"""Column generation and convex–concave iteration in one loop: master, prices, better columns, new iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.errors import SolverError
from schedopt.formulation.candidates import Candidates, Paths, Priced, best_paths, price
from schedopt.problem import FloatArray, Problem
from schedopt.sca.master import MasterPoint, MasterScale, solve_master
from schedopt.sca.pool import ColumnPool, first_columns, promising_columns
from schedopt.sca.surrogates import RatioModel, majorant, partial_linearisation

__all__ = ["RelaxedSolution", "first_scale", "model_at", "next_model", "next_scale", "relaxed_objective", "solve_relaxation"]

#: H of a task that a master leaves out, over what it could be at most; keeps ratios finite.
_TINY = 1e-12
#: Masters whose prices are kept for bounds.
_KEPT = 8


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
    #: the last masters, whose prices make good cuts
    points: tuple[MasterPoint, ...]

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


def next_model(problem: Problem, point: MasterPoint, *, safe: bool = False) -> RatioModel | None:
    """Surrogate at a master's solution (``safe``: the majorant); None in mode min_energy, whose targets are exact rows."""
    return model_at(problem, point.h, point.error, safe)


def model_at(problem: Problem, h: FloatArray, error: FloatArray, safe: bool) -> RatioModel | None:
    """Surrogate at given H and N, shape (J,); see :func:`next_model`."""
    if problem.objective.mode == "min_energy":
        return None
    fixed = fixed_terms(problem.arrays)
    surrogate = majorant if safe else partial_linearisation
    return surrogate(problem.arrays, np.maximum(h, _least_h(problem)), np.maximum(error, 1e-6 * fixed))


def next_scale(problem: Problem, point: MasterPoint) -> MasterScale:
    """Scaling from a master's solution."""
    return MasterScale(max(abs(relaxed_objective(problem, point)), 1e-12), np.maximum(point.h, _least_h(problem)))


def _least_h(problem: Problem) -> FloatArray:
    """Next to nothing of H, shape (J,): far below what any task's training comes to."""
    a = problem.arrays
    return _TINY * a.learning_rate * a.server_rate * a.max_steps


def first_scale(problem: Problem, guess: FloatArray) -> MasterScale:
    """Scaling before any master, from a guess of H, shape (J,)."""
    a = problem.arrays
    unit = float(np.sum(FACTOR * a.weight * fixed_terms(a) / guess)) or 1.0
    if problem.objective.mode == "min_energy":
        unit = float(np.sum(a.max_power_w) * a.slot_s)
    return MasterScale(unit, guess)


def solve_relaxation(
    problem: Problem,
    candidates: Candidates,
    *,
    backend: str,
    max_iterations: int = 60,
    tolerance: float = 1e-4,
    prox: float = 1e-3,
    start: MasterPoint | None = None,
    pool: ColumnPool | None = None,
    on_iteration: Callable[[int, MasterPoint, float], None] | None = None,
) -> RelaxedSolution:
    """Stationary point of the relaxed problem over all candidates.

    ``tolerance`` is relative: on what column generation can still gain and on the step in (H, N). ``on_iteration(k, point, merit)`` may
    raise to stop the loop. Raises SolverError if the backend fails on a master.
    """
    pool = ColumnPool(first_columns(problem, candidates)) if pool is None else pool
    point = start
    best: MasterPoint | None = None
    merit: list[float] = []
    points: list[MasterPoint] = []
    safe = False
    while True:
        if point is None:
            guess = _first_guess(problem, pool, candidates)
            scale, model = first_scale(problem, guess), model_at(problem, guess, 0.1 * fixed_terms(problem.arrays), True)
        else:
            scale, model = next_scale(problem, point), next_model(problem, point, safe=safe)
        use_prox = 0.0 if point is None else prox
        new = solve_master(problem, candidates, pool.columns, model, scale, backend=backend, prox=use_prox)
        if new is None and not points:
            # a first guess far off may be badly scaled: the splitting method is slow but does not break down
            new = solve_master(problem, candidates, pool.columns, model, scale, backend="scs")
        if new is None and not points:
            raise SolverError(f"backend {backend} failed on a master of {len(pool)} columns; try another --backend")
        if new is None:
            # what is known is a valid relaxed point, if not a stationary one: the residual that is reported says how far off
            point = best if best is not None else points[-1]
            priced = price(candidates, point.prices)
            paths = best_paths(candidates, priced.cost)
            return RelaxedSolution(point, pool, priced, paths, tuple(merit), np.inf, np.inf, tuple(points[-_KEPT:]))
        step = np.inf if point is None else float(np.max(np.abs(new.h - point.h) / np.maximum(point.h, _least_h(problem))))
        value = relaxed_objective(problem, new)
        # the partial linearisation may overshoot: go back and take a step of the majorant, which cannot
        safe = best is not None and new.slack < 1e-6 and value > relaxed_objective(problem, best) * (1.0 + 1e-9)
        point = best if safe and best is not None else new
        best = point if new.slack < 1e-6 else best
        merit.append(relaxed_objective(problem, point))
        points.append(new)
        if on_iteration is not None:
            on_iteration(len(merit), point, merit[-1])
        priced = price(candidates, new.prices)
        paths = best_paths(candidates, priced.cost)
        gap = (-float(paths.value.sum()) - new.slot_value) / max(abs(merit[-1]), 1e-12)
        settled = len(merit) > 3 and merit[-3] - merit[-1] < tolerance * abs(merit[-1])
        done = gap < tolerance and settled and new.slack < 1e-6
        if done or len(merit) >= max_iterations:
            return RelaxedSolution(point, pool, priced, paths, tuple(merit), gap, step, tuple(points[-_KEPT:]))
        pool.forget(new.weights)
        pool.add(promising_columns(candidates, priced.columns, paths))


def _first_guess(problem: Problem, pool: ColumnPool, candidates: Candidates) -> FloatArray:
    """H of each task if every device spent an equal share of its slots on an average column of it, shape (J,)."""
    a, columns = problem.arrays, pool.columns
    task = candidates.task[columns.candidate]
    length = (candidates.end - candidates.start)[columns.candidate]
    rate = np.bincount(task, weights=columns.h / length, minlength=a.num_tasks)
    count = np.maximum(np.bincount(task, minlength=a.num_tasks), 1)
    return np.maximum(rate / count * a.slots * a.num_devices / a.num_tasks, _least_h(problem))
