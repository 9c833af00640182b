r"""Least-energy resources of fixed assignments: time split, bandwidth, power and frequency (formulation 4b).

With assignments, steps and batch fixed, f and p follow in closed form from the times and the bandwidth, and what is left,

    min Σ_s ω_i [½κ c³y³/T_cmp² (or the f_min branch) + (N0/gain) T_ul W (2^{M/(T_ul W)} − 1)]    y = e·B
    s.t. T_cmp + T_ul ≤ (b−a)τ − T_dl,  T_ul ≤ τ,  Σ_{uploads of a slot} W ≤ band,  p ≤ p_max,  f ≤ f_max,

is convex and separates by slot, given the weights ω_i = 1 + μ_i of the devices' energies (μ_i prices the energy budget). One price
per slot makes it separate by upload. Compared with conic solvers in ``tests/test_resources.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schedopt.formulation.budgets import Spending, spend_within
from schedopt.formulation.uplink import LN2, UplinkChoice, Uploads, price_shape, uploads_of
from schedopt.physics import transmit_power_w, uplink_rate_bps
from schedopt.problem import FloatArray, IntArray, ProblemArrays
from schedopt.schedule import Schedule

__all__ = [
    "COARSE",
    "FINE",
    "Allocation",
    "allocate",
    "compute_slope",
    "feasible_times",
    "group_energy_j",
    "least_bandwidth_hz",
    "marginal_bandwidth_value",
]

#: Deadlines and limits are met with this relative margin, so that rounding in a file does not break them.
MARGIN = 1e-12
#: Relative accuracy of upload times and bandwidth prices; energies are stationary in them, so theirs is about the square.
FINE = 1e-8
COARSE = 1e-4
_BUDGET_ROUNDS, _BUDGET_ROUNDS_COARSE = 80, 6


@dataclass(frozen=True)
class Allocation:
    """A schedule with least-energy resources, and the bandwidth price (J/Hz) of each slot, shape (G,)."""

    schedule: Schedule
    bandwidth_price: FloatArray
    #: price μ_i of each device's energy budget, shape (I,)
    budget_price: FloatArray


@dataclass(frozen=True)
class _Work:
    """Constants of the assignments of a schedule, arrays of shape (n,)."""

    uploads: Uploads
    cycles: FloatArray
    capacitance: FloatArray
    freq_min: FloatArray
    available_s: FloatArray
    shortest_s: FloatArray
    longest_s: FloatArray
    slot: np.ndarray

    def take(self, index: np.ndarray) -> _Work:
        names = ("cycles", "capacitance", "freq_min", "available_s", "shortest_s", "longest_s", "slot")
        return _Work(self.uploads.take(index), *(getattr(self, name)[index] for name in names))


def feasible_times(arrays: ProblemArrays, schedule: Schedule) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Time for compute and upload, and the shortest and longest possible upload time of each assignment, in s, shape (n,).

    An assignment cannot be done alone on the band when shortest > longest.
    """
    i, j = schedule.device, schedule.task
    available = (schedule.length * arrays.slot_s - arrays.model_bits[j] / arrays.downlink_bps[i]) * (1.0 - MARGIN)
    fastest = arrays.cycles_per_sample[i, j] * schedule.steps * schedule.batch / arrays.freq_max_hz[i]
    longest = np.minimum(arrays.slot_s * (1.0 - MARGIN), available - fastest * (1.0 + MARGIN))
    shortest = uploads_of(arrays, i, j, schedule.end).shortest_s * (1.0 + MARGIN)
    return available, shortest, longest


def _work(arrays: ProblemArrays, schedule: Schedule) -> _Work:
    i, j = schedule.device, schedule.task
    available, shortest, longest = feasible_times(arrays, schedule)
    return _Work(
        uploads=uploads_of(arrays, i, j, schedule.end),
        cycles=arrays.cycles_per_sample[i, j] * schedule.steps * schedule.batch,
        capacitance=arrays.capacitance[i],
        freq_min=arrays.freq_min_hz[i],
        available_s=available,
        shortest_s=shortest,
        longest_s=longest,
        slot=schedule.end - 1,
    )


def compute_slope(capacitance: FloatArray, cycles: FloatArray, freq_min: FloatArray, time_s: FloatArray) -> FloatArray:
    """−dE_cmp/dT_cmp ≥ 0 in W: κ·cycles·f²·f/… = κ cycles³/T³ above f_min, zero where the frequency rests at f_min."""
    # no CPU is that fast: its cube stays within a float
    freq = np.minimum(cycles, 1e45 * time_s) / np.maximum(time_s, 1e-300)
    return np.where(freq > freq_min, capacitance * freq**3, 0.0)


