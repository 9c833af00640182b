"""One joint plan as a problem over options of its slots: what each option costs and uses of each limit, and what a choice amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import ROUNDING
from schedopt.solvers.enumeration.slots import Slot
from schedopt.solvers.enumeration.tables import Prices, Tables
from schedopt.solvers.enumeration.terms import Terms
from schedopt.solvers.enumeration.uploads import Split

__all__ = ["Choice", "JointPlan", "Limits"]


@dataclass
class Choice:
    """A solved joint plan: batch, upload time and bandwidth of each of its rows, and the multipliers of its limits."""

    objective: float
    rows: IntArray
    batch: IntArray
    time: FloatArray
    band: FloatArray
    multipliers: FloatArray


@dataclass(frozen=True)
class Limits:
    """Rows Σ over slots of activity ≤ limit: targets per task, the energy limit, budgets per device.

    ``task``, ``device``: −1 = none; without either a row limits the energy of all.
    """

    task: tuple[int, ...]
    device: tuple[int, ...]
    limit: FloatArray

    @classmethod
    def of(cls, terms: Terms, numerators: FloatArray, total: FloatArray) -> Limits:
        """The limits of a joint plan with these H_j = ``total`` and with these parts of Σ_k c_k T_k that do not depend on batches."""
        budget = terms.problem.arrays.energy_budget_j
        rows = [(int(j), -1, terms.target[j] * total[j] / FACTOR - numerators[j]) for j in np.flatnonzero(np.isfinite(terms.target))]
        if terms.has_total_energy:
            rows.append((-1, -1, terms.total_energy))
        rows.extend((-1, int(i), budget[i]) for i in np.flatnonzero(np.isfinite(budget)))
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows), np.array([row[2] for row in rows], dtype=float))

    def __len__(self) -> int:
        return len(self.task)

    @cached_property
    def rounding(self) -> FloatArray:
        """By how much each limit may be exceeded."""
        return ROUNDING * np.abs(self.limit)

    @cached_property
    def allowed(self) -> FloatArray:
        """The limits and what rounding may add."""
        return self.limit + self.rounding


class JointPlan:
    """Costs and limits of one joint plan.

    The objective is const + Σ_slots worth · noise + ξ · energy, subject to :class:`Limits`; H, the participation terms and the spans of
    stale work are fixed by the rows. *Picks* are options, one per slot.
    """

    def __init__(self, terms: Terms, tables: Tables, slots: Sequence[Slot], span: FloatArray, h: FloatArray) -> None:
        self.terms, self.slots = terms, slots
        rows = tables.rows
        total = h.sum(axis=0)
        self.worth = np.where(terms.relevant & (total > 0), terms.weight * FACTOR / np.where(total > 0, total, 1.0), 0.0)
        numerators = terms.numerators(h[None])[0]
        self.noise: list[FloatArray] = []
        for slot in slots:
            noise = np.zeros((terms.problem.arrays.num_tasks, slot.pick.shape[1]))
            for k, r in enumerate(slot.rows):
                j = rows.task[r]
                numerators[j] += rows.fixed[r]
                noise[j] += (rows.noise[r] + rows.stale[r] * span[j, rows.end[r]]) * slot.sigma2[k]
            self.noise.append(noise)
        self.const = float(self.worth @ numerators)
        self.limits = Limits.of(terms, numerators, total)
        self.devices = [[int(rows.device[r]) for r in slot.rows] for slot in slots]

    # --- options of a slot ---

    def cost(self, k: int) -> FloatArray:
        """Share of the objective of each option of slot k, (O,): exact or a lower bound."""
        return self.worth @ self.noise[k] + self.terms.energy_weight * self.slots[k].energy

    def activity(self, k: int) -> FloatArray:
        """What each option of slot k uses of each limit, (limits, O): exact for targets, else exact or a lower bound."""
        slot, limits = self.slots[k], self.limits
        rows = np.zeros((len(limits), slot.pick.shape[1]))
        for m, (task, device) in enumerate(zip(limits.task, limits.device, strict=True)):
            if task >= 0:
                rows[m] = self.noise[k][task]
            elif device >= 0:
                rows[m] = slot.least_parts[[d == device for d in self.devices[k]]].sum(axis=0)
            else:
                # options that cannot share the band cost infinity already; 0 times infinity must not appear
                rows[m] = np.where(np.isfinite(slot.energy), slot.energy, 0.0)
        return rows

    def cheapest(self, k: int) -> int:
        """Option of least cost of a slot; bounds are made exact until the least one is."""
        slot = self.slots[k]
        while True:
            cost = self.cost(k)
            best = int(np.argmin(cost))
            if slot.exact[best]:
                return best
            count = min(16, len(cost))
            slot.refine(np.argpartition(cost, count - 1)[:count])

    def used_by(self, k: int, option: int, parts: FloatArray) -> FloatArray:
        """Activity of every limit by an option of slot k at given energies of its rows."""
        used = np.zeros(len(self.limits))
        for m, (task, device) in enumerate(zip(self.limits.task, self.limits.device, strict=True)):
            if task >= 0:
                used[m] = self.noise[k][task, option]
            else:
                used[m] = sum(e for e, d in zip(parts, self.devices[k], strict=True) if device in (-1, d))
        return used

    # --- picks ---

    def objective(self, picks: IntArray) -> float:
        """The objective of picks: exact if their energies are, else a lower bound."""
        return self.const + sum(float(self.cost(k)[o]) for k, o in enumerate(picks))

    def parts(self, picks: IntArray) -> list[FloatArray]:
        """Energies of the rows of each slot, exact ones, when each slot's energy is least."""
        return [slot.parts[:, o] for slot, o in zip(self.slots, picks, strict=True)]

    def used(self, picks: IntArray, parts: Sequence[FloatArray]) -> FloatArray:
        """Activity of every limit at given energies of the rows."""
        return sum((self.used_by(k, int(o), parts[k]) for k, o in enumerate(picks)), np.zeros(len(self.limits)))

    def within(self, picks: IntArray) -> bool:
        """Whether options with exact energies meet all limits when each slot's energy is least."""
        return bool(np.all(self.used(picks, self.parts(picks)) <= self.limits.allowed))

    def most(self) -> float:
        """More than the objective of any picks that keep to the limits."""
        noise = sum(float((self.worth @ noise).max()) for noise in self.noise)
        return self.const + self.terms.energy_weight * self.terms.max_energy + noise

    def prices(self, picks: IntArray, multipliers: FloatArray) -> Prices:
        """Prices at which the bounds of other joint plans may be tight, from picks and multipliers of the limits."""
        prices = Prices.zero(self.terms.problem)
        for slot, o in zip(self.slots, picks, strict=True):
            prices.band[slot.number] = slot.best_price(int(o))
        rows = list(zip(multipliers, self.limits.task, self.limits.device, strict=True))
        scale = self.terms.energy_weight + sum(value for value, task, device in rows if task < 0 and device < 0)
        for value, _, device in rows:
            if device >= 0:
                prices.budget[device] = value / scale
        return prices

    def choice(self, objective: float, picks: IntArray, multipliers: FloatArray, splits: dict[int, Split] | None = None) -> Choice:
        """The solution that picks are, in the order of the rows; ``splits``: of slots whose energy is not the least."""
        splits = splits or {}
        rows: list[int] = []
        batch: list[int] = []
        time: list[float] = []
        band: list[float] = []
        for k, (slot, o) in enumerate(zip(self.slots, picks, strict=True)):
            rows.extend(slot.rows)
            batch.extend(slot.batch(int(o)))
            time.extend(splits[k].time[0] if k in splits else slot.time[:, o])
            band.extend(splits[k].band[0] if k in splits else slot.band[:, o])
        return Choice(objective, np.array(rows, dtype=np.int64), np.array(batch), np.array(time), np.array(band), multipliers)
