"""Lower bounds of plans, and of keys over their plans, at fixed prices of bandwidth and budgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.tables import Prices, Tables

__all__ = ["Relaxation"]


class Relaxation:
    """Lower bounds of combinations of keys and of plans at fixed prices of bandwidth and budgets.

    ``row_cost`` (R+1, N, M): :meth:`Tables.least`; ``plan_cost[i][j]`` (P, Q): cost of a device's plans in one task at the rates
    ``nodes[j]`` (Q,); ``key_cost[i]`` (K, Q^J): least total over the plans of a key; ``paid``: what the prices give back, in J.
    """

    def __init__(self, problem: Problem, tables: Tables, plans: Sequence[Plans], nodes: Sequence[FloatArray], prices: Prices) -> None:
        a, rows = problem.arrays, tables.rows
        self.tables, self.plans, self.nodes = tables, plans, nodes
        self.row_cost = tables.least(prices.budget)
        budgets = np.where(prices.budget > 0, a.energy_budget_j, 0.0)
        self.budget_paid = float((prices.budget * budgets).sum())
        self.paid = self.budget_paid + float(tables.band[np.arange(a.slots), prices.band].sum()) * a.bandwidth_hz
        node = np.append(prices.band[rows.end - 1], 0)
        at_band = np.take_along_axis(self.row_cost, node[:, None, None], axis=2)[..., 0]
        self.plan_cost = [[self._plan_costs(plan, at_band, j) for j in range(a.num_tasks)] for plan in plans]
        self.key_cost = [self._key_costs(plan, costs) for plan, costs in zip(plans, self.plan_cost, strict=True)]

    def _plan_costs(self, plan: Plans, at_band: FloatArray, j: int) -> FloatArray:
        rows = self.tables.rows
        mine = np.flatnonzero(rows.task == j)
        cost = np.zeros((len(rows) + 1, len(self.nodes[j])))
        for q, rate in enumerate(self.nodes[j]):
            cost[mine, q] = rate * rows.fixed[mine] + self.tables.read(at_band, mine, rate * rows.noise[mine])
        return cost[plan.rows].sum(axis=1)

    @staticmethod
    def _key_costs(plan: Plans, costs: Sequence[FloatArray]) -> FloatArray:
        total = costs[0]
        for cost in costs[1:]:
            total = (total[:, :, None] + cost[:, None, :]).reshape(len(total), -1)
        return np.minimum.reduceat(total, plan.first, axis=0)

    def cell(self, rate: FloatArray) -> tuple[IntArray, FloatArray]:
        """Node left of each rate and the position between it and the next, both (n, J)."""
        left, t = np.zeros(rate.shape, dtype=np.int64), np.zeros(rate.shape)
        for j, nodes in enumerate(self.nodes):
            left[:, j] = np.clip(np.searchsorted(nodes, rate[:, j], side="right") - 1, 0, len(nodes) - 2)
            low = nodes[left[:, j]]
            t[:, j] = np.clip((rate[:, j] - low) / (nodes[left[:, j] + 1] - low), 0.0, 1.0)
        return left, t

    def keys_cost(self, keys: IntArray, rate: FloatArray) -> FloatArray:
        """Least cost of each device's key at the rates, (n, I): multilinear interpolation of concave functions, hence from below."""
        left, t = self.cell(rate)
        cost = np.zeros(keys.shape)
        for corner in itertools.product((0, 1), repeat=rate.shape[1]):
            flat, share = np.zeros(len(rate), dtype=np.int64), np.ones(len(rate))
            for j, side in enumerate(corner):
                flat = flat * len(self.nodes[j]) + left[:, j] + side
                share = share * (t[:, j] if side else 1 - t[:, j])
            for i, table in enumerate(self.key_cost):
                cost[:, i] += share * table[keys[:, i], flat]
        return cost

    def plans_cost(self, device: int, plan: IntArray, left: IntArray, t: FloatArray) -> FloatArray:
        """Least cost of plans of a device at rates given by their cells."""
        cost = np.zeros(len(plan))
        for j, table in enumerate(self.plan_cost[device]):
            cost += (1 - t[:, j]) * table[plan, left[:, j]] + t[:, j] * table[plan, left[:, j] + 1]
        return cost