def monotone_root(
    function: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray, tolerance: float, steps: int = 80
) -> tuple[FloatArray, FloatArray]:
    """Final brackets [low, high] of the roots of increasing functions, elementwise; f(low) ≤ 0 ≤ f(high) is taken for granted.

    Regula falsi with the Illinois weights, and a bisection every sixth step as a safeguard. ``tolerance`` is absolute.
    """
    low, high = low.copy(), high.copy()
    f_low, f_high = function(low), function(high)
    side = np.zeros(low.shape)
    for step in range(steps):
        if np.all(high - low <= tolerance):
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            point = high - f_high * (high - low) / (f_high - f_low)
        # keep clear of the ends, so that the bracket shrinks from both sides near the root
        inset = np.minimum(0.01 * (high - low), 0.5 * tolerance)
        usable = np.isfinite(point) & (step % 6 != 5)
        point = np.minimum(np.maximum(np.where(usable, point, 0.5 * (low + high)), low + inset), high - inset)
        value = function(point)
        above = value > 0
        f_high = np.where(above, value, np.where(side < 0, 0.5 * f_high, f_high))
        f_low = np.where(above, np.where(side > 0, 0.5 * f_low, f_low), value)
        high, low = np.where(above, point, high), np.where(above, low, point)
        side = np.where(above, 1.0, -1.0)
    return low, high


def _best_times(work: _Work, weight: FloatArray, price: FloatArray, accuracy: float) -> tuple[FloatArray, UplinkChoice]:
    """Best split of the time at given energy weights and bandwidth prices: root of a monotone slope."""

    def upload_slope(part: _Work, w: FloatArray, p: FloatArray, time_s: FloatArray) -> FloatArray:
        return part.uploads.best_slope(time_s, w, p)

    def total_slope(part: _Work, w: FloatArray, p: FloatArray, time_s: FloatArray) -> FloatArray:
        used = compute_slope(part.capacitance, part.cycles, part.freq_min, part.available_s - time_s)
        return upload_slope(part, w, p, time_s) + w * used

    times = work.longest_s.copy()
    inside = total_slope(work, weight, price, times) > 0
    if np.any(inside):
        sub, w, p = work.take(inside), weight[inside], price[inside]
        low = np.minimum(sub.shortest_s, sub.longest_s)
        # the slope jumps where the frequency reaches f_min: look at both sides of that time first
        kink = np.clip(sub.available_s - sub.cycles / sub.freq_min, low, sub.longest_s)
        before = upload_slope(sub, w, p, kink)
        after = before + w * sub.capacitance * sub.freq_min**3
        low, high = np.where(before < 0, kink, low), np.where(after > 0, kink, sub.longest_s)
        tolerance = accuracy * float(sub.longest_s.max())

        def imbalance(time_s: FloatArray) -> FloatArray:
            # the logarithm of the ratio of both slopes is nearly linear, so that few steps find its root
            gain = np.maximum(-upload_slope(sub, w, p, time_s), 1e-300)
            loss = w * compute_slope(sub.capacitance, sub.cycles, sub.freq_min, sub.available_s - time_s)
            return np.log(np.maximum(loss, 1e-300) / gain)

        low, high = monotone_root(imbalance, np.minimum(low, high), high, tolerance)
        times[inside] = 0.5 * (low + high)
    return times, work.uploads.best(times, weight, price)


def _smallest_bandwidth(work: _Work) -> FloatArray:
    """Bandwidth that an upload cannot do without: longest time, full power, shape (n,)."""
    one = np.ones_like(work.longest_s)
    return work.uploads.best(work.longest_s, one, np.inf * one).bandwidth_hz


def least_bandwidth_hz(arrays: ProblemArrays, schedule: Schedule) -> FloatArray:
    """Bandwidth that each upload cannot do without, at full power for the longest time, shape (n,), in Hz."""
    return _smallest_bandwidth(_work(arrays, schedule))


def _fits_the_band(work: _Work, slots: int) -> np.ndarray:
    """Whether the uploads of each slot can share the band, shape (slots,); one alone always can."""
    needed = np.bincount(work.slot, weights=_smallest_bandwidth(work), minlength=slots)
    return (np.bincount(work.slot, minlength=slots) < 2) | (needed <= work.uploads.band_hz * (1.0 - MARGIN))


