r"""Proven lower bounds on the problem: Lagrangian bounds over boxes of H, and branching on the boxes.

For any prices ν ≥ 0 of the band, μ ≥ 0 of the budgets, π of H and b of N, and any underestimator a/H + bN + cH + const of γΨ that holds
on low ≤ H ≤ high,

    Σ_j min_{low ≤ H ≤ high} [a/H + π̂ H] + const + Σ_i (cheapest plan of device i at the prices) − Σ_g ν_g band − Σ_i μ_i budget_i

is at most the objective of every feasible schedule with H in the box, whole steps and batches included: no solver's accuracy enters,
because the plans come from :func:`schedopt.formulation.candidates.price`, whose ``lower`` holds by convexity. A horizon's
participation term d²/H is bounded from below by 2z d − z²H and d ≥ Σ_i σ_i δ_i (h_i − λ_i H) for any z ≥ 0, |σ_i| ≤ 1. T_stale and C2
are dropped, which can only lower the bound (C1 is kept). Boxes are split until every box is above the cutoff.
Checked against enumeration in ``tests/test_certify.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, LOCAL_DRIFT_FACTOR
from schedopt.formulation.candidates import Candidates, Priced, Prices, best_paths, make_columns, price
from schedopt.problem import FloatArray, Problem
from schedopt.sca.master import MasterPoint, MasterScale, horizon_weight, solve_master
from schedopt.sca.pool import ColumnPool, promising_columns
from schedopt.sca.surrogates import RatioModel, box_underestimator, fixed_terms

__all__ = ["CertifiedBound", "certify", "lagrangian_bound"]

#: Rounding of the sums that make up a bound, relative to their size: far above what 64-bit floats can lose.
_ROUNDING = 1e-9
_ROUNDS = 8
_STALL = 1e-4


def least_error(problem: Problem, candidates: Candidates) -> FloatArray:
    """ρ_j: least scaled error per unit of h of any candidate (one step, full batch), shape (J,)."""
    a, i, j = candidates.arrays, candidates.device, candidates.task
    local = candidates.scale["local"] * 2.0 * (a.smoothness * a.learning_rate)[j] ** 2 * LOCAL_DRIFT_FACTOR * a.dissimilarity[i, j] ** 2
    rho = np.full(a.num_tasks, np.inf)
    np.minimum.at(rho, j, candidates.linear_error + local)
    return np.where(np.isfinite(rho), rho, 0.0)


def _participation_prices(problem: Problem, point: MasterPoint, error_price: FloatArray) -> tuple[FloatArray, FloatArray]:
    """One linear underestimator of b·2c·d²/H: what a unit of h of each device adds, (I, J), and what a unit of H takes off, (J,).

    The slopes follow the master's duals and are clipped to |σ| ≤ 1, so that they are valid whatever the solver returned.
    """
    a, factor = problem.arrays, horizon_weight(problem)
    if factor == 0.0:
        return np.zeros(a.has_data.shape), np.zeros(a.num_tasks)
    h = np.maximum(point.h, 1e-300)
    z = (np.abs(point.h_device - a.aggregation_weight * h) * a.dissimilarity).sum(axis=0) / h
    reach = 2.0 * error_price * factor * z * a.dissimilarity
    pull = np.clip(point.task_value - point.prices.value, -reach, reach)
    return pull, (pull * a.aggregation_weight).sum(axis=0) + error_price * factor * z**2


def _ratio_part(model: RatioModel, slope: FloatArray) -> float:
    """Σ_j min over low ≤ H ≤ high of a/H + slope·H + constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where(slope > 0, np.sqrt(model.inverse / np.maximum(slope, 1e-300)), model.high)
    h = np.clip(best, np.maximum(model.low, 1e-300), model.high)
    return float(np.sum(model.inverse / h + slope * h + model.constant))


def _most_energy(problem: Problem) -> FloatArray:
    """More energy than each device can spend over the horizon, shape (I,), in J."""
    a = problem.arrays
    power = 0.5 * a.capacitance * a.freq_max_hz**3 + a.max_power_w + a.receive_power_w
    return power * a.slots * a.slot_s


