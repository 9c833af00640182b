"""Exact solution of one joint plan: slot by slot, or where limits bind, over vectors of options by increasing Lagrangian value."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.budgets import split_for_budgets
from schedopt.solvers.enumeration.constants import PRUNE_TOLERANCE
from schedopt.solvers.enumeration.joint_plan import Choice, JointPlan
from schedopt.solvers.enumeration.lagrangian import Lagrangian, best_lagrangian
from schedopt.solvers.enumeration.tables import Prices

__all__ = ["JointSolver"]

#: Vectors times options of the next slot that are looked at together.
BLOCK = 500_000


class JointSolver:
    """Minimises a :class:`~schedopt.solvers.enumeration.joint_plan.JointPlan` over batches and resources.

    ``check`` raises when time is up; ``prices``: at which the bounds of other joint plans may be tight, None if nothing was found out.
    """

    def __init__(self, plan: JointPlan, check: Callable[[], None]) -> None:
        self.plan, self.check = plan, check
        self.prices: Prices | None = None

    def solve(self, cutoff: float, start: FloatArray | None = None) -> Choice | None:
        """The optimum if it is below ``cutoff``, else None (also if the joint plan is infeasible).

        ``start``: multipliers of the limits to begin with.
        """
        plan = self.plan
        zero = np.zeros(len(plan.limits))
        start = zero if start is None else start
        if any(Lagrangian(plan, values).dual() >= cutoff for values in (zero, start)):
            return None
        picks = np.array([plan.cheapest(k) for k in range(len(plan.slots))], dtype=np.int64)
        objective = plan.objective(picks)
        if not objective < cutoff:
            return None
        self.prices = plan.prices(picks, zero)
        if plan.within(picks):
            return plan.choice(objective, picks, zero)
        return self._solve_limited(cutoff, start)

    def _solve_limited(self, cutoff: float, start: FloatArray) -> Choice | None:
        """Enumerate the vectors of options by increasing Lagrangian value until no other can be better."""
        plan = self.plan
        least = sum(plan.activity(k).min(axis=1) for k in range(len(plan.slots)))
        if np.any(least > plan.limits.allowed):
            return None
        # no feasible vector costs more than this: a dual value above it proves that there is none
        cutoff = min(cutoff, (1 + PRUNE_TOLERANCE) * plan.most())
        lagrangian = best_lagrangian(plan, start, cutoff)
        self.prices = plan.prices(lagrangian.cheapest(), lagrangian.multipliers)
        best: Choice | None = None
        gap = 1e-5 * abs(lagrangian.dual())
        while True:
            ceiling = cutoff if best is None else min(cutoff, best.objective)
            if lagrangian.dual() >= ceiling:
                return best
            lagrangian.refine(gap)
            best = self._least_within(lagrangian, gap, ceiling) or best
            ceiling = cutoff if best is None else min(cutoff, best.objective)
            if ceiling <= lagrangian.dual() + gap or gap >= lagrangian.spread():
                return best
            gap *= 4.0

    def _least_within(self, lagrangian: Lagrangian, gap: float, ceiling: float) -> Choice | None:
        """Best feasible vector of options below ``ceiling`` among those whose Lagrangian is within ``gap`` of the dual value."""
        best: Choice | None = None
        for picks, bound in self._vectors(lagrangian, gap):
            for o in np.argsort(bound, kind="stable"):
                if bound[o] >= ceiling:
                    break
                found = self._accept(picks[o], ceiling, lagrangian.multipliers)
                if found is not None:
                    best, ceiling = found, found.objective
        return best

    def _vectors(self, lagrangian: Lagrangian, gap: float) -> Iterator[tuple[IntArray, FloatArray]]:
        """Blocks of vectors of options (v, slots) with lower bounds on their objectives (v,)."""
        plan = self.plan
        every, limits = range(len(plan.slots)), len(plan.limits)
        cost, activity = [plan.cost(k) for k in every], [plan.activity(k) for k in every]
        rest = [sum((activity[q].min(axis=1) for q in every if q > k), np.zeros(limits)) for k in every]
        reduced, dual = lagrangian.reduced(), lagrangian.dual()
        stack = [(np.zeros((1, 0), dtype=np.int64), np.full(1, plan.const), np.zeros(1), np.zeros((1, limits)))]
        while stack:
            picks, objective, spent, used = stack.pop()
            k = picks.shape[1]
            if k == len(plan.slots):
                yield picks, np.maximum(objective, dual + spent)
                continue
            options = np.flatnonzero(reduced[k] <= gap)
            block = max(1, BLOCK // max(len(options), 1))
            if len(picks) > block:
                stack.append((picks[block:], objective[block:], spent[block:], used[block:]))
                picks, objective, spent, used = picks[:block], objective[:block], spent[:block], used[:block]
            p, o = (x.ravel() for x in np.meshgrid(np.arange(len(picks)), options, indexing="ij"))
            more, use = spent[p] + reduced[k][o], used[p] + activity[k][:, o].T
            keep = (more <= gap) & np.all(use + rest[k] <= plan.limits.allowed, axis=1)
            p, o = p[keep], o[keep]
            stack.append((np.column_stack([picks[p], o]), objective[p] + cost[k][o], more[keep], use[keep]))

    def _accept(self, picks: IntArray, ceiling: float, multipliers: FloatArray) -> Choice | None:
        """The solution of picks if they are feasible below ``ceiling``; it supplies the prices."""
        self.check()
        plan = self.plan
        for slot, o in zip(plan.slots, picks, strict=True):
            slot.refine(np.array([o]))
        objective = plan.objective(picks)
        if not objective < ceiling:
            return None
        within = plan.within(picks)
        choice = plan.choice(objective, picks, multipliers) if within else self._within_budgets(picks, objective, ceiling, multipliers)
        if choice is not None:
            self.prices = plan.prices(picks, multipliers)
        return choice

    def _within_budgets(self, picks: IntArray, objective: float, ceiling: float, multipliers: FloatArray) -> Choice | None:
        """The solution of picks with the bands split anew, None if that does not make it feasible below ``ceiling``."""
        plan = self.plan
        shared = [k for k, slot in enumerate(plan.slots) if len(slot.rows) > 1]
        if not shared or not any(d >= 0 for d in plan.limits.device):
            return None
        splits = split_for_budgets(plan, picks, shared, objective, ceiling, self.check)
        if splits is None:
            return None
        parts = plan.parts(picks)
        for k, split in splits.items():
            parts[k] = split.energy[0] + plan.slots[k].receive_j
        more = sum(float(parts[k].sum() - plan.slots[k].energy[picks[k]]) for k in shared)
        value = objective + plan.terms.energy_weight * more
        if value >= ceiling or np.any(plan.used(picks, parts) > plan.limits.limit + 2 * plan.limits.rounding):
            return None
        return plan.choice(value, picks, multipliers, splits)
