"""T_stale of Theorem 2 to first order around a schedule: what one more assignment adds to it, by its reception, upload and noise.

T_stale is a sum of products of the h and noise of different assignments (:mod:`schedopt.bounds.windowed`), so that what an assignment
adds is exact as long as the others stay; but for the noise of its own local models, which is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import Aggregates
from schedopt.bounds.windowed import MOVE_DISSIMILARITY, MOVE_DRIFT, local_movement
from schedopt.problem import TERMS, FloatArray, IntArray, ProblemArrays
from schedopt.schedule import Schedule

__all__ = ["WindowStaleness", "window_staleness"]


@dataclass(frozen=True)
class WindowStaleness:
    """Scaled T_stale per unit: ``interval`` of h by reception and upload, (J, G+1, G+1); ``movement`` of h times what an upload is moved
    by inside its window, and ``noise`` of noise, both by the instant of the upload, (J, G+1)."""

    arrays: ProblemArrays
    interval: FloatArray
    movement: FloatArray
    noise: FloatArray

    def per_h(self, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> FloatArray:
        """What a unit of h of assignments adds, shape (n,)."""
        a = self.arrays
        assert a.windows is not None
        moved = MOVE_DISSIMILARITY * a.dissimilarity[device, task] ** 2
        moved = moved + MOVE_DRIFT * (a.windows.distance(start, end) * a.gradient_drift[device, task]) ** 2
        return self.interval[task, start, end] + self.movement[task, end] * moved


def window_staleness(arrays: ProblemArrays, schedule: Schedule, sums: Aggregates) -> WindowStaleness:
    """The model around ``schedule``; ``sums``: its aggregates."""
    windows, whole = arrays.windows, sums.windows
    assert windows is not None and whole is not None
    j, start, end = schedule.task, schedule.start, schedule.end
    instants, length = np.arange(arrays.slots + 1), windows.length
    beta2 = arrays.smoothness[:, None] ** 2

    def at(instant: IntArray, values: FloatArray) -> FloatArray:
        """Sums by task and instant."""
        total = np.zeros((arrays.num_tasks, arrays.slots + 1))
        np.add.at(total, (j, instant), values)
        return total

    # uploads before each instant in its window: their h, and times what they are moved by
    begin = windows.of_model(instants) * length
    sent = np.cumsum(sums.h_instant, axis=1)
    moved = np.cumsum(at(end, sums.h * local_movement(arrays, schedule, whole, sums.sigma2)), axis=1)
    before, moved_before = sent - sent[:, begin], moved - moved[:, begin]
    # receptions after each upload in its window
    received = at(start, sums.h)
    last = np.minimum((windows.of_upload(np.maximum(instants, 1)) + 1) * length - 1, arrays.slots)

    def after(values: FloatArray) -> FloatArray:
        total = np.concatenate([np.zeros((arrays.num_tasks, 1)), np.cumsum(values, axis=1)], axis=1)
        return np.maximum(total[:, last + 1] - total[:, instants], 0.0)

    factor = whole.factor[:, None] * beta2
    noise_until = np.cumsum(sums.noise_instant, axis=1)
    towards = windows.of_upload(np.maximum(instants, 1)) * length
    interval = factor[:, :, None] * np.abs(noise_until[:, None, towards] - noise_until[:, :, None])
    interval += (beta2 * before * moved_before)[:, :, None] + (beta2 * after(received * moved_before))[:, None, :]
    low, high = np.minimum(start, whole.window * length), np.maximum(start, whole.window * length)
    opened = at(np.minimum(low + 1, arrays.slots), sums.h * (high > low)) - at(np.minimum(high + 1, arrays.slots), sums.h * (high > low))
    scale = float(arrays.term_scale[TERMS.index("stale")])
    return WindowStaleness(
        arrays, scale * interval, scale * beta2 * after(received * before), scale * factor * np.maximum(np.cumsum(opened, axis=1), 0.0)
    )
