"""A schedule with least-energy resources, its exact evaluation, and the merit by which such states compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.formulation.resources import COARSE, allocate
from schedopt.objective import Evaluation, evaluate_objective
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["Merit", "State", "reallocate", "state_of"]

#: Misses below this (relative) are rounding.
_MISS_TOLERANCE = 1e-12


@dataclass(frozen=True)
class State:
    """A schedule with allocated resources and its exact evaluation."""

    schedule: Schedule
    evaluation: Evaluation


def state_of(problem: Problem, schedule: Schedule) -> State | None:
    """Allocate the resources of ``schedule`` and evaluate it; None if no resources do."""
    allocation = allocate(problem.arrays, schedule)
    if allocation is None:
        return None
    return State(allocation.schedule, evaluate_objective(problem, allocation.schedule))


@dataclass(frozen=True)
class Merit:
    """Objective plus an exact penalty on what the limits of the mode are missed by; +inf where C1 or C2 is enforced and fails.

    ``target_price``: per unit by which C + N exceeds (3/8) ε H, shape (J,); ``energy_price``: per J above ``total_energy_j``.
    """

    problem: Problem
    target_price: FloatArray
    energy_price: float
    #: how many times the marginal prices the penalties are
    factor: float = 1.0

    def __call__(self, state: State) -> float:
        """Merit of a state; lower is better."""
        evaluation = state.evaluation
        if not all(np.all(condition.holds) for condition in evaluation.bound.enforced):
            return np.inf
        return evaluation.objective + self.penalty(evaluation)

    def penalty(self, evaluation: Evaluation) -> float:
        """What the misses of targets or of the energy limit cost."""
        missed = self.target_misses(evaluation)
        total = float(self.target_price[missed > 0] @ missed[missed > 0])
        return total + self.energy_price * max(self.energy_miss(evaluation), 0.0)

    def target_misses(self, evaluation: Evaluation) -> FloatArray:
        """(C + N) − (3/8) ε H per task, positive where the target is missed, zero without one, shape (J,)."""
        target = self.problem.arrays.target
        use = np.isfinite(target) & (self.problem.objective.mode == "min_energy")
        bound, h = evaluation.bound.total[use], evaluation.bound.extra["h_total"][use]
        trained = h > 0
        reached = np.where(trained, bound, 0.0) * h - target[use] * h
        # never trained: C + N = C, which is what the first step would have to work off
        untrained = fixed_terms(self.problem.arrays)[use] * FACTOR
        miss = np.zeros(len(target))
        miss[use] = np.where(trained, reached, untrained) / FACTOR
        scale = np.where(use, np.abs(np.where(use, target, 0.0)), 1.0)
        return np.where(np.abs(miss) <= _MISS_TOLERANCE * scale, 0.0, miss)

    def energy_miss(self, evaluation: Evaluation) -> float:
        """Energy above ``total_energy_j`` in J; negative = left; zero without a limit."""
        limit = self.problem.objective.total_energy_j
        if self.problem.objective.mode != "min_bound" or limit is None:
            return 0.0
        miss = evaluation.energy_j - limit
        return 0.0 if abs(miss) <= _MISS_TOLERANCE * limit else miss

    def met(self, evaluation: Evaluation) -> bool:
        """Whether no limit of the mode is missed."""
        return self.energy_miss(evaluation) <= 0 and bool(np.all(self.target_misses(evaluation) <= 0))


def reallocate(problem: Problem, schedule: Schedule, again: np.ndarray) -> State | None:
    """Re-allocate the assignments in the mask ``again`` (whole slots) within what the others leave of the energy budgets.

    Coarse: times and prices to four digits, energies to about eight.
    """
    a = problem.arrays
    if not np.any(again):
        return State(schedule, evaluate_objective(problem, schedule))
    rest = schedule.take(~again)
    budget = a.energy_budget_j
    if np.any(np.isfinite(budget)):
        budget = budget - evaluate_objective(problem, rest).device_energy_j
        budget = np.where(budget > 0, budget, 1e-300)
    allocation = allocate(a, schedule.take(again), budget_j=budget, accuracy=COARSE)
    if allocation is None:
        return None
    merged = rest.concat(allocation.schedule)
    return State(merged, evaluate_objective(problem, merged))
