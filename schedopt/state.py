"""A schedule with least-energy resources, its exact evaluation, and one number to compare such states by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.formulation.resources import COARSE, allocate
from schedopt.objective import Evaluation, evaluate_objective
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["State", "merit", "reallocate", "state_of"]

#: A miss of a target or energy limit, relative, costs this many times the objective: moves then restore feasibility first.
_MISS_WEIGHT = 1e3
#: Misses below this are rounding.
_MISS_TOLERANCE = 1e-12


@dataclass(frozen=True)
class State:
    """A schedule with allocated resources, its exact evaluation and merit (objective plus priced misses; +inf if not allowed)."""

    schedule: Schedule
    evaluation: Evaluation
    merit: float


def merit(problem: Problem, evaluation: Evaluation) -> float:
    """Objective plus what missing a target or the energy limit costs; +inf if C1 or C2 is enforced and fails."""
    objective, a = problem.objective, problem.arrays
    if objective.enforce_conditions and not all(np.all(condition.holds) for condition in evaluation.bound.conditions):
        return np.inf
    value = evaluation.objective
    miss = 0.0
    if objective.mode == "min_energy":
        use = np.isfinite(a.target)
        miss = float(np.sum(np.maximum(evaluation.bound.total[use] / a.target[use] - 1.0, 0.0)))
    elif objective.mode == "min_bound" and objective.total_energy_j is not None:
        miss = max(evaluation.energy_j / objective.total_energy_j - 1.0, 0.0)
    return value if miss <= _MISS_TOLERANCE else value + _MISS_WEIGHT * miss * max(abs(value), 1e-12)


def state_of(problem: Problem, schedule: Schedule) -> State | None:
    """Allocate the resources of ``schedule`` and evaluate it; None if no resources do."""
    allocation = allocate(problem.arrays, schedule)
    if allocation is None:
        return None
    evaluation = evaluate_objective(problem, allocation.schedule)
    return State(allocation.schedule, evaluation, merit(problem, evaluation))


def reallocate(problem: Problem, schedule: Schedule, again: np.ndarray) -> State | None:
    """Re-allocate the assignments in the mask ``again`` (whole slots) within what the others leave of the energy budgets."""
    a = problem.arrays
    if not np.any(again):
        evaluation = evaluate_objective(problem, schedule)
        return State(schedule, evaluation, merit(problem, evaluation))
    rest = schedule.take(~again)
    budget = a.energy_budget_j
    if np.any(np.isfinite(budget)):
        budget = budget - evaluate_objective(problem, rest).device_energy_j
        budget = np.where(budget > 0, budget, 1e-300)
    allocation = allocate(a, schedule.take(again), budget_j=budget, accuracy=COARSE)
    if allocation is None:
        return None
    merged = rest.concat(allocation.schedule)
    evaluation = evaluate_objective(problem, merged)
    return State(merged, evaluation, merit(problem, evaluation))