def _slot_prices(work: _Work, weight: FloatArray, slots: int, accuracy: float) -> tuple[FloatArray, FloatArray, UplinkChoice]:
    """Bandwidth price (shape (G,)), upload times and choices (shape (n,)) that share the band in every slot, which must suffice."""
    shared = np.bincount(work.slot, minlength=slots) > 1
    price = np.zeros(slots)
    mine = shared[work.slot]
    if np.any(mine):
        price[shared] = _shared_prices(work.take(mine), weight[mine], np.flatnonzero(shared), accuracy)
    times, choice = _best_times(work, weight, price[work.slot], accuracy)
    return price, times, choice


def _shared_prices(work: _Work, weight: FloatArray, slots: np.ndarray, accuracy: float) -> FloatArray:
    """Prices at which the uploads of each of ``slots`` (all with two uploads or more) fill the band, by a root in log price."""
    row = np.searchsorted(slots, work.slot)
    band = work.uploads.band_hz
    count = np.bincount(row)
    # value of bandwidth (per Hz) to an upload that gets an equal share for the longest time: ξ (N0/gain) T x(u)
    u = work.uploads.bits * LN2 * count[row] / (work.longest_s * band)
    value = np.log(weight * work.uploads.noise_over_gain * work.longest_s) + np.log(price_shape(u))

    def excess(log_price: FloatArray) -> FloatArray:
        _, choice = _best_times(work, weight, np.exp(log_price)[row], accuracy)
        return -np.log(np.bincount(row, weights=choice.bandwidth_hz) / band)

    low, high = np.full(len(slots), np.inf), np.full(len(slots), -np.inf)
    np.minimum.at(low, row, value)
    np.maximum.at(high, row, value)
    low, high = _widen(excess, low - 0.1, high + 0.1)
    return np.exp(monotone_root(excess, low, high, tolerance=10.0 * accuracy)[1])


