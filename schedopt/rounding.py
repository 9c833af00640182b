"""From a relaxed point to a schedule: diving over devices, whole steps and batches, least-energy resources (formulation 4c)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, best_paths, price
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.sca.loop import RelaxedSolution, next_model, next_scale
from schedopt.sca.master import MasterPoint, solve_master
from schedopt.sca.pool import promising_columns
from schedopt.schedule import Schedule

__all__ = ["dive", "round_columns"]


def supported_plans(candidates: Candidates, point: MasterPoint[Columns]) -> tuple[IntArray, FloatArray]:
    """Plan of each device with the most weight per slot, and how decided each device is.

    Returns candidate indices of all plans and, per device, the share of its used slots that its plan explains (shape (I,)).
    """
    support = np.bincount(point.columns.candidate, weights=point.weights, minlength=len(candidates))
    length = candidates.end - candidates.start
    cost = np.where(support > 1e-6, -support * length, np.inf)
    paths = best_paths(candidates, cost)
    used = np.bincount(candidates.device, weights=support * length, minlength=candidates.arrays.num_devices)
    # a little more than what the plan explains is idle time that the relaxation wants idle too
    decided = np.divide(-paths.value, used, out=np.ones_like(used), where=used > 1e-9)
    return paths.chosen, decided


def dive(
    problem: Problem,
    candidates: Candidates,
    relaxed: RelaxedSolution,
    *,
    backend: str,
    rounds: int = 10,
    on_round: Callable[[int, MasterPoint], None] | None = None,
) -> tuple[IntArray, MasterPoint] | None:
    """Fix the plans of the most decided devices, re-solve the master, and repeat until all devices have one plan each.

    Returns the chosen candidates and the last master; None if a backend fails on the way.
    """
    num_devices = candidates.arrays.num_devices
    free = np.ones(num_devices, dtype=bool)
    fixed = np.zeros(0, dtype=np.int64)
    point, pool = relaxed.point, relaxed.pool.copy()
    per_round = max(1, int(np.ceil(num_devices / rounds)))
    count = 0
    while np.any(free):
        plans, decided = supported_plans(candidates, point)
        order = np.flatnonzero(free)[np.argsort(-decided[free], kind="stable")]
        chosen = order[:per_round]
        free[chosen] = False
        fixed = np.union1d(fixed, plans[np.isin(candidates.device[plans], chosen)])
        for _ in range(2):
            allowed = free[candidates.device]
            allowed[fixed] = True
            pool.restrict(allowed)
            new = solve_master(problem, candidates, pool.columns, next_model(problem, point), next_scale(problem, point), backend=backend)
            if new is None:
                return None
            point = new
            priced = price(candidates.take(np.flatnonzero(allowed)), point.prices)
            cost = np.full(len(candidates), np.inf)
            index = np.flatnonzero(allowed)
            cost[index] = priced.cost
            columns = priced.columns.relabel(index)
            paths = best_paths(candidates, cost)
            pool.forget(point.weights)
            keep = promising_columns(candidates, columns, paths)
            pool.add(keep)
        count += 1
        if on_round is not None:
            on_round(count, point)
    return fixed, point


def round_columns(problem: Problem, candidates: Candidates, chosen: IntArray, point: MasterPoint[Columns]) -> Schedule:
    """Whole steps and batches for the chosen candidates, near the averages of their columns (resources not yet set).

    Candidates of negligible weight are left out.
    """
    a, columns = problem.arrays, point.columns
    n = len(candidates)
    weight = np.bincount(columns.candidate, weights=point.weights, minlength=n)
    steps = np.bincount(columns.candidate, weights=point.weights * columns.steps, minlength=n)
    work = np.bincount(columns.candidate, weights=point.weights * columns.work, minlength=n)
    k = chosen[weight[chosen] > 0.05]
    if len(k) == 0 and len(chosen):
        # a relaxation that wants a sliver of one assignment: all of it, then
        k = chosen[[int(np.argmax(weight[chosen]))]]
        weight[k] = np.maximum(weight[k], 1e-300)
    i, j = candidates.device[k], candidates.task[k]
    e = np.clip(np.round(steps[k] / weight[k]), 1, candidates.steps.max(axis=1)[j])
    batch = np.clip(np.round(work[k] / weight[k] / e), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(k))
    return Schedule(i, j, candidates.start[k], candidates.end[k], e, batch, zero, zero, zero)
