r"""Global lower bound of Σ_j w_j (C_j + N_j)/H_j + max_k cut_k(H, N) over boxes of (H, N): branch and bound in 2J dimensions.

Everything about devices, slots and resources is in the cuts (:mod:`schedopt.cuts`), so a box costs one small linear program. The
program's multipliers λ of the cuts (λ ≥ 0, Σλ = 1) are all that is used of it: for any λ,

    min over the box of  Σ_j [w(C + N)/H + a_j H − b_j N] + κ,     a = Σ λ_k π^k,  b = Σ λ_k ρ^k,  κ = Σ λ_k K^k,

separates by task and has a closed form, so the bound does not depend on a linear solver's tolerances.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linprog

from schedopt.cuts import ROUNDING, Cut
from schedopt.problem import FloatArray

__all__ = ["RatioSearch", "Request"]

_TANGENTS = 6
_PASSES = 4
#: Points closer than this (in every H and C + N, relative) need no second cut.
_SAME_POINT = 0.02
#: A box whose bound is this close to the model (relative) cannot gain by splitting.
_TIGHT = 2e-4


@dataclass(order=True)
class Box:
    """A box of (H, N) (arrays over the active tasks), its proven bound, and the point where the relaxation has its minimum."""

    bound: float
    number: int
    h_low: FloatArray = field(compare=False)
    h_high: FloatArray = field(compare=False)
    n_low: FloatArray = field(compare=False)
    n_high: FloatArray = field(compare=False)
    h: FloatArray = field(compare=False)
    n: FloatArray = field(compare=False)


@dataclass(frozen=True)
class Request:
    """Where the model needs a cut: near (h, n) (arrays over the active tasks), or ``exact`` there."""

    h: FloatArray
    n: FloatArray
    exact: bool


class RatioSearch:
    """Boxes still open, and the cuts known so far. Arrays are over the tasks of positive weight.

    ``weight`` w_j, ``fixed`` C_j, ``least`` ρ_j: N ≥ ρ H holds for every schedule.
    """

    def __init__(self, weight: FloatArray, fixed: FloatArray, least: FloatArray, first: tuple[FloatArray, FloatArray, FloatArray]) -> None:
        self.w, self.fixed, self.least = weight, fixed, least
        self.pi = np.zeros((0, len(weight)))
        self.rho = np.zeros((0, len(weight)))
        self.level = np.zeros(0)
        h_low, h_high, n_high = first
        self.count = 1
        start = Box(-np.inf, 0, h_low, h_high, least * h_low, n_high, h_high, n_high)
        self.heap = [start]
        self.closed = np.inf
        #: lowest cutoff that boxes were tightened to: what was cut off is worth at least that, and no more is known of it
        self.cut_off = np.inf
        self.stalled = False
        self._asked: list[FloatArray] = []

    def add(self, cut: Cut, active: np.ndarray) -> None:
        """Use one more cut; bounds of open boxes stay valid."""
        self.pi = np.vstack([self.pi, cut.h_price[active]])
        self.rho = np.vstack([self.rho, cut.error_price[active]])
        self.level = np.append(self.level, cut.level)

    @property
    def proven(self) -> float:
        """Bound over all boxes, open and closed, and what was cut off of them."""
        return min(self.heap[0].bound if self.heap else np.inf, self.closed, self.cut_off)

    def model(self, h: FloatArray, n: FloatArray) -> float:
        """Ratios plus the largest cut at a point."""
        return float(np.sum(self.w * (self.fixed + n) / h) + np.max(self.pi @ h - self.rho @ n + self.level))

    def step(self, cutoff: float) -> Request | None:
        """Work on the box of the least bound: close it, split it, or ask for a cut that is likely to raise it.

        A cut is asked for where the model is below the cutoff: once near a point, and once more at the point itself when splitting has
        nothing left to gain there. After that the box, and with it the bound, is as good as it gets: ``stalled`` is set.
        """
        box = self.tighten(heapq.heappop(self.heap), cutoff)
        if box is None:
            self.closed = min(self.closed, cutoff)
            return None
        box = self.evaluate(box)
        if box.bound >= cutoff:
            self.closed = min(self.closed, box.bound)
            return None
        value = self.model(box.h, box.n)
        if value < cutoff:
            tight = value - box.bound < _TIGHT * abs(cutoff)
            if tight or not self._asked_near(box, _SAME_POINT):
                heapq.heappush(self.heap, box)
                self.stalled = tight and self._asked_near(box, _TIGHT)
                self._asked.append(np.concatenate([box.h, box.n + self.fixed]))
                return None if self.stalled else Request(box.h, box.n, exact=tight)
        for part in self.split(box):
            heapq.heappush(self.heap, part)
        return None

    def _asked_near(self, box: Box, distance: float) -> bool:
        point = np.concatenate([box.h, box.n + self.fixed])
        return any(np.max(np.abs(np.log(point / other))) < distance for other in self._asked)

    def tighten(self, box: Box, cutoff: float) -> Box | None:
        """The part of the box where the objective can be below the cutoff, by interval arithmetic; None if there is none."""
        self.cut_off = min(self.cut_off, cutoff)
        h_low, h_high, n_low, n_high = box.h_low, box.h_high, box.n_low.copy(), box.n_high
        top = cutoff + ROUNDING * abs(cutoff)
        for _ in range(_PASSES):
            n_low = np.maximum(n_low, self.least * h_low)
            ratio = self.w * (self.fixed + n_low) / h_high
            # least value of each cut over the box, and of V
            gain = np.minimum(self.pi * h_low, self.pi * h_high)
            cuts = gain.sum(axis=1) - self.rho @ n_high + self.level
            rest = top - ratio.sum() - max(float(cuts.max()), 0.0)
            if rest < 0:
                return None
            # what task j's ratio may cost: all that the others leave
            room = ratio + rest
            n_high = np.minimum(n_high, room * h_high / self.w - self.fixed)
            h_low = np.maximum(h_low, self.w * (self.fixed + n_low) / room)
            # a cut that grows with H_j limits H_j, by what the ratios leave
            left = top - ratio.sum() - cuts
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.where(self.pi > 0, h_low + left[:, None] / self.pi, np.inf)
            h_high = np.minimum(h_high, np.nanmin(reach, axis=0))
            if np.any(h_low > h_high) or np.any(n_low > n_high):
                return None
        slack = 1.0 + ROUNDING
        return replace(box, h_low=h_low / slack, h_high=h_high * slack, n_low=n_low / slack, n_high=n_high * slack)

    def evaluate(self, box: Box) -> Box:
        solution = self._program(box)
        if solution is None:
            return box
        h, n, share = solution
        bound = max(box.bound, self._closed_form(box, share))
        return Box(bound, box.number, box.h_low, box.h_high, box.n_low, box.n_high, h, n)

    def _program(self, box: Box) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """Linear relaxation: variables H, N, v ≥ 1/H, r ≥ N/H (McCormick), t ≥ cuts; returns H, N and the cuts' multipliers."""
        count, cuts = len(self.w), len(self.level)
        eye, zero = np.eye(count), np.zeros((count, count))
        v_low, v_high = 1.0 / box.h_high, 1.0 / box.h_low
        rows = [np.hstack([self.pi, -self.rho, np.zeros((cuts, 2 * count)), -np.ones((cuts, 1))])]
        limits = [-self.level]
        for position in np.linspace(0.0, 1.0, _TANGENTS):
            at = box.h_low ** (1 - position) * box.h_high**position
            # v ≥ 1/at − (H − at)/at²
            rows.append(np.hstack([-np.diag(1.0 / at**2), zero, -eye, zero, np.zeros((count, 1))]))
            limits.append(-2.0 / at)
        for v, n in ((v_low, box.n_low), (v_high, box.n_high)):
            # r ≥ N v0 + n0 v − n0 v0
            rows.append(np.hstack([zero, np.diag(v), np.diag(n), -eye, np.zeros((count, 1))]))
            limits.append(n * v)
        rows.append(np.hstack([np.diag(self.least), -eye, zero, zero, np.zeros((count, 1))]))
        limits.append(np.zeros(count))
        cost = np.concatenate([np.zeros(2 * count), self.w * self.fixed, self.w, [1.0]])
        low = np.concatenate([box.h_low, box.n_low, v_low, np.zeros(count), [-np.inf]])
        high = np.concatenate([box.h_high, box.n_high, v_high, np.full(count, np.inf), [np.inf]])
        if not all(np.isfinite(part).all() for part in (*rows, *limits)):
            return None
        result = linprog(cost, np.vstack(rows), np.concatenate(limits), bounds=np.stack([low, high], axis=1), method="highs")
        if result.x is None or result.status != 0:
            return None
        share = np.maximum(-result.ineqlin.marginals[:cuts], 0.0)
        total = share.sum()
        share = share / total if total > 0 else np.full(cuts, 1.0 / cuts)
        return result.x[:count], result.x[count : 2 * count], share

    def _closed_form(self, box: Box, share: FloatArray) -> float:
        """Exact minimum over the box of the ratios plus the cuts' combination."""
        a, b, level = share @ self.pi, share @ self.rho, float(share @ self.level)
        parts = least_over_box(self.w, self.fixed, self.least, box, a, b)
        size = float(np.abs(parts).sum()) + float(share @ np.abs(self.level))
        return float(parts.sum()) + level - ROUNDING * size

    def split(self, box: Box) -> tuple[Box, Box]:
        """Halve the box where N/H is underestimated most, along H or N, whichever is relatively wider."""
        v_low, v_high = 1.0 / box.h_high, 1.0 / box.h_low
        v = 1.0 / box.h
        planes = np.maximum(box.n * v_low + box.n_low * (v - v_low), box.n * v_high + box.n_high * (v - v_high))
        missing = self.w * (box.n * v - planes) + 1e-6 * self.w * self.fixed * (v_high - v_low)
        j = int(np.argmax(missing))
        wide_h = np.log(box.h_high[j] / box.h_low[j])
        wide_n = np.log((box.n_high[j] + self.fixed[j]) / (box.n_low[j] + self.fixed[j]))
        arrays = {"h_low": box.h_low, "h_high": box.h_high, "n_low": box.n_low, "n_high": box.n_high}
        if wide_h >= wide_n:
            middle = np.sqrt(box.h_low[j] * box.h_high[j])
            cut = _keep_inside(box.h[j], box.h_low[j], box.h_high[j], middle)
            return self._part(box, arrays, "h_high", j, cut), self._part(box, arrays, "h_low", j, cut)
        cut = _keep_inside(box.n[j], box.n_low[j], box.n_high[j], 0.5 * (box.n_low[j] + box.n_high[j]))
        return self._part(box, arrays, "n_high", j, cut), self._part(box, arrays, "n_low", j, cut)

    def _part(self, box: Box, arrays: dict[str, FloatArray], side: str, j: int, cut: float) -> Box:
        changed = arrays[side].copy()
        changed[j] = cut
        self.count += 1
        return Box(box.bound, self.count, **{**arrays, side: changed}, h=box.h, n=box.n)