def _widen(function: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Brackets widened until they hold the root (at most to e^±700)."""
    width = 2.0
    for _ in range(12):
        too_high, too_low = function(low) > 0, function(high) < 0
        if not np.any(too_high | too_low):
            break
        low, high = np.where(too_high, low - width, low), np.where(too_low, high + width, high)
        width *= 2.0
    return low, high


def _schedule_with(arrays: ProblemArrays, schedule: Schedule, work: _Work, times: FloatArray, choice: UplinkChoice) -> Schedule:
    """The schedule with resources that meet every limit in floating point."""
    used = np.bincount(work.slot, weights=choice.bandwidth_hz)
    with np.errstate(divide="ignore"):
        stretch = (arrays.bandwidth_hz * (1.0 - MARGIN) / used)[work.slot]
    # what is left of the band lowers the power of everybody; a hair too much is taken back
    alone = choice.bandwidth_hz * stretch
    power = transmit_power_w(work.uploads.bits, times, alone, 1.0 / work.uploads.noise_over_gain, 1.0)
    with np.errstate(divide="ignore"):
        freq = work.cycles / (work.available_s - times)
    freq = np.clip(freq, arrays.freq_min_hz[schedule.device], arrays.freq_max_hz[schedule.device])
    return schedule.replace(bandwidth_hz=alone, power_w=np.minimum(power, work.uploads.max_power_w), freq_hz=freq)


def allocate(arrays: ProblemArrays, schedule: Schedule, *, budget_j: FloatArray | None = None, accuracy: float = FINE) -> Allocation | None:
    """Least-energy frequency, power and bandwidth for the assignments, steps and batches of ``schedule``; None if impossible.

    Only ``device, task, start, end, steps, batch`` are read. ``budget_j``: energy that each device may spend on these assignments,
    shape (I,), default its whole budget. ``accuracy``: of times and prices (FINE or COARSE).
    """
    if len(schedule) == 0:
        return Allocation(schedule, np.zeros(arrays.slots), np.zeros(arrays.num_devices))
    work = _work(arrays, schedule)
    if np.any(work.shortest_s > work.longest_s) or not np.all(_fits_the_band(work, arrays.slots)):
        return None
    budget = arrays.energy_budget_j if budget_j is None else budget_j
    return _within_budgets(arrays, schedule, work, budget, accuracy)


def group_energy_j(arrays: ProblemArrays, schedule: Schedule, group: IntArray, count: int) -> FloatArray:
    """Least energy of each of ``count`` groups of assignments that share one band, shape (count,), in J; +inf where that is impossible.

    ``group``: of each row of ``schedule``, shape (n,). Rows of a group must end in one slot; the energy budgets are left out. Many
    alternatives for a slot are thus priced at once.
    """
    total = np.zeros(count)
    if len(schedule) == 0:
        return total
    work = replace(_work(arrays, schedule), slot=group)
    alone = work.shortest_s <= work.longest_s
    total[group[~alone]] = np.inf
    kept = np.flatnonzero(np.isfinite(total[group]))
    total[~_fits_the_band(work.take(kept), count)] = np.inf
    kept = kept[np.isfinite(total[group[kept]])]
    if not len(kept):
        return total
    number = np.unique(group[kept], return_inverse=True)[1]
    part, rows = replace(work.take(kept), slot=number), schedule.take(kept)
    _, times, choice = _slot_prices(part, np.ones(len(kept)), int(number.max()) + 1, COARSE)
    np.add.at(total, group[kept], _energy_j(arrays, _schedule_with(arrays, rows, part, times, choice), part))
    return total


def _within_budgets(
    arrays: ProblemArrays, schedule: Schedule, work: _Work, budget: FloatArray, accuracy: float
) -> Allocation | None:
    """The allocation of least energy within the budgets, None if none was found; a coarse look gives up early."""

    def spend(price: FloatArray) -> Spending[Allocation]:
        weight = 1.0 + price[schedule.device]
        slot_price, times, choice = _slot_prices(work, weight, arrays.slots, accuracy)
        filled = _schedule_with(arrays, schedule, work, times, choice)
        return Spending(
            price,
            _device_energy(arrays, filled, work),
            lambda: _energy_curvature(work, schedule.device, weight, slot_price, choice, len(price), accuracy),
            Allocation(filled, slot_price, price),
        )

    rounds = _BUDGET_ROUNDS if accuracy <= FINE else _BUDGET_ROUNDS_COARSE
    found = spend_within(spend, budget, margin=MARGIN, slack=10.0 * accuracy, rounds=rounds)
    return None if found is None else found.content


def _energy_curvature(
    work: _Work, device: IntArray, weight: FloatArray, slot_price: FloatArray, choice: UplinkChoice, devices: int, accuracy: float
) -> FloatArray:
    """−∂(weight · energy) of devices (rows) by the logarithms of the devices' weights (columns), J, shape (I, I).

    An upload's bandwidth W is a function of weight / price alone, and it saves price · dW of weighted energy. When weights change, so do
    the prices, by as much as keeps Σ W of each slot.
    """
    price = slot_price[work.slot]
    change = float(np.sqrt(accuracy))
    _, wider = _best_times(work, weight, price * np.exp(-change), accuracy)
    response = np.where(price > 0, np.maximum(wider.bandwidth_hz - choice.bandwidth_hz, 0.0) / change, 0.0)
    by_slot = np.zeros((len(slot_price), devices))
    np.add.at(by_slot, (work.slot, device), response)
    total = by_slot.sum(axis=1)
    share = np.divide(by_slot, total[:, None], out=np.zeros_like(by_slot), where=total[:, None] > 0)
    return np.diag(slot_price @ by_slot) - (slot_price[:, None] * by_slot).T @ share


def marginal_bandwidth_value(arrays: ProblemArrays, schedule: Schedule) -> FloatArray:
    """Energy that one more hertz would save in each slot, −∂E/∂W = (N0/gain) T x(u), largest over its uploads, shape (G,), J/Hz."""
    uploads = uploads_of(arrays, schedule.device, schedule.task, schedule.end)
    noise_over_gain = uploads.noise_over_gain
    rate = uplink_rate_bps(schedule.bandwidth_hz, schedule.power_w, 1.0 / noise_over_gain, 1.0)
    u = np.log1p(schedule.power_w / (noise_over_gain * schedule.bandwidth_hz))
    value = np.zeros(arrays.slots)
    np.maximum.at(value, schedule.end - 1, noise_over_gain * uploads.bits / rate * price_shape(u))
    return value


def _device_energy(arrays: ProblemArrays, schedule: Schedule, work: _Work) -> FloatArray:
    """Energy of each device, shape (I,), in J."""
    energy: np.ndarray = np.bincount(schedule.device, weights=_energy_j(arrays, schedule, work), minlength=arrays.num_devices)
    return energy


def _energy_j(arrays: ProblemArrays, schedule: Schedule, work: _Work) -> FloatArray:
    """Energy of each assignment, shape (n,), in J (formulation constraint 6; the same as physics, from the times at hand)."""
    i, j = schedule.device, schedule.task
    receive = arrays.receive_power_w[i] * arrays.model_bits[j] / arrays.downlink_bps[i]
    rate = uplink_rate_bps(schedule.bandwidth_hz, schedule.power_w, 1.0 / work.uploads.noise_over_gain, 1.0)
    return 0.5 * work.capacitance * work.cycles * schedule.freq_hz**2 + schedule.power_w * work.uploads.bits / rate + receive
