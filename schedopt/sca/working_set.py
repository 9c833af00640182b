"""Subproblems in which variables stay where they are that hardly ever move: a part of the whole, and how its rows lie in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.problem import FloatArray, IntArray
from schedopt.sca.native_step import Multipliers, Step, Subproblem

__all__ = ["WorkingSet", "working_set"]


@dataclass(frozen=True)
class WorkingSet:
    """``sub``: the smaller subproblem; ``rows``: where its penalised rows lie among those of ``whole``."""

    whole: Subproblem
    sub: Subproblem
    rows: IntArray

    def widened(self, step: Step, v: FloatArray, penalty: FloatArray, multipliers: Multipliers) -> Step:
        """``step`` from ``v`` as one of the whole: rows that were left out keep what they miss and their ``multipliers``."""
        slack = self.whole.violations(v)
        left = np.ones(len(slack), dtype=bool)
        left[self.rows] = False
        model = step.model + float(penalty[left] @ slack[left])
        slack[self.rows] = step.slack
        posed = self.sub.posed
        merged = {name: np.where(mask, getattr(step.multipliers, name), getattr(multipliers, name)) for name, mask in posed.items()}
        return Step(step.point, model, slack, Multipliers(**merged))


def working_set(whole: Subproblem, v: FloatArray, dormant: IntArray) -> WorkingSet:
    """The subproblem with the variables ``dormant`` as they are in ``v``."""
    sub = Subproblem(whole.program.holding(dormant, v), exponential=whole.exponential)
    at, rows = 0, []
    for mine, part in zip(whole.penalised, sub.penalised, strict=True):
        rows.append(at + np.searchsorted(mine.index, part.index))
        at += len(mine)
    return WorkingSet(whole, sub, np.concatenate(rows))
