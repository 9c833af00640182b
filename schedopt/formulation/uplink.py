r"""The uplink in closed form: spectral efficiency, energy and marginal values of one upload.

With u = M ln2 / (T·W) (nats per second and hertz), an upload of M bits in T seconds over W hertz needs

    p = (N0 W / gain)(e^u − 1),     E = p T = E0 · m(u),   m(u) = (e^u − 1)/u,   E0 = N0 M ln2 / gain,

so its energy depends on u alone and E0 is the least energy at any bandwidth (formulation 4b; physics in :mod:`schedopt.physics`).
At a bandwidth price ν (per Hz) and an energy price ξ (per J) the best u at a given T solves x(u) = ν·gain/(ξ N0 T) with
x(u) = u e^u − e^u + 1, hence u = 1 + W0((x − 1)/e). The two inverses below are table look-ups polished by Newton steps: they are
called on millions of values. Tested in ``tests/test_uplink.py`` against Lambert's W and finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedopt.problem import FloatArray, ProblemArrays

__all__ = [
    "LN2",
    "UplinkChoice",
    "Uploads",
    "energy_shape",
    "inverse_energy_shape",
    "inverse_price_shape",
    "price_shape",
    "uploads_of",
]

LN2 = float(np.log(2.0))
_SMALL = 1e-3
_U_MIN, _U_MAX = 1e-9, 600.0
#: e to this power is still a float.
_MOST = 700.0


def price_shape(u: FloatArray) -> FloatArray:
    """x(u) = u e^u − e^u + 1 ≥ 0, increasing; series near zero, where the closed form cancels."""
    u = np.asarray(u, float)
    return _near_zero(u, u * np.exp(u) - np.expm1(u))


def _near_zero(u: FloatArray, closed: FloatArray) -> FloatArray:
    """x(u), given its closed form."""
    small = u < _SMALL
    if not small.any():
        return closed
    return np.where(small, u * u * (0.5 + u * (1.0 / 3.0 + u * (0.125 + u / 30.0))), closed)


def energy_shape(u: FloatArray) -> FloatArray:
    """m(u) = (e^u − 1)/u ≥ 1, increasing; m(0) = 1."""
    u = np.asarray(u, float)
    safe = np.where(u > 0, u, 1.0)
    return np.where(u > 0, np.expm1(np.minimum(safe, _MOST)) / safe, 1.0)


def _both_shapes(u: FloatArray) -> tuple[FloatArray, FloatArray]:
    """m(u) and x(u), which share e^u − 1, the dearest part of both."""
    if not ((u > 0) & (u <= _MOST)).all():
        return energy_shape(u), price_shape(u)
    grown = np.expm1(u)
    return grown / u, _near_zero(u, u * np.exp(u) - grown)


def _energy_excess(u: FloatArray) -> FloatArray:
    """m(u) − 1 without cancellation."""
    series = u * (0.5 + u * (1.0 / 6.0 + u * (1.0 / 24.0 + u / 120.0)))
    return np.where(u < _SMALL, series, np.expm1(u) / np.maximum(u, _SMALL) - 1.0)


_NODES = 1 << 16


@dataclass(frozen=True)
class _Inverse:
    """Table of log u over evenly spaced log values, so that a look-up is arithmetic instead of a search."""

    first: float
    step: float
    log_u: FloatArray

    @classmethod
    def of(cls, function: Callable[[FloatArray], FloatArray]) -> _Inverse:
        u = np.geomspace(_U_MIN, _U_MAX, _NODES)
        values = np.log(function(u))
        grid = np.linspace(values[0], values[-1], _NODES)
        return cls(float(grid[0]), float(grid[1] - grid[0]), np.interp(grid, values, np.log(u)))

    def __call__(self, log_value: FloatArray) -> FloatArray:
        """Approximate u (about six digits) at the logarithm of a function value."""
        position = np.minimum(np.maximum((log_value - self.first) / self.step, 0.0), _NODES - 1.001)
        index = position.astype(np.int64)
        left = self.log_u[index]
        return np.exp(left + (position - index) * (self.log_u[index + 1] - left))


_INVERSE_X = _Inverse.of(price_shape)
_INVERSE_M = _Inverse.of(_energy_excess)


def inverse_price_shape(x: FloatArray) -> FloatArray:
    """u ≥ 0 with x(u) = x (one Newton step on the table); 0 for x ≤ 0, capped at 600 (x = +inf)."""
    x = np.asarray(x, float)
    log_x = np.log(np.minimum(np.maximum(x, 1e-300), 1e280))
    u = _INVERSE_X(log_x)
    product = u * np.exp(u)
    value = _near_zero(u, product - np.expm1(u))
    step = (log_x - np.log(value)) * value / product
    u = np.minimum(np.maximum(u + step, _U_MIN), _U_MAX)
    return np.where(x > 0, u, 0.0)


def inverse_energy_shape(m: FloatArray) -> FloatArray:
    """u ≥ 0 with m(u) = m (one Newton step on the table); 0 for m ≤ 1, capped at 600."""
    excess = np.asarray(m, float) - 1.0
    log_excess = np.log(np.minimum(np.maximum(excess, 1e-300), 1e280))
    u = _INVERSE_M(log_excess)
    value = _energy_excess(u)
    step = (log_excess - np.log(value)) * value * u * u / price_shape(u)
    u = np.minimum(np.maximum(u + step, _U_MIN), _U_MAX)
    return np.where(excess > 0, u, 0.0)


@dataclass(frozen=True)
class UplinkChoice:
    """Best use of the uplink at given upload times: arrays broadcast over them.

    ``efficiency`` u, ``bandwidth_hz``, ``energy_j``, ``cost`` = ξE + νW, and ``slope`` = d cost / dT (never positive but at the power
    limit).
    """

    efficiency: FloatArray
    bandwidth_hz: FloatArray
    energy_j: FloatArray
    cost: FloatArray
    slope: FloatArray


@dataclass(frozen=True)
class Uploads:
    """Constants of a set of uploads, arrays of one shape: ``bits`` M, ``noise_over_gain`` N0/gain, ``max_power_w``; band in Hz."""

    bits: FloatArray
    noise_over_gain: FloatArray
    max_power_w: FloatArray
    band_hz: float

    def take(self, index: Any) -> Uploads:
        """The uploads at ``index``."""
        return Uploads(self.bits[index], self.noise_over_gain[index], self.max_power_w[index], self.band_hz)

    @property
    def base_energy_j(self) -> FloatArray:
        """E0 = N0 M ln2 / gain, the energy of an upload over unlimited bandwidth."""
        return self.noise_over_gain * self.bits * LN2

    @property
    def shortest_s(self) -> FloatArray:
        """Least upload time: full power over the whole band, in seconds."""
        return self.bits * LN2 / (self.band_hz * np.log1p(self.max_power_w / (self.noise_over_gain * self.band_hz)))

    def best(self, time_s: FloatArray, energy_price: FloatArray, bandwidth_price: FloatArray) -> UplinkChoice:
        """Cheapest bandwidth (and so power) for uploads that take ``time_s`` ≥ :attr:`shortest_s`.

        ``energy_price`` ξ > 0 per J and ``bandwidth_price`` ν ≥ 0 per Hz broadcast with the uploads.
        """
        u, shape, bandwidth, slope = self._best(time_s, energy_price, bandwidth_price)
        energy = self.base_energy_j * shape
        return UplinkChoice(u, bandwidth, energy, energy_price * energy + bandwidth_price * bandwidth, slope)

    def best_slope(self, time_s: FloatArray, energy_price: FloatArray, bandwidth_price: FloatArray) -> FloatArray:
        """The ``slope`` of :meth:`best` alone, which searches for upload times ask for over and over."""
        return self._best(time_s, energy_price, bandwidth_price)[3]

    def _best(
        self, time_s: FloatArray, energy_price: FloatArray, bandwidth_price: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """u, m(u), bandwidth and slope of the best choice."""
        nats = self.bits * LN2
        lowest = nats / (time_s * self.band_hz)
        free = inverse_price_shape(bandwidth_price / (energy_price * self.noise_over_gain * time_s))
        u = np.maximum(free, lowest)
        limit = self.max_power_w * time_s / (self.noise_over_gain * nats)
        shape, x = _both_shapes(u)
        capped = shape > limit
        any_capped = bool(capped.any())
        if any_capped:
            highest = np.maximum(inverse_energy_shape(limit), lowest)
            u = np.where(capped, highest, u)
            shape, x = _both_shapes(u)
        bandwidth = nats / (time_s * u)
        # at fixed bandwidth dE/dT = −(N0/gain) W x(u)
        slope = -energy_price * self.noise_over_gain * bandwidth * x
        if any_capped:
            # at the power limit E = p_max T, and W follows from it
            at_limit = energy_price * self.max_power_w - bandwidth_price * nats * (u + shape * u * u / x) / (time_s * u) ** 2
            slope = np.where(capped & (free > highest), at_limit, slope)
        return u, shape, bandwidth, slope


def uploads_of(arrays: ProblemArrays, device: np.ndarray, task: np.ndarray, end: np.ndarray) -> Uploads:
    """Constants of the uploads of assignments (index arrays of one shape) that are aggregated at instants ``end``."""
    gain = arrays.gain[device, end - 1]
    return Uploads(
        np.broadcast_to(arrays.model_bits[task], gain.shape),
        arrays.noise_w_per_hz / gain,
        np.broadcast_to(arrays.max_power_w[device], gain.shape),
        arrays.bandwidth_hz,
    )
