"""What conditions C2 and C3 of Theorem 2 leave room for while a schedule grows (see :mod:`schedopt.bounds.windowed` for the symbols)."""

from __future__ import annotations

import numpy as np

from schedopt.bounds.async_schedule import C2_LIMIT
from schedopt.bounds.windowed import C3_LIMIT, INSIDE_FACTOR
from schedopt.conditions import MARGIN
from schedopt.problem import FloatArray, IntArray, ProblemArrays
from schedopt.windows import Windows

__all__ = ["WindowRoom"]


class WindowRoom:
    """Sums of the assignments so far, by task and window or instant. Safe: C2 is met with the larger of its two factors."""

    def __init__(self, arrays: ProblemArrays, windows: Windows) -> None:
        self.arrays, self.windows = arrays, windows
        self.h_window = np.zeros((arrays.num_tasks, windows.count))
        self.span = np.zeros((arrays.num_tasks, windows.count))
        #: Γ of the first upload of a window, which is the largest, over β²
        self.moved = np.zeros((arrays.num_tasks, windows.count))
        self.sent = np.zeros((arrays.num_tasks, arrays.slots + 1))
        self.received = np.zeros((arrays.num_tasks, arrays.slots + 1))

    def allows(self, task: IntArray, start: IntArray, end: IntArray, h: FloatArray) -> np.ndarray:
        """Which of some assignments both conditions still allow, shape (n,), bool."""
        return self._meets_c2(task, start, end, h) & self._meets_c3(task, start, end, h)

    def add(self, task: int, start: int, end: int, h: float) -> None:
        """Count an assignment."""
        first, window = self.windows.of_model(start), self.windows.of_upload(end)
        one = np.array([task]), np.array([start]), np.array([end]), np.array([h])
        by_reception, by_upload = self._movement(*one)
        if first < self.windows.count:
            self.moved[task, first] += by_reception[0]
        self.moved[task, window] += by_upload[0]
        self.h_window[task, window] += h
        self.span[task, first:window] += h * (window - first)
        self.sent[task, end] += h
        self.received[task, start] += h

    def _meets_c2(self, task: IntArray, start: IntArray, end: IntArray, h: FloatArray) -> np.ndarray:
        beta, limit = self.arrays.smoothness, C2_LIMIT * (1.0 - MARGIN)
        first, window = self.windows.of_model(start), self.windows.of_upload(end)
        own = beta[task] * (self.h_window[task, window] + h) * (1.0 + INSIDE_FACTOR * beta[task] * self.span[task, window])
        with np.errstate(divide="ignore"):
            room = (limit / (beta[:, None] * self.h_window) - 1.0) / (INSIDE_FACTOR * beta[:, None]) - self.span
        spanned = window - first
        least = np.full(len(task), np.inf)
        for step in range(int(spanned.max(initial=0))):
            inside = step < spanned
            least[inside] = np.minimum(least[inside], room[task[inside], first[inside] + step])
        return (own <= limit) & (h * spanned <= least * (1.0 - MARGIN))

    def _meets_c3(self, task: IntArray, start: IntArray, end: IntArray, h: FloatArray) -> np.ndarray:
        first, window = self.windows.of_model(start), self.windows.of_upload(end)
        by_reception, by_upload = self._movement(task, start, end, h)
        same = first == window
        limit = C3_LIMIT * (1.0 - MARGIN) / self.arrays.smoothness[task] ** 2
        received = self.moved[task, first] + by_reception + np.where(same, by_upload, 0.0)
        sent = self.moved[task, window] + by_upload + np.where(same, by_reception, 0.0)
        return (received <= limit) & (sent <= limit)

    def _movement(self, task: IntArray, start: IntArray, end: IntArray, h: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What a reception, after uploads inside its window, and an upload, before receptions inside its own, add to Γ/β²."""
        sent, received = np.cumsum(self.sent, axis=1), np.cumsum(self.received, axis=1)
        begin = self.windows.of_model(start) * self.windows.length
        last = np.minimum((self.windows.of_upload(end) + 1) * self.windows.length, self.arrays.slots + 1) - 1
        before, after = sent[task, start] - sent[task, begin], received[task, last] - received[task, end - 1]
        return h * before, h * after
