r"""Least costs of all candidates at given prices, bounded from below by tables over the upload time.

A candidate's cost is min over T of G(T) + U(T): U, what an upload in time T costs at its slot's price of bandwidth, does not depend on
the steps, and G, the least over steps e of what else it costs, depends on device, task and length alone, not on the slot. Both are
tabulated at the same times. U and each G_e are convex, so between two times they lie above their chord less

    h (s₂ − s)(s − s₁)/(s₂ − s₁),      s: slope of the chord, s₁ ≤ s ≤ s₂ those of its neighbours, h: width,

and the least of two lines is at an end. Unlike :func:`schedopt.formulation.candidates.price`, which needs a root per candidate and
steps, this tells the cost of candidates that do not pay as well: limits on numbers of assignments add to costs or take from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, Prices
from schedopt.formulation.candidates.cells import Cells, best_work, blocks_of, cells_of
from schedopt.formulation.candidates.pricing import columns_at
from schedopt.formulation.resources import MARGIN
from schedopt.problem import FloatArray, IntArray

__all__ = ["PriceTables", "TablePrices"]

#: Upload times of the tables: bounds are off by the square of their spacing.
_TIMES = 48
#: Fewer of them where there are many pairs of a template and its steps, so that the tables stay small; but at least so many.
_MOST_ENTRIES, _FEWEST_TIMES = 1 << 23, 12


@dataclass(frozen=True)
class TablePrices:
    """``lower`` ≤ the least cost of each candidate, shape (n,), +inf if it is impossible; ``near``: the best time of the table, index.

    ``steps``: best steps at that time.
    """

    lower: FloatArray
    near: IntArray
    steps: FloatArray


class PriceTables:
    """What does not depend on prices; candidates as they are, without prices per instant."""

    def __init__(self, candidates: Candidates, times: int = _TIMES) -> None:
        self.candidates = candidates
        a = candidates.arrays
        best, self.template = candidates.compute_templates
        self.best = best
        # which steps are possible at which upload time does not depend on the channel: the best one of all keeps all of them
        self.blocks = blocks_of(best, best.block[best.task], best.steps[best.task])
        upload = (candidates.device * a.num_tasks + candidates.task) * a.slots + candidates.end - 1
        _, first, self.upload = np.unique(upload, return_index=True, return_inverse=True)
        self.uploads = candidates.uploads.take(first)
        self.upload_device, self.upload_slot = candidates.device[first], candidates.end[first] - 1
        shortest = float(candidates.uploads.shortest_s.min(initial=a.slot_s))
        times = min(times, max(_FEWEST_TIMES, _MOST_ENTRIES // max(len(self.blocks), 1)))
        self.times = np.geomspace(min(shortest, a.slot_s), a.slot_s * (1.0 - MARGIN), times)
        owner = self.blocks.candidate
        self.owners, self.first = np.unique(owner, return_index=True)
        self.count = np.diff(np.append(self.first, len(owner)))

    def price(self, prices: Prices) -> TablePrices:
        """Bounds at ``prices``."""
        compute, upload = self._compute(prices), self._upload(prices)
        left, right = _below(compute, self.times, rising=True)
        left, right = self._over_steps(left), self._over_steps(right)
        up_left, up_right = _below(upload, self.times, rising=False)
        lower = np.minimum(left[self.template] + up_left[self.upload], right[self.template] + up_right[self.upload]).min(axis=1)
        near = np.argmin(self._over_steps(compute)[self.template] + upload[self.upload], axis=1)
        return TablePrices(lower, near, self._steps_at(compute, near))

    def columns(self, found: TablePrices, index: IntArray, prices: Prices) -> Columns:
        """Columns of the candidates ``index`` at the tables' best times and steps, as far as these are possible."""
        index = index[np.isfinite(found.lower[index]) & (found.steps[index] > 0)]
        return columns_at(self.candidates.take(index), index, found.steps[index], self.times[found.near[index]], prices)

    def _compute(self, prices: Prices) -> FloatArray:
        """G_e at every time, shape (pairs of template and steps, times); +inf where too little time is left."""
        cells = cells_of(self.best, self.blocks, replace(prices, bandwidth=np.zeros_like(prices.bandwidth)), prune=False)
        values = {f.name: getattr(cells, f.name)[:, None] for f in fields(Cells) if f.name != "uploads"}
        wide = Cells(**values, uploads=cells.uploads)
        late = self.times > wide.high_s
        time_s = wide.available_s - np.where(late, wide.high_s, self.times)
        _, cost, _ = best_work(wide, time_s)
        return np.where(late, np.inf, wide.fixed + cost)

    def _upload(self, prices: Prices) -> FloatArray:
        """U at every time, shape (uploads, times); +inf where full power over the whole band takes longer."""
        shortest = self.uploads.shortest_s[:, None]
        wide = replace(
            self.uploads,
            bits=self.uploads.bits[:, None],
            noise_over_gain=self.uploads.noise_over_gain[:, None],
            max_power_w=self.uploads.max_power_w[:, None],
        )
        energy, bandwidth = prices.energy[self.upload_device][:, None], prices.bandwidth[self.upload_slot][:, None]
        cost = wide.best(np.maximum(self.times, shortest), energy, bandwidth).cost
        return np.where(self.times < shortest, np.inf, cost)

    def _over_steps(self, values: FloatArray) -> FloatArray:
        """Least over the steps of each template; +inf for templates without any."""
        least = np.full((len(self.best), values.shape[1]), np.inf)
        if len(self.owners):
            least[self.owners] = np.minimum.reduceat(values, self.first, axis=0)
        return least

    def _steps_at(self, compute: FloatArray, near: IntArray) -> FloatArray:
        """Best steps of each candidate at its best time, 0 if there are none."""
        found = np.zeros((len(self.best), compute.shape[1]))
        best = np.full(found.shape, np.inf)
        for k in range(int(self.count.max(initial=0))):
            has = k < self.count
            owner, row = self.owners[has], self.first[has] + k
            better = compute[row] < best[owner]
            best[owner] = np.where(better, compute[row], best[owner])
            found[owner] = np.where(better, self.blocks.steps[row][:, None], found[owner])
        return found[self.template, near]


def _below(values: FloatArray, times: FloatArray, *, rising: bool) -> tuple[FloatArray, FloatArray]:
    """Ends of lines below convex functions between neighbouring times, both of shape (rows, times − 1).

    ``values``: at the times, +inf outside of an interval; ``rising``: whether the functions rise or fall.
    """
    width = np.diff(times)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.diff(values, axis=1) / width
        missing = np.full((len(values), 1), np.nan)
        before, after = np.hstack([missing, slope[:, :-1]]), np.hstack([slope[:, 1:], missing])
        before, slope, after = (np.where(np.isfinite(s), s, np.nan) for s in (before, slope, after))
        bend = after - before
        sag = width * np.maximum(after - slope, 0.0) * np.maximum(slope - before, 0.0) / bend
        # a straight line has no sag; with a neighbour missing it is unknown (nan)
        sag = np.where(bend <= 0, 0.0, sag)
        start, end = values[:, :-1], values[:, 1:]
        # the best there is: chord less sag, else the neighbour's line from either side, else the lower end of a monotone function
        options = [(start - sag, end - sag), (start, start + before * width), (end - after * width, end)]
        flat = start if rising else end
        left, right = flat, flat
        for one, other in reversed(options):
            usable = np.isfinite(one) & np.isfinite(other)
            left, right = np.where(usable, one, left), np.where(usable, other, right)
    return left, right
