"""Less work where the step-size conditions on what is aggregated fail: C2 of Theorem 1; C2 and C3 of Theorem 2 with windows; S2.

C1 is a limit on each assignment's steps (:func:`schedopt.formulation.candidates.steps_limit`) and supposed to hold.
"""

from __future__ import annotations

import numpy as np

from schedopt.bounds.async_schedule import C2_LIMIT, STALE_FACTOR, Aggregates, aggregate
from schedopt.bounds.stability import STEP_LIMIT, stability_sums
from schedopt.bounds.windowed import window_excess
from schedopt.problem import FloatArray, IntArray, ProblemArrays
from schedopt.schedule import Schedule

__all__ = ["MARGIN", "meet_conditions"]

#: Limits are met with this relative margin, so that rounding does not break them.
MARGIN = 1e-12
#: Rounds of shortening before an assignment that keeps violating a condition is dropped.
_ROUNDS = 30


def meet_conditions(arrays: ProblemArrays, schedule: Schedule) -> tuple[Schedule, IntArray]:
    """Fewer steps, in the end fewer assignments, where a condition is violated; the schedule and the positions that are left."""
    kept = np.arange(len(schedule))
    for attempt in range(_ROUNDS + len(schedule)):
        sums = aggregate(arrays, schedule)
        excess = _excess(arrays, schedule, sums)
        if not np.any(excess > 1.0):
            break
        # every upload of a violating instant or window gives way in proportion; who is down to one step leaves
        steps = np.where(excess > 1.0, np.minimum(np.floor(schedule.steps / excess), schedule.steps - 1), schedule.steps)
        keep = np.flatnonzero(steps >= 1)
        if attempt < _ROUNDS and len(keep) < len(steps):
            # one round of dropping only the smallest uploads of each instant, in case that is enough
            drop = _smallest_per_group(schedule, sums.h, _group(arrays, schedule), steps < 1)
            steps = np.maximum(steps, 1.0)
            keep = np.setdiff1d(np.arange(len(steps)), drop)
        schedule, kept = schedule.replace(steps=steps).take(keep), kept[keep]
    return schedule, kept


def _group(arrays: ProblemArrays, schedule: Schedule) -> IntArray:
    """What uploads are judged together with: their instant or their window, shape (n,)."""
    return schedule.end if arrays.windows is None or arrays.enforced == "stability" else arrays.windows.of_upload(schedule.end)


def _excess(arrays: ProblemArrays, schedule: Schedule, sums: Aggregates) -> FloatArray:
    """By how many times the work of each assignment's instant or window is too much, shape (n,); at most 1 = allowed."""
    if arrays.enforced == "stability":
        return (stability_sums(arrays, schedule).value / (STEP_LIMIT * (1.0 - MARGIN)))[schedule.task, schedule.end]
    limit = C2_LIMIT * (1.0 - MARGIN)
    if sums.windows is not None:
        return window_excess(arrays, sums.windows, limit, 1.0 - MARGIN)[schedule.task, _group(arrays, schedule)]
    beta = arrays.smoothness[:, None]
    value = beta * sums.h_instant * (1.0 + STALE_FACTOR * beta * sums.stale_span)
    return (value / limit)[schedule.task, schedule.end]


def _smallest_per_group(schedule: Schedule, h: FloatArray, group: IntArray, among: np.ndarray) -> IntArray:
    """Of the assignments ``among``, the one with the smallest h of each task and group."""
    chosen = np.flatnonzero(among)
    order = chosen[np.lexsort((h[chosen], group[chosen], schedule.task[chosen]))]
    key = np.stack([schedule.task[order], group[order]])
    first = np.flatnonzero(np.r_[True, np.any(key[:, 1:] != key[:, :-1], axis=0)])
    return order[first]
