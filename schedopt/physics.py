"""Time, power and energy of receiving, computing and sending: one formula each, vectorised.

The objective, the validator, the solvers and the runtime's energy meter all call these, so that the algebra cannot drift apart.
All arguments broadcast; source of every formula: formulation section 1, constraints 3 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = [
    "AssignmentPhysics",
    "compute_energy_j",
    "compute_time_s",
    "evaluate_physics",
    "transmit_power_w",
    "uplink_rate_bps",
]

LN2 = float(np.log(2.0))


def uplink_rate_bps(bandwidth_hz: ArrayLike, power_w: ArrayLike, gain: ArrayLike, noise_w_per_hz: ArrayLike) -> FloatArray:
    """Shannon rate r = W log2(1 + p·gain / (N0 W)) in bit/s; zero where W = 0, its limit."""
    bandwidth, power, gain, noise = np.broadcast_arrays(*(np.asarray(x, float) for x in (bandwidth_hz, power_w, gain, noise_w_per_hz)))
    with np.errstate(all="ignore"):
        received, floor = power * gain, noise * bandwidth
        ratio = received / floor
        nats = np.log1p(ratio)
        # a noise floor that underflows would make the ratio infinite, hence the upload instant, in the narrowest of bands
        lost = ~np.isfinite(ratio) | ~np.isfinite(floor) | (floor < np.finfo(float).tiny)
        if np.any(lost):
            logs = np.log(power) + np.log(gain) - np.log(noise) - np.log(bandwidth)
            nats = np.where(lost, np.logaddexp(0.0, logs), nats)
        return np.where(bandwidth > 0, bandwidth * nats / LN2, 0.0)


def transmit_power_w(
    bits: ArrayLike, time_s: ArrayLike, bandwidth_hz: ArrayLike, gain: ArrayLike, noise_w_per_hz: ArrayLike
) -> FloatArray:
    """Least power that sends ``bits`` in ``time_s`` over ``bandwidth_hz``: p = N0 W / gain · (2^{bits/(time·W)} − 1), in W."""
    efficiency = np.asarray(bits) / (np.asarray(time_s) * np.asarray(bandwidth_hz))
    with np.errstate(over="ignore"):
        return np.asarray(noise_w_per_hz) * np.asarray(bandwidth_hz) / np.asarray(gain) * np.expm1(efficiency * LN2)


def compute_time_s(cycles_per_sample: ArrayLike, steps: ArrayLike, batch: ArrayLike, freq_hz: ArrayLike) -> FloatArray:
    """T_cmp = c e B / f in seconds."""
    return np.asarray(cycles_per_sample) * np.asarray(steps) * np.asarray(batch) / np.asarray(freq_hz)


def compute_energy_j(
    capacitance: ArrayLike, cycles_per_sample: ArrayLike, steps: ArrayLike, batch: ArrayLike, freq_hz: ArrayLike
) -> FloatArray:
    """½ κ c e B f² in joules."""
    cycles = np.asarray(cycles_per_sample) * np.asarray(steps) * np.asarray(batch)
    return 0.5 * np.asarray(capacitance) * cycles * np.square(freq_hz)


@dataclass(frozen=True)
class AssignmentPhysics:
    """Times (s), rate (bit/s) and energies (J) of each assignment of a schedule, arrays of shape (n,)."""

    receive_s: FloatArray
    compute_s: FloatArray
    upload_s: FloatArray
    rate_bps: FloatArray
    receive_j: FloatArray
    compute_j: FloatArray
    upload_j: FloatArray

    @property
    def total_s(self) -> FloatArray:
        """T_dl + T_cmp + T_ul."""
        return self.receive_s + self.compute_s + self.upload_s

    @property
    def energy_j(self) -> FloatArray:
        """E_s: compute, upload and receive energy."""
        return self.compute_j + self.upload_j + self.receive_j


def evaluate_physics(problem: Problem, schedule: Schedule) -> AssignmentPhysics:
    """Physics of every assignment; an upload at rate zero takes infinitely long.

    Tested against scalar formulas in ``tests/test_physics.py``.
    """
    a, s = problem.arrays, schedule
    i, j = s.device, s.task
    rate = uplink_rate_bps(s.bandwidth_hz, s.power_w, a.gain[i, s.end - 1], a.noise_w_per_hz)
    with np.errstate(divide="ignore", over="ignore"):
        upload_s = a.model_bits[j] / rate
    receive_s = a.model_bits[j] / a.downlink_bps[i]
    cycles = a.cycles_per_sample[i, j]
    return AssignmentPhysics(
        receive_s=receive_s,
        compute_s=compute_time_s(cycles, s.steps, s.batch, s.freq_hz),
        upload_s=upload_s,
        rate_bps=rate,
        receive_j=a.receive_power_w[i] * receive_s,
        compute_j=compute_energy_j(a.capacitance[i], cycles, s.steps, s.batch, s.freq_hz),
        upload_j=np.multiply(s.power_w, upload_s, out=np.full(len(s), np.inf), where=s.power_w > 0),
    )
