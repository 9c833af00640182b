"""Bands of shared slots split so that each device keeps to its energy budget, where the split of least energy does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schedopt.errors import SolverError
from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import DEFECT, ROUNDING
from schedopt.solvers.enumeration.joint_plan import JointPlan
from schedopt.solvers.enumeration.uploads import Split, split_band

__all__ = ["split_for_budgets"]


def split_for_budgets(
    plan: JointPlan, picks: IntArray, shared: list[int], objective: float, ceiling: float, check: Callable[[], None]
) -> dict[int, Split] | None:
    """Bands of ``shared`` slots that spend the least energy within the budgets, None if that is infeasible or not below ``ceiling``.

    The prices of the devices' energies that bring each to its budget are found by Newton's method; those of the devices that keep to
    it anyway are zero. At any prices weak duality bounds the energy from below. ``objective``: of the picks without budgets.
    """
    shares = _Shares(plan, picks, shared)
    price = np.zeros(len(shares.budget))
    for _ in range(200):
        check()
        trials = shares.trials(price)
        splits, energy = shares.at(trials)
        if shares.excess(trials, energy)[0] <= ROUNDING:
            return {k: split.take(0) for k, split in splits.items()}
        if not objective + plan.terms.energy_weight * float(shares.dual(trials, energy).max()) < ceiling:
            return None
        price = shares.improved(price, energy)
    raise SolverError(f"enumeration: splitting the band within the energy budgets did not converge; {DEFECT}")


class _Shares:
    """Energies of the devices of a joint plan as functions of prices of their energy that act on the bands of shared slots."""

    def __init__(self, plan: JointPlan, picks: IntArray, shared: list[int]) -> None:
        a = plan.terms.problem.arrays
        self.plan, self.shared = plan, shared
        self.uploads = {k: plan.slots[k].uploads(picks[k : k + 1]) for k in shared}
        self.budget = a.energy_budget_j
        self.finite_budget = np.where(np.isfinite(a.energy_budget_j), a.energy_budget_j, 0.0)
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

    def dual(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """Lower bounds on what the budgets cost in energy, (q,), from prices and the energies at them, (q, I)."""
        return energy.sum(axis=1) - self.least + (price * (energy - self.finite_budget)).sum(axis=1)

    def excess(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """How far from optimal, (q,): largest relative excess over a budget, or distance from it where there is a price."""
        relative = energy / self.budget - 1.0
        return np.where(price > 0, np.abs(relative), relative).max(axis=1)

    @staticmethod
    def trials(price: FloatArray) -> FloatArray:
        """Prices to evaluate together: these, and each a little higher, for derivatives."""
        return np.vstack([price, price + np.diag(1e-6 * (1.0 + price))])

    def improved(self, price: FloatArray, energy: FloatArray) -> FloatArray:
        """The next prices, from the energies at :meth:`trials`: the best dual value on a Newton step in log(1 + price) and beyond it.

        A common factor of all 1 + price leaves the energies as they are where all uploads are priced; so if budgets cannot be met
        together, the dual value grows without limit along it.
        """
        active = np.flatnonzero((price > 0) | (energy[0] > self.budget))
        derivative = (energy[1:] - energy[0])[np.ix_(active, active)].T / np.log1p(1e-6)
        step = np.linalg.lstsq(derivative, (self.budget - energy[0])[active], rcond=1e-9)[0]
        step *= min(1.0, 3.0 / np.abs(step).max())
        moves = np.vstack([step * np.array([1.0, 0.6, 0.3, 0.1, 0.02])[:, None], step + np.log([[3.0], [30.0], [1e3], [1e5]])])
        candidates = np.tile(price, (len(moves), 1))
        candidates[:, active] = np.maximum(np.expm1(np.log1p(price[active]) + moves), 0.0)
        reached = self.at(candidates)[1]
        # close to the optimum the dual values differ by rounding only
        if self.excess(candidates[:1], reached[:1])[0] < 0.1 * self.excess(price[None], energy[:1])[0]:
            return candidates[0]
        return candidates[int(np.argmax(self.dual(candidates, reached)))]
