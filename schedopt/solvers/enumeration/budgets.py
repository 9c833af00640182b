"""Bands of shared slots split so that each device keeps to its energy budget, where the split of least energy does not.

At prices μ ≥ 0 of the devices' energies the bands minimise Σ (1 + μ_i) E_i, and the *dual value* D(μ) = min Σ E_i + Σ μ_i (E_i − budget_i)
bounds the energy from below. D is concave and smooth, its slope is what each device spends beyond its budget: where D is largest, each
device keeps to its budget, and has no price unless it spends all of it. D is climbed along Newton's directions by a line search that
looks at slopes only: dual values that differ by rounding do not mislead it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schedopt.errors import SolverError
from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import DEFECT, PRUNE_TOLERANCE, ROUNDING
from schedopt.solvers.enumeration.joint_plan import JointPlan
from schedopt.solvers.enumeration.uploads import Split, split_band

__all__ = ["split_for_budgets"]

#: Steps uphill, far more than were ever needed.
MAX_STEPS = 200
#: Lengths of a step that are tried first, in units of Newton's.
LENGTHS = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, 1e4])
#: Where the peak along a step is looked for between two lengths, as shares of the way, if the slope at the lower one is known or not.
BETWEEN = np.linspace(0.1, 1.0, 10)
NEAR_ZERO = np.geomspace(1e-8, 1.0, 9)
#: Relative change of 1 + price with which derivatives are taken.
PROBE = 1e-6


def split_for_budgets(
    plan: JointPlan, picks: IntArray, shared: list[int], objective: float, ceiling: float, check: Callable[[], None]
) -> dict[int, Split] | None:
    """Bands of ``shared`` slots that spend the least energy within the budgets, None if that is infeasible or not below ``ceiling``.

    ``objective``: of the picks without budgets.
    """
    shares = _Shares(plan, picks, shared)
    if np.any(shares.alone[~shares.limited] > shares.budget[~shares.limited] * (1.0 + ROUNDING)):
        return None
    price = np.zeros(len(shares.budget))
    for _ in range(MAX_STEPS):
        check()
        trials = shares.trials(price)
        splits, energy = shares.at(trials)
        if shares.is_optimal(price, energy[0]):
            return {k: split.take(0) for k, split in splits.items()}
        dual = shares.dual(price, energy[0])
        value = objective + plan.terms.energy_weight * (dual - shares.least)
        if value >= ceiling or dual > (1.0 + PRUNE_TOLERANCE) * plan.terms.max_energy:
            return None
        price = shares.uphill(price, shares.direction(price, energy), energy[0])
    raise SolverError(f"enumeration: splitting the band within the energy budgets did not converge; {DEFECT}")


class _Shares:
    """Energies of the devices of a joint plan as functions of prices of their energy that act on the bands of shared slots.

    ``limited``: devices with a budget that upload in shared slots; the energies of others are of no interest or do not change.
    """

    def __init__(self, plan: JointPlan, picks: IntArray, shared: list[int]) -> None:
        a = plan.terms.problem.arrays
        self.plan, self.shared = plan, shared
        self.uploads = {k: plan.slots[k].uploads(picks[k : k + 1]) for k in shared}
        self.budget = a.energy_budget_j
        sharing = np.isin(np.arange(a.num_devices), [d for k in shared for d in plan.devices[k]])
        self.limited = np.isfinite(self.budget) & sharing
        self.alone = np.zeros(a.num_devices)
        for k, slot in enumerate(plan.slots):
            for r, d in enumerate(plan.devices[k]):
                self.alone[d] += slot.receive_j[r] if k in shared else slot.parts[r, picks[k]]
        self.least = float(sum(slot.energy[o] for slot, o in zip(plan.slots, picks, strict=True)))

    def at(self, price: FloatArray) -> tuple[dict[int, Split], FloatArray]:
        """Splits at prices (q, I), each slot's of shape (q, n), and the devices' energies (q, I)."""
        energy = np.tile(self.alone, (len(price), 1))
        splits = {}
        for k in self.shared:
            devices = self.plan.devices[k]
            splits[k] = split_band(self.uploads[k].take(np.zeros(len(price), dtype=np.int64)), 1.0 + price[:, devices])
            energy[:, devices] += splits[k].energy
        return splits, energy

    def excess(self, energy: FloatArray) -> FloatArray:
        """What limited devices spend beyond their budgets, zero for the others: the slope of the dual value, (…, I)."""
        return np.where(self.limited, energy - np.where(self.limited, self.budget, 0.0), 0.0)

    def dual(self, price: FloatArray, energy: FloatArray) -> float:
        """Lower bound on the energy of all, from prices (I,) and the energies at them."""
        return float(energy.sum() + price @ self.excess(energy))

    def is_optimal(self, price: FloatArray, energy: FloatArray) -> bool:
        """Whether the devices keep to their budgets, and those with a price spend them or weak duality leaves nothing to gain."""
        excess = self.excess(energy)
        allowed = np.where(self.limited, ROUNDING * self.budget, 0.0)
        spent = np.all((price == 0) | (excess >= -allowed))
        return bool(np.all(excess <= allowed) and (spent or -float(price @ excess) <= ROUNDING * energy.sum()))

    @staticmethod
    def trials(price: FloatArray) -> FloatArray:
        """Prices to evaluate together: these, and each a little higher, for derivatives."""
        return np.vstack([price, price + np.diag(PROBE * (1.0 + price))])

    def direction(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """A direction in which the dual value grows, (I,), from the energies at :meth:`trials`: Newton's in log(1 + price).

        Prices of zero that would fall stay. Directions in which nothing seems to curve are followed far, but at most by e³.
        """
        weight = 1.0 + price
        slope = weight * self.excess(energy[0])
        curvature = -weight[:, None] * (energy[1:] - energy[0]).T / np.log1p(PROBE)
        scale = np.sqrt(np.maximum(np.diag(curvature), PROBE * weight * np.where(self.limited, self.budget, 1.0)))
        curvature = 0.5 * (curvature + curvature.T) / np.outer(scale, scale)
        free = self.limited & ((price > 0) | (slope > 0))
        move = np.zeros(len(price))
        while True:
            some = np.flatnonzero(free)
            value, vectors = np.linalg.eigh(curvature[np.ix_(some, some)])
            step = vectors @ (vectors.T @ (slope[some] / scale[some]) / np.maximum(value, 1e-9)) / scale[some]
            stays = (price[some] == 0) & (step < 0)
            if not np.any(stays):
                move[some] = step * min(1.0, 3.0 / np.abs(step).max()) * weight[some]
                return move
            free[some[stays]] = False

    def uphill(self, price: FloatArray, move: FloatArray, energy: FloatArray) -> FloatArray:
        """Prices near the largest dual value on the ray price + t · move, t > 0, as far as all prices are non-negative.

        ``energy``: of the devices (I,) at ``price``. The slope of the dual value falls along the ray: where it is not negative, the
        value has not fallen yet.
        """
        end = float((price[move < 0] / -move[move < 0]).min(initial=np.inf))
        lengths = np.append(LENGTHS[end > LENGTHS], [end] if np.isfinite(end) else [])
        start = float(move @ self.excess(energy))
        low, at_low = 0.0, start
        for _ in range(12):
            slope = self.excess(self.at(self._along(price, move, lengths))[1]) @ move
            falls = np.flatnonzero(slope < 0)
            k = falls[0] if len(falls) else len(lengths)
            if k > 0:
                low, at_low = lengths[k - 1], slope[k - 1]
            # beyond the peak, but not so far that the value could have fallen below the one at ``low``, or the start
            beyond = k < len(lengths) and -slope[k] < at_low and -slope[k] * (lengths[k] - low) <= at_low * low
            if beyond:
                low = lengths[k]
            if beyond or k == len(lengths) or (low > 0 and at_low <= 0.5 * start):
                break
            lengths = low + (lengths[k] - low) * (BETWEEN if low > 0 else NEAR_ZERO)
        return self._along(price, move, np.array([low]))[0]

    @staticmethod
    def _along(price: FloatArray, move: FloatArray, lengths: FloatArray) -> FloatArray:
        """Prices on a ray; those that fall to nothing but rounding are zero."""
        reached = price + lengths[:, None] * move
        return np.where((move < 0) & (reached <= 1e-14 * price), 0.0, reached)
