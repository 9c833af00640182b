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
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
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
MAX_COMBINATIONS = 6_000_000
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

BoolArray = np.ndarray


# --- resources of one upload ---------------------------------------------------------------------------------------------------------


def _increasing_root(function: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray, steps: int = 60) -> FloatArray:
    """Zero of an increasing function, elementwise in [low, high], or the end of the interval that is nearest to it.

    Chandrupatla's method: inverse quadratic interpolation where it is safe, else bisection.
    """
    x1, x2 = high, low
    f1, f2 = function(x1), function(x2)
    # without a sign change the interval shrinks to the end at which the function is nearest to zero
    x1 = np.where(f2 >= 0, x2, x1)
    x2 = np.where(f1 <= 0, x1, x2)
    x3, f3 = x2, f2
    t = np.full(np.shape(x1), 0.5)
    for _ in range(steps):
        x = x1 + t * (x2 - x1)
        f = function(x)
        same = (f > 0) == (f1 > 0)
        x3, f3 = np.where(same, x1, x2), np.where(same, f1, f2)
        x2, f2 = np.where(same, x2, x1), np.where(same, f2, f1)
        x1, f1 = x, f
        width = np.abs(x2 - x1)
        tolerance = 4e-16 * np.abs(x1) + 1e-300
        if np.all((width <= 1e-13 * np.abs(x1) + tolerance) | (f1 == 0)):
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
            safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            guess = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
            edge = np.minimum(tolerance / width, 0.5)
        t = np.where(safe & np.isfinite(guess), guess, 0.5)
        t = np.where(np.isfinite(edge), np.clip(t, edge, 1 - edge), 0.5)
    return x1


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

    def reshape(self, shape: tuple[int, ...]) -> _Uploads:
        """The same uploads in another shape."""
        arrays = (self.nats, self.noise_gain, self.max_power, self.available, self.cycles, self.capacitance, self.freq_min, self.freq_max)
        return _Uploads(*(v.reshape(shape) for v in arrays), self.slot_s, self.band)

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
        sending = band * self.noise_gain * (efficiency * np.exp(efficiency) - np.expm1(efficiency))
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
        v = np.fmax(v, self.nats / (time * self.band))
        # sending at efficiency v takes power noise_gain · nats · (eᵛ − 1)/(v · time)
        ratio = self.max_power * time / (self.noise_gain * self.nats)
        capped = np.expm1(v) > ratio * v
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

    def scarcity(self, band: FloatArray | float) -> FloatArray:
        """What a hertz less would cost at a bandwidth, in J/Hz (a low estimate where the power limit binds; nan if infeasible)."""
        energy, time = self.at_band(band)
        v = self.nats / (time * band)
        with np.errstate(over="ignore", invalid="ignore"):
            price = time * self.noise_gain * (v * np.exp(v) - np.expm1(v))
        return np.where(np.isfinite(energy), price, np.nan)


@dataclass(frozen=True)
class _Split:
    """A band shared by uploads, arrays of shape (m, n): per-upload energy (J, +inf if infeasible), upload time and bandwidth."""

    energy: FloatArray
    time: FloatArray
    band: FloatArray


def _split_band(uploads: _Uploads, weight: FloatArray | float = 1.0) -> _Split:
    """Share the band among the n uploads of each of m slots (arrays of shape (m, n)) at the least Σ weight · energy.

    The bandwidth that all ask for together falls with its price; the price at which it equals the band is found by root finding. The
    problem is convex, so small errors of the price cost energy of second order only: the shares are scaled to fill the band exactly.
    """
    shape = uploads.nats.shape
    weight = np.broadcast_to(np.asarray(weight, float), shape)
    least = uploads.at_price(np.inf)[2] if False else _least_band(uploads)
    feasible = (least.sum(axis=1) < uploads.band) & np.all(np.isfinite(least), axis=1)
    if not np.any(feasible):
        return _Split(np.full(shape, np.inf), np.zeros(shape), np.zeros(shape))
    some = _Uploads(*(v[feasible] for v in _arrays(uploads)), uploads.slot_s, uploads.band)
    price = _clearing_price(some, weight[feasible])
    asked = np.maximum(some.at_price(price[:, None] / weight[feasible])[2], least[feasible])
    # scale what exceeds the least bandwidths, so that full power still suffices
    spare = asked - least[feasible]
    factor = (uploads.band - least[feasible].sum(axis=1)) / np.maximum(spare.sum(axis=1), 1e-300)
    band, energy, time = np.zeros(shape), np.full(shape, np.inf), np.zeros(shape)
    band[feasible] = least[feasible] + spare * factor[:, None]
    energy[feasible], time[feasible] = some.at_band(band[feasible])
    return _Split(energy, time, band)
