"""From a fractional point of the scheduling tensors to assignments: whole plans, steps and batches (formulation 4c)."""

from __future__ import annotations

import numpy as np

from schedopt.formulation.candidates import Candidates, best_paths
from schedopt.formulation.native import TENSORS, NativeProblem
from schedopt.problem import FloatArray, IntArray
from schedopt.sca.native_loop import NativeLoop
from schedopt.schedule import Schedule

__all__ = ["dive_native", "interval_weights", "round_native"]

#: Least share of the full resources that an upload starts with.
_LEAST_SHARE = 1e-3
#: Weights below this are what an interior-point method leaves of zero.
_NOTHING = 1e-4


def interval_weights(receive: FloatArray, upload: FloatArray) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Assignments that a fractional flow consists of: what is received first is uploaded first.

    ``receive``, ``upload``: shape (pairs, G), both of the same sum per pair. Returns pair, start, end and weight, shape (k,).
    """
    found: list[tuple[int, int, int, float]] = []
    for pair in np.flatnonzero(upload.sum(axis=1) > _NOTHING):
        waiting: list[list[float]] = []
        for g in range(upload.shape[1]):
            if receive[pair, g] > _NOTHING:
                waiting.append([g, receive[pair, g]])
            left = upload[pair, g]
            while left > _NOTHING and waiting:
                part = min(left, waiting[0][1])
                found.append((int(pair), int(waiting[0][0]), g + 1, part))
                left, waiting[0][1] = left - part, waiting[0][1] - part
                if waiting[0][1] <= _NOTHING:
                    waiting.pop(0)
    table = np.array(found, dtype=float).reshape(-1, 4)
    whole = table[:, :3].astype(np.int64)
    return whole[:, 0], whole[:, 1], whole[:, 2], table[:, 3]


def dive_native(native: NativeProblem, candidates: Candidates, loop: NativeLoop, *, rounds: int, iterations: int) -> FloatArray:
    """The point that is left when device after device gets the plan of most weight, the surest first, and the rest moves to fit.

    ``rounds``: devices are fixed in this many groups; ``iterations`` of ``loop`` (which goes on from its point) after each.
    """
    a = native.problem.arrays
    frozen = np.zeros(native.program.variables, dtype=bool)
    left = np.ones(a.num_devices, dtype=bool)
    for number in range(rounds):
        plan = round_native(native, candidates, loop.point)
        sure = np.where(left, _certainty(native, loop.point, plan), -np.inf)
        chosen = np.argsort(-sure, kind="stable")[: -(-np.count_nonzero(left) // (rounds - number))]
        left[chosen] = False
        fixed = np.isin(native.device, chosen)
        values = {name: native.tensor(loop.point, name).copy() for name in (*TENSORS, "before")}
        mine = plan.take(np.isin(plan.device, chosen))
        row = native.rows_of(mine.device, mine.task)
        cell = row, mine.end - 1
        new = values["upload"][cell] < 0.5
        values["receive"][fixed] = values["upload"][fixed] = 0.0
        values["receive"][row, mine.start] = values["upload"][cell] = 1.0
        # what the relaxed point hardly did, it may have planned without band or power: all power, and a share of the band
        crowd = np.bincount(plan.end - 1, minlength=a.slots)[mine.end - 1]
        most = {"freq": a.freq_max_hz[mine.device], "power": a.max_power_w[mine.device], "bandwidth": a.bandwidth_hz / crowd}
        for name, full in most.items():
            values[name][cell] = np.where(new, full, np.maximum(values[name][cell], _LEAST_SHARE * full))
        frozen[native.blocks["receive"][fixed]] = frozen[native.blocks["upload"][fixed]] = True
        loop.go_on_with(native.complete(values), frozen, iterations)
    return loop.point


def _certainty(native: NativeProblem, v: FloatArray, plan: Schedule) -> FloatArray:
    """Share of each device's uploads in ``v`` that its assignments in ``plan`` end with, less what they add, shape (I,)."""
    upload = native.tensor(v, "upload")
    whole = np.zeros_like(upload)
    whole[native.rows_of(plan.device, plan.task), plan.end - 1] = 1.0
    devices = native.problem.arrays.num_devices
    off = np.bincount(native.device, weights=np.abs(upload - whole).sum(axis=1), minlength=devices)
    return 1.0 - off / np.maximum(np.bincount(native.device, weights=whole.sum(axis=1), minlength=devices), 1.0)


def round_native(native: NativeProblem, candidates: Candidates, v: FloatArray, rng: np.random.Generator | None = None) -> Schedule:
    """The plan of each device with the most weight per slot, whole steps and batches; resources are not yet set.

    With ``rng`` the weights are drawn anew (exponentially distributed around them), so that repeated calls give different plans.
    """
    a, slots = native.problem.arrays, native.problem.arrays.slots
    pair, start, end, weight = interval_weights(native.tensor(v, "receive"), native.tensor(v, "upload"))
    codes = ((native.device[pair] * a.num_tasks + native.task[pair]) * (slots + 1) + end) * (slots + 1) + start
    order = ((candidates.device * a.num_tasks + candidates.task) * (slots + 1) + candidates.end) * (slots + 1) + candidates.start
    sorter = np.argsort(order)
    at = np.minimum(np.searchsorted(order, codes, sorter=sorter), len(order) - 1)
    index = sorter[at]
    # flows may be longer than staleness allows, or too short to be carried out: those are dropped
    known = order[index] == codes
    total: np.ndarray = np.bincount(index[known], weights=weight[known], minlength=len(order))
    if rng is not None:
        total = total * rng.exponential(1.0, len(total))
    cost = np.where(total > 0, -total * (candidates.end - candidates.start), np.inf)
    chosen = best_paths(candidates, cost).chosen
    i, j = candidates.device[chosen], candidates.task[chosen]
    cell = native.rows_of(i, j), candidates.end[chosen] - 1
    steps = np.clip(np.round(native.tensor(v, "steps")[cell]), 1, candidates.steps.max(axis=1)[j])
    batch = np.clip(np.round(native.tensor(v, "batch")[cell]), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(chosen))
    return Schedule(i, j, candidates.start[chosen], candidates.end[chosen], steps, batch, zero, zero, zero)
