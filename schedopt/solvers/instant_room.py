"""What y_k + c y_k Σ_{s spans k} y_s κ_s ≤ limit leaves room for while a schedule grows: C2 (y = βh) and S2 (y = x)."""

from __future__ import annotations

import numpy as np

from schedopt.conditions import MARGIN
from schedopt.problem import FloatArray, IntArray

__all__ = ["InstantRoom"]


class InstantRoom:
    """Sums of the assignments so far, by task and instant, shape (J, G+1)."""

    def __init__(self, tasks: int, slots: int, span_weight: float, limit: float) -> None:
        self.span_weight, self.limit = span_weight, limit * (1.0 - MARGIN)
        self.instant, self.span = np.zeros((tasks, slots + 1)), np.zeros((tasks, slots + 1))

    def allows(self, task: IntArray, start: IntArray, end: IntArray, amount: FloatArray) -> np.ndarray:
        """Which of some assignments with y = ``amount`` the condition still allows, shape (n,), bool."""
        own = (self.instant[task, end] + amount) * (1.0 + self.span_weight * self.span[task, end])
        with np.errstate(divide="ignore"):
            room = (self.limit / self.instant - 1.0) / self.span_weight - self.span
        kappa = end - 1 - start
        least = np.full(len(task), np.inf)
        for step in range(1, int(kappa.max(initial=0)) + 1):
            inside = step <= kappa
            least[inside] = np.minimum(least[inside], room[task[inside], start[inside] + step])
        return (own <= self.limit) & (amount * kappa <= least * (1.0 - MARGIN))

    def add(self, task: int, start: int, end: int, amount: float) -> None:
        """Count an assignment."""
        self.instant[task, end] += amount
        self.span[task, start + 1 : end] += amount * (end - 1 - start)
