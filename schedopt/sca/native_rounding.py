"""From a fractional point of the scheduling tensors to assignments: whole plans, steps and batches (formulation 4c)."""

from __future__ import annotations

import numpy as np

from schedopt.formulation.candidates import Candidates, best_paths
from schedopt.formulation.native import NativeProblem
from schedopt.problem import FloatArray, IntArray
from schedopt.schedule import Schedule

__all__ = ["interval_weights", "round_native"]

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
    total = np.bincount(index[known], weights=weight[known], minlength=len(order))
    if rng is not None:
        total = total * rng.exponential(1.0, len(total))
    cost = np.where(total > 0, -total * (candidates.end - candidates.start), np.inf)
    chosen = best_paths(candidates, cost).chosen
    i, j = candidates.device[chosen], candidates.task[chosen]
    row = np.full((a.num_devices, a.num_tasks), -1)
    row[native.device, native.task] = np.arange(len(native.device))
    cell = row[i, j], candidates.end[chosen] - 1
    steps = np.clip(np.round(native.tensor(v, "steps")[cell]), 1, candidates.steps.max(axis=1)[j])
    batch = np.clip(np.round(native.tensor(v, "batch")[cell]), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(chosen))
    return Schedule(i, j, candidates.start[chosen], candidates.end[chosen], steps, batch, zero, zero, zero)
