"""Why a task can never be trained: what every solver asks before it starts.

Only what holds for certain is reported: a task that no single assignment of any device can train makes the objective infinite (or
its target unreachable) whatever the schedule. That several tasks together ask too much is left to the solvers, but for the total
energy of mode min_bound. Tested in ``tests/test_heuristics.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schedopt.bounds.async_schedule import C1_LIMIT, C2_LIMIT
from schedopt.bounds.stability import LOCAL_LIMIT
from schedopt.formulation.candidates import check_size, steps_limit
from schedopt.formulation.uplink import LN2, energy_shape, uploads_of
from schedopt.objective import needed_tasks
from schedopt.physics import compute_energy_j
from schedopt.problem import FloatArray, Problem, ProblemArrays

__all__ = ["Reach", "least_energy_j", "reach", "unreachable_reason"]

#: Amounts within this relative distance of a limit are not called unreachable: the validator may still accept them.
TOLERANCE = 1e-6
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
#: Golden-section steps: the bracket shrinks to 1e-10 of its width, the energy's error to its square.
_GOLDEN_STEPS = 48


@dataclass(frozen=True)
class Reach:
    """The quickest and cheapest assignment (one step, smallest batch, whole band) of every device, task and last slot.

    ``upload_s``: at full power; ``receive_s``, ``fastest_s``: receive, compute at full speed and upload; ``longest_s``: time that the
    longest allowed assignment has. All of shape (I, J, G); +inf without data.
    """

    arrays: ProblemArrays
    receive_s: FloatArray
    upload_s: FloatArray
    fastest_s: FloatArray
    longest_s: FloatArray

    @cached_property
    def possible(self) -> np.ndarray:
        """Whether the times suffice, shape (I, J, G), bool."""
        short = self.upload_s <= self.arrays.slot_s * (1 + TOLERANCE)
        return short & (self.fastest_s <= self.longest_s * (1 + TOLERANCE))

    @cached_property
    def energy_j(self) -> FloatArray:
        """Least energy of any assignment over all slots, shape (I, J); +inf where none is possible."""
        energy = least_energy_j(self.arrays, self.longest_s - self.receive_s, self.upload_s)
        return np.where(self.possible, energy, np.inf).min(axis=2)


def reach(arrays: ProblemArrays) -> Reach:
    """What single assignments can do, slot by slot. Raises :class:`~schedopt.errors.InputError` if that exceeds memory."""
    check_size(arrays.num_devices * arrays.num_tasks, arrays.slots)
    shape = (arrays.num_devices, arrays.num_tasks, arrays.slots)
    i, j, slot = np.indices(shape)
    receive_s = np.broadcast_to((arrays.model_bits / arrays.downlink_bps[:, None])[:, :, None], shape)
    compute_s = (arrays.cycles_per_sample * arrays.min_batch / arrays.freq_max_hz[:, None])[:, :, None]
    length = np.minimum(arrays.max_staleness[:, None], np.arange(arrays.slots)) + 1
    upload_s = np.where(arrays.has_data[:, :, None], uploads_of(arrays, i, j, slot + 1).shortest_s, np.inf)
    longest_s = np.broadcast_to(length * arrays.slot_s, shape)
    return Reach(arrays, receive_s, upload_s, receive_s + compute_s + upload_s, longest_s)


def least_energy_j(arrays: ProblemArrays, available_s: FloatArray, shortest_s: FloatArray) -> FloatArray:
    """Least energy of one step of the smallest batch, sent over the whole band in each slot; shape (I, J, G), +inf if out of time.

    ``available_s``: time for compute and upload; ``shortest_s``: least upload time, both of shape (I, J, G). The energy is convex in
    the upload time, so golden sections find its minimum.
    """
    i, j, slot = np.indices(available_s.shape)
    cycles = arrays.cycles_per_sample[i, j] * arrays.min_batch[j]
    longest_s = np.minimum(arrays.slot_s, available_s - cycles / arrays.freq_max_hz[i])
    possible = shortest_s <= longest_s * (1.0 + TOLERANCE)
    base = arrays.noise_w_per_hz * arrays.model_bits[j] * LN2 / arrays.gain[i, slot]
    nats_per_hz = arrays.model_bits[j] * LN2 / arrays.bandwidth_hz
    receive_j = arrays.receive_power_w[i] * arrays.model_bits[j] / arrays.downlink_bps[i]

    def energy(upload_s: FloatArray) -> FloatArray:
        freq = np.clip(cycles / (available_s - upload_s), arrays.freq_min_hz[i], arrays.freq_max_hz[i])
        compute_j = compute_energy_j(arrays.capacitance[i], cycles, 1.0, 1.0, freq)
        return compute_j + base * energy_shape(np.minimum(nats_per_hz / upload_s, 600.0)) + receive_j

    low = np.where(possible, np.minimum(shortest_s, longest_s), 0.5 * arrays.slot_s)
    high = np.where(possible, longest_s, 0.5 * arrays.slot_s)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(_GOLDEN_STEPS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            keep_left = energy(left) <= energy(right)
            low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
        best = energy(0.5 * (low + high))
    return np.where(possible, best, np.inf)


def unreachable_reason(problem: Problem) -> str | None:
    """Why some task that must be trained never can be, in one sentence; None if every one can by itself.

    Mode min_energy: that a target is out of reach although its task can be trained is not looked at.
    """
    arrays = problem.arrays
    if not np.any(needed_tasks(problem)):
        return None
    limits = steps_limit(problem)
    possible = reach(arrays)
    for j in np.flatnonzero(needed_tasks(problem)):
        reason = _task_reason(problem, int(j), int(limits[j]), possible)
        if reason is not None:
            return f"no device can ever reach task {problem.tasks[j].name!r}: {reason}"
    return _total_energy_reason(problem, possible)


def _task_reason(problem: Problem, j: int, steps: int, possible: Reach) -> str | None:
    """The obstacle of the devices that get furthest, for task ``j``; None if one passes them all."""
    a = problem.arrays
    if steps < 1:
        value = a.learning_rate[j] * a.smoothness[j]
        return f"condition C1 allows not even one step: learning_rate * smoothness = {value:.4g}; must be at most {C1_LIMIT:g}"
    if a.enforced == "stability" and a.learning_rate[j] * a.smoothness[j] > LOCAL_LIMIT * (1 + TOLERANCE):
        value = a.learning_rate[j] * a.smoothness[j]
        return f"condition S1 fails whatever the schedule: learning_rate * smoothness = {value:.4g}; must be at most {LOCAL_LIMIT:g}"
    passing = a.has_data[:, j]
    for check in (_no_weight, _small_data, _condition_c2, _upload_time, _total_time, _energy_budget, _energy_total):
        ok, reason = check(problem, j, passing, possible)
        if not np.any(passing & ok):
            return reason
        passing = passing & ok
    return None


def _name(problem: Problem, i: int) -> str:
    return repr(problem.devices[i].name)


def _best(passing: np.ndarray, amount: FloatArray) -> int:
    """The passing device with the least amount."""
    return int(np.argmin(np.where(passing, amount, np.inf)))


def _no_weight(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    ok = problem.arrays.aggregation_weight[:, j] > 0
    return ok, "every device that holds its data has aggregation weight 0, so that no update changes the model"


def _small_data(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    a = problem.arrays
    i = _best(passing, -a.samples[:, j].astype(float))
    reason = (
        f"min_batch = {a.min_batch[j]} is larger than the samples of every device; the most are {a.samples[i, j]} ({_name(problem, i)})"
    )
    return a.samples[:, j] >= a.min_batch[j], reason


def _condition_c2(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    a = problem.arrays
    value: FloatArray = a.smoothness[j] * a.learning_rate[j] * a.server_weight[:, j]
    i = _best(passing, value)
    reason = (
        f"condition C2 allows not even one step of one device: smoothness * learning_rate * server_rate * weight = {value[i]:.4g} "
        f"({_name(problem, i)}); must be at most {C2_LIMIT:g}"
    )
    limit = C2_LIMIT if a.enforced == "theorem" else np.inf
    return np.asarray(value <= limit * (1 + TOLERANCE)), reason


def _upload_time(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    slot_s, shortest = problem.arrays.slot_s, possible.upload_s[:, j].min(axis=1)
    i = _best(passing, shortest)
    reason = (
        f"the upload cannot finish within a slot even at full power over the whole band; the quickest needs {shortest[i]:.4g} s "
        f"of slot_s = {slot_s:g} s ({_name(problem, i)} in slot {np.argmin(possible.upload_s[i, j])})"
    )
    return shortest <= slot_s * (1 + TOLERANCE), reason


def _total_time(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    a = problem.arrays
    uploads = possible.upload_s[:, j] <= a.slot_s * (1 + TOLERANCE)
    ratio = np.where(uploads, possible.fastest_s[:, j] / possible.longest_s[:, j], np.inf)
    i = _best(passing, ratio.min(axis=1))
    slot = int(np.argmin(ratio[i]))
    fastest, longest = possible.fastest_s[i, j, slot], possible.longest_s[i, j, slot]
    reason = (
        f"receiving, one step of {a.min_batch[j]} samples at full speed and the quickest upload take {fastest:.4g} s, longer than the "
        f"longest allowed assignment of {longest:.4g} s (max_staleness = {a.max_staleness[j]}, {_name(problem, i)})"
    )
    return np.asarray(possible.possible[:, j].any(axis=1)), reason


def _energy_budget(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    budget = problem.arrays.energy_budget_j
    if np.all(np.isinf(budget)):
        return passing, ""
    least = possible.energy_j[:, j]
    i = _best(passing, np.divide(least, budget, out=np.full(len(least), np.inf), where=np.isfinite(least)))
    reason = (
        f"the least energy of any assignment exceeds the device's energy_budget_j; the nearest needs {least[i]:.4g} J "
        f"of {budget[i]:.4g} J ({_name(problem, i)})"
    )
    return least <= budget * (1 + TOLERANCE), reason


def _total_limit_j(problem: Problem) -> float:
    limit = problem.objective.total_energy_j
    return np.inf if limit is None or problem.objective.mode != "min_bound" else limit


def _energy_total(problem: Problem, j: int, passing: np.ndarray, possible: Reach) -> tuple[np.ndarray, str]:
    limit = _total_limit_j(problem)
    if np.isinf(limit):
        return passing, ""
    least = possible.energy_j[:, j]
    i = _best(passing, least)
    reason = f"the least energy of any assignment is {least[i]:.4g} J ({_name(problem, i)}), above total_energy_j = {limit:.4g} J"
    return least <= limit * (1 + TOLERANCE), reason


def _total_energy_reason(problem: Problem, possible: Reach) -> str | None:
    """Mode min_bound: one assignment of each task already costs more than may be spent."""
    a, limit = problem.arrays, _total_limit_j(problem)
    if np.isinf(limit):
        return None
    usable = (a.aggregation_weight > 0) & (a.samples >= a.min_batch)
    least = np.where(usable, possible.energy_j, np.inf).min(axis=0)
    total = float(least[needed_tasks(problem)].sum())
    if total <= limit * (1 + TOLERANCE):
        return None
    return f"no schedule trains every task: one assignment of each needs at least {total:.4g} J, above total_energy_j = {limit:.4g} J"
