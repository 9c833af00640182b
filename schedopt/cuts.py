r"""Lagrangian cuts: linear lower bounds on the energy that any schedule needs to reach given H and N.

For a schedule with H_j = Σ h_s and N_j (scaled error terms) let V be what the objective adds to the ratios Ψ_j = (8/3)(C_j + N_j)/H_j:
ξ ΣE in mode weighted, ΣE in min_energy, nothing in min_bound. For any prices ν ≥ 0 of the band, μ ≥ 0 of budgets and limits, ρ_j ≥ 0 of
N_j and π_j of H_j, and any z_j ≥ 0, |σ_ij| ≤ 1 for the participation term of a horizon (2c d²/H ≥ 2c(2zd − z²H),
d ≥ Σ_i σ_i δ_i (h_i − λ_i H)), or of each window (:mod:`schedopt.participation`), every feasible schedule has

    V ≥ Σ_j π_j H_j − Σ_j ρ_j N_j + K,
    K = Σ_i (cheapest plan of device i at these prices) − Σ_g ν_g band − Σ_i μ_i budget_i.

No solver's accuracy enters: prices may be anything, and the plans come from :func:`schedopt.formulation.candidates.price`, whose
``lower`` holds by convexity, whole steps and batches included. T_stale and C2 are dropped, which can only lower a bound (C1 is kept).
Checked against enumeration in ``tests/test_certify.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.formulation.candidates import Candidates, Priced, Prices, best_paths, price
from schedopt.objective import needed_tasks
from schedopt.participation import over_groups, participation_groups
from schedopt.problem import FloatArray, Problem
from schedopt.sca.master import MasterPoint

__all__ = [
    "ROUNDING",
    "Cut",
    "CutPrices",
    "Multipliers",
    "cut_prices",
    "lagrangian_cut",
    "least_ratio",
    "most_energy",
    "multipliers_of",
    "participation_worth",
    "positive_prices",
]

#: Rounding of the sums that make up a bound, relative to their size: far above what 64-bit floats can lose.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Cut:
    """V ≥ h_price·H − error_price·N + level for every feasible schedule; prices of shape (J,)."""

    h_price: FloatArray
    error_price: FloatArray
    level: float


@dataclass(frozen=True)
class Multipliers:
    """Prices of a cut, valid whatever their values as long as their signs are kept.

    ``energy`` (I,), ``bandwidth`` (G,); ``pull`` = 4ρcz σδ (I, J[, M]): what participation adds to the price of h; ``offset`` =
    2ρc(2z Σ σδλ + z²) (J[, M]): what it adds to the worth of H; ``constant``: what budgets, limits and the band take off.
    """

    energy: FloatArray
    bandwidth: FloatArray
    pull: FloatArray
    offset: FloatArray
    constant: float


@dataclass(frozen=True)
class CutPrices:
    """What a cut is made of: ``multipliers`` of the coupling rows, prices ``h`` of H and ``error`` of N, shape (J,)."""

    multipliers: Multipliers
    h: FloatArray
    error: FloatArray

    @property
    def prices(self) -> Prices:
        """At which the plans are sought."""
        m = self.multipliers
        return Prices(m.energy, m.bandwidth, over_groups(self.h, m.pull) - m.pull + m.offset, self.error)


def most_energy(problem: Problem) -> FloatArray:
    """More energy than each device can spend over the horizon, shape (I,), in J."""
    a = problem.arrays
    power = 0.5 * a.capacitance * a.freq_max_hz**3 + a.max_power_w + a.receive_power_w
    return power * a.slots * a.slot_s


def _energy_prices(problem: Problem, point: MasterPoint) -> tuple[FloatArray, float]:
    """Prices of energy per device that are safe to price with, shape (I,), and what budgets and limits take off."""
    a, mode = problem.arrays, problem.objective.mode
    energy, limit = point.prices.energy, problem.objective.total_energy_j
    off = 0.0
    if mode == "min_bound":
        base = max(float(energy.min()), 0.0) if limit is not None else 0.0
        off -= base * (limit or 0.0)
    else:
        base = problem.objective.energy_weight if mode == "weighted" else 1.0
    limited = np.isfinite(a.energy_budget_j)
    energy = np.where(limited, np.maximum(energy, base), base)
    off -= float(np.sum((energy - base)[limited] * a.energy_budget_j[limited]))
    energy, taken = positive_prices(problem, energy, abs(point.value))
    return energy, off - taken


def positive_prices(problem: Problem, energy: FloatArray, scale: float) -> tuple[FloatArray, float]:
    """Prices of energy per device that are safe to price with, shape (I,), and what that takes off a bound at most.

    A price of zero has no closed forms: a tiny one is used instead, and taken off again at the most energy that can be spent.
    ``scale``: size of the objective.
    """
    most = most_energy(problem)
    floor = 1e-8 * max(scale, 1e-300) / float(most.sum())
    return np.maximum(energy, floor), float(np.sum(np.where(energy < floor, floor, 0.0) * most))


def multipliers_of(problem: Problem, point: MasterPoint, error_price: FloatArray) -> Multipliers:
    """Multipliers from a master's duals; ``error_price``: its price of N, shape (J,), which scales the participation part."""
    a, groups = problem.arrays, participation_groups(problem)
    energy, off = _energy_prices(problem, point)
    bandwidth = np.maximum(point.prices.bandwidth, 0.0)
    off -= float(bandwidth.sum() * a.bandwidth_hz)
    pull, offset = np.zeros(a.has_data.shape), np.zeros(a.num_tasks)
    if groups.factor > 0.0:
        pull, offset = groups.multipliers(point.task_value - point.prices.value, error_price, point.h_device, point.h)
    return Multipliers(energy, bandwidth, pull, offset, off)


