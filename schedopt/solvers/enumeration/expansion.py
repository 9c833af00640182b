"""From combinations of keys to their joint plans: those that the bounds do not exclude, with sharper bounds of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from schedopt.bounds.async_schedule import C2_LIMIT, STALE_FACTOR
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.solvers.enumeration.combinations import Quote
from schedopt.solvers.enumeration.constants import PRUNE_TOLERANCE
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.relaxation import Relaxation
from schedopt.solvers.enumeration.tables import Tables

__all__ = ["Expansion"]

#: Joint plans that are looked at together: at most, in tests of C2, and in bounds.
MAX_TOGETHER = 2_000_000
CONDITION_BLOCK = 50_000
BOUND_BLOCK = 4096


class Expansion:
    """Joint plans (m, I), each device's as its position in :class:`~schedopt.solvers.enumeration.plans.Plans`, and their bounds.

    ``check`` raises when time is up.
    """

    def __init__(self, problem: Problem, tables: Tables, plans: Sequence[Plans], check: Callable[[], None]) -> None:
        self.problem, self.tables, self.plans, self.check = problem, tables, plans, check

    def expand(self, relaxation: Relaxation, keys: IntArray, quote: Quote, cutoff: float) -> tuple[IntArray, IntArray] | None:
        """Joint plans (m, I) of combinations that the additive bound does not exclude, device by device, and their combination (m,).

        None if they are too many to look at together.
        """
        left, t = relaxation.cell(quote.rate)
        least = relaxation.keys_cost(keys, quote.rate)
        bound = quote.offset + quote.scale * (least.sum(axis=1) - relaxation.paid)
        owner, chosen = np.arange(len(keys)), np.zeros((len(keys), 0), dtype=np.int64)
        for i, plan in enumerate(self.plans):
            self.check()
            count = plan.count[keys[owner, i]]
            if count.sum() > MAX_TOGETHER and len(keys) > 1:
                return None
            parent = np.repeat(np.arange(len(owner)), count)
            position = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
            combination = owner[parent]
            candidate = plan.first[keys[combination, i]] + position
            cost = relaxation.plans_cost(i, candidate, left[combination], t[combination])
            more = bound[parent] + quote.scale[combination] * (cost - least[combination, i])
            keep = more < cutoff
            bound, owner = more[keep], combination[keep]
            chosen = np.column_stack([chosen[parent[keep]], candidate[keep]])
        return chosen, owner

    def best(self, relaxation: Relaxation, keys: IntArray, quote: Quote, each: int) -> tuple[IntArray, IntArray]:
        """All joint plans of the best ``each`` plans of every device in the combinations' keys, and their combination (m,)."""
        left, t = relaxation.cell(quote.rate)
        chosen, owner = [np.zeros((0, len(self.plans)), dtype=np.int64)], []
        for c in range(len(keys)):
            best = []
            for i, plan in enumerate(self.plans):
                mine = plan.first[keys[c, i]] + np.arange(plan.count[keys[c, i]])
                here = np.full(len(mine), c)
                cost = relaxation.plans_cost(i, mine, left[here], t[here])
                best.append(mine[np.argsort(cost, kind="stable")[:each]])
            chosen.append(np.array(list(itertools.product(*best)), dtype=np.int64))
            owner.extend([c] * len(chosen[-1]))
        return np.vstack(chosen), np.array(owner, dtype=np.int64)

    def allowed(self, plans: IntArray, owner: IntArray) -> tuple[IntArray, IntArray]:
        """Those joint plans that meet C2."""
        if not self.problem.objective.enforce_conditions or not len(plans):
            return plans, owner
        beta = self.problem.arrays.smoothness[:, None]
        keep = np.empty(len(plans), dtype=bool)
        for block in range(0, len(plans), CONDITION_BLOCK):
            some = slice(block, block + CONDITION_BLOCK)
            h = beta * sum(plan.h_instant[plans[some, i]] for i, plan in enumerate(self.plans))
            span = beta * sum(plan.span[plans[some, i]] for i, plan in enumerate(self.plans))
            keep[some] = np.all(h + STALE_FACTOR * h * span <= C2_LIMIT * (1 + PRUNE_TOLERANCE), axis=(1, 2))
        return plans[keep], owner[keep]

    def bounds(self, relaxation: Relaxation, plans: IntArray, quote: Quote) -> FloatArray:
        """Lower bounds of joint plans (m, I): T_stale is known, and each slot takes its best price of bandwidth."""
        bounds = np.empty(len(plans))
        for block in range(0, len(plans), BOUND_BLOCK):
            self.check()
            some = np.arange(block, min(block + BOUND_BLOCK, len(plans)))
            bounds[some] = self._bounds(relaxation, plans[some], quote.take(some))
        return bounds

    def _bounds(self, relaxation: Relaxation, plans: IntArray, quote: Quote) -> FloatArray:
        tables, table = self.tables, relaxation.row_cost
        rows = np.stack([plan.rows[plans[:, i]] for i, plan in enumerate(self.plans)], axis=1)
        span = np.sum([plan.span[plans[:, i]] for i, plan in enumerate(self.plans)], axis=0)
        fixed = np.sum([plan.fixed[plans[:, i]] for i, plan in enumerate(self.plans)], axis=0)
        noise, stale, task = (np.append(v, 0) for v in (tables.rows.noise, tables.rows.stale, tables.rows.task))
        total = (quote.rate * fixed).sum(axis=1) - relaxation.budget_paid
        every = np.arange(len(plans))[:, None]
        for g in range(self.problem.arrays.slots):
            row = rows[:, :, g]
            j = task[row]
            price = quote.rate[every, j] * (noise[row] + stale[row] * span[every, j, g + 1])
            dual = tables.read(table, row, price).sum(axis=1) - tables.band[g] * tables.total_band
            total += dual.max(axis=1)
        return quote.offset + quote.scale * total
