"""Lower bounds of a joint plan with its limits priced by multipliers, and the multipliers at which they are largest."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import ENERGY_MARGIN
from schedopt.solvers.enumeration.joint_plan import JointPlan
from schedopt.solvers.enumeration.uploads import split_band

__all__ = ["Lagrangian", "best_lagrangian"]


class Lagrangian:
    """Costs of the options of a joint plan with its limits priced by multipliers; bounds until made exact.

    Where a budget has a price, the band of a shared slot is split for the priced energies.
    """

    def __init__(self, plan: JointPlan, multipliers: FloatArray) -> None:
        self.plan, self.multipliers = plan, multipliers
        limits, a = plan.limits, plan.terms.problem.arrays
        self.noise_price = plan.worth.copy()
        self.energy_price = np.full(a.num_devices, plan.terms.energy_weight)
        for value, task, device in zip(multipliers, limits.task, limits.device, strict=True):
            if task >= 0:
                self.noise_price[task] += value
            else:
                self.energy_price[slice(None) if device < 0 else device] += value
        self.const = plan.const - float(multipliers @ limits.limit)
        self.weighted = [self._factor(k) for k in range(len(plan.slots))]
        self.energy = [self._energy(k) for k in range(len(plan.slots))]
        self.exact = [np.zeros(len(e), dtype=bool) for e in self.energy]

    def cut(self) -> tuple[float, FloatArray]:
        """The Lagrangian of the cheapest options as a function of the multipliers: its value at zero, and its slopes.

        Where relative prices of energy differ, the band is split for them.
        """
        plan = self.plan
        value, slope = plan.const, -plan.limits.limit
        for k, slot in enumerate(plan.slots):
            o = self._cheapest(k)
            parts, factor = slot.parts[:, o], self.weighted[k]
            if factor is not None:
                parts = split_band(slot.uploads(np.array([o])), factor).energy[0] + slot.receive_j
            value += float(plan.worth @ plan.noise[k][:, o]) + plan.terms.energy_weight * float(parts.sum())
            slope = slope + plan.used_by(k, o, parts)
        return value, slope

    def cheapest(self) -> IntArray:
        """Options of least cost, one per slot."""
        return np.array([self._cheapest(k) for k in range(len(self.plan.slots))], dtype=np.int64)

    def _cheapest(self, k: int) -> int:
        """Option of least cost of slot k among those that can share the band; made exact as far as the slot's energies go."""
        while True:
            o = int(np.argmin(self.cost(k)))
            if self.plan.slots[k].exact[o]:
                return o
            self.plan.slots[k].refine(np.array([o]))

    def _factor(self, k: int) -> FloatArray | None:
        """Relative prices of the rows' energies in slot k, None if they are equal."""
        factor = self.energy_price[self.plan.devices[k]] / self.energy_price[self.plan.devices[k][0]]
        return None if np.all(factor == 1.0) else factor

    def _energy(self, k: int) -> FloatArray:
        """Priced energy of the options of slot k where relative prices differ; zeros elsewhere (see :meth:`cost`)."""
        slot, factor = self.plan.slots[k], self.weighted[k]
        return slot.weighted_bound(factor) if factor is not None else np.zeros(len(slot.energy))

    def cost(self, k: int) -> FloatArray:
        """Lagrangian cost of the options of slot k, (O,)."""
        least = self.plan.slots[k].energy
        energy = least if self.weighted[k] is None else np.where(np.isinf(least), np.inf, self.energy[k])
        return self.noise_price @ self.plan.noise[k] + self.energy_price[self.plan.devices[k][0]] * energy

    def reduced(self) -> list[FloatArray]:
        """Cost of each option above the least of its slot."""
        return [(cost := self.cost(k)) - cost.min() for k in range(len(self.plan.slots))]

    def dual(self) -> float:
        """Lower bound on the joint plan's optimum."""
        return self.const + sum(float(self.cost(k).min()) for k in range(len(self.plan.slots)))

    def spread(self) -> float:
        """At least the largest finite sum of reduced costs."""
        return sum(float(r[np.isfinite(r)].max(initial=0.0)) for r in self.reduced())

    def refine(self, gap: float) -> None:
        """Make the costs of the options within ``gap`` of their slot's least exact."""
        for k, slot in enumerate(self.plan.slots):
            some = np.flatnonzero(self.reduced()[k] <= gap)
            factor = self.weighted[k]
            if factor is None:
                slot.refine(some)
                continue
            some = some[~self.exact[k][some]]
            if len(some):
                energy = split_band(slot.uploads(some), factor).energy + slot.receive_j
                self.energy[k][some], self.exact[k][some] = (factor * energy).sum(axis=1) * (1 - ENERGY_MARGIN), True


def best_lagrangian(plan: JointPlan, start: FloatArray, cutoff: float) -> Lagrangian:
    """Multipliers near the largest dual value, by cutting planes from ``start``; done once the value reaches ``cutoff``.

    The dual value is the least of functions that are linear in the multipliers, one per choice of options and bands.
    """
    limit = plan.limits.limit
    multipliers, best, cuts = start, Lagrangian(plan, np.zeros(len(limit))), []
    # prices far above what the whole objective is worth per unit of a limit
    largest = 1e4 * abs(cutoff) / np.maximum(np.abs(limit), 1e-300)
    trial = best
    for _ in range(40):
        best = trial if trial.dual() > best.dual() else best
        if best.dual() >= cutoff:
            break
        cuts.append(trial.cut())
        at_zero, slope = np.array([c[0] for c in cuts]), np.array([c[1] for c in cuts])
        top = linprog(
            np.append(np.zeros(len(limit)), -1.0),
            A_ub=np.column_stack([-slope, np.ones(len(cuts))]),
            b_ub=at_zero,
            bounds=[*((0.0, float(u)) for u in largest), (None, None)],
        )
        if top.status != 0 or -top.fun - best.dual() <= 1e-4 * abs(best.dual()):
            break
        # between the best and the cuts' best point: the latter alone jumps about
        multipliers = multipliers if len(cuts) == 1 and np.any(start > 0) else 0.4 * best.multipliers + 0.6 * top.x[:-1]
        trial = Lagrangian(plan, multipliers)
    return best