def _keep_inside(point: float, low: float, high: float, middle: float) -> float:
    """A cut between the point and the middle, so that neither part is a sliver."""
    cut = 0.5 * (point + middle)
    margin = 0.15 * (high - low)
    return float(np.clip(cut, low + margin, high - margin))


def least_over_box(w: FloatArray, fixed: FloatArray, least: FloatArray, box: Box, a: FloatArray, b: FloatArray) -> FloatArray:
    """min of w(C + N)/H + aH − bN over the part of a box with N ≥ ρH, per task; ``fixed`` C, ``least`` ρ."""
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.clip(np.where(b > 0, w / b, np.inf), box.h_low, box.h_high)
        kink = np.clip(np.where(least > 0, box.n_low / least, np.inf), box.h_low, turn)
    pieces = [
        # N at its least while w/H ≥ b: first the box's, then ρH
        _least(w * (fixed + box.n_low), a, box.h_low, kink) - b * box.n_low,
        np.where(kink < turn, _least(w * fixed, a - b * least, kink, turn) + w * least, np.inf),
        # N at its most beyond
        _least(w * (fixed + box.n_high), a, turn, box.h_high) - b * box.n_high,
    ]
    return np.minimum.reduce(pieces)


def _least(p: FloatArray, q: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """min of p/H + qH over [low, high] per task; +inf where the interval is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        free = np.sqrt(np.where(q > 0, p / q, np.inf))
    at = np.clip(free, low, high)
    return np.where(low <= high, p / at + q * at, np.inf)