def _energy_prices(problem: Problem, point: MasterPoint, total: list[float]) -> FloatArray:
    """Prices of energy per device that are safe to price with, shape (I,); what budgets and limits take off goes into ``total``."""
    a, mode = problem.arrays, problem.objective.mode
    energy, limit = point.prices.energy, problem.objective.total_energy_j
    if mode == "min_bound":
        base = float(energy.min()) if limit is not None else 0.0
        total.append(-base * (limit or 0.0))
    else:
        base = problem.objective.energy_weight if mode == "weighted" else 1.0
    limited = np.isfinite(a.energy_budget_j)
    energy = np.where(limited, np.maximum(energy, base), base)
    total.append(-float(np.sum((energy - base)[limited] * a.energy_budget_j[limited])))
    # a price of zero has no closed forms: a tiny one is used instead, and taken off again at the most energy that can be spent
    most = _most_energy(problem)
    floor = 1e-8 * max(abs(point.value), 1e-300) / float(most.sum())
    total.append(-float(np.sum(np.where(energy < floor, floor, 0.0) * most)))
    return np.maximum(energy, floor)


def lagrangian_bound(problem: Problem, candidates: Candidates, model: RatioModel | None, point: MasterPoint) -> tuple[float, Priced]:
    """Lower bound on the objective of every schedule whose H lies in the model's box, from a master's prices; and the pricing.

    Any prices give a valid bound. ``model`` must underestimate γΨ on its box; None in mode min_energy, where targets are priced.
    """
    a = problem.arrays
    total: list[float] = []
    energy = _energy_prices(problem, point, total)
    if model is None:
        # C + N ≤ (3/8) ε H at price b: N costs b and a unit of H is worth (3/8) ε b
        has_target = np.isfinite(a.target)
        error_price = np.where(has_target, np.maximum(point.prices.noise, 0.0), 0.0)
        total.append(float(error_price @ fixed_terms(a)))
        pull, lift = _participation_prices(problem, point, error_price)
        value = error_price * np.where(has_target, a.target, 0.0) / FACTOR - pull + lift
    else:
        error_price = model.linear_error
        pull, lift = _participation_prices(problem, point, error_price)
        worth = np.where(a.weight > 0, point.task_value, 0.0)
        value = worth - pull
        total.append(_ratio_part(model, worth + model.linear_h - lift))
    bandwidth = np.maximum(point.prices.bandwidth, 0.0)
    total.append(-float(bandwidth.sum() * a.bandwidth_hz))
    priced = price(candidates, Prices(energy, bandwidth, value, error_price), for_bound=True)
    total.append(float(best_paths(candidates, priced.lower).value.sum()))
    bound = sum(total) - _ROUNDING * sum(abs(part) for part in total)
    return (bound if np.isfinite(bound) else -np.inf), priced


@dataclass(frozen=True)
class CertifiedBound:
    """A proven lower bound on the problem, how it was obtained, and how many boxes it took."""

    value: float
    method: str
    boxes: int


@dataclass
class _Search:
    """State of the branching: columns shared by all boxes, open boxes by their bound."""

    problem: Problem
    candidates: Candidates
    pool: ColumnPool
    backend: str
    cutoff: float
    least_error: FloatArray
    boxes: int = 0

    def evaluate(self, low: FloatArray, high: FloatArray, start: MasterPoint) -> tuple[float, MasterPoint]:
        """Best bound of a box by column generation on its underestimator; stops early once above the cutoff or when it stalls."""
        self.boxes += 1
        problem = self.problem
        model = None
        if problem.objective.mode != "min_energy":
            model = box_underestimator(problem.arrays, low, high, self.least_error)
        best, point = lagrangian_bound(problem, self.candidates, model, start)[0], start
        for _ in range(_ROUNDS):
            if best >= self.cutoff:
                break
            scale = MasterScale(max(abs(self.cutoff), 1e-12), np.clip(point.h, np.maximum(low, 1e-3 * high), high))
            new = solve_master(problem, self.candidates, self.pool.columns, model, scale, backend=self.backend)
            if new is None:
                break
            point = new
            bound, priced = lagrangian_bound(problem, self.candidates, model, point)
            best = max(best, bound)
            # the master over all columns lies between bound and point.value: nothing to gain below the cutoff
            if point.value - best < max(_STALL * abs(point.value), 0.1 * (self.cutoff - best)):
                break
            self.pool.add(promising_columns(self.candidates, priced.columns, best_paths(self.candidates, priced.cost)))
        return best, point


