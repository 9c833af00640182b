"""Exact optimum of tiny problems by implicit enumeration: the oracle that the other solvers are tested against.

Every choice of assignments, steps and batches is either evaluated exactly or excluded by a valid lower bound. A *row* is an
assignment with its number of steps; a *plan* is a set of disjoint rows of one device; a *joint plan* takes one plan per device.

What makes the enumeration exact and quick:

1. Given (device, task, start, end) and the work e·B, frequency and power follow from the upload's time T and bandwidth W: run as
   slowly as the deadline allows, send with the least power. What is left is jointly convex in (T, W); :class:`_Uploads` solves it
   at a given bandwidth and at a given price of bandwidth.
2. The bound Ψ_j of a joint plan depends on the plans only through Σ_s h_s (its denominator, and the participation terms) and through
   sums over rows. Plans of a device are therefore grouped by their *key* (Σ h_s per task). A combination of keys fixes every H_j,
   and then bound and energy are sums over rows, but for the spectrum of a slot, T_stale, budgets and targets.
3. Lower bounds drop or price those couplings: T_stale ≥ 0; bandwidth of slot g costs μ_g ≥ 0 per hertz; budgets, targets and the
   energy limit have multipliers ≥ 0 (weak duality: any non-negative price gives a valid bound). They are applied to combinations of
   keys, then to joint plans, where T_stale is known and the bandwidth price of each slot is chosen anew. Tables over prices are read
   by linear interpolation: a minimum of linear functions is concave, so a chord lies below it.
4. A joint plan that survives is solved over its batches: slots are independent unless a budget, target or energy limit binds; if one
   does, every vector of batches whose Lagrangian value is below the best known objective is enumerated. The band of a slot is split
   by bisection-like root finding on its price, to about 1e-12 of the energy.

The answer is the optimum to a relative 1e-9 (:data:`PRUNE_TOLERANCE`). Every schedule is judged by the exact evaluator, which must agree
with the value found here.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from scipy.optimize import linprog
from scipy.special import lambertw

from schedopt.bounds.async_schedule import (
    C1_LIMIT,
    C2_LIMIT,
    FACTOR,
    LOCAL_DRIFT_FACTOR,
    LOCAL_NOISE_FACTOR,
    STALE_FACTOR,
    minibatch_variance,
    prox_step_square_sum,
    prox_step_sum,
)
from schedopt.errors import InputError, SolverError
from schedopt.objective import evaluate_objective
from schedopt.physics import LN2, transmit_power_w
from schedopt.problem import TERMS, FloatArray, IntArray, Problem
from schedopt.result import SolveResult, SolveStatus
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings, TimeLimitReached

__all__ = ["MAX_DEVICE_PLANS", "MAX_JOINT_PLANS", "Enumeration", "count_plans"]

#: Largest number of plans (assignments with steps) of one device, of joint plans, of combinations of keys, and of batches of a pair.
MAX_DEVICE_PLANS = 30_000
MAX_JOINT_PLANS = 10**12
MAX_COMBINATIONS = 20_000_000
MAX_BATCHES = 256

#: What cannot improve the best objective by this fraction is not looked at.
PRUNE_TOLERANCE = 1e-9
#: The reported lower bound is below the optimum by this fraction: it covers pruning and the error of the resource solves.
BOUND_MARGIN = 1e-8
#: Energies in lower bounds are lowered by this fraction, far above the error of the convex solves.
ENERGY_MARGIN = 1e-10
#: Rows of a joint plan's limits may be exceeded by rounding only.
ROUNDING = 1e-11

#: Points of the tables over prices: price of noise per row, of bandwidth per slot, of the bound per task (by number of tasks).
NOISE_NODES = 32
BAND_NODES = 40
TASK_NODES = {1: 96, 2: 32, 3: 10}

DEFECT = "this is a defect of schedopt, please report it"

BoolArray = np.ndarray


# --- resources of one upload ---------------------------------------------------------------------------------------------------------


def _increasing_root(function: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray) -> FloatArray:
    """Zero of an increasing function, elementwise in [low, high], or the end of the interval that is nearest to it.

    Chandrupatla's method: inverse quadratic interpolation where it is safe, else bisection; to a relative 1e-13.
    """
    x1, x2 = high, low
    f1, f2 = function(x1), function(x2)
    # without a sign change the interval shrinks to the end at which the function is nearest to zero
    x1 = np.where(f2 >= 0, x2, x1)
    x2 = np.where(f1 <= 0, x1, x2)
    x3, f3 = x2, f2
    t = np.full(np.shape(x1), 0.5)
    for _ in range(80):
        x = x1 + t * (x2 - x1)
        f = function(x)
        same = (f > 0) == (f1 > 0)
        x3, f3 = np.where(same, x1, x2), np.where(same, f1, f2)
        x2, f2 = np.where(same, x2, x1), np.where(same, f2, f1)
        x1, f1 = x, f
        width = np.abs(x2 - x1)
        allowed = 1e-13 * np.abs(x1) + 1e-300
        if np.all((width <= allowed) | (f1 == 0)):
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
            safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            guess = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
            edge = np.minimum(0.5 * allowed / width, 0.5)
        t = np.where(safe & np.isfinite(guess), guess, 0.5)
        t = np.where(np.isfinite(edge), np.clip(t, edge, 1 - edge), 0.5)
    return x1


def _bandwidth_worth(v: FloatArray) -> FloatArray:
    """(v − 1) eᵛ + 1, without cancellation for small v: what bandwidth is worth at v nats per second and hertz."""
    series = v**2 * (0.5 + v * (1.0 / 3.0 + v * (0.125 + v / 30.0)))
    return np.where(v < 1e-3, series, v * np.exp(v) - np.expm1(v))


@dataclass(frozen=True)
class _Uploads:
    """Uploads with their deadlines and work, arrays of one shape.

    ``nats``: model_bits · ln 2; ``noise_gain``: N0/gain in W/Hz; ``available``: seconds for computing and sending; ``cycles``: c e B.
    """

    nats: FloatArray
    noise_gain: FloatArray
    max_power: FloatArray
    available: FloatArray
    cycles: FloatArray
    capacitance: FloatArray
    freq_min: FloatArray
    freq_max: FloatArray
    slot_s: float
    band: float

    @classmethod
    def of(cls, problem: Problem, device: IntArray, task: IntArray, start: IntArray, end: IntArray, work: FloatArray) -> _Uploads:
        """Uploads of assignments that process ``work`` = e·B samples."""
        a = problem.arrays
        return cls(
            nats=a.model_bits[task] * LN2,
            noise_gain=a.noise_w_per_hz / a.gain[device, end - 1],
            max_power=a.max_power_w[device],
            available=(end - start) * a.slot_s - a.model_bits[task] / a.downlink_bps[device],
            cycles=a.cycles_per_sample[device, task] * work,
            capacitance=a.capacitance[device],
            freq_min=a.freq_min_hz[device],
            freq_max=a.freq_max_hz[device],
            slot_s=a.slot_s,
            band=a.bandwidth_hz,
        )

    def take(self, index: np.ndarray) -> _Uploads:
        """The uploads at ``index`` (positions or a mask of the first axis)."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in ("slot_s", "band")}
        return replace(self, **arrays)

    @cached_property
    def latest(self) -> FloatArray:
        """Longest upload: one slot, and what computing at full speed leaves."""
        return np.minimum(self.slot_s, self.available - self.cycles / self.freq_max)

    @cached_property
    def unhurried(self) -> FloatArray:
        """Upload time up to which the CPU runs at its lowest frequency anyway; shorter uploads only cost power."""
        return np.minimum(self.available - self.cycles / self.freq_min, self.latest)

    def earliest(self, band: FloatArray | float) -> FloatArray:
        """Upload time at full power, in s."""
        return self.nats / (band * np.log1p(self.max_power / (self.noise_gain * band)))

    def frequency(self, time: FloatArray) -> FloatArray:
        """The lowest CPU frequency that leaves ``time`` for the upload, in Hz."""
        return np.maximum(self.freq_min, self.cycles / (self.available - time))

    def energy(self, time: FloatArray, band: FloatArray) -> FloatArray:
        """Computing and sending, in J."""
        sending = self.noise_gain * time * band * np.expm1(self.nats / (time * band))
        return 0.5 * self.capacitance * self.cycles * self.frequency(time) ** 2 + sending

    def _slope(self, time: FloatArray, efficiency: FloatArray, band: FloatArray) -> FloatArray:
        """d energy / d time at fixed bandwidth, for ``time`` ≥ :attr:`unhurried`; ``efficiency`` v = nats / (time · band)."""
        sending = band * self.noise_gain * _bandwidth_worth(efficiency)
        return self.capacitance * (self.cycles / (self.available - time)) ** 3 - sending

    def at_band(self, band: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Least energy at a bandwidth, in J (+inf where infeasible), and its upload time."""
        band = np.broadcast_to(np.asarray(band, float), self.nats.shape)
        earliest = self.earliest(band)
        feasible = earliest <= self.latest
        low = np.where(feasible, np.maximum(earliest, self.unhurried), earliest)
        high = np.where(feasible, self.latest, low)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            time = _increasing_root(lambda t: self._slope(t, self.nats / (t * band), band), low, high)
            energy = self.energy(time, band)
        return np.where(feasible, energy, np.inf), time

    def at_price(self, price: FloatArray | float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Least energy plus ``price`` (J/Hz) times bandwidth, with the upload time and the bandwidth that attain it.

        +inf where the upload is infeasible even with the whole band.
        """
        price = np.broadcast_to(np.asarray(price, float), self.nats.shape)
        earliest = self.earliest(self.band)
        feasible = earliest <= self.latest
        low = np.where(feasible, np.maximum(earliest, self.unhurried), earliest)
        high = np.where(feasible, self.latest, low)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            time = _increasing_root(lambda t: self._price_slope(t, price), low, high)
            efficiency, _ = self._efficiency(time, price)
            band = self.nats / (efficiency * time)
            value = self.energy(time, band) + price * band
        return np.where(feasible, value, np.inf), time, band

    def _efficiency(self, time: FloatArray, price: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Best nats per second and hertz at an upload time and a price of bandwidth, and where it is capped by the power limit.

        Stationarity of the energy in W reads (v − 1)eᵛ + 1 = price / (time · noise_gain): v = 1 + W₀((· − 1)/e), with Lambert's W.
        """
        v = 1.0 + lambertw((price / (time * self.noise_gain) - 1.0) / np.e).real
        # scipy's W is nan at −1/e itself (price zero), where v = 0
        lowest = self.nats / (time * self.band)
        v = np.fmax(v, lowest)
        # sending at efficiency v takes power noise_gain · nats · (eᵛ − 1)/(v · time); with the whole band the cap is met by ``earliest``
        ratio = self.max_power * time / (self.noise_gain * self.nats)
        capped = (np.expm1(v) > ratio * v) & (v > lowest)
        if np.any(capped):
            q = 1.0 / np.maximum(ratio[capped], 1.0)
            v[capped] = -q - lambertw(-q * np.exp(-q), -1).real
        return v, capped

    def _price_slope(self, time: FloatArray, price: FloatArray) -> FloatArray:
        """Derivative in time of the least (energy + price · bandwidth), by the envelope theorem."""
        v, capped = self._efficiency(time, price)
        band = self.nats / (v * time)
        slope = self._slope(time, v, band)
        # at full power the bandwidth follows from the time: dW/dt = −(W/t) v / (v − 1 + e⁻ᵛ)
        computing = self.capacitance * (self.cycles / (self.available - time)) ** 3
        at_cap = computing + self.max_power - price * band / time * v / (v + np.expm1(-v))
        return np.where(capped, at_cap, slope)

    def least_band(self) -> FloatArray:
        """Bandwidth with which full power just meets the deadline, in Hz (+inf where not even the whole band suffices)."""
        feasible = self.earliest(self.band) <= self.latest
        time = np.where(feasible, self.latest, 1.0)
        # with v nats per second and hertz: (eᵛ − 1)/v = max_power · time / (noise_gain · nats)
        q = np.minimum(self.noise_gain * self.nats / (self.max_power * time), 1.0)
        efficiency = -q - lambertw(-q * np.exp(-q), -1).real
        with np.errstate(divide="ignore"):
            # a hair more, lest rounding makes it too little
            return np.where(feasible, (1 + 1e-12) * self.nats / (efficiency * time), np.inf)

    def scarcity(self, band: FloatArray | float) -> FloatArray:
        """What a hertz less would cost at a bandwidth, in J/Hz (a low estimate where the power limit binds; nan if infeasible)."""
        energy, time = self.at_band(band)
        v = self.nats / (time * band)
        with np.errstate(over="ignore", invalid="ignore"):
            price = time * self.noise_gain * _bandwidth_worth(v)
        return np.where(np.isfinite(energy), price, np.nan)


@dataclass(frozen=True)
class _Split:
    """A band shared by uploads, arrays of shape (m, n): per-upload energy (J, +inf if infeasible), upload time and bandwidth."""

    energy: FloatArray
    time: FloatArray
    band: FloatArray

    def take(self, slot: int) -> _Split:
        """One of the slots, as arrays of shape (1, n)."""
        return _Split(self.energy[[slot]], self.time[[slot]], self.band[[slot]])


def _split_band(uploads: _Uploads, weight: FloatArray | float = 1.0) -> _Split:
    """Share the band among the n uploads of each of m slots (arrays of shape (m, n)) at the least Σ weight · energy.

    The bandwidth that all ask for together falls with its price; the price at which it equals the band is found by root finding. The
    problem is convex, so an error of the price costs energy of second order only: the shares are scaled to fill the band exactly.
    """
    shape = uploads.nats.shape
    energy, time, band = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    least = uploads.least_band()
    some = least.sum(axis=1) < uploads.band
    if np.any(some):
        part, floor = uploads.take(some), least[some]
        asked = np.maximum(_cleared_bands(part, np.broadcast_to(np.asarray(weight, float), shape)[some]), floor)
        # scale what exceeds the least bandwidths, so that full power still suffices
        spare = asked - floor
        room = uploads.band * (1 - 1e-15) - floor.sum(axis=1, keepdims=True)
        band[some] = floor + spare * (room / spare.sum(axis=1, keepdims=True))
        energy[some], time[some] = part.at_band(band[some])
    return _Split(energy, time, band)


def _cleared_bands(uploads: _Uploads, weight: FloatArray) -> FloatArray:
    """Bandwidths (m, n) that the uploads ask for at the price at which they sum to the band."""

    def excess(log_price: FloatArray) -> FloatArray:
        return uploads.band - uploads.at_price(np.exp(log_price)[:, None] / weight)[2].sum(axis=1)

    # At an equal split, the lowest price that somebody would pay for a hertz more makes all ask for at least that; the highest makes
    # all ask for less, unless the power limit makes somebody pay any price.
    scarcity = weight * uploads.scarcity(uploads.band / weight.shape[1])
    whole = (weight * uploads.scarcity(uploads.band)).min(axis=1)
    low = np.log(np.where(np.isnan(scarcity).all(axis=1), whole, np.where(np.isnan(scarcity), np.inf, scarcity).min(axis=1)))
    high = np.maximum(np.log(np.where(np.isnan(scarcity), 0.0, scarcity).max(axis=1, initial=1e-300)), low)
    for _ in range(200):
        short = excess(high) < 0
        if not np.any(short):
            break
        high = np.where(short, high + np.log(8.0), high)
    price = np.exp(_increasing_root(excess, low, high))
    return uploads.at_price(price[:, None] / weight)[2]


# --- the problem as rows and plans ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Terms:
    """What the search needs of problem and objective.

    ``relevant``: tasks that count (weight > 0, or a target in mode min_energy), (J,); ``weight`` γ_j, zero in mode min_energy, (J,);
    ``energy_weight``: ξ of the search, see :func:`_terms`; ``target`` ε_j, +inf where there is none; ``total_energy``: limit of mode
    min_bound, in J; ``max_energy``: more than any schedule can spend, in J.
    """

    problem: Problem
    relevant: BoolArray
    weight: FloatArray
    energy_weight: float
    target: FloatArray
    total_energy: float
    max_energy: float

    @property
    def scale(self) -> dict[str, float]:
        """Multiplier c_k of each term."""
        return dict(zip(TERMS, self.problem.arrays.term_scale, strict=True))

    def numerators(self, h: FloatArray) -> FloatArray:
        """The part of Σ_k c_k T_k that depends on h_ij = Σ_s h_s only: T_opt, T_loss and T_part; h (n, I, J) -> (n, J)."""
        a, scale = self.problem.arrays, self.scale
        total = h.sum(axis=1)
        if self.problem.objective.participation == "instant":
            part = (2.0 * h * a.dissimilarity**2).sum(axis=1)
        else:
            imbalance = (np.abs(h - a.aggregation_weight * total[:, None, :]) * a.dissimilarity).sum(axis=1)
            part = np.divide(2.0 * imbalance**2, total, out=np.zeros_like(total), where=total > 0)
        return scale["opt"] * a.initial_gap + scale["loss"] * (a.slots - 1) * a.loss_drift + scale["part"] * part


def _terms(problem: Problem) -> _Terms:
    """Read the mode.

    Where energy has no price (mode min_bound, or ξ = 0) the search uses a tiny one, 1e-12 of what any objective has at least: it makes
    the least energy the tie-breaker and moves the optimum by less than the tolerances.
    """
    a, objective = problem.arrays, problem.objective
    power = a.max_power_w + a.receive_power_w + 0.5 * a.capacitance * a.freq_max_hz**3
    total = np.inf
    if objective.mode == "min_bound" and objective.total_energy_j is not None:
        total = objective.total_energy_j
    max_energy = min(total, float(np.minimum(power * a.slots * a.slot_s, a.energy_budget_j).sum()))
    if objective.mode == "min_energy":
        target = a.target
        return _Terms(problem, np.isfinite(target), np.zeros(a.num_tasks), 1.0, target, total, max_energy)
    free = np.full(a.num_tasks, np.inf)
    weight = objective.energy_weight if objective.mode == "weighted" else 0.0
    most = a.slots * (a.learning_rate * a.max_steps * a.server_weight).sum(axis=0)
    floor = float((a.weight * FACTOR * a.term_scale[0] * a.initial_gap / np.maximum(most, 1e-300)).sum())
    return _Terms(problem, a.weight > 0, a.weight, max(weight, 1e-12 * max(floor, 1e-6) / max_energy), free, total, max_energy)


@dataclass(frozen=True)
class _Rows:
    """Assignments with their steps, arrays over R rows, and their batches (R, n).

    ``fixed`` and ``noise``: the row's share of Σ_k c_k T_k is fixed + noise · σ²(B), to which T_stale adds stale · span · σ²(B), with
    span = Σ h κ of the stale work that its aggregation falls into. ``sigma2`` σ²(B); ``alone`` energy in J with the whole band.
    Batches beyond ``samples`` are padding: infinite energy.
    """

    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    steps: IntArray
    h: FloatArray
    fixed: FloatArray
    noise: FloatArray
    stale: FloatArray
    batch: IntArray
    sigma2: FloatArray
    receive_j: FloatArray
    alone: FloatArray

    def __len__(self) -> int:
        return len(self.device)

    def take(self, index: np.ndarray) -> _Rows:
        """The rows at ``index`` (positions or a mask)."""
        return _Rows(*(getattr(self, f.name)[index] for f in fields(self)))


def _candidates(terms: _Terms) -> Iterator[tuple[int, int, int, int, int]]:
    """(device, task, start, end, steps) that constraints 2 and 4 and C1 allow and that can serve the objective."""
    a = terms.problem.arrays
    for i, j in itertools.product(range(a.num_devices), range(a.num_tasks)):
        # an upload that carries no weight, or of a task that does not count, only costs energy
        if not (terms.relevant[j] and a.server_weight[i, j] > 0 and a.samples[i, j] >= a.min_batch[j]):
            continue
        for start, end in itertools.combinations(range(a.slots + 1), 2):
            if end - 1 - start <= a.max_staleness[j]:
                yield from ((i, j, start, end, e) for e in range(1, _most_steps(terms, j) + 1))


def _most_steps(terms: _Terms, j: int) -> int:
    a = terms.problem.arrays
    if not terms.problem.objective.enforce_conditions:
        return int(a.max_steps[j])
    allowed = C1_LIMIT * (1 + PRUNE_TOLERANCE) / (a.learning_rate[j] * a.smoothness[j])
    return int(min(a.max_steps[j], np.floor(allowed)))


def _row_uploads(problem: Problem, rows: _Rows, index: np.ndarray, batch: IntArray) -> _Uploads:
    """The uploads of rows ``index`` (any shape) with mini-batches ``batch`` of the same shape."""
    work = (rows.steps[index] * batch).astype(float)
    return _Uploads.of(problem, rows.device[index], rows.task[index], rows.start[index], rows.end[index], work)


def _build_rows(terms: _Terms) -> _Rows:
    """All rows that are feasible alone with some batch."""
    a = terms.problem.arrays
    i, j, start, end, steps = np.array(list(_candidates(terms)), dtype=np.int64).reshape(-1, 5).T
    widest = int((a.samples - a.min_batch + 1)[a.has_data].max()) if len(i) else 1
    batch = a.min_batch[j][:, None] + np.arange(max(widest, 1))
    samples = a.samples[i, j][:, None].astype(float)
    sigma2 = minibatch_variance(a.gradient_variance[i, j][:, None], np.minimum(batch, samples), samples)
    receive_j = a.receive_power_w[i] * a.model_bits[j] / a.downlink_bps[i]
    h, fixed, noise, stale = _bound_shares(terms, i, j, start, end, steps)
    rows = _Rows(i, j, start, end, steps, h, fixed, noise, stale, batch, sigma2, receive_j, np.zeros(batch.shape))
    index = np.broadcast_to(np.arange(len(i))[:, None], batch.shape)
    energy = _row_uploads(terms.problem, rows, index, batch).at_band(a.bandwidth_hz)[0] + receive_j[:, None]
    rows = replace(rows, alone=np.where(batch <= samples, energy, np.inf))
    return rows.take(np.flatnonzero(np.isfinite(rows.alone).any(axis=1)))


def _bound_shares(
    terms: _Terms, i: IntArray, j: IntArray, start: IntArray, end: IntArray, steps: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """``h``, ``fixed``, ``noise`` and ``stale`` of rows: the terms of Theorem 1 that a row adds to, scaled."""
    a, scale = terms.problem.arrays, terms.scale
    eta, theta, kappa = a.learning_rate[j], a.server_weight[i, j], end - 1 - start
    local_steps, shrink = steps.astype(float), eta * a.prox[j]
    h = eta * theta * prox_step_sum(local_steps, shrink)
    aggregated: FloatArray = (eta * theta) ** 2 * prox_step_square_sum(local_steps, shrink)
    step = (a.smoothness[j] * eta) ** 2
    drift = a.gradient_drift[i, j] ** 2 + a.mean_gradient_drift[j] ** 2 / 16.0
    local = LOCAL_DRIFT_FACTOR * steps**2 * a.dissimilarity[i, j] ** 2
    fixed = scale["data"] * 2.0 * h * kappa**2 * drift + scale["local"] * 2.0 * h * step * local
    noise = scale["local"] * 2.0 * h * step * LOCAL_NOISE_FACTOR * steps + scale["noise"] * a.smoothness[j] * aggregated
    stale = scale["stale"] * STALE_FACTOR * a.smoothness[j] ** 2 * aggregated
    return h, fixed, noise, stale


@dataclass(frozen=True)
class _Plans:
    """The plans of one device, P of them, grouped by key (K keys): plans of key k are first[k] … first[k] + count[k] − 1.

    ``rows`` (P, G): the row that uploads in each slot, R (a dummy) where there is none; ``h`` (K, J); ``fixed`` (P, J);
    ``h_instant`` and ``span`` (P, J, G+1): Σ h_s at aggregation instants, and Σ h_s κ_s inside assignments; ``least_energy`` (P,) J.
    """

    rows: IntArray
    fixed: FloatArray
    h_instant: FloatArray
    span: FloatArray
    least_energy: FloatArray
    h: FloatArray
    first: IntArray
    count: IntArray


def count_plans(problem: Problem) -> list[int]:
    """Number of plans of each device: sets of disjoint assignments with their steps."""
    return _count_plans(_terms(problem))


def _count_plans(terms: _Terms) -> list[int]:
    a = terms.problem.arrays
    counts = []
    for i in range(a.num_devices):
        ways = [1] + [0] * a.slots
        choices = [(j, _most_steps(terms, j)) for j in range(a.num_tasks) if terms.relevant[j] and a.server_weight[i, j] > 0]
        for g in range(1, a.slots + 1):
            lengths = ((n, steps) for n in range(1, g + 1) for j, steps in choices if n - 1 <= a.max_staleness[j])
            ways[g] = ways[g - 1] + sum(steps * ways[g - n] for n, steps in lengths)
        counts.append(ways[a.slots])
    return counts


def _row_sets(rows: _Rows, device: int, slots: int) -> list[tuple[int, ...]]:
    """All sets of disjoint rows of a device, by start."""
    by_start: list[list[int]] = [[] for _ in range(slots)]
    for row in np.flatnonzero(rows.device == device):
        by_start[rows.start[row]].append(int(row))
    # sets[g]: those that use slots g, g + 1, … only
    sets: list[list[tuple[int, ...]]] = [[()] for _ in range(slots + 1)]
    for g in reversed(range(slots)):
        sets[g] = sets[g + 1] + [(row, *rest) for row in by_start[g] for rest in sets[rows.end[row]]]
    return sets[0]


def _build_plans(terms: _Terms, rows: _Rows, device: int) -> _Plans:
    """The plans of a device that its energy budget allows with the smallest batches."""
    a = terms.problem.arrays
    sets = _row_sets(rows, device, a.slots)
    table = np.full((len(sets), a.slots), len(rows))
    for p, members in enumerate(sets):
        for row in members:
            table[p, rows.end[row] - 1] = row
    energy = np.append(rows.alone.min(axis=1, initial=np.inf), 0.0)[table].sum(axis=1)
    affordable = energy <= a.energy_budget_j[device] * (1 + ROUNDING)
    table, energy = table[affordable], energy[affordable]
    h_instant, span, fixed = (share[table].sum(axis=1) for share in _row_shares(terms, rows))
    # sums of equal steps in another order differ in the last digits: they are one key
    keys = h_instant.sum(axis=2)
    scale = max(float(keys.max(initial=0.0)), 1e-300)
    _, inverse = np.unique(np.round(keys / scale, 12), axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    first = np.flatnonzero(np.diff(inverse.ravel()[order], prepend=-1))
    count = np.diff(np.append(first, len(order)))
    return _Plans(table[order], fixed[order], h_instant[order], span[order], energy[order], keys[order][first], first, count)


def _row_shares(terms: _Terms, rows: _Rows) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per row and a dummy of zeros: ``h`` at its aggregation (R+1, J, G+1), h κ inside it (R+1, J, G+1), ``fixed`` (R+1, J)."""
    a = terms.problem.arrays
    shape = (len(rows) + 1, a.num_tasks, a.slots + 1)
    h, span, fixed = np.zeros(shape), np.zeros(shape), np.zeros(shape[:2])
    r = np.arange(len(rows))
    h[r, rows.task, rows.end] = rows.h
    fixed[r, rows.task] = rows.fixed
    inside = (np.arange(a.slots + 1) > rows.start[:, None]) & (np.arange(a.slots + 1) < rows.end[:, None])
    span[r, rows.task] = inside * (rows.h * (rows.end - 1 - rows.start))[:, None]
    return h, span, fixed


# --- lower bounds by prices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prices:
    """Prices of what couples the plans, in units of energy: ``band`` (G,) the node of :attr:`_Tables.band` of each slot (0 = free);
    ``budget`` (I,) extra price of a device's energy."""

    band: IntArray
    budget: FloatArray


class _Tables:
    """Least cost of a row over its batches, at prices of noise, bandwidth and energy.

    ``band`` (G, M): prices of bandwidth in J/Hz, the first one zero; ``priced`` (R, n, M): least energy + price · bandwidth of a batch;
    ``least_band`` (R, n): bandwidth without which a batch is infeasible.
    """

    def __init__(self, problem: Problem, rows: _Rows) -> None:
        self.rows = rows
        self.total_band = problem.arrays.bandwidth_hz
        finite = np.isfinite(rows.alone)
        index = np.nonzero(finite)[0]
        uploads, slot = _row_uploads(problem, rows, index, rows.batch[finite]), rows.end[index] - 1
        self.band = self._band_nodes(problem, uploads, slot)
        self.priced = np.full((*rows.batch.shape, self.band.shape[1]), np.inf)
        self.priced[..., 0] = rows.alone
        for m in range(1, self.band.shape[1]):
            self.priced[finite, m] = uploads.at_price(self.band[slot, m])[0] + rows.receive_j[index]
        self.priced *= 1 - ENERGY_MARGIN
        self.least_band = np.full(rows.batch.shape, np.inf)
        self.least_band[finite] = uploads.least_band()
        self.noise_low, self.noise_log_ratio = self._noise_nodes()

    @staticmethod
    def _band_nodes(problem: Problem, uploads: _Uploads, slot: IntArray) -> FloatArray:
        """Prices from where the first upload would give up a hertz of the whole band to where all would give up seven eighths."""
        a = problem.arrays
        nodes = np.zeros((a.slots, 1 if a.num_devices == 1 else BAND_NODES))
        if nodes.shape[1] == 1 or not len(slot):
            return nodes
        scarcity = np.stack([uploads.scarcity(a.bandwidth_hz * share) for share in (1.0, 0.5, 0.25, 0.125)])
        for g in range(a.slots):
            mine = scarcity[:, slot == g]
            if np.isfinite(mine).any():
                low = np.nanmin(mine)
                nodes[g, 1:] = np.geomspace(low, max(np.nanmax(mine), 2.0 * low), BAND_NODES - 1)
        return nodes

    def _noise_nodes(self) -> tuple[FloatArray, FloatArray]:
        """First positive node and log ratio of the nodes, per row: from where the smallest batch is best to where all samples are."""
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = -np.diff(self.rows.alone, axis=1) / np.diff(self.rows.sigma2, axis=1)
        good = np.isfinite(slope) & (slope > 0)
        some = good.any(axis=1)
        low = np.where(some, 0.5 * np.where(good, slope, np.inf).min(axis=1, initial=np.inf), 1.0)
        high = np.where(some, 4.0 * np.where(good, slope, 0.0).max(axis=1, initial=0.0), 10.0)
        return np.append(low, 1.0), np.append(np.log(high / low), 1.0) / (NOISE_NODES - 2)

    def _noise_node(self, row: IntArray, node: IntArray) -> FloatArray:
        """Price of noise at a node of a row's table, in J; node 0 is zero."""
        return np.where(node > 0, self.noise_low[row] * np.exp((node - 1) * self.noise_log_ratio[row]), 0.0)

    def least(self, budget: FloatArray) -> FloatArray:
        """min over B of price · σ²(B) + (1 + budget_i) · energy + band price · W, shape (R+1, N, M); zero for the dummy row."""
        rows = self.rows
        factor = 1.0 + budget[rows.device]
        energy = self.priced
        if np.any(budget > 0):
            energy = np.stack([self.reweighted(r, factor[r], self.band[rows.end[r] - 1]) for r in range(len(rows))])
        result = np.zeros((len(rows) + 1, NOISE_NODES, self.band.shape[1]))
        every = np.arange(len(rows))
        for node in range(NOISE_NODES):
            noise = self._noise_node(every, np.full(len(rows), node))[:, None] * rows.sigma2
            result[:-1, node] = (noise[:, :, None] + energy).min(axis=1)
        return result

    def reweighted(self, row: int, factor: float, prices: FloatArray) -> FloatArray:
        """Least factor · energy + price · bandwidth of a row's batches at ``prices`` (m,), shape (n, m).

        That is factor · priced(price / factor): interpolated, and beyond the last node its value there, so from below.
        """
        nodes, priced = self.band[self.rows.end[row] - 1], self.priced[row]
        if nodes[-1] == 0:
            return np.repeat(factor * priced[:, :1], len(prices), axis=1)
        wanted = prices / factor
        left = np.clip(np.searchsorted(nodes, wanted, side="right") - 1, 0, len(nodes) - 2)
        t = np.minimum((wanted - nodes[left]) / (nodes[left + 1] - nodes[left]), 1.0)
        finite = np.isfinite(priced)
        some = np.where(finite, priced, 0.0)
        mixed = factor * ((1 - t) * some[:, left] + t * some[:, left + 1])
        return np.where(finite[:, :1], mixed, np.inf)

    def read(self, table: FloatArray, row: IntArray, price: FloatArray) -> FloatArray:
        """``table[row]`` at a price of noise, interpolated; beyond the last node its value there (valid: it only grows)."""
        with np.errstate(divide="ignore"):
            position = np.log(price / self.noise_low[row]) / self.noise_log_ratio[row]
        left = np.clip(np.floor(np.maximum(position, -1.0)).astype(np.int64) + 1, 0, NOISE_NODES - 2)
        low, high = self._noise_node(row, left), self._noise_node(row, left + 1)
        t = np.clip((price - low) / (high - low), 0.0, 1.0)
        t = t.reshape(t.shape + (1,) * (table.ndim - 2))
        return (1 - t) * table[row, left] + t * table[row, left + 1]


@dataclass(frozen=True)
class _Quote:
    """How combinations of keys are priced, arrays over n combinations: a joint plan costs at least offset + scale · (cost of its rows),
    rows at ``rate`` (n, J) joules per unit of Σ_k c_k T_k, in joules; ``bound``: lower bound over all joint plans of the combination.
    """

    bound: FloatArray
    offset: FloatArray
    scale: FloatArray
    rate: FloatArray

    def take(self, index: np.ndarray) -> _Quote:
        """The quotes at ``index``."""
        return _Quote(self.bound[index], self.offset[index], self.scale[index], self.rate[index])

    def best(self, other: _Quote) -> _Quote:
        """Elementwise the one of larger bound."""
        better = other.bound > self.bound
        return _Quote(
            np.where(better, other.bound, self.bound),
            np.where(better, other.offset, self.offset),
            np.where(better, other.scale, self.scale),
            np.where(better[:, None], other.rate, self.rate),
        )


class _Relaxation:
    """Lower bounds of combinations of keys and of plans at fixed prices of bandwidth and budgets.

    ``row_cost`` (R+1, N, M): :meth:`_Tables.least`; ``plan_cost[i][j]`` (P, Q): cost of a device's plans in one task at the rates
    ``nodes[j]`` (Q,); ``key_cost[i]`` (K, Q^J): least total over the plans of a key; ``paid``: what the prices give back, in J.
    """

    def __init__(self, problem: Problem, tables: _Tables, plans: Sequence[_Plans], nodes: Sequence[FloatArray], prices: _Prices) -> None:
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

    def _plan_costs(self, plan: _Plans, at_band: FloatArray, j: int) -> FloatArray:
        rows = self.tables.rows
        mine = np.flatnonzero(rows.task == j)
        cost = np.zeros((len(rows) + 1, len(self.nodes[j])))
        for q, rate in enumerate(self.nodes[j]):
            cost[mine, q] = rate * rows.fixed[mine] + self.tables.read(at_band, mine, rate * rows.noise[mine])
        return cost[plan.rows].sum(axis=1)

    @staticmethod
    def _key_costs(plan: _Plans, costs: Sequence[FloatArray]) -> FloatArray:
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


class _Combinations:
    """Combinations of keys, one key a device, numbered 0 … total − 1, and how they are priced.

    In mode min_energy the rate of each task with a target is free; in mode min_bound with a limit the price of energy is free: the best
    of a grid is taken, then of a few steps of pattern search.
    """

    def __init__(self, terms: _Terms, tables: _Tables, plans: Sequence[_Plans]) -> None:
        self.terms, self.plans = terms, plans
        self.sizes = tuple(len(plan.h) for plan in plans)
        self.total = int(np.prod(self.sizes, dtype=float))
        self.least_energy = [np.minimum.reduceat(plan.least_energy, plan.first) for plan in plans]
        self.least_fixed = [np.minimum.reduceat(plan.fixed, plan.first, axis=0) for plan in plans]
        low, high = self._rate_range(tables)
        worth = self._worth_range()
        self.nodes = [self._rate_nodes(j, low[j], high[j], worth[:, j]) for j in range(len(low))]
        self.grids = self._grids(low, high, worth)
        self.points = [np.array(point, dtype=float) for point in itertools.product(*self.grids)]

    def _rate_range(self, tables: _Tables) -> tuple[FloatArray, FloatArray]:
        """Rates per task between which batches depend on them."""
        rows = tables.rows
        ends = np.tile([[1e-6], [1e6]], self.terms.problem.arrays.num_tasks)
        last = tables.noise_low[:-1] * np.exp(tables.noise_log_ratio[:-1] * (NOISE_NODES - 2))
        for j in range(ends.shape[1]):
            some = (rows.task == j) & (rows.noise > 0)
            if np.any(some):
                ends[:, j] = (tables.noise_low[:-1] / rows.noise)[some].min(), (last / rows.noise)[some].max()
        return ends[0], ends[1]

    def _worth_range(self) -> FloatArray:
        """Least and most that a unit of Σ_k c_k T_k can be worth in the objective, (2, J)."""
        h = np.concatenate([plan.h for plan in self.plans])
        least = np.where(h > 0, h, np.inf).min(axis=0)
        most = sum(plan.h.max(axis=0) for plan in self.plans)
        used = most > 0
        worth = self.terms.weight * FACTOR / np.where(used, np.stack([most, least]), 1.0)
        return np.where(used, worth, 0.0)

    def _rate_nodes(self, j: int, low: float, high: float, worth: FloatArray) -> FloatArray:
        """Nodes of the tables over the rate of a task."""
        terms = self.terms
        if not terms.relevant[j]:
            return np.array([0.0, 1.0])
        count = TASK_NODES.get(int(terms.relevant.sum()), 6)
        top = worth / terms.energy_weight
        if not self._is_free():
            return np.geomspace(top[0] * (1 - 1e-12), top[1] * (1 + 1e-12), count)
        nodes = np.append(0.0, np.geomspace(low, high, count - 2))
        return np.append(nodes, max(top[1], 4.0 * high))

    def _is_free(self) -> bool:
        return bool(np.any(np.isfinite(self.terms.target)) or np.isfinite(self.terms.total_energy))

    def _grids(self, low: FloatArray, high: FloatArray, worth: FloatArray) -> list[FloatArray]:
        """First values of each free price: rates of the tasks with a target, or the extra price of energy."""
        if np.any(np.isfinite(self.terms.target)):
            return [np.append(0.0, np.geomspace(low[j], high[j], 5)) for j in np.flatnonzero(self.terms.relevant)]
        if np.isfinite(self.terms.total_energy):
            some = worth[0] > 0
            return [np.append(0.0, np.geomspace((worth[0] / high)[some].min(), (worth[1] / low)[some].max(), 12))]
        return []

    def keys(self, flat: IntArray) -> IntArray:
        """Key of each device, (n, I)."""
        return np.stack(np.unravel_index(flat, self.sizes), axis=1)

    def sums(self, keys: IntArray) -> tuple[FloatArray, FloatArray]:
        """H_j and the numerators that follow from it, both (n, J)."""
        h = np.stack([plan.h[keys[:, i]] for i, plan in enumerate(self.plans)], axis=1)
        return h.sum(axis=1), self.terms.numerators(h)

    def quote(self, relaxation: _Relaxation, flat: IntArray, rounds: int = 2) -> _Quote:
        """Price combinations; those that cannot be feasible have an infinite bound."""
        keys = self.keys(flat)
        total, numerators = self.sums(keys)
        free = np.zeros((len(flat), len(self.grids)))
        best: _Quote | None = None

        def offer(z: FloatArray) -> None:
            nonlocal best, free
            new = self._priced(relaxation, keys, total, numerators, z)
            free = z if best is None else np.where((new.bound > best.bound)[:, None], z, free)
            best = new if best is None else best.best(new)

        for point in self.points:
            offer(np.tile(point, (len(flat), 1)))
        ratios = [(grid[2] / grid[1]) ** 0.5 for grid in self.grids]
        for step, d, sign in itertools.product(range(rounds), range(len(ratios)), (1.0, -1.0)):
            factor = np.ones(len(ratios))
            factor[d] = ratios[d] ** (sign / 2**step)
            offer(free * factor)
        assert best is not None
        return _Quote(np.where(self._possible(keys, total, numerators), best.bound, np.inf), best.offset, best.scale, best.rate)

    def quote_at(self, relaxation: _Relaxation, flat: IntArray, point: FloatArray) -> _Quote:
        """Price combinations at one point of the grid of free prices."""
        keys = self.keys(flat)
        return self._priced(relaxation, keys, *self.sums(keys), np.tile(point, (len(flat), 1)))

    def _priced(self, relaxation: _Relaxation, keys: IntArray, total: FloatArray, numerators: FloatArray, free: FloatArray) -> _Quote:
        """The quote at given free prices (n, D)."""
        terms = self.terms
        relevant = terms.relevant & (total > 0)
        safe = np.where(relevant, total, 1.0)
        scale = np.full(len(keys), terms.energy_weight)
        if np.any(np.isfinite(terms.target)):
            rate = np.zeros(total.shape)
            rate[:, terms.relevant] = free
            reach = np.where(terms.relevant, terms.target, 0.0) * total / FACTOR
            offset = (rate * (numerators - reach)).sum(axis=1)
        else:
            worth = np.where(relevant, terms.weight * FACTOR / safe, 0.0)
            offset = (worth * numerators).sum(axis=1)
            if free.shape[1]:
                scale = scale + free[:, 0]
                offset = offset - free[:, 0] * terms.total_energy
            rate = worth / scale[:, None]
        rows = relaxation.keys_cost(keys, rate).sum(axis=1) - relaxation.paid
        return _Quote(offset + scale * rows, offset, scale, rate)

    def _possible(self, keys: IntArray, total: FloatArray, numerators: FloatArray) -> BoolArray:
        """Every task that counts is trained, and targets and the energy limit are within reach for each row alone."""
        terms = self.terms
        possible = np.all((total > 0) | ~terms.relevant, axis=1)
        if np.isfinite(terms.total_energy):
            possible &= sum(e[keys[:, i]] for i, e in enumerate(self.least_energy)) <= terms.total_energy * (1 + ROUNDING)
        if np.any(np.isfinite(terms.target)):
            fixed = sum(f[keys[:, i]] for i, f in enumerate(self.least_fixed))
            reach = np.where(terms.relevant, terms.target, 0.0) * total * (1 + ROUNDING) / FACTOR
            possible &= np.all((numerators + fixed <= reach) | ~terms.relevant, axis=1)
        return possible


# --- one joint plan ------------------------------------------------------------------------------------------------------------------


class _Slot:
    """The batches of the rows that upload in one slot: O options that fit into the band, each a batch per row, and their energies.

    ``pick`` (n, O): position of the batch in the row's list; ``alone`` (n, O): energies with the whole band; ``energy`` (O,): a lower
    bound on the energy of the rows together until ``exact``, then the least energy; ``parts``, ``time``, ``band`` (n, O): once exact.
    """

    def __init__(self, problem: Problem, tables: _Tables, rows: tuple[int, ...]) -> None:
        self.problem, self.tables, self.rows = problem, tables, rows
        table = tables.rows
        feasible = [np.flatnonzero(np.isfinite(table.alone[r])) for r in rows]
        self.index = np.array(rows)[:, None]
        pick = np.stack([axis.ravel() for axis in np.meshgrid(*feasible, indexing="ij")])
        # at full power and as late as allowed, do they fit into the band together?
        fits = tables.least_band[self.index, pick].sum(axis=0) < tables.total_band if len(rows) > 1 else np.isfinite(pick[0])
        self.pick = pick[:, fits]
        self.alone = table.alone[self.index, self.pick]
        self.sigma2 = table.sigma2[self.index, self.pick]
        self.parts, self.time, self.band = (np.full(self.pick.shape, np.nan) for _ in range(3))
        self.exact = np.zeros(self.pick.shape[1], dtype=bool)
        if len(rows) == 1:
            self.energy = self.alone[0].copy()
            self.refine(np.arange(len(self.exact)))
        else:
            self.energy = self._bound()

    def _bound(self) -> FloatArray:
        """Least energy at the best node of the bandwidth price, by weak duality."""
        band = self.tables.band[self.tables.rows.end[self.rows[0]] - 1]
        best = np.full(self.pick.shape[1], -np.inf)
        for m in range(len(band)):
            value = self.tables.priced[self.index, self.pick, m].sum(axis=0) - band[m] * self.tables.total_band
            np.maximum(best, value, out=best)
        return best

    def weighted_bound(self, factor: FloatArray) -> FloatArray:
        """Lower bound on Σ factor · energy of the rows (n,) over all splits of the band, (O,)."""
        nodes = self.tables.band[self.tables.rows.end[self.rows[0]] - 1]
        prices = np.append(0.0, np.geomspace(nodes[1] * factor.min(), nodes[-1] * factor.max(), BAND_NODES))
        tables = [self.tables.reweighted(r, float(w), prices) for r, w in zip(self.rows, factor, strict=True)]
        total = sum(table[pick] for table, pick in zip(tables, self.pick, strict=True))
        return (total - prices * self.tables.total_band).max(axis=1)

    def uploads(self, options: IntArray) -> _Uploads:
        """The uploads of options, arrays (len(options), n)."""
        table = self.tables.rows
        batch = table.batch[self.index, self.pick[:, options]].T
        return _row_uploads(self.problem, table, np.broadcast_to(self.index.T, batch.shape), batch)

    def refine(self, options: IntArray) -> None:
        """Replace bounds by the exact least energies."""
        options = options[~self.exact[options]]
        if not len(options):
            return
        uploads = self.uploads(options)
        if len(self.rows) == 1:
            energy, time = uploads.at_band(uploads.band)
            split = _Split(energy, time, np.full(energy.shape, uploads.band))
        else:
            split = _split_band(uploads)
        parts = split.energy.T + self.tables.rows.receive_j[self.index]
        self.parts[:, options], self.time[:, options], self.band[:, options] = parts, split.time.T, split.band.T
        self.energy[options], self.exact[options] = parts.sum(axis=0), True

    def best_price(self, option: int) -> int:
        """Highest node of the bandwidth price that bounds the energy of an option as well as any node does."""
        band = self.tables.band[self.tables.rows.end[self.rows[0]] - 1]
        value = self.tables.priced[self.index[:, 0], self.pick[:, option]].sum(axis=0) - band * self.tables.total_band
        return int(np.flatnonzero(value >= value.max() - 1e-9 * abs(value.max()))[-1])


@dataclass
class _Choice:
    """A solved joint plan: batch, upload time and bandwidth of each of its rows, and the multipliers of its limits."""

    objective: float
    rows: IntArray
    batch: IntArray
    time: FloatArray
    band: FloatArray
    multipliers: FloatArray


@dataclass
class _Limits:
    """Rows Σ over slots of activity ≤ limit: targets per task, the energy limit, budgets per device. ``task``/``device``: −1 = none."""

    task: list[int] = field(default_factory=list)
    device: list[int] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)

    def add(self, limit: float, *, task: int = -1, device: int = -1) -> None:
        """One more row; without task and device it limits the energy of all."""
        self.task.append(task)
        self.device.append(device)
        self.limit.append(limit)


class _JointPlan:
    """Exact solution of one joint plan over batches and resources.

    Minimises const + Σ_slots worth · noise + ξ · energy subject to :class:`_Limits`; H, the participation terms and the spans of stale
    work are fixed by the rows. ``check`` raises when time is up.
    """

    def __init__(
        self, terms: _Terms, tables: _Tables, slots: Sequence[_Slot], span: FloatArray, h: FloatArray, check: Callable[[], None]
    ) -> None:
        self.terms, self.slots, self.check = terms, slots, check
        self.prices: _Prices | None = None
        rows = tables.rows
        a = terms.problem.arrays
        total = h.sum(axis=0)
        worth = np.where(terms.relevant & (total > 0), terms.weight * FACTOR / np.where(total > 0, total, 1.0), 0.0)
        numerators = terms.numerators(h[None])[0]
        self.noise: list[FloatArray] = []
        for slot in slots:
            noise = np.zeros((a.num_tasks, slot.pick.shape[1]))
            for k, r in enumerate(slot.rows):
                j = rows.task[r]
                numerators[j] += rows.fixed[r]
                noise[j] += (rows.noise[r] + rows.stale[r] * span[j, rows.end[r]]) * slot.sigma2[k]
            self.noise.append(noise)
        self.worth = worth
        self.const = float(worth @ numerators)
        self.limits = self._limits(numerators, total)
        self.devices = [[int(rows.device[r]) for r in slot.rows] for slot in slots]

    def _limits(self, numerators: FloatArray, total: FloatArray) -> _Limits:
        a, limits = self.terms.problem.arrays, _Limits()
        for j in np.flatnonzero(np.isfinite(self.terms.target)):
            limits.add(float(self.terms.target[j] * total[j] / FACTOR - numerators[j]), task=int(j))
        if np.isfinite(self.terms.total_energy):
            limits.add(self.terms.total_energy)
        for i in np.flatnonzero(np.isfinite(a.energy_budget_j)):
            limits.add(float(a.energy_budget_j[i]), device=int(i))
        return limits

    def activity(self, k: int) -> FloatArray:
        """What each option of slot k uses of each limit, (limits, O): exact for targets, else exact or a lower bound."""
        slot, limits = self.slots[k], self.limits
        rows = np.zeros((len(limits.limit), slot.pick.shape[1]))
        for m, (task, device) in enumerate(zip(limits.task, limits.device, strict=True)):
            if task >= 0:
                rows[m] = self.noise[k][task]
            elif device >= 0:
                rows[m] = slot.alone[[d == device for d in self.devices[k]]].sum(axis=0)
            else:
                # options that cannot share the band cost infinity already; 0 times infinity must not appear
                rows[m] = np.where(np.isfinite(slot.energy), slot.energy, 0.0)
        return rows

    def cost(self, k: int) -> FloatArray:
        """Share of the objective of each option of slot k, (O,): exact or a lower bound."""
        return self.worth @ self.noise[k] + self.terms.energy_weight * self.slots[k].energy

    def solve(self, cutoff: float, start: FloatArray | None = None) -> _Choice | None:
        """The optimum if it is below ``cutoff``, else None (also if the joint plan is infeasible).

        ``start``: multipliers of the limits to begin with.
        """
        start = np.zeros(len(self.limits.limit)) if start is None else start
        if any(_Lagrangian(self, values).dual() >= cutoff for values in (np.zeros(len(start)), start)):
            return None
        picks = np.array([self._cheapest(k) for k in range(len(self.slots))], dtype=np.int64)
        objective = self.const + sum(self.cost(k)[o] for k, o in enumerate(picks))
        if not objective < cutoff:
            return None
        self.prices = self._prices(picks, np.zeros(len(self.limits.limit)))
        if self._within(picks):
            return self._choice(objective, picks, np.zeros(len(self.limits.limit)))
        return self._solve_limited(cutoff, start)

    def _cheapest(self, k: int) -> int:
        """Option of least cost of a slot; bounds are made exact until the least one is."""
        slot = self.slots[k]
        while True:
            cost = self.cost(k)
            best = int(np.argmin(cost))
            if slot.exact[best]:
                return best
            count = min(16, len(cost))
            slot.refine(np.argpartition(cost, count - 1)[:count])

    def _within(self, picks: IntArray) -> bool:
        """Whether options with exact energies meet all limits when each slot's energy is least."""
        used = self._used(picks, [slot.parts[:, o] for slot, o in zip(self.slots, picks, strict=True)])
        return bool(np.all(used <= np.array(self.limits.limit) + ROUNDING * np.abs(self.limits.limit)))

    def _used(self, picks: IntArray, parts: Sequence[FloatArray]) -> FloatArray:
        """Activity of every limit at given energies of the rows."""
        return sum((self.used_by(k, int(o), parts[k]) for k, o in enumerate(picks)), np.zeros(len(self.limits.limit)))

    def used_by(self, k: int, option: int, parts: FloatArray) -> FloatArray:
        """Activity of every limit by an option of slot k at given energies of its rows."""
        used = np.zeros(len(self.limits.limit))
        for m, (task, device) in enumerate(zip(self.limits.task, self.limits.device, strict=True)):
            if task >= 0:
                used[m] = self.noise[k][task, option]
            else:
                used[m] = sum(e for e, d in zip(parts, self.devices[k], strict=True) if device in (-1, d))
        return used

    def _choice(self, objective: float, picks: IntArray, multipliers: FloatArray, splits: dict[int, _Split] | None = None) -> _Choice:
        """The joint plan's solution in the order of its rows."""
        splits = splits or {}
        rows: list[int] = []
        batch: list[int] = []
        time: list[float] = []
        band: list[float] = []
        for k, (slot, o) in enumerate(zip(self.slots, picks, strict=True)):
            rows.extend(slot.rows)
            batch.extend(slot.tables.rows.batch[slot.index[:, 0], slot.pick[:, o]])
            time.extend(splits[k].time[0] if k in splits else slot.time[:, o])
            band.extend(splits[k].band[0] if k in splits else slot.band[:, o])
        self.prices = self._prices(picks, multipliers)
        return _Choice(objective, np.array(rows, dtype=np.int64), np.array(batch), np.array(time), np.array(band), multipliers)

    def _prices(self, picks: IntArray, multipliers: FloatArray) -> _Prices:
        """Prices at which the bounds of other joint plans may be tight, from options of the slots and multipliers of the limits."""
        a = self.terms.problem.arrays
        prices = _Prices(np.zeros(a.slots, dtype=np.int64), np.zeros(a.num_devices))
        for slot, o in zip(self.slots, picks, strict=True):
            prices.band[slot.tables.rows.end[slot.rows[0]] - 1] = slot.best_price(int(o))
        scale = self.terms.energy_weight + sum(multipliers[m] for m in range(len(multipliers)) if self._is_total(m))
        for m, device in enumerate(self.limits.device):
            if device >= 0:
                prices.budget[device] = multipliers[m] / scale
        return prices

    def _is_total(self, m: int) -> bool:
        return self.limits.task[m] < 0 and self.limits.device[m] < 0

    # --- with limits that bind ---

    def _solve_limited(self, cutoff: float, start: FloatArray) -> _Choice | None:
        """Enumerate the vectors of options by increasing Lagrangian value until no other can be better."""
        limit = np.array(self.limits.limit)
        least = sum(self.activity(k).min(axis=1) for k in range(len(self.slots)))
        if np.any(least > limit + ROUNDING * np.abs(limit)):
            return None
        # no feasible vector costs more than this: a dual value above it proves that there is none
        cutoff = min(cutoff, (1 + PRUNE_TOLERANCE) * (self.const + self.terms.energy_weight * self.terms.max_energy + self._most_noise()))
        lagrangian = self._best_lagrangian(start, cutoff)
        self.prices = self._prices(lagrangian.cheapest(), lagrangian.multipliers)
        best: _Choice | None = None
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

    def _most_noise(self) -> float:
        return sum(float((self.worth @ noise).max()) for noise in self.noise)

    def _best_lagrangian(self, start: FloatArray, cutoff: float) -> _Lagrangian:
        """Multipliers near the largest dual value, by cutting planes; done once the value reaches ``cutoff``.

        The dual value is the least of functions that are linear in the multipliers, one per choice of options and bands.
        """
        limit = np.array(self.limits.limit)
        multipliers, best, cuts = start, _Lagrangian(self, np.zeros(len(limit))), []
        # prices far above what the whole objective is worth per unit of a limit
        largest = 1e4 * abs(cutoff) / np.maximum(np.abs(limit), 1e-300)
        trial = best
        for _ in range(40):
            best = trial if trial.dual() > best.dual() else best
            if best.dual() >= cutoff:
                break
            cuts.append(trial.cut())
            at_zero, slope = np.array([c[0] for c in cuts]), np.array([c[1] for c in cuts])
            top = linprog(
                np.append(np.zeros(len(limit)), -1.0),
                A_ub=np.column_stack([-slope, np.ones(len(cuts))]),
                b_ub=at_zero,
                bounds=[*((0.0, float(u)) for u in largest), (None, None)],
            )
            if top.status != 0 or -top.fun - best.dual() <= 1e-4 * abs(best.dual()):
                break
            # between the best and the cuts' best point: the latter alone jumps about
            multipliers = multipliers if len(cuts) == 1 and np.any(start > 0) else 0.4 * best.multipliers + 0.6 * top.x[:-1]
            trial = _Lagrangian(self, multipliers)
        return best

    def _least_within(self, lagrangian: _Lagrangian, gap: float, ceiling: float) -> _Choice | None:
        """Best feasible vector of options below ``ceiling`` among those whose Lagrangian is within ``gap`` of the dual value."""
        best: _Choice | None = None
        for picks, bound in self._vectors(lagrangian, gap):
            for o in np.argsort(bound, kind="stable"):
                if bound[o] >= ceiling:
                    break
                found = self._accept(picks[o], ceiling, lagrangian.multipliers)
                if found is not None:
                    best, ceiling = found, found.objective
        return best

    def _vectors(self, lagrangian: _Lagrangian, gap: float) -> Iterator[tuple[IntArray, FloatArray]]:
        """Blocks of vectors of options (v, slots) with lower bounds on their objectives (v,)."""
        every = range(len(self.slots))
        limit = np.array(self.limits.limit)
        cost, activity = [self.cost(k) for k in every], [self.activity(k) for k in every]
        rest = [sum((activity[q].min(axis=1) for q in every if q > k), np.zeros(len(limit))) for k in every]
        allowed = limit + ROUNDING * np.abs(limit)
        reduced, dual = lagrangian.reduced(), lagrangian.dual()
        stack = [(np.zeros((1, 0), dtype=np.int64), np.full(1, self.const), np.zeros(1), np.zeros((1, len(limit))))]
        while stack:
            picks, objective, spent, used = stack.pop()
            k = picks.shape[1]
            if k == len(self.slots):
                yield picks, np.maximum(objective, dual + spent)
                continue
            options = np.flatnonzero(reduced[k] <= gap)
            block = max(1, 500_000 // max(len(options), 1))
            if len(picks) > block:
                stack.append((picks[block:], objective[block:], spent[block:], used[block:]))
                picks, objective, spent, used = picks[:block], objective[:block], spent[:block], used[:block]
            p, o = (x.ravel() for x in np.meshgrid(np.arange(len(picks)), options, indexing="ij"))
            more, use = spent[p] + reduced[k][o], used[p] + activity[k][:, o].T
            keep = (more <= gap) & np.all(use + rest[k] <= allowed, axis=1)
            p, o = p[keep], o[keep]
            stack.append((np.column_stack([picks[p], o]), objective[p] + cost[k][o], more[keep], use[keep]))

    def _accept(self, picks: IntArray, ceiling: float, multipliers: FloatArray) -> _Choice | None:
        """The vector's solution if it is feasible below ``ceiling``; bands are split anew if a budget asks for it."""
        self.check()
        for slot, o in zip(self.slots, picks, strict=True):
            slot.refine(np.array([o]))
        objective = self.const + sum(float(self.cost(k)[o]) for k, o in enumerate(picks))
        if not objective < ceiling:
            return None
        if self._within(picks):
            return self._choice(objective, picks, multipliers)
        shared = [k for k, slot in enumerate(self.slots) if len(slot.rows) > 1]
        if not shared or not any(d >= 0 for d in self.limits.device):
            return None
        splits = self._split_for_budgets(picks, shared, objective, ceiling)
        if splits is None:
            return None
        parts = [slot.parts[:, o] for slot, o in zip(self.slots, picks, strict=True)]
        for k, split in splits.items():
            parts[k] = split.energy[0] + self.slots[k].tables.rows.receive_j[self.slots[k].index[:, 0]]
        more = sum(float(parts[k].sum() - self.slots[k].energy[picks[k]]) for k in shared)
        limit = np.array(self.limits.limit)
        value = objective + self.terms.energy_weight * more
        if value >= ceiling or np.any(self._used(picks, parts) > limit + 2 * ROUNDING * np.abs(limit)):
            return None
        return self._choice(value, picks, multipliers, splits)

    def _split_for_budgets(self, picks: IntArray, shared: list[int], objective: float, ceiling: float) -> dict[int, _Split] | None:
        """Bands of shared slots that spend the least energy within the budgets, None if that is infeasible or not below ``ceiling``.

        The prices of the devices' energies that bring each to its budget are found by Newton's method; those of the devices that keep to
        it anyway are zero. At any prices weak duality bounds the energy from below.
        """
        shares = _Shares(self, picks, shared)
        price = np.zeros(len(shares.budget))
        for _ in range(200):
            self.check()
            trials = shares.trials(price)
            splits, energy = shares.at(trials)
            if shares.excess(trials, energy)[0] <= ROUNDING:
                return {k: split.take(0) for k, split in splits.items()}
            if not objective + self.terms.energy_weight * float(shares.dual(trials, energy).max()) < ceiling:
                return None
            price = shares.improved(price, energy)
        raise SolverError(f"enumeration: splitting the band within the energy budgets did not converge; {DEFECT}")


class _Lagrangian:
    """Costs of the options of a joint plan with its limits priced by multipliers; bounds until made exact.

    Where a budget has a price, the band of a shared slot is split for the priced energies.
    """

    def __init__(self, plan: _JointPlan, multipliers: FloatArray) -> None:
        self.plan, self.multipliers = plan, multipliers
        limits, a = plan.limits, plan.terms.problem.arrays
        self.noise_price = plan.worth.copy()
        self.energy_price = np.full(a.num_devices, plan.terms.energy_weight)
        for value, task, device in zip(multipliers, limits.task, limits.device, strict=True):
            if task >= 0:
                self.noise_price[task] += value
            else:
                self.energy_price[slice(None) if device < 0 else device] += value
        self.const = plan.const - float(multipliers @ np.array(limits.limit))
        self.weighted = [self._factor(k) for k in range(len(plan.slots))]
        self.energy = [self._energy(k) for k in range(len(plan.slots))]
        self.exact = [np.zeros(len(e), dtype=bool) for e in self.energy]

    def cut(self) -> tuple[float, FloatArray]:
        """The Lagrangian of the cheapest options as a function of the multipliers: its value at zero, and its slopes.

        Where relative prices of energy differ, the band is split for them.
        """
        plan, limits = self.plan, self.plan.limits
        value, slope = plan.const, -np.array(limits.limit)
        for k, slot in enumerate(plan.slots):
            o = self._cheapest(k)
            parts, factor = slot.parts[:, o], self.weighted[k]
            if factor is not None:
                parts = _split_band(slot.uploads(np.array([o])), factor).energy[0] + slot.tables.rows.receive_j[slot.index[:, 0]]
            value += float(plan.worth @ plan.noise[k][:, o]) + plan.terms.energy_weight * float(parts.sum())
            slope = slope + plan.used_by(k, o, parts)
        return value, slope

    def cheapest(self) -> IntArray:
        """Options of least cost, one per slot."""
        return np.array([self._cheapest(k) for k in range(len(self.plan.slots))], dtype=np.int64)

    def _cheapest(self, k: int) -> int:
        """Option of least cost of slot k among those that can share the band; made exact as far as the slot's energies go."""
        while True:
            o = int(np.argmin(self.cost(k)))
            if self.plan.slots[k].exact[o]:
                return o
            self.plan.slots[k].refine(np.array([o]))

    def _factor(self, k: int) -> FloatArray | None:
        """Relative prices of the rows' energies in slot k, None if they are equal."""
        factor = self.energy_price[self.plan.devices[k]] / self.energy_price[self.plan.devices[k][0]]
        return None if np.all(factor == 1.0) else factor

    def _energy(self, k: int) -> FloatArray:
        """Priced energy of the options of slot k where relative prices differ; zeros elsewhere (see :meth:`cost`)."""
        slot, factor = self.plan.slots[k], self.weighted[k]
        return slot.weighted_bound(factor) if factor is not None else np.zeros(len(slot.energy))

    def cost(self, k: int) -> FloatArray:
        """Lagrangian cost of the options of slot k, (O,)."""
        least = self.plan.slots[k].energy
        energy = least if self.weighted[k] is None else np.where(np.isinf(least), np.inf, self.energy[k])
        return self.noise_price @ self.plan.noise[k] + self.energy_price[self.plan.devices[k][0]] * energy

    def reduced(self) -> list[FloatArray]:
        """Cost of each option above the least of its slot."""
        return [(cost := self.cost(k)) - cost.min() for k in range(len(self.plan.slots))]

    def dual(self) -> float:
        """Lower bound on the joint plan's optimum."""
        return self.const + sum(float(self.cost(k).min()) for k in range(len(self.plan.slots)))

    def spread(self) -> float:
        """At least the largest finite sum of reduced costs."""
        return sum(float(r[np.isfinite(r)].max(initial=0.0)) for r in self.reduced())

    def refine(self, gap: float) -> None:
        """Make the costs of the options within ``gap`` of their slot's least exact."""
        for k, slot in enumerate(self.plan.slots):
            some = np.flatnonzero(self.reduced()[k] <= gap)
            factor = self.weighted[k]
            if factor is None:
                slot.refine(some)
                continue
            some = some[~self.exact[k][some]]
            if len(some):
                energy = _split_band(slot.uploads(some), factor).energy + slot.tables.rows.receive_j[slot.index[:, 0]]
                self.energy[k][some], self.exact[k][some] = (factor * energy).sum(axis=1) * (1 - ENERGY_MARGIN), True


class _Shares:
    """Energies of the devices of a joint plan as functions of prices of their energy that act on the bands of shared slots."""

    def __init__(self, plan: _JointPlan, picks: IntArray, shared: list[int]) -> None:
        a = plan.terms.problem.arrays
        self.plan, self.shared = plan, shared
        self.uploads = {k: plan.slots[k].uploads(picks[k : k + 1]) for k in shared}
        self.budget = a.energy_budget_j
        self.finite_budget = np.where(np.isfinite(a.energy_budget_j), a.energy_budget_j, 0.0)
        self.alone = np.zeros(a.num_devices)
        for k, slot in enumerate(plan.slots):
            for r, d in enumerate(plan.devices[k]):
                self.alone[d] += slot.tables.rows.receive_j[slot.rows[r]] if k in shared else slot.parts[r, picks[k]]
        self.least = float(sum(slot.energy[o] for slot, o in zip(plan.slots, picks, strict=True)))

    def at(self, price: FloatArray) -> tuple[dict[int, _Split], FloatArray]:
        """Splits at prices (q, I), each slot's of shape (q, n), and the devices' energies (q, I)."""
        energy = np.tile(self.alone, (len(price), 1))
        splits = {}
        for k in self.shared:
            devices = self.plan.devices[k]
            splits[k] = _split_band(self.uploads[k].take(np.zeros(len(price), dtype=np.int64)), 1.0 + price[:, devices])
            energy[:, devices] += splits[k].energy
        return splits, energy

    def dual(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """Lower bounds on what the budgets cost in energy, (q,), from prices and the energies at them, (q, I)."""
        return energy.sum(axis=1) - self.least + (price * (energy - self.finite_budget)).sum(axis=1)

    def excess(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """How far from optimal, (q,): largest relative excess over a budget, or distance from it where there is a price."""
        relative = energy / self.budget - 1.0
        return np.where(price > 0, np.abs(relative), relative).max(axis=1)

    @staticmethod
    def trials(price: FloatArray) -> FloatArray:
        """Prices to evaluate together: these, and each a little higher, for derivatives."""
        return np.vstack([price, price + np.diag(1e-6 * (1.0 + price))])

    def improved(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """The next prices, from the energies at :meth:`trials`: the best dual value on a Newton step in log(1 + price) and beyond it.

        A common factor of all 1 + price leaves the energies as they are where all uploads are priced; so if budgets cannot be met
        together, the dual value grows without limit along it.
        """
        active = np.flatnonzero((price > 0) | (energy[0] > self.budget))
        derivative = (energy[1:] - energy[0])[np.ix_(active, active)].T / np.log1p(1e-6)
        step = np.linalg.lstsq(derivative, (self.budget - energy[0])[active], rcond=1e-9)[0]
        step *= min(1.0, 3.0 / np.abs(step).max())
        moves = np.vstack([step * np.array([1.0, 0.6, 0.3, 0.1, 0.02])[:, None], step + np.log([[3.0], [30.0], [1e3], [1e5]])])
        candidates = np.tile(price, (len(moves), 1))
        candidates[:, active] = np.maximum(np.expm1(np.log1p(price[active]) + moves), 0.0)
        reached = self.at(candidates)[1]
        # close to the optimum the dual values differ by rounding only
        if self.excess(candidates[:1], reached[:1])[0] < 0.1 * self.excess(price[None], energy[:1])[0]:
            return candidates[0]
        return candidates[int(np.argmax(self.dual(candidates, reached)))]


# --- the search ----------------------------------------------------------------------------------------------------------------------


class _Search:
    """Best-first search over combinations of keys, then joint plans, with an incumbent that supplies cutoff and prices."""

    def __init__(self, terms: _Terms, incumbent: Incumbent) -> None:
        self.terms, self.incumbent = terms, incumbent
        self.problem = terms.problem
        self.rows = _build_rows(terms)
        self.plans = [_build_plans(terms, self.rows, i) for i in range(self.problem.arrays.num_devices)]
        self.slots: OrderedDict[tuple[int, ...], _Slot] = OrderedDict()
        self.prices: _Prices | None = None
        self.multipliers: FloatArray | None = None
        self.solved = 0

    def check_size(self) -> None:
        """Refuse what is too large before time is spent on it."""
        combinations = float(np.prod([len(plan.h) for plan in self.plans], dtype=float))
        if combinations > MAX_COMBINATIONS:
            raise InputError(
                f"solver enumeration: {combinations:.4g} combinations of plans to compare; the limit is {MAX_COMBINATIONS:.4g}; "
                "use another solver, or fewer devices, slots or steps"
            )

    @property
    def cutoff(self) -> float:
        """Objective from which on nothing is of interest."""
        best = self.incumbent.objective
        if np.isfinite(best):
            return best - PRUNE_TOLERANCE * abs(best)
        # whatever costs more energy than can be spent is infeasible
        return (1 + PRUNE_TOLERANCE) * self.terms.max_energy if self.problem.objective.mode == "min_energy" else np.inf

    def run(self) -> None:
        """Search to the end; the incumbent holds the outcome."""
        self.tables = _Tables(self.problem, self.rows)
        self.combinations = _Combinations(self.terms, self.tables, self.plans)
        a = self.problem.arrays
        self.relax(_Prices(np.zeros(a.slots, dtype=np.int64), np.zeros(a.num_devices)))
        pending = np.arange(self.combinations.total)
        bounds = self.quotes(pending)
        self.progress("bounds", bounds)
        pending, bounds = self.tune(*_sorted(pending[np.isfinite(bounds)], bounds[np.isfinite(bounds)]))
        size = 32
        while len(pending) and bounds[0] < self.cutoff:
            before = self.incumbent.objective
            self.explore(pending[:size])
            pending, bounds = pending[size:], bounds[size:]
            if self.incumbent.objective < before - 1e-4 * abs(before):
                pending, bounds = self.reprice(pending, bounds)
            self.progress("search", bounds)
            size = min(2 * size, 4096)

    def progress(self, phase: str, bounds: FloatArray) -> None:
        """Record the bound over what is left, which with the incumbent bounds the optimum."""
        least = min(float(bounds.min(initial=np.inf)), self.incumbent.objective)
        if np.isfinite(least):
            self.incumbent.raise_lower_bound(least - BOUND_MARGIN * abs(least))
        self.incumbent.iteration += 1
        self.incumbent.record(phase)
        self.incumbent.check_time()

    def relax(self, prices: _Prices) -> None:
        """Build the lower bounds at new prices."""
        self.relaxation = _Relaxation(self.problem, self.tables, self.plans, self.combinations.nodes, prices)

    def quotes(self, flat: IntArray, rounds: int = 0) -> FloatArray:
        """Lower bounds of combinations, in blocks that bound the memory."""
        bounds = np.empty(len(flat))
        for block in range(0, len(flat), 50_000):
            self.incumbent.check_time()
            some = slice(block, block + 50_000)
            bounds[some] = self.combinations.quote(self.relaxation, flat[some], rounds).bound
        return bounds

    def tune(self, pending: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
        """Find a good incumbent, and prices of the band and of budgets from it, as long as that helps.

        Where rates or the price of energy are free, the best combinations at each value of them are looked at: some of these keep to the
        limits. Until there is an incumbent, the best joint plan supplies the prices, infeasible though it is.
        """
        for attempt in range(8):
            if not len(pending):
                break
            before, found = self.incumbent.objective, self.incumbent.schedule is not None
            self.prices = self.prices if found else None
            self.probe(pending[:64], self.combinations.quote(self.relaxation, pending[:64]))
            for point in self.combinations.points if self.combinations.grids else ():
                some = self.leaders(pending, point)
                self.probe(some, self.combinations.quote_at(self.relaxation, some, point))
            if not self.incumbent.objective < before and (found or attempt == 3):
                break
            pending, bounds = self.reprice(pending, bounds)
            self.progress("prices", bounds)
        return pending, bounds

    def leaders(self, pending: IntArray, point: FloatArray) -> IntArray:
        """The best few combinations at one point of the grid of free prices."""
        sample = pending[:: max(1, len(pending) // 20_000)]
        bounds = self.combinations.quote_at(self.relaxation, sample, point).bound
        return sample[np.argsort(bounds, kind="stable")[:32]]

    def reprice(self, pending: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
        """Raise the bounds by the prices found last and drop what they exclude."""
        keep = bounds < self.cutoff
        pending, bounds = pending[keep], bounds[keep]
        if self.prices is None or not len(pending):
            return pending, bounds
        self.relax(self.prices)
        bounds = np.maximum(bounds, self.quotes(pending, rounds=2))
        keep = bounds < self.cutoff
        return _sorted(pending[keep], bounds[keep])

    def probe(self, flat: IntArray, quote: _Quote) -> None:
        """Solve the best joint plans among each device's best plans in a few combinations."""
        keys = self.combinations.keys(flat)
        left, t = self.relaxation.cell(quote.rate)
        chosen, owner = [np.zeros((0, len(self.plans)), dtype=np.int64)], []
        for c in range(len(flat)):
            best = []
            for i, plan in enumerate(self.plans):
                mine = plan.first[keys[c, i]] + np.arange(plan.count[keys[c, i]])
                here = np.full(len(mine), c)
                cost = self.relaxation.plans_cost(i, mine, left[here], t[here])
                best.append(mine[np.argsort(cost, kind="stable")[:3]])
            chosen.append(np.array(list(itertools.product(*best)), dtype=np.int64))
            owner.extend([c] * len(chosen[-1]))
        plans, combination = self.allowed(np.vstack(chosen), np.array(owner, dtype=np.int64))
        bounds = self.joint_bounds(plans, quote.take(combination))
        order = np.argsort(bounds, kind="stable")[:24]
        self.solve_in_order(plans[order], bounds[order])

    def explore(self, flat: IntArray) -> None:
        """Solve or exclude every joint plan of some combinations."""
        quote = self.combinations.quote(self.relaxation, flat, rounds=2)
        keep = np.flatnonzero(quote.bound < self.cutoff)
        flat, quote = flat[keep], quote.take(keep)
        expanded = self.expand(self.combinations.keys(flat), quote)
        if expanded is None:
            self.explore(flat[: len(flat) // 2])
            self.explore(flat[len(flat) // 2 :])
            return
        plans, owner = self.allowed(*expanded)
        bounds = self.joint_bounds(plans, quote.take(owner))
        for point in self.combinations.points if self.combinations.grids else ():
            keep = np.flatnonzero(bounds < self.cutoff)
            plans, owner, bounds = plans[keep], owner[keep], bounds[keep]
            other = self.combinations.quote_at(self.relaxation, flat[owner], point)
            bounds = np.maximum(bounds, self.joint_bounds(plans, other))
        order = np.argsort(bounds, kind="stable")
        self.solve_in_order(plans[order], bounds[order])

    def expand(self, keys: IntArray, quote: _Quote) -> tuple[IntArray, IntArray] | None:
        """Joint plans (m, I) of combinations that the additive bound does not exclude, device by device, and their combination (m,).

        None if they are too many to look at together.
        """
        left, t = self.relaxation.cell(quote.rate)
        least = self.relaxation.keys_cost(keys, quote.rate)
        bound = quote.offset + quote.scale * (least.sum(axis=1) - self.relaxation.paid)
        owner, chosen = np.arange(len(keys)), np.zeros((len(keys), 0), dtype=np.int64)
        for i, plan in enumerate(self.plans):
            self.incumbent.check_time()
            count = plan.count[keys[owner, i]]
            if count.sum() > 2_000_000 and len(keys) > 1:
                return None
            parent = np.repeat(np.arange(len(owner)), count)
            position = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count)
            combination = owner[parent]
            candidate = plan.first[keys[combination, i]] + position
            cost = self.relaxation.plans_cost(i, candidate, left[combination], t[combination])
            more = bound[parent] + quote.scale[combination] * (cost - least[combination, i])
            keep = more < self.cutoff
            bound, owner = more[keep], combination[keep]
            chosen = np.column_stack([chosen[parent[keep]], candidate[keep]])
        return chosen, owner

    def allowed(self, plans: IntArray, owner: IntArray) -> tuple[IntArray, IntArray]:
        """Those joint plans that meet C2."""
        if not self.problem.objective.enforce_conditions or not len(plans):
            return plans, owner
        beta = self.problem.arrays.smoothness[:, None]
        keep = np.empty(len(plans), dtype=bool)
        for block in range(0, len(plans), 50_000):
            some = slice(block, block + 50_000)
            h = beta * sum(plan.h_instant[plans[some, i]] for i, plan in enumerate(self.plans))
            span = beta * sum(plan.span[plans[some, i]] for i, plan in enumerate(self.plans))
            keep[some] = np.all(h + STALE_FACTOR * h * span <= C2_LIMIT * (1 + PRUNE_TOLERANCE), axis=(1, 2))
        return plans[keep], owner[keep]

    def joint_bounds(self, plans: IntArray, quote: _Quote) -> FloatArray:
        """Lower bounds of joint plans (m, I): T_stale is known, and each slot takes its best price of bandwidth."""
        bounds = np.empty(len(plans))
        for block in range(0, len(plans), 4096):
            self.incumbent.check_time()
            some = slice(block, block + 4096)
            bounds[some] = self._joint_bounds(plans[some], quote.take(np.arange(len(plans))[some]))
        return bounds

    def _joint_bounds(self, plans: IntArray, quote: _Quote) -> FloatArray:
        tables, table = self.tables, self.relaxation.row_cost
        rows = np.stack([plan.rows[plans[:, i]] for i, plan in enumerate(self.plans)], axis=1)
        span = np.sum([plan.span[plans[:, i]] for i, plan in enumerate(self.plans)], axis=0)
        fixed = np.sum([plan.fixed[plans[:, i]] for i, plan in enumerate(self.plans)], axis=0)
        noise, stale, task = (np.append(v, 0) for v in (self.rows.noise, self.rows.stale, self.rows.task))
        total = (quote.rate * fixed).sum(axis=1) - self.relaxation.budget_paid
        every = np.arange(len(plans))[:, None]
        for g in range(self.problem.arrays.slots):
            row = rows[:, :, g]
            j = task[row]
            price = quote.rate[every, j] * (noise[row] + stale[row] * span[every, j, g + 1])
            dual = tables.read(table, row, price).sum(axis=1) - tables.band[g] * tables.total_band
            total += dual.max(axis=1)
        return quote.offset + quote.scale * total

    def solve_in_order(self, plans: IntArray, bounds: FloatArray) -> None:
        """Solve joint plans by increasing bound until none can improve."""
        for members, bound in zip(plans, bounds, strict=True):
            if bound >= self.cutoff:
                break
            self.incumbent.check_time()
            self.solve(members)

    def solve(self, members: IntArray) -> None:
        """Solve one joint plan exactly and offer its schedule."""
        self.solved += 1
        plans = [plan_set.rows[p] for plan_set, p in zip(self.plans, members, strict=True)]
        span = np.sum([plan_set.span[p] for plan_set, p in zip(self.plans, members, strict=True)], axis=0)
        h = np.stack([plan_set.h_instant[p].sum(axis=1) for plan_set, p in zip(self.plans, members, strict=True)])
        by_slot = (tuple(int(plan[g]) for plan in plans if plan[g] < len(self.rows)) for g in range(self.problem.arrays.slots))
        slots = [self.slot(rows) for rows in by_slot if rows]
        if any(slot.pick.shape[1] == 0 for slot in slots):
            return
        plan = _JointPlan(self.terms, self.tables, slots, span, h, self.incumbent.check_time)
        choice = plan.solve(self.cutoff, self.multipliers)
        if choice is not None:
            self.accept(choice)
        if choice is not None or (self.prices is None and self.incumbent.schedule is None):
            self.prices = plan.prices

    def slot(self, rows: tuple[int, ...]) -> _Slot:
        """The options of a slot's rows, kept while they are in use."""
        if rows in self.slots:
            self.slots.move_to_end(rows)
            return self.slots[rows]
        slot = self.slots[rows] = _Slot(self.problem, self.tables, rows)
        while len(self.slots) > 2000 or sum(s.pick.shape[1] for s in self.slots.values()) > 5_000_000:
            self.slots.popitem(last=False)
        return slot

    def accept(self, choice: _Choice) -> None:
        """Offer the schedule of a choice; the exact evaluator must agree with its objective."""
        rows, r = self.rows, choice.rows
        uploads = _row_uploads(self.problem, rows, r, choice.batch)
        power = transmit_power_w(uploads.nats / LN2, choice.time, choice.band, 1.0, uploads.noise_gain)
        schedule = Schedule(
            rows.device[r], rows.task[r], rows.start[r], rows.end[r], rows.steps[r].astype(float), choice.batch.astype(float),
            uploads.frequency(choice.time), power, choice.band,
        )  # fmt: skip
        exact = evaluate_objective(self.problem, schedule).objective
        if abs(exact - choice.objective) > 1e-9 * max(abs(exact), abs(choice.objective)):
            raise SolverError(f"enumeration: found {choice.objective:.15g}, the evaluator says {exact:.15g}; {DEFECT}")
        if exact < self.incumbent.objective and not self.incumbent.offer(schedule):
            raise SolverError(f"enumeration: the validator refuses a schedule that should be feasible; {DEFECT}")
        self.multipliers = choice.multipliers


def _sorted(flat: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
    """Combinations by increasing bound."""
    order = np.argsort(bounds, kind="stable")
    return flat[order], bounds[order]


class Enumeration:
    """The oracle: exact optimum of tiny problems, see the module's text."""

    name = "enumeration"

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Exact optimum; ``lower_bound`` is the optimum lowered by :data:`BOUND_MARGIN`.

        Raises ``InputError`` if the problem has more plans than the limits of this module. Deterministic: ``seed`` is only recorded.
        """
        terms = _terms(problem)
        incumbent = Incumbent(problem, settings, progress)
        _check_counts(terms)
        status, reason = SolveStatus.SOLVED, ""
        try:
            reason = self._search(terms, incumbent)
        except TimeLimitReached:
            status, reason = SolveStatus.TIME_LIMIT, "time limit"
        except KeyboardInterrupt:
            status, reason = SolveStatus.INTERRUPTED, "interrupted"
        return incumbent.result(self.name, status, seed=seed, reason=reason, lower_bound_method="enumeration")

    @staticmethod
    def _search(terms: _Terms, incumbent: Incumbent) -> str:
        """Run the search; the reason of infeasibility, empty if there is a schedule."""
        if not np.any(terms.relevant):
            incumbent.offer(Schedule.empty())
            return ""
        search = _Search(terms, incumbent)
        reason = _untrainable(terms, search.rows) or _unaffordable(terms, search.plans)
        if reason:
            return reason
        search.check_size()
        search.run()
        if incumbent.schedule is None:
            return _infeasibility(terms)
        incumbent.raise_lower_bound(incumbent.objective - BOUND_MARGIN * abs(incumbent.objective))
        incumbent.record("done")
        return ""


def _check_counts(terms: _Terms) -> None:
    """Refuse a problem with more plans or batches than can be enumerated."""
    a = terms.problem.arrays
    counts = _count_plans(terms)
    joint = float(np.prod(counts, dtype=float))
    batches = int((a.samples - a.min_batch + 1)[a.has_data].max())
    advice = "use another solver, or a smaller problem (devices, slots, max_staleness, max_steps, samples)"
    if joint > MAX_JOINT_PLANS:
        raise InputError(f"solver enumeration: {joint:.4g} joint plans; the limit is {MAX_JOINT_PLANS:.4g}; {advice}")
    if max(counts) > MAX_DEVICE_PLANS:
        name = terms.problem.devices[int(np.argmax(counts))].name
        raise InputError(f"solver enumeration: {max(counts)} plans of device {name}; the limit is {MAX_DEVICE_PLANS}; {advice}")
    if batches > MAX_BATCHES:
        raise InputError(f"solver enumeration: {batches} batch sizes of a device and task; the limit is {MAX_BATCHES}; {advice}")


def _untrainable(terms: _Terms, rows: _Rows) -> str:
    """Why some task can never be trained by any device, empty if each can."""
    a = terms.problem.arrays
    for j in np.flatnonzero(terms.relevant):
        if np.any(rows.task == j):
            continue
        name = terms.problem.tasks[j].name
        if _most_steps(terms, int(j)) < 1:
            return f"task {name}: condition C1 (learning_rate * smoothness * steps <= 1/20) forbids even one step"
        if not np.any(a.has_data[:, j] & (a.samples[:, j] >= a.min_batch[j]) & (a.server_weight[:, j] > 0)):
            return f"task {name}: no device holds min_batch = {a.min_batch[j]} samples and a positive weight"
        return f"task {name}: no device can receive, compute one step and upload within max_staleness + 1 slots at full speed and power"
    return ""


def _unaffordable(terms: _Terms, plans: Sequence[_Plans]) -> str:
    """Which task no device's energy budget allows to train, empty if there is none."""
    most = sum(plan.h.max(axis=0) for plan in plans)
    for j in np.flatnonzero(terms.relevant & (most <= 0)):
        name = terms.problem.tasks[j].name
        return f"task {name}: no device's energy_budget_j allows even one step of the smallest batch with the whole band"
    return ""


def _infeasibility(terms: _Terms) -> str:
    """Which constraints exclude every joint plan, as far as the problem tells."""
    problem, names = terms.problem, ["spectrum and deadlines"]
    if np.any(np.isfinite(problem.arrays.energy_budget_j)):
        names.append("the energy budgets (energy_budget_j)")
    if np.isfinite(terms.total_energy):
        names.append(f"total_energy_j = {terms.total_energy:g}")
    if np.any(np.isfinite(terms.target)):
        names.append("the targets")
    if problem.objective.enforce_conditions:
        names.append("the conditions C1 and C2")
    joint = float(np.prod(_count_plans(terms), dtype=float))
    return f"no plan trains every task within {', '.join(names)}: all {joint:.4g} joint plans are excluded"
