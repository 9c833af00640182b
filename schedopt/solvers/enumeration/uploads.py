"""Resources of uploads: the least energy of one at a bandwidth or a price of bandwidth, and the split of a band among several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from scipy.special import lambertw

from schedopt.physics import LN2
from schedopt.problem import FloatArray, IntArray, Problem

__all__ = ["Split", "Uploads", "split_band"]


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
class Uploads:
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
    def of(cls, problem: Problem, device: IntArray, task: IntArray, start: IntArray, end: IntArray, work: FloatArray) -> Uploads:
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

    def take(self, index: np.ndarray) -> Uploads:
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
        """The lowest CPU frequency that leaves ``time`` for the upload, in Hz.

        Never above the highest: where computing takes less than the rounding of the time available, nothing seems to be left for it.
        """
        with np.errstate(divide="ignore"):
            return np.clip(self.cycles / (self.available - time), self.freq_min, self.freq_max)

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

    def _efficiency(self, time: FloatArray, price: FloatArray) -> tuple[FloatArray, np.ndarray]:
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
class Split:
    """A band shared by uploads, arrays of shape (m, n): per-upload energy (J, +inf if infeasible), upload time and bandwidth."""

    energy: FloatArray
    time: FloatArray
    band: FloatArray

    def take(self, slot: int) -> Split:
        """One of the slots, as arrays of shape (1, n)."""
        return Split(self.energy[[slot]], self.time[[slot]], self.band[[slot]])


def split_band(uploads: Uploads, weight: FloatArray | float = 1.0) -> Split:
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
    return Split(energy, time, band)


def _cleared_bands(uploads: Uploads, weight: FloatArray) -> FloatArray:
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
