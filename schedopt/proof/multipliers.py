r"""From the duals of a node's program to a bound that holds whatever they are (see :mod:`schedopt.cuts` for the inequality).

With prices ρ_jz ≥ 0 of the rows of N at z, |pull_ij| ≤ D_j δ_ij, D_j = Σ_z 4c z ρ_jz, Z_j = Σ_z 2c z² ρ_jz (c: the term's scale)
and fees f_l ≥ 0 of limits (by windows, pulls and what they add to the worth of H are those of :mod:`schedopt.participation`),

    V ≥ Σ_j π_j H_j − Σ_j ρ_j N_j + K,     ρ_j = Σ_z ρ_jz,   π_j = t_j − Σ_i λ_ij pull_ij − Z_j   for any t,
    K = Σ_i (cheapest plan at value t_j − pull_ij of h, with the fees) − Σ_g ν_g band − … − Σ_l ± f_l count_l.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.cuts import ROUNDING, Cut, positive_prices
from schedopt.formulation.candidates import Candidates, Columns, Prices, best_paths, price
from schedopt.objective import needed_tasks
from schedopt.participation import ParticipationGroups, over_groups, participation_groups
from schedopt.problem import FloatArray, Problem
from schedopt.proof.nodes import Node
from schedopt.proof.pricing import PriceTables
from schedopt.proof.program import Duals
from schedopt.sca.pool import promising_columns

__all__ = ["NodeCut", "node_cut"]


@dataclass(frozen=True)
class NodeCut:
    """A cut that holds in the node and below it, and columns that would lower the program's value."""

    cut: Cut
    columns: Columns


def node_cut(problem: Problem, candidates: Candidates, tables: PriceTables, node: Node, duals: Duals, scale: float) -> NodeCut:
    """The cut at ``duals``. ``scale``: size of the objective, for the least price of energy."""
    a = problem.arrays
    rho, pull, offset = _participation(participation_groups(problem), duals)
    active = needed_tasks(problem)
    if problem.objective.mode == "min_energy":
        h_price = rho * np.where(active, a.target, 0.0) / FACTOR
    else:
        h_price = np.where(active, duals.task_value - (offset if pull.ndim == 2 else 0.0), 0.0)
    energy, off = _energy_prices(problem, duals, scale)
    off -= float(duals.bandwidth.sum() * a.bandwidth_hz)
    off -= sum(float(fee) * limit.sign * limit.count for fee, limit in zip(duals.fees, node.limits, strict=True))
    value = np.where(over_groups(active, pull), over_groups(h_price, pull) + offset - pull, 0.0)
    prices = Prices(energy, duals.bandwidth, value, np.where(active, rho, 0.0))
    lower, columns = _priced(candidates, tables, prices, node, duals.fees)
    plans = best_paths(candidates, lower)
    size = abs(off) + float(np.abs(plans.value).sum()) + float(np.abs(duals.fees).sum())
    level = off + float(plans.value.sum()) - ROUNDING * size
    return NodeCut(Cut(h_price, np.where(active, rho, 0.0), level), promising_columns(candidates, columns, plans))


def _participation(groups: ParticipationGroups, duals: Duals) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Price of N (J,), pulls (I, J[, M]), and what they add to the worth of H (J[, M]); a window's H has no price of its own."""
    noise = np.maximum(duals.noise, 0.0)
    rho = noise.sum(axis=1)
    if groups.free:
        return rho, *groups.multipliers(duals.pull, rho, duals.pull, rho)
    reach = 2.0 * groups.factor * (noise * duals.tangent).sum(axis=1) * groups.dissimilarity
    pull = np.clip(duals.pull, -reach, reach)
    return rho, pull, (pull * groups.weight).sum(axis=0) + groups.factor * (noise * duals.tangent**2).sum(axis=1)


def _energy_prices(problem: Problem, duals: Duals, scale: float) -> tuple[FloatArray, float]:
    """Prices of energy per device, positive, shape (I,), and what budgets, limit and the least price take off."""
    a, mode = problem.arrays, problem.objective.mode
    limit = problem.objective.total_energy_j
    base = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": duals.limit}[mode]
    off = -duals.limit * (limit or 0.0) if mode == "min_bound" else 0.0
    limited = np.isfinite(a.energy_budget_j)
    off -= float(np.sum(duals.budget[limited] * a.energy_budget_j[limited]))
    energy, taken = positive_prices(problem, base + np.where(limited, duals.budget, 0.0), scale)
    return energy, off - taken


def _priced(candidates: Candidates, tables: PriceTables, prices: Prices, node: Node, fees: FloatArray) -> tuple[FloatArray, Columns]:
    """Lower bounds of all candidates' costs with the fees, +inf if forbidden, and columns near them."""
    priced = price(candidates, prices, for_bound=True)
    lower, columns = priced.lower, priced.columns
    if not node.limits:
        return lower, columns
    fee = sum((f * limit.sign * limit.members for f, limit in zip(fees, node.limits, strict=True)), np.zeros(len(candidates)))
    if np.any(fee < 0):
        # what does not pay by itself may pay with what a limit gives for it
        found = tables.price(prices)
        lower = np.where(lower < 0.0, lower, np.maximum(found.lower, 0.0))
        index = np.flatnonzero((lower + fee < 0.0) & (priced.lower >= 0.0))
        columns = columns.concat(tables.columns(found, index, prices))
    lower = lower + fee
    forbidden = node.forbidden
    if forbidden is not None:
        lower = np.where(forbidden, np.inf, lower)
        columns = columns.take(~forbidden[columns.candidate])
    return lower, columns
