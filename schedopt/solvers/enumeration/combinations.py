"""Combinations of keys, one key a device: how many there are, and what each costs at least at the best prices of its limits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import ROUNDING
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.relaxation import Relaxation
from schedopt.solvers.enumeration.tables import Tables
from schedopt.solvers.enumeration.terms import Terms

__all__ = ["Combinations", "Quote"]

#: Points of the tables over what the bound of a task is worth, by number of tasks.
TASK_NODES = {1: 96, 2: 32, 3: 10}


@dataclass(frozen=True)
class Quote:
    """How combinations of keys are priced, arrays over n combinations: a joint plan costs at least offset + scale · (cost of its rows),
    rows at ``rate`` (n, J) joules per unit of Σ_k c_k T_k, in joules; ``bound``: lower bound over all joint plans of the combination.
    """

    bound: FloatArray
    offset: FloatArray
    scale: FloatArray
    rate: FloatArray

    def take(self, index: np.ndarray) -> Quote:
        """The quotes at ``index``."""
        return Quote(self.bound[index], self.offset[index], self.scale[index], self.rate[index])

    def best(self, other: Quote) -> Quote:
        """Elementwise the one of larger bound."""
        better = other.bound > self.bound
        return Quote(
            np.where(better, other.bound, self.bound),
            np.where(better, other.offset, self.offset),
            np.where(better, other.scale, self.scale),
            np.where(better[:, None], other.rate, self.rate),
        )


class Combinations:
    """Combinations of keys, one key a device, numbered 0 … total − 1, and how they are priced.

    In mode min_energy the rate of each task with a target is free; in mode min_bound with a limit the price of energy is free: the best
    of a grid is taken, then of a few steps of pattern search.
    """

    def __init__(self, terms: Terms, tables: Tables, plans: Sequence[Plans]) -> None:
        self.terms, self.plans = terms, plans
        self.sizes = tuple(len(plan.h) for plan in plans)
        self.total = int(np.prod(self.sizes, dtype=float))
        self.least_energy = [np.minimum.reduceat(plan.least_energy, plan.first) for plan in plans]
        self.least_fixed = [np.minimum.reduceat(plan.fixed, plan.first, axis=0) for plan in plans]
        low, high = self._rate_range(tables)
        worth = self._worth_range()
        self.nodes = [self._rate_nodes(j, low[j], high[j], worth[:, j]) for j in range(len(low))]
        self.grids = self._grids(low, high, worth)
        self.points = [np.array(point, dtype=float) for point in itertools.product(*self.grids)]

    def _rate_range(self, tables: Tables) -> tuple[FloatArray, FloatArray]:
        """Rates per task between which batches depend on them."""
        rows = tables.rows
        ends = np.tile([[1e-6], [1e6]], self.terms.problem.arrays.num_tasks)
        first, last = tables.noise_range()
        for j in range(ends.shape[1]):
            some = (rows.task == j) & (rows.noise > 0)
            if np.any(some):
                ends[:, j] = (first / rows.noise)[some].min(), (last / rows.noise)[some].max()
        return ends[0], ends[1]

    def _worth_range(self) -> FloatArray:
        """Least and most that a unit of Σ_k c_k T_k can be worth in the objective, (2, J)."""
        h = np.concatenate([plan.h for plan in self.plans])
        least = np.where(h > 0, h, np.inf).min(axis=0)
        most = sum(plan.h.max(axis=0) for plan in self.plans)
        used = most > 0
        worth = self.terms.weight * FACTOR / np.where(used, np.stack([most, least]), 1.0)
        return np.where(used, worth, 0.0)

    def _rate_nodes(self, j: int, low: float, high: float, worth: FloatArray) -> FloatArray:
        """Nodes of the tables over the rate of a task."""
        terms = self.terms
        if not terms.relevant[j]:
            return np.array([0.0, 1.0])
        count = TASK_NODES.get(int(terms.relevant.sum()), 6)
        top = worth / terms.energy_weight
        if not self._is_free():
            return np.geomspace(top[0] * (1 - 1e-12), top[1] * (1 + 1e-12), count)
        nodes = np.append(0.0, np.geomspace(low, high, count - 2))
        return np.append(nodes, max(top[1], 4.0 * high))

    def _is_free(self) -> bool:
        return self.terms.has_targets or self.terms.has_total_energy

    def _grids(self, low: FloatArray, high: FloatArray, worth: FloatArray) -> list[FloatArray]:
        """First values of each free price: rates of the tasks with a target, or the extra price of energy."""
        if self.terms.has_targets:
            return [np.append(0.0, np.geomspace(low[j], high[j], 5)) for j in np.flatnonzero(self.terms.relevant)]
        if self.terms.has_total_energy:
            some = worth[0] > 0
            return [np.append(0.0, np.geomspace((worth[0] / high)[some].min(), (worth[1] / low)[some].max(), 12))]
        return []

    def keys(self, flat: IntArray) -> IntArray:
        """Key of each device, (n, I)."""
        return np.stack(np.unravel_index(flat, self.sizes), axis=1)

    def sums(self, keys: IntArray) -> tuple[FloatArray, FloatArray]:
        """H_j and the numerators that follow from it, both (n, J)."""
        h = np.stack([plan.h[keys[:, i]] for i, plan in enumerate(self.plans)], axis=1)
        return h.sum(axis=1), self.terms.numerators(h)

    def quote(self, relaxation: Relaxation, flat: IntArray, rounds: int = 2) -> Quote:
        """Price combinations; those that cannot be feasible have an infinite bound."""
        keys = self.keys(flat)
        total, numerators = self.sums(keys)
        free = np.zeros((len(flat), len(self.grids)))
        best: Quote | None = None

        def offer(z: FloatArray) -> None:
            nonlocal best, free
            new = self._priced(relaxation, keys, total, numerators, z)
            free = z if best is None else np.where((new.bound > best.bound)[:, None], z, free)
            best = new if best is None else best.best(new)

        for point in self.points:
            offer(np.tile(point, (len(flat), 1)))
        ratios = [(grid[2] / grid[1]) ** 0.5 for grid in self.grids]
        for step, d, sign in itertools.product(range(rounds), range(len(ratios)), (1.0, -1.0)):
            factor = np.ones(len(ratios))
            factor[d] = ratios[d] ** (sign / 2**step)
            offer(free * factor)
        assert best is not None
        return Quote(np.where(self._possible(keys, total, numerators), best.bound, np.inf), best.offset, best.scale, best.rate)

    def quote_at(self, relaxation: Relaxation, flat: IntArray, point: FloatArray) -> Quote:
        """Price combinations at one point of the grid of free prices."""
        keys = self.keys(flat)
        return self._priced(relaxation, keys, *self.sums(keys), np.tile(point, (len(flat), 1)))

    def _priced(self, relaxation: Relaxation, keys: IntArray, total: FloatArray, numerators: FloatArray, free: FloatArray) -> Quote:
        """The quote at given free prices (n, D)."""
        terms = self.terms
        relevant = terms.relevant & (total > 0)
        safe = np.where(relevant, total, 1.0)
        scale = np.full(len(keys), terms.energy_weight)
        if terms.has_targets:
            rate = np.zeros(total.shape)
            rate[:, terms.relevant] = free
            reach = np.where(terms.relevant, terms.target, 0.0) * total / FACTOR
            offset = (rate * (numerators - reach)).sum(axis=1)
        else:
            worth = np.where(relevant, terms.weight * FACTOR / safe, 0.0)
            offset = (worth * numerators).sum(axis=1)
            if free.shape[1]:
                scale = scale + free[:, 0]
                offset = offset - free[:, 0] * terms.total_energy
            rate = worth / scale[:, None]
        rows = relaxation.keys_cost(keys, rate).sum(axis=1) - relaxation.paid
        return Quote(offset + scale * rows, offset, scale, rate)

    def _possible(self, keys: IntArray, total: FloatArray, numerators: FloatArray) -> np.ndarray:
        """Every task that counts is trained, and targets and the energy limit are within reach for each row alone."""
        terms = self.terms
        possible = np.all((total > 0) | ~terms.relevant, axis=1)
        if terms.has_total_energy:
            possible &= sum(e[keys[:, i]] for i, e in enumerate(self.least_energy)) <= terms.total_energy * (1 + ROUNDING)
        if terms.has_targets:
            fixed = sum(f[keys[:, i]] for i, f in enumerate(self.least_fixed))
            reach = np.where(terms.relevant, terms.target, 0.0) * total * (1 + ROUNDING) / FACTOR
            possible &= np.all((numerators + fixed <= reach) | ~terms.relevant, axis=1)
        return possible