def certify(
    problem: Problem,
    candidates: Candidates,
    start: MasterPoint,
    pool: ColumnPool,
    upper: float,
    *,
    backend: str,
    target_gap: float,
    max_boxes: int = 10_000,
    on_box: Callable[[int, float], None] | None = None,
) -> CertifiedBound:
    """Proven lower bound on the objective, branching on H until it reaches ``upper``·(1 − target_gap) or ``max_boxes``.

    ``start``, ``pool``: solution and columns of the relaxation (any will do; good ones save work). ``upper``: objective of a feasible
    schedule. ``on_box(count, bound)`` is called with the bound proven so far and may raise to stop; what it knew is proven.
    """
    cutoff = upper - target_gap * abs(upper)
    search = _Search(problem, candidates, pool, backend, cutoff, least_error(problem, candidates))
    low, high = _first_box(problem, candidates, upper, search.least_error)
    bound, point = search.evaluate(low, high, start)
    heap = [(bound, 0, low, high, point)]
    closed = np.inf
    while heap:
        proven = min(heap[0][0], closed)
        if on_box is not None:
            on_box(search.boxes, proven)
        if heap[0][0] >= cutoff or search.boxes >= max_boxes or problem.objective.mode == "min_energy":
            break
        bound, _, low, high, point = heapq.heappop(heap)
        for part_low, part_high in _split(problem, search.least_error, low, high, point):
            value, new = search.evaluate(part_low, part_high, point)
            value = max(value, bound)
            if value >= cutoff:
                closed = min(closed, value)
            else:
                heapq.heappush(heap, (value, search.boxes, part_low, part_high, new))
    proven = min(heap[0][0] if heap else np.inf, closed)
    return CertifiedBound(min(proven, upper), "Lagrangian bound by shortest paths, branching on H", search.boxes)


def _first_box(
    problem: Problem, candidates: Candidates, upper: float, rho: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """A box that holds H of every schedule at least as good as ``upper``, shape (J,) each.

    Every task's Ψ costs at least w (C/H + ρ), so H ≥ wC/(upper − Σ wρ + wρ). A device aggregates at most once per slot, with at most
    the most steps.
    """
    a = problem.arrays
    last = candidates.steps.max(axis=1)[candidates.task]
    h = make_columns(candidates, np.arange(len(candidates)), last.astype(float), last.astype(float), 1.0, 1.0).h
    most = np.zeros((a.num_devices, a.num_tasks, a.slots))
    np.maximum.at(most, (candidates.device, candidates.task, candidates.end - 1), h)
    high = np.maximum(most.sum(axis=(0, 2)), 1e-300)
    w = FACTOR * a.weight
    others = np.sum(w * rho) - w * rho
    rest = w * (fixed_terms(a) / high + rho)
    others = np.maximum(others, rest.sum() - rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(w > 0, w * fixed_terms(a) / (upper * (1.0 + _ROUNDING) - others - w * rho), 0.0)
    return np.where((low > 0) & np.isfinite(low), np.minimum(low, high), 0.0), high


def _split(
    problem: Problem, rho: FloatArray, low: FloatArray, high: FloatArray, point: MasterPoint
) -> list[tuple[FloatArray, FloatArray]]:
    """Two halves of the box, split at the point in the task whose ratio is underestimated most."""
    h = np.clip(point.h, np.maximum(low, 1e-300), high)
    excess = np.maximum(point.error - rho * h, 0.0)
    missing = problem.arrays.weight * excess * (1.0 / h - 1.0 / high)
    j = int(np.argmax(missing))
    if missing[j] <= 0.0:
        j = int(np.argmax(problem.arrays.weight * (high / np.maximum(low, 1e-300))))
    # just above the point: the child that holds it then has a tight upper end
    inner = np.sqrt(np.maximum(low[j], 1e-6 * high[j]) * high[j])
    cut = h[j] * 1.02 if 1.02 * h[j] < high[j] * 0.98 else 0.5 * (h[j] + max(low[j], inner if inner < h[j] else low[j]))
    left, right = high.copy(), low.copy()
    left[j], right[j] = cut, cut
    return [(low, left), (right, high)]
