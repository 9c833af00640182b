r"""Lower bound that separates by task: one-dimensional searches over N_j/H_j instead of boxes in 2J dimensions.

Let m be multipliers of the coupling rows (band, budgets, participation; :mod:`schedopt.cuts`) and μ_ig ≥ 0 *fees* that a device pays for
using slot g. Paying fees, a device may train several tasks at once, so that what V adds to the ratios is at least

    V(H, N) ≥ const(m) − Σ_ig μ_ig + Σ_j V_j(H_j, N_j),      V_j ≥ π H_j − ρ N_j + K_j(π, ρ)   for any prices π and ρ ≥ 0,

K_j being the sum over devices of their cheapest plans of task j alone, fees included. Fees from the potentials of the best plans at some
prices lose nothing there. With ε = N/H, which lies between 0 and what the worst schedule of interest has, and H free,

    min over H of  w(C/H + ε) + (π − ρε)H  =  wε + 2 √(w C (π − ρε))  =: g(ε)

is concave in ε: over an interval of ε it is least at an end. So each task is a search over one number with its own cuts, and tasks do
not multiply: the bound of ten tasks costs ten times that of one. Cuts are asked for where the bound is lowest; nothing depends on a
solver's tolerance. The tangent to participation moves with ρ: 2c d²/H ≥ 2c(2zd − z²H) holds for any z, and z ∝ 1/ρ beyond the given ρ
keeps what a device is paid for balancing tasks; at a fixed z, N would be driven below zero.

Checked against enumeration in ``tests/test_ratio_bound.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.colgen.workers import PlanRequest
from schedopt.cuts import ROUNDING, CutPrices, least_ratio
from schedopt.formulation.candidates import Prices
from schedopt.formulation.tables import Plans
from schedopt.participation import at_upload
from schedopt.problem import FloatArray, Problem

__all__ = ["RatioBound", "fees_of"]

#: Intervals of ε per task, from a tenth to thirty times the first ε, and one below and above.
_INTERVALS = 80
_LOWEST, _HIGHEST = 0.1, 30.0
#: First prices of N, as multiples of the given ones.
_FIRST_RHO = (0.05, 0.3, 0.6, 0.85, 1.0, 1.15, 1.4, 2.0, 3.2, 5.0)
#: Prices tried per query and direction, as multiples of the first ones.
_TRIED = 121
_PI_RANGE, _RHO_RANGE = 10.0, 5.0


def fees_of(plans: Plans) -> FloatArray:
    """Fees per device and slot, shape (I, G), at which no plan of ``plans``' prices is worth more than its slots cost.

    The mean of what the potentials from both sides say: each of them alone puts a plan's worth on one end of it.
    """
    ahead, back = plans.forward, plans.backward
    return 0.5 * np.maximum(ahead[:, :-1] - ahead[:, 1:] + back[:, 1:] - back[:, :-1], 0.0)


@dataclass
class _Task:
    """One task's search: ends of the intervals of ε, and cuts (π, ρ, K, response H, response N)."""

    index: int
    weight: float
    fixed: float
    value: float
    noise: float
    ends: FloatArray
    cuts: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    done: bool = False

    def least(self, ratio: FloatArray, pi: FloatArray | float, rho: FloatArray | float) -> FloatArray:
        """g(ε), −inf where H pays for itself."""
        return least_ratio(self.weight, self.fixed, ratio, pi - rho * ratio)

    def lower(self) -> FloatArray:
        """Proven lower bound of the task's part per interval."""
        bound = np.full(len(self.ends) - 1, -np.inf)
        for pi, rho, level, _, _ in self.cuts:
            ends = self.least(self.ends, pi, rho)
            bound = np.maximum(bound, np.minimum(ends[:-1], ends[1:]) + level)
        return bound

    def first_queries(self) -> list[tuple[float, float]]:
        """Prices (π, ρ) on the way of ρ along which the devices train about as much.

        At the margin h(π − ρε) is what an assignment costs, so that dπ = ε dρ; and ε, which grows with the square of the steps while h
        grows with the steps, falls about as 1/√ρ.
        """
        # π = w(C + N)/H², ρ = w/H: the share of N in C + N
        share = 1.0 - self.fixed * self.noise**2 / (self.weight * self.value)
        share = min(max(share, 0.0), 0.95)
        factors = [(max(1.0 + 2.0 * share * (rho**0.5 - 1.0), 0.05), rho) for rho in _FIRST_RHO]
        return [(self.value * pi, self.noise * rho) for pi, rho in factors]

    def query(self, tolerance: float) -> tuple[float, float] | None:
        """Prices that promise most where the bound is lowest, or None if they promise less than ``tolerance``.

        What a cut can be at other prices is bounded by the plans that answered so far (K is concave in the prices).
        """
        bound = self.lower()
        worst = int(np.argmin(bound))
        pi = self.value * np.geomspace(1.0 / _PI_RANGE, _PI_RANGE, _TRIED)[:, None]
        rho = self.noise * np.concatenate([[0.0], np.geomspace(0.03, _RHO_RANGE, _TRIED)])[None, :]
        level = np.full((pi.size, rho.size), np.inf)
        for pi_k, rho_k, level_k, h, error in self.cuts:
            level = np.minimum(level, level_k - h * (pi - pi_k) + error * (rho - rho_k))
        low, high = self.ends[worst], self.ends[worst + 1]
        promise = np.minimum(self.least(low, pi, rho), self.least(high, pi, rho)) + level
        best = np.unravel_index(int(np.argmax(promise)), promise.shape)
        if not promise[best] > bound[worst] + tolerance:
            return None
        return float(pi[best[0], 0]), float(rho[0, best[1]])


