"""What a change of plans would gain, estimated without allocating resources anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, aggregate, fixed_terms
from schedopt.bounds.windowed import participation_distance
from schedopt.formulation.candidates import Candidates, Columns, Prices, make_columns, price_columns
from schedopt.participation import ParticipationGroups, participation_groups
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.state import Merit, State

__all__ = ["Estimator", "Ledger", "current_columns", "ledger"]

#: Entries (I, J, M) of all changes whose participation by windows is worked out at once.
_ENTRIES_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Ledger:
    """What each of n things costs and brings: resource cost at the prices and energy in J, shape (n,); h of every task, shape
    (n, J[, M]), and its scaled error terms, with windows those of staleness among them, shape (n, J)."""

    resource: FloatArray
    energy: FloatArray
    h: FloatArray
    error: FloatArray

    def take(self, index: Any) -> Ledger:
        """The entries at ``index``."""
        return Ledger(self.resource[index], self.energy[index], self.h[index], self.error[index])

    def __neg__(self) -> Ledger:
        return Ledger(-self.resource, -self.energy, -self.h, -self.error)

    def __sub__(self, other: Ledger) -> Ledger:
        return self + -other

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(self.resource + other.resource, self.energy + other.energy, self.h + other.h, self.error + other.error)


def ledger(candidates: Candidates, columns: Columns, prices: Prices, groups: ParticipationGroups) -> Ledger:
    """The ledger of ``columns``, with resources at ``prices``."""
    bare = replace(prices, value=np.zeros_like(prices.value), noise=np.zeros_like(prices.noise), span_h=None, instant_noise=None)
    rows, task = np.arange(len(columns)), candidates.task[columns.candidate]
    h, error = np.zeros((len(rows), *groups.shape[1:])), np.zeros((len(rows), candidates.arrays.num_tasks))
    h[groups.place(rows, task, candidates.end[columns.candidate])] = columns.h
    error[rows, task] = columns.error
    if prices.staleness is not None:
        c, stale = candidates.take(columns.candidate), prices.staleness
        error[rows, task] += columns.h * stale.per_h(c.device, task, c.start, c.end) + columns.noise * stale.noise[task, c.end]
    return Ledger(price_columns(candidates, columns, bare), columns.energy_j, h, error)


def current_columns(candidates: Candidates, state: State) -> Columns:
    """The assignments of ``state`` as columns, in its order."""
    s = state.schedule
    index = candidates.find(s.device, s.task, s.start, s.end)
    return make_columns(candidates.take(index), index, s.steps, s.steps * s.batch, state.evaluation.physics.upload_s, s.bandwidth_hz)


@dataclass(frozen=True)
class Estimator:
    """Estimated improvement of the merit by changes of one or several devices' plans.

    Exact in H and N (participation included) and in the penalties; first order in the band's price; staleness terms stay as they are,
    but with windows, where they change to first order.
    """

    problem: Problem
    state: State
    merit: Merit

    def __call__(self, change: Ledger, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
        """Gains of n changes, shape (n,). ``by_device``: pairs of devices, shape (n,), and the change of their h, shape (n, J[, M])."""
        mode, groups = self.problem.objective.mode, participation_groups(self.problem)
        h, n, h_device = self._aggregates(groups)
        after_h = np.maximum(h + groups.per_task(change.h), 0.0)
        if groups.free:
            part = _by_rows(groups, h_device, by_device)
        else:
            part = self._participation(after_h, h_device, by_device) - self._participation(h[None, :], h_device, ())
        after_n = np.maximum(n + change.error + part, 0.0)
        gain = -change.resource
        fixed = fixed_terms(self.problem.arrays)
        if mode == "min_energy":
            return gain - self._target_penalty(after_h, after_n + fixed)
        w = FACTOR * self.problem.arrays.weight
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.where(w > 0, w * (fixed + n) / h, 0.0)
            after = np.where(w > 0, w * (fixed + after_n) / after_h, 0.0)
        ratio = np.where(np.isfinite(before).all(), before.sum(), 1e30) - np.where(np.isfinite(after), after, 1e30).sum(axis=1)
        if mode == "min_bound":
            # resources carry energy at the limit's price: replace it by the excess over the limit
            miss, weight = self.merit.energy_miss(self.state.evaluation), self.merit.energy_price
            gain = -weight * (np.maximum(miss + change.energy, 0.0) - max(miss, 0.0)) + gain / self.merit.factor * 1e-3
        return gain + ratio

    def _aggregates(self, groups: ParticipationGroups) -> tuple[FloatArray, FloatArray, FloatArray]:
        """H, N (shape (J,)) and h per device (I, J[, M]) of the present schedule."""
        bound = self.state.evaluation.bound
        h = bound.extra["h_total"].astype(float)
        total = np.where(h > 0, bound.total, 0.0) * h / FACTOR
        n = np.where(h > 0, np.maximum(total - fixed_terms(self.problem.arrays), 0.0), 0.0)
        s = self.state.schedule
        return h, n, groups.sums(s.device, s.task, s.end, aggregate(self.problem.arrays, s).h)

    def _participation(self, h: FloatArray, h_device: FloatArray, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
        """2c d²/H after changes of h of some devices in each row, shape (rows, J); zero unless judged over the horizon."""
        a, weight = self.problem.arrays, participation_groups(self.problem).factor
        if weight == 0.0:
            return np.zeros(h.shape)
        result = np.zeros(h.shape)
        rows = np.arange(len(h))
        for j in range(a.num_tasks):
            delta, share = a.dissimilarity[:, j], a.aggregation_weight[:, j]
            off = h_device[None, :, j] - share * h[:, j, None]
            for device, change in by_device:
                off[rows, device] += change[:, j]
            d = np.abs(off) @ delta
            result[:, j] = weight * np.divide(d**2, h[:, j], out=np.zeros(len(h)), where=h[:, j] > 0)
        return result

    def _target_penalty(self, h: FloatArray, total: FloatArray) -> FloatArray:
        target = self.problem.arrays.target
        use = np.isfinite(target)
        before = self.merit.target_misses(self.state.evaluation)[use]
        after = total[:, use] - target[use] * h[:, use] / FACTOR
        return (np.maximum(after, 0.0) - np.maximum(before, 0.0)) @ self.merit.target_price[use]


def _by_rows(groups: ParticipationGroups, h: FloatArray, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
    """:func:`_window_participation` of some rows at a time."""
    step = max(1, _ENTRIES_AT_ONCE // h.size)
    count = len(by_device[0][0])
    parts = [
        _window_participation(groups, h, [(device[first : first + step], change[first : first + step]) for device, change in by_device])
        for first in range(0, count, step)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, groups.arrays.num_tasks))


def _window_participation(groups: ParticipationGroups, h: FloatArray, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
    """How changes of h (see :class:`Estimator`) change Σ 2c d²/H of every task, shape (n, J): only in the windows that they touch."""
    count = len(by_device[0][0])
    touched = np.zeros((count, *groups.shape[1:]), dtype=bool)
    for _, change in by_device:
        touched |= change != 0
    row, task, window = np.nonzero(touched)
    after = h[:, task, window].copy()
    entry = np.arange(len(row))
    for device, change in by_device:
        after[device[row], entry] += change[row, task, window]
    before = groups.square(h)[task, window]
    weight, dissimilarity = groups.arrays.aggregation_weight[:, task], groups.arrays.dissimilarity[:, task]
    after = np.maximum(after, 0.0)
    total, distance = after.sum(axis=0), participation_distance(after, weight, dissimilarity)
    square = np.divide(distance**2, total, out=np.zeros_like(total), where=total > 0)
    tasks = groups.arrays.num_tasks
    more: np.ndarray = np.bincount(row * tasks + task, weights=square - before, minlength=count * tasks)
    return groups.factor * more.reshape(count, tasks)
