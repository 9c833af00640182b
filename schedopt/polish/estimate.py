"""What a change of plans would gain, estimated without allocating resources anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, aggregate, fixed_terms
from schedopt.formulation.candidates import Candidates, Columns, Prices, make_columns, price_columns
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.sca.master import horizon_weight
from schedopt.state import Merit, State

__all__ = ["Estimator", "Ledger", "current_columns", "ledger"]


@dataclass(frozen=True)
class Ledger:
    """What each of n things costs and brings: resource cost at the prices and energy in J, shape (n,); h and scaled error terms of
    every task, shape (n, J)."""

    resource: FloatArray
    energy: FloatArray
    h: FloatArray
    error: FloatArray

    def take(self, index: object) -> Ledger:
        """The entries at ``index``."""
        return Ledger(self.resource[index], self.energy[index], self.h[index], self.error[index])

    def __neg__(self) -> Ledger:
        return Ledger(-self.resource, -self.energy, -self.h, -self.error)

    def __sub__(self, other: Ledger) -> Ledger:
        return self + -other

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(self.resource + other.resource, self.energy + other.energy, self.h + other.h, self.error + other.error)


def ledger(candidates: Candidates, columns: Columns, prices: Prices) -> Ledger:
    """The ledger of ``columns``, with resources at ``prices``."""
    bare = replace(prices, value=np.zeros_like(prices.value), noise=np.zeros_like(prices.noise), span_h=None, instant_noise=None)
    mine = candidates.task[columns.candidate][:, None] == np.arange(candidates.arrays.num_tasks)
    resource = price_columns(candidates, columns, bare)
    return Ledger(resource, columns.energy_j, mine * columns.h[:, None], mine * columns.error[:, None])


def current_columns(candidates: Candidates, state: State) -> Columns:
    """The assignments of ``state`` as columns, in its order."""
    s = state.schedule
    index = candidates.find(s.device, s.task, s.start, s.end)
    return make_columns(candidates.take(index), index, s.steps, s.steps * s.batch, state.evaluation.physics.upload_s, s.bandwidth_hz)


@dataclass(frozen=True)
class Estimator:
    """Estimated improvement of the merit by changes of one or several devices' plans.

    Exact in H and N (participation included) and in the penalties; first order in the band's price; staleness terms stay as they are.
    """

    problem: Problem
    state: State
    merit: Merit

    def __call__(self, change: Ledger, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
        """Gains of n changes, shape (n,). ``by_device``: pairs of devices, shape (n,), and the change of their h, shape (n, J)."""
        mode = self.problem.objective.mode
        h, n, h_device = self._aggregates()
        after_h = np.maximum(h + change.h, 0.0)
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

    def _aggregates(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """H, N (shape (J,)) and h per device (I, J) of the present schedule."""
        bound = self.state.evaluation.bound
        h = bound.extra["h_total"].astype(float)
        total = np.where(h > 0, bound.total, 0.0) * h / FACTOR
        n = np.where(h > 0, np.maximum(total - fixed_terms(self.problem.arrays), 0.0), 0.0)
        return h, n, aggregate(self.problem.arrays, self.state.schedule).h_device

    def _participation(self, h: FloatArray, h_device: FloatArray, by_device: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
        """2c d²/H after changes of h of some devices in each row, shape (rows, J); zero unless judged over the horizon."""
        a, weight = self.problem.arrays, horizon_weight(self.problem)
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
