r"""What a device chooses by itself once an assignment is fixed: frequency and power of least energy, from its own channel and work.

With start, end, steps, batch and bandwidth W fixed, f and p follow from the upload time T, and

    min over T of ½κ c³y³/(A − T)² (or the f_min branch) + (N0/gain) T W (2^{M/(T W)} − 1)      A: time for computing and upload

is convex in T between the time at full power and what the slot and full speed leave. Compared with a search over a grid in
``tests/test_robust.py``; what the server chooses together with W is in :mod:`schedopt.formulation.resources`.
"""

from __future__ import annotations

import numpy as np

from schedopt.formulation.resources import MARGIN, compute_slope, feasible_times
from schedopt.formulation.uplink import LN2, price_shape
from schedopt.physics import transmit_power_w, uplink_rate_bps
from schedopt.problem import ProblemArrays
from schedopt.schedule import Schedule

__all__ = ["choose_by_device"]

#: Halvings of the bracket of an upload time.
_HALVINGS = 60


def choose_by_device(arrays: ProblemArrays, schedule: Schedule) -> tuple[Schedule, np.ndarray]:
    """``schedule`` with the frequency and power of least energy in each assignment, and whether it can be done, shape (n,), bool.

    Where it cannot (full power or full speed do not suffice within the deadline or the slot) both are at their most. Energy budgets
    are not looked at. Only ``freq_hz`` and ``power_w`` change.
    """
    i, j, width = schedule.device, schedule.task, schedule.bandwidth_hz
    gain, bits = arrays.gain[i, schedule.end - 1], arrays.model_bits[j]
    available, _, longest = feasible_times(arrays, schedule)
    with np.errstate(divide="ignore"):
        shortest = bits / uplink_rate_bps(width, arrays.max_power_w[i], gain, arrays.noise_w_per_hz) * (1.0 + MARGIN)
    possible = shortest <= longest
    cycles = arrays.cycles_per_sample[i, j] * schedule.steps * schedule.batch
    low, high = np.where(possible, shortest, 0.5 * arrays.slot_s), np.where(possible, longest, 0.5 * arrays.slot_s)
    for _ in range(_HALVINGS):
        time_s = 0.5 * (low + high)
        saved = arrays.noise_w_per_hz / gain * width * price_shape(np.minimum(bits * LN2 / (time_s * width), 600.0))
        spent = compute_slope(arrays.capacitance[i], cycles, arrays.freq_min_hz[i], available - time_s)
        longer = saved > spent
        low, high = np.where(longer, time_s, low), np.where(longer, high, time_s)
    # where it cannot be done the midpoint means nothing
    time_s = np.where(possible, 0.5 * (low + high), shortest)
    with np.errstate(divide="ignore", invalid="ignore"):
        freq = np.clip(cycles / (available - time_s), arrays.freq_min_hz[i], arrays.freq_max_hz[i])
    power = np.minimum(transmit_power_w(bits, time_s, width, gain, arrays.noise_w_per_hz), arrays.max_power_w[i])
    freq = np.where(possible, freq, arrays.freq_max_hz[i])
    power = np.where(possible, power, arrays.max_power_w[i])
    return schedule.replace(freq_hz=freq, power_w=power), possible