class RatioBound:
    """The search over all tasks at fixed multipliers and fees.

    ``at``: multipliers of the coupling rows, and the prices of H and N that belong to them; ``fees`` (I, G); ``upper``: objective of a
    feasible schedule: worse schedules are none of the bound's business. Modes weighted and min_bound.
    """

    def __init__(self, problem: Problem, at: CutPrices, fees: FloatArray, upper: float) -> None:
        a, value, noise = problem.arrays, at.h, at.error
        self.problem, self.multipliers, self.fees, self.upper = problem, at.multipliers, fees, upper
        self.tasks = []
        fixed = fixed_terms(a)
        for j in np.flatnonzero((a.weight > 0) & (noise > 0) & (value > 0)):
            w = FACTOR * float(a.weight[j])
            # where both prices are slopes of the ratio: w/H = ρ and w(C + N)/H² = π
            middle = max(w * value[j] / noise[j] ** 2 - fixed[j], 1e-3 * fixed[j]) * noise[j] / w
            ends = np.concatenate([[0.0], middle * np.geomspace(_LOWEST, _HIGHEST, _INTERVALS), [upper / w]])
            ends = np.unique(np.minimum(ends, upper / w))
            self.tasks.append(_Task(int(j), w, float(fixed[j]), float(value[j]), float(noise[j]), ends))

    def _request(self, task: _Task, pi: float, rho: float) -> tuple[PlanRequest, FloatArray]:
        """Pricing of one task at (π, ρ), and how its price of h changes with ρ, shape (I, J[, M]) with zeros for other tasks."""
        a, m, j = self.problem.arrays, self.multipliers, task.index
        pull, balance = m.pull[:, j], a.aggregation_weight[:, j] @ m.pull[:, j]
        square = m.offset[j] - balance
        share = rho / task.noise
        if share <= 1.0:
            worth, slope = (m.offset[j] - pull) * share, (m.offset[j] - pull) / task.noise
        else:
            worth, slope = balance - pull + square / share, np.zeros_like(pull) - square / share / rho
        value, noise, slopes = np.zeros(m.pull.shape), np.zeros(a.num_tasks), np.zeros(m.pull.shape)
        value[:, j], noise[j], slopes[:, j] = pi + worth, rho, slope
        return PlanRequest(Prices(m.energy, m.bandwidth, value, noise), self.fees, j), slopes

    def run(
        self, ask: Callable[..., Sequence[Plans]], *, tolerance: float, rounds: int = 30, on_round: Callable[[float], bool] | None = None
    ) -> float:
        """Raise the bound until no task can gain ``tolerance`` (absolute) more; returns min(bound, upper).

        ``ask(*requests)`` prices; ``on_round(bound)`` says whether that is enough, and may
        raise.
        """
        wanted = [(task, pi, rho) for task in self.tasks for pi, rho in task.first_queries()]
        for _ in range(rounds):
            requests = [self._request(task, pi, rho) for task, pi, rho in wanted]
            answers = ask(*(request for request, _ in requests))
            for (task, pi, rho), (_, slope), plans in zip(wanted, requests, answers, strict=True):
                level = float(plans.lower.sum()) - ROUNDING * float(np.abs(plans.lower).sum())
                c = plans.columns
                error = c.error.sum() - c.h @ at_upload(slope, self.problem.arrays, c.device, c.task, c.end)
                task.cuts.append((pi, rho, level, float(plans.columns.h.sum()), float(error)))
            if on_round is not None and on_round(self.bound):
                break
            queries = [(task, task.query(tolerance)) for task in self.tasks]
            wanted = [(task, *query) for task, query in queries if query is not None]
            if not wanted:
                break
        return self.bound

    @property
    def bound(self) -> float:
        """What is proven so far, at most ``upper``."""
        parts = [task.lower().min() if task.cuts else -np.inf for task in self.tasks]
        fees = float(self.fees.sum())
        size = abs(self.multipliers.constant) + fees + float(np.abs(parts).sum())
        total = self.multipliers.constant - fees + float(np.sum(parts))
        return min(total - ROUNDING * size, self.upper) if np.isfinite(total) else -np.inf
