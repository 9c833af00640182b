"""The exact objective of a schedule, with its breakdown: the judge of every solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import AsyncScheduleBound
from schedopt.bounds.base import BoundValue
from schedopt.physics import AssignmentPhysics, evaluate_physics
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["Evaluation", "evaluate_objective", "needed_tasks", "weighted_bound"]


@dataclass(frozen=True)
class Evaluation:
    """Exact value of a schedule.

    ``objective``: the minimised quantity of the problem's mode; ``energy_j``: Σ_s E_s; ``task_energy_j``, ``task_assignments``: shape
    (J,); ``device_energy_j``: shape (I,); ``bound``: Theorem 1 per task; ``physics``: per assignment.
    """

    objective: float
    energy_j: float
    task_energy_j: FloatArray
    task_assignments: np.ndarray
    device_energy_j: FloatArray
    bound: BoundValue
    physics: AssignmentPhysics


def needed_tasks(problem: Problem) -> np.ndarray:
    """Tasks that must be trained for a finite objective: those with a target in mode min_energy, else those of positive weight.

    Shape (J,), bool.
    """
    if problem.objective.mode == "min_energy":
        return np.isfinite(problem.arrays.target)
    return problem.arrays.weight > 0


def weighted_bound(weight: FloatArray, bound: FloatArray) -> float:
    """Σ_j γ_j Ψ_j, where a task of weight zero counts nothing even if it is never trained (Ψ = +inf)."""
    return float(np.sum(np.multiply(weight, bound, out=np.zeros(len(weight)), where=weight > 0)))


def evaluate_objective(problem: Problem, schedule: Schedule) -> Evaluation:
    """Energy, bounds and objective (formulation section 4) of any schedule, feasible or not.

    weighted: Σ γ_j Ψ_j + ξ Σ E_s; min_energy: Σ E_s; min_bound: Σ γ_j Ψ_j.
    """
    arrays, mode = problem.arrays, problem.objective.mode
    physics = evaluate_physics(problem, schedule)
    bound = AsyncScheduleBound().evaluate(problem, schedule)
    energy = physics.energy_j
    total = float(energy.sum())
    if mode == "min_energy":
        objective = total
    else:
        objective = weighted_bound(arrays.weight, bound.total)
        if mode == "weighted":
            objective += problem.objective.energy_weight * total
    return Evaluation(
        objective=objective,
        energy_j=total,
        task_energy_j=np.bincount(schedule.task, weights=energy, minlength=arrays.num_tasks),  # type: ignore[arg-type]  # stubs know no weights
        task_assignments=np.bincount(schedule.task, minlength=arrays.num_tasks),
        device_energy_j=np.bincount(schedule.device, weights=energy, minlength=arrays.num_devices),  # type: ignore[arg-type]  # stubs know no weights
        bound=bound,
        physics=physics,
    )
