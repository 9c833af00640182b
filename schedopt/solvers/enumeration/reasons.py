"""Why a problem has no feasible schedule, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedopt.bounds.async_schedule import C1_LIMIT
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.rows import Rows, most_steps
from schedopt.solvers.enumeration.sizes import count_plans
from schedopt.solvers.enumeration.terms import Terms

__all__ = ["infeasibility", "unaffordable", "untrainable"]


def untrainable(terms: Terms, rows: Rows) -> str:
    """Why some task can never be trained by any device, empty if each can."""
    a = terms.problem.arrays
    for j in np.flatnonzero(terms.relevant):
        if np.any(rows.task == j):
            continue
        name = terms.problem.tasks[j].name
        if most_steps(terms, int(j)) < 1:
            return f"task {name}: condition C1 (learning_rate * smoothness * steps <= {C1_LIMIT:g}) forbids even one step"
        if not np.any(a.has_data[:, j] & (a.samples[:, j] >= a.min_batch[j]) & (a.server_weight[:, j] > 0)):
            return f"task {name}: no device holds min_batch = {a.min_batch[j]} samples and a positive weight"
        return f"task {name}: no device can receive, compute one step and upload within max_staleness + 1 slots at full speed and power"
    return ""


def unaffordable(terms: Terms, plans: Sequence[Plans]) -> str:
    """Which task no device's energy budget allows to train, empty if there is none."""
    most = sum(plan.h.max(axis=0) for plan in plans)
    for j in np.flatnonzero(terms.relevant & (most <= 0)):
        name = terms.problem.tasks[j].name
        return f"task {name}: no device's energy_budget_j allows even one step of the smallest batch with the whole band"
    return ""


def infeasibility(terms: Terms) -> str:
    """Which constraints exclude every joint plan, as far as the problem tells."""
    problem, names = terms.problem, ["spectrum and deadlines"]
    if np.any(np.isfinite(problem.arrays.energy_budget_j)):
        names.append("the energy budgets (energy_budget_j)")
    if terms.has_total_energy:
        names.append(f"total_energy_j = {terms.total_energy:g}")
    if terms.has_targets:
        names.append("the targets")
    if problem.objective.enforce_conditions:
        names.append("the conditions C1 and C2")
    joint = float(np.prod(count_plans(problem), dtype=float))
    return f"no plan trains every task within {', '.join(names)}: all {joint:.4g} joint plans are excluded"