def participation_worth(problem: Problem, point: MasterPoint) -> FloatArray:
    """What a unit of H is worth to the participation term at a master's prices, shape (J[, M]): part of its ``task_value``."""
    return multipliers_of(problem, point, np.maximum(point.prices.noise, 0.0)).offset


def least_ratio(weight: FloatArray | float, fixed: FloatArray | float, ratio: FloatArray, slope: FloatArray) -> FloatArray:
    """min over H of w(C/H + ε) + slope·H = wε + 2√(wC·slope) at a ratio ε = N/H; −inf where H pays for itself (slope ≤ 0)."""
    return np.where(slope > 0, weight * ratio + 2.0 * np.sqrt(weight * fixed * np.maximum(slope, 0.0)), -np.inf)


def cut_prices(problem: Problem, point: MasterPoint) -> CutPrices:
    """Prices of a cut from a master's duals."""
    active = needed_tasks(problem)
    error = np.where(active, np.maximum(point.prices.noise, 0.0), 0.0)
    m = multipliers_of(problem, point, error)
    if problem.objective.mode == "min_energy":
        # C + N ≤ (3/8) ε H: the prices of N and of H of a task are tied to each other
        return CutPrices(m, error * np.where(active, problem.arrays.target, 0.0) / FACTOR, error)
    # a master's price of H has in it what H is worth to the participation term, which a cut counts by itself
    return CutPrices(m, np.where(active, _task_price(point, m.offset), 0.0), error)


def _task_price(point: MasterPoint, offset: FloatArray) -> FloatArray:
    """A master's price of H itself, shape (J,): by windows their mean, by what is trained in each; at a master's optimum all are equal."""
    price = point.task_value - offset
    if price.ndim == 1:
        return price
    trained = point.h_device.sum(axis=0) + 1e-6 * point.h[:, None] + 1e-300
    return (trained * price).sum(axis=1) / trained.sum(axis=1)


def lagrangian_cut(problem: Problem, candidates: Candidates, point: MasterPoint) -> tuple[Cut, Priced]:
    """Cut at a master's prices, and the pricing that it took (whose columns can improve the master)."""
    at = cut_prices(problem, point)
    priced = price(candidates, at.prices, for_bound=True)
    plans, constant = best_paths(candidates, priced.lower).value, at.multipliers.constant
    size = abs(constant) + float(np.abs(plans).sum())
    return Cut(at.h, at.error, constant + float(plans.sum()) - ROUNDING * size), priced
