r"""Prices of many devices without a master, where participation is judged over the horizon.

Then each device has prices of its own: what it is paid or charged for training a task beyond its share, 4ρcz σδ with |σ| ≤ 1. They make
masters large and slow. But once the shared prices are given (band, worth of H and of N per task), what is left falls apart by device:

    min Σ_k (ξE_k + ν W_k + ρ n_k − T h_k) x_k + Σ_j 4ρ_j c z_j δ_ij |h_ij − λ_ij H_j|,    Σ_{k over slot g} x_k ≤ 1,   x ≥ 0,

over the columns k known of device i: thousands of tiny linear programs, which one sparse linear program solves in a second. Its duals
are the pulls; the mixed plans say what is trained and sent at the shared prices, and those follow until demand meets what they suppose.
Bounds need none of this to be exact: any prices prove one (:mod:`schedopt.cuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.colgen.exchange import exchange
from schedopt.colgen.first_plans import NEAR
from schedopt.colgen.loop import PlanRelaxation, local_bound
from schedopt.colgen.pool import SharedPool
from schedopt.colgen.rounding import heaviest_plans
from schedopt.colgen.workers import PlanRequest
from schedopt.cuts import CutPrices, cut_prices
from schedopt.formulation.tables import PlanColumns, Plans
from schedopt.participation import participation_groups
from schedopt.problem import FloatArray, Problem
from schedopt.sca.loop import relaxed_objective
from schedopt.sca.master import MasterPoint, cover_rows

__all__ = ["DeviceMix", "balance_devices", "balanced_plans", "mix_devices"]

#: Rounds at most, and the first in which shared prices move: before, too few columns are known for demand to mean anything.
_ROUNDS, _SETTLED = 14, 2
#: Weight of the newest pulls beside those before, and of the newest estimates of H, N and z.
_NEWEST, _ESTIMATE = 0.8, 0.3
#: Power of what is missing by which a shared price moves at first and at most, and how that grows while the side stays and falls where
#: it changes.
_FOLLOW, _MOST, _GROW, _FALL = 0.3, 1.0, 1.3, 0.6
#: Relative gain of the bound in a round below which another gains little.
_WORTH_A_ROUND = 1e-3


@dataclass(frozen=True)
class DeviceMix:
    """Mixed plans of all devices at shared prices: ``weights`` of the columns, and the duals ``pull`` (I, J) and ``budget`` (I,)."""

    weights: FloatArray
    pull: FloatArray
    budget: FloatArray


def mix_devices(problem: Problem, columns: PlanColumns, cost: FloatArray, reach: FloatArray, share: FloatArray) -> DeviceMix | None:
    """Cheapest mixture of each device's columns; None if HiGHS fails.

    ``cost`` of the columns, shape (n,); ``reach`` (I, J): cost of a unit of |h_ij − share_ij|; ``share`` (I, J): what balance asks for.
    """
    a, count = problem.arrays, len(columns)
    pairs = a.num_devices * a.num_tasks
    pair = columns.device * a.num_tasks + columns.task
    unit = np.maximum(share.ravel(), 1e-12 * max(float(share.max(initial=0.0)), 1e-300))
    trained = sp.csr_matrix((columns.h / unit[pair], (pair, np.arange(count))), shape=(pairs, count))
    equal = sp.hstack([trained, -sp.eye(pairs), sp.eye(pairs)], format="csr")
    rows = [cover_rows(columns, a.slots)]
    limited = np.flatnonzero(np.isfinite(a.energy_budget_j))
    if len(limited):
        spent = columns.energy_j / a.energy_budget_j[columns.device]
        rows.append(sp.csr_matrix((spent, (columns.device, np.arange(count))), shape=(a.num_devices, count))[limited])
    within = sp.vstack(rows)
    within = sp.hstack([within, sp.csr_matrix((within.shape[0], 2 * pairs))], format="csr")
    off = reach.ravel() * unit
    prices = np.concatenate([cost, off, off])
    scale = max(float(np.abs(prices).mean()), 1e-300)
    solved = linprog(
        prices / scale,
        A_ub=within,
        b_ub=np.ones(within.shape[0]),
        A_eq=equal,
        b_eq=share.ravel() / unit,
        method="highs-ds",
    )
    if solved.status != 0:
        return None
    budget = np.zeros(a.num_devices)
    if len(limited):
        budget[limited] = -scale * solved.ineqlin.marginals[-len(limited) :] / a.energy_budget_j[limited]
    pull = -scale * (solved.eqlin.marginals / unit).reshape(share.shape)
    return DeviceMix(solved.x[:count], np.clip(pull, -reach, reach), np.maximum(budget, 0.0))


class _Follow:
    """Factors for prices: powers of demand over supply, each as large as its steps have gone one way (as in Rprop)."""

    def __init__(self, size: int) -> None:
        self.power = np.full(size, _FOLLOW)
        self.side = np.zeros(size)

    def factor(self, demand: FloatArray) -> FloatArray:
        """What to multiply the prices with at this demand over supply."""
        missing = np.log(np.clip(demand, 0.3, 3.0))
        turn = np.sign(missing) * self.side
        self.power = np.clip(self.power * np.where(turn > 0, _GROW, np.where(turn < 0, _FALL, 1.0)), 0.0, _MOST)
        self.side = np.sign(missing)
        return np.exp(self.power * missing)


@dataclass
class _Shared:
    """What all devices share: estimates of H, N and z = d/H per task, which the rows of a round suppose, shape (J,) each.

    ``worth``, ``band``: how the worth of H and the prices of the band follow what is missing.
    """

    h: FloatArray
    error: FloatArray
    z: FloatArray
    worth: _Follow
    band: _Follow


def balance_devices(
    problem: Problem,
    start: MasterPoint,
    ask: Callable[..., Sequence[Plans]],
    tick: Callable[[MasterPoint | None], None],
    *,
    rounds: int = _ROUNDS,
) -> PlanRelaxation:
    """Prices and mixed plans from ``start`` (prices near the answer's), by rounds of pricing and of small linear programs.

    The best mixture, scaled to the band, is the relaxed point of what is returned; the prices are those of the best local bound.
    ``tick(mixed)`` is given the mixtures once they are near what the shared prices suppose, else None, and may raise to stop.
    """
    a, factor = problem.arrays, participation_groups(problem).factor
    shared = _Shared(np.maximum(start.h, 1e-300), start.error, _imbalance(problem, start), _Follow(a.num_tasks), _Follow(a.slots))
    pool: SharedPool | None = None
    kept: PlanRelaxation | None = None
    pull: FloatArray | None = None
    at = start
    for count in range(rounds):
        point = _supposed(problem, at, shared)
        prices = cut_prices(problem, point)
        plans = ask(PlanRequest(prices.prices, near=NEAR))[0]
        tick(None)
        pool = SharedPool(plans.near) if pool is None else pool
        pool.add(plans.near)
        bound = local_bound(problem, point, prices, plans)
        reach = 2.0 * prices.error * factor * shared.z * a.dissimilarity
        mix = mix_devices(problem, pool.columns, _costs(prices, pool.columns), reach, a.aggregation_weight * shared.h)
        if mix is None:
            break
        reached = _reached(problem, at, pool.columns, mix.weights)
        tick(reached if count > _SETTLED else None)
        previous = -np.inf if kept is None else kept.bound
        merit = relaxed_objective(problem, reached)
        if kept is None:
            kept = PlanRelaxation(reached, plans, prices, bound, (merit,))
        elif merit < kept.merit[-1]:
            kept = replace(kept, best=reached, merit=(*kept.merit, merit))
        if bound > previous:
            kept = replace(kept, plans=plans, at=prices, bound=bound)
        if count > _SETTLED + 2 and bound < previous + _WORTH_A_ROUND * abs(bound):
            break
        pull = mix.pull if pull is None else _NEWEST * mix.pull + (1.0 - _NEWEST) * pull
        at = _with_pulls(problem, at, pull, mix.budget)
        if count >= _SETTLED and problem.objective.mode != "min_energy":
            at = _followed(problem, at, prices, shared, reached, _demand(problem, pool.columns, mix.weights))
        pool.forget(mix.weights)
    assert kept is not None
    return kept


def balanced_plans(problem: Problem, relaxed: PlanRelaxation) -> PlanColumns:
    """One plan per device near the best mixture: its heaviest plans, bettered by exchanges at the relaxation's prices."""
    a, best, prices = problem.arrays, relaxed.best, relaxed.at
    reach = 2.0 * prices.error * participation_groups(problem).factor * _imbalance(problem, best) * a.dissimilarity
    cost = _costs(prices, best.columns)
    planned = exchange(problem, best.columns, cost, reach, a.aggregation_weight * best.h, heaviest_plans(problem, best))
    return best.columns.take(planned)


def _imbalance(problem: Problem, point: MasterPoint) -> FloatArray:
    """z = d/H of a point, shape (J,)."""
    h, a = np.maximum(point.h, 1e-300), problem.arrays
    return (np.abs(point.h_device - a.aggregation_weight * h) * a.dissimilarity).sum(axis=0) / h


def _supposed(problem: Problem, at: MasterPoint, shared: _Shared) -> MasterPoint:
    """The prices of ``at`` with the shared estimates; a device's part of H is such that z is what they say."""
    a = problem.arrays
    share = a.aggregation_weight * shared.h
    spread = np.maximum((share * a.dissimilarity).sum(axis=0), 1e-300)
    return replace(at, h=shared.h, error=shared.error, h_device=share * (1.0 + shared.z * shared.h / spread))


def _costs(prices: CutPrices, c: PlanColumns) -> FloatArray:
    """Reduced costs of columns, but for the pulls."""
    m = prices.multipliers
    cost = m.energy[c.device] * c.energy_j + m.bandwidth[c.end - 1] * c.bandwidth_hz + prices.error[c.task] * c.error
    return cost - (prices.h + m.offset)[c.task] * c.h


def _reached(problem: Problem, at: MasterPoint, c: PlanColumns, weights: FloatArray) -> MasterPoint:
    """The mixture as a relaxed point: slots whose band is overdrawn are scaled down to it."""
    a = problem.arrays
    demand = _demand(problem, c, weights)
    used = weights / np.maximum(demand, 1.0)[c.end - 1]
    pair = c.device * a.num_tasks + c.task
    h_device: np.ndarray = np.bincount(pair, weights=c.h * used, minlength=a.has_data.size).reshape(a.has_data.shape)
    h = np.maximum(h_device.sum(axis=0), 1e-300)
    distance = (np.abs(h_device - a.aggregation_weight * h) * a.dissimilarity).sum(axis=0)
    error = np.bincount(c.task, weights=c.error * used, minlength=a.num_tasks) + participation_groups(problem).factor * distance**2 / h
    return replace(at, columns=c, weights=used, h_device=h_device, h=h, error=error, energy_j=float(c.energy_j @ used), slack=0.0)


def _demand(problem: Problem, c: PlanColumns, weights: FloatArray) -> FloatArray:
    """Share of the band that the mixture uses in each slot, shape (G,)."""
    a = problem.arrays
    return np.bincount(c.end - 1, weights=c.bandwidth_hz * weights, minlength=a.slots) / a.bandwidth_hz


def _with_pulls(problem: Problem, at: MasterPoint, pull: FloatArray, budget: FloatArray) -> MasterPoint:
    limited = np.isfinite(problem.arrays.energy_budget_j)
    base = problem.objective.energy_weight if problem.objective.mode == "weighted" else float(at.prices.energy.min())
    energy = np.where(limited, base + budget, at.prices.energy)
    return replace(at, prices=replace(at.prices, energy=energy, value=at.task_value - pull))


def _followed(
    problem: Problem, at: MasterPoint, prices: CutPrices, shared: _Shared, reached: MasterPoint, demand: FloatArray
) -> MasterPoint:
    """Shared prices after demand: dearer where more is sent than the band carries, and training worth more where too little is done.

    The estimates in ``shared`` follow as well.
    """
    a, fixed = problem.arrays, fixed_terms(problem.arrays)
    w = FACTOR * a.weight
    slope = prices.h - prices.error * shared.error / shared.h
    active = (w > 0) & (slope > 0)
    # the H that the ratios ask for at these prices: where w(C/H + ε) + slope·H is least
    wanted = np.where(active, np.sqrt(w * fixed / np.where(active, slope, 1.0)), reached.h)
    value = at.task_value * shared.worth.factor(wanted / reached.h)
    bandwidth = at.prices.bandwidth * shared.band.factor(demand)
    ratio = reached.error / reached.h
    ratio = (shared.error / shared.h) ** (1.0 - _ESTIMATE) * ratio**_ESTIMATE
    shared.h = shared.h * (wanted / shared.h) ** _ESTIMATE
    shared.error, shared.z = ratio * shared.h, shared.z ** (1.0 - _ESTIMATE) * _imbalance(problem, reached) ** _ESTIMATE
    pull = at.task_value - at.prices.value
    return replace(at, task_value=value, prices=replace(at.prices, bandwidth=bandwidth, value=value - pull, noise=w / shared.h))
