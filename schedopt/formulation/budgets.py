"""Prices of the devices' energy budgets: the least that keep every device within its budget.

At prices μ ≥ 0 the band is shared so that Σ (1 + μ_i) E_i is least. The *dual value* D(μ) = min Σ E_i + Σ μ_i (E_i − budget_i) is concave
and smooth, and its slope is what each device spends beyond its budget: where D is largest, each device keeps to its budget, and has no
price unless it spends all of it. Raising one device's price takes band from the others, so that prices raised one by one can chase each
other for ever; D is climbed by Newton's steps in log(1 + μ) instead, cut back where the slope along them turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from schedopt.problem import FloatArray

__all__ = ["Spending", "spend_within"]

Content = TypeVar("Content")

#: A step changes log(1 + μ) by no more; beyond this price no budget is within reach.
_MAX_STEP, _MAX_PRICE = 3.0, 1e9
#: Curvature of a device that does not respond here, as a share of its budget; damping, as a share of the curvature of each device.
_LEAST_CURVATURE, _DAMPING = 1e-6, 1e-6


@dataclass(frozen=True)
class Spending(Generic[Content]):
    """What the devices spend at prices of their budgets, arrays of shape (I,), and what they do (``content``).

    ``curvature()``: −∂(weighted energies)/∂ log(1 + μ), (1 + μ_i) times that of E_i in row i; symmetric, shape (I, I).
    """

    price: FloatArray
    energy_j: FloatArray
    curvature: Callable[[], FloatArray]
    content: Content


def spend_within(
    spend: Callable[[FloatArray], Spending[Content]], budget: FloatArray, *, margin: float, slack: float, rounds: int
) -> Spending[Content] | None:
    """The least energy within ``budget`` (J, shape (I,), may be infinite); None if none was found.

    ``spend``: of prices, called ``rounds`` times at most. ``margin``: by which a budget may be exceeded, relative. ``slack``: about how
    much of a budget with a price may be left, relative; budgets that can be met with less to spare may be found impossible.
    """
    here = spend(np.zeros(len(budget)))
    if np.all(here.energy_j <= budget * (1.0 + margin)):
        return here
    aim = budget * (1.0 - slack)
    found: Spending[Content] | None = None
    target = _uphill(here, aim)
    for _ in range(rounds - 1):
        if np.any(target > _MAX_PRICE):
            break
        there, move = spend(target), target - here.price
        if np.all(there.energy_j <= budget * (1.0 + margin)):
            if found is None or there.energy_j.sum() < found.energy_j.sum():
                found = there
            if _is_least(there, aim, slack):
                break
        before, after = (float(move @ _excess(point, aim)) for point in (here, there))
        if after >= -0.5 * before:
            here, target = there, _uphill(there, aim)
        else:  # beyond the peak: back to about where the slope is zero
            target = here.price + float(np.clip(before / (before - after), 0.1, 0.7)) * move
    return found


def _excess(point: Spending[Content], aim: FloatArray) -> FloatArray:
    """What devices spend beyond ``aim``, zero for those without a budget: the slope of the dual value."""
    limited = np.isfinite(aim)
    return np.where(limited, point.energy_j - np.where(limited, aim, 0.0), 0.0)


def _is_least(point: Spending[Content], aim: FloatArray, slack: float) -> bool:
    """Whether budgets with a price are spent, or by weak duality no other way within the budgets saves more than ``slack``."""
    excess = _excess(point, aim)
    spent = np.all((point.price == 0) | (excess >= -3.0 * slack * np.where(np.isfinite(aim), aim, 0.0)))
    return bool(spent or -float(point.price @ excess) <= slack * point.energy_j.sum())


def _uphill(point: Spending[Content], aim: FloatArray) -> FloatArray:
    """Prices that Newton's step leads to; those of zero that would fall stay, and steps are cut to where the model can be trusted."""
    weight, slope = 1.0 + point.price, (1.0 + point.price) * _excess(point, aim)
    curvature = point.curvature()
    # no device may seem not to respond at all
    own = np.maximum(np.diag(curvature), _LEAST_CURVATURE * weight * np.where(np.isfinite(aim), aim, 1.0))
    matrix = curvature + np.diag(own * (1.0 + _DAMPING) - np.diag(curvature))
    free = np.isfinite(aim) & ((point.price > 0) | (slope > 0))
    step = np.zeros(len(aim))
    while True:
        some = np.flatnonzero(free)
        step[some] = np.linalg.solve(matrix[np.ix_(some, some)], slope[some])
        stays = free & (point.price == 0) & (step < 0)
        if not np.any(stays):
            break
        free, step = free & ~stays, np.where(stays, 0.0, step)
    for direction in (step, np.where(free, slope / own, 0.0)):
        target = np.maximum(point.price + weight * np.expm1(np.clip(direction, -_MAX_STEP, _MAX_STEP)), 0.0)
        if (target - point.price) @ slope > 0:
            break
    return target
