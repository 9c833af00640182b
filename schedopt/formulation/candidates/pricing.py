"""The best resources of every candidate at given prices, with a proven lower bound of what it costs: one root in the upload time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize.elementwise import find_root

from schedopt.formulation.candidates.cells import Cells, best_work, blocks_of, cells_of, chunk_of, with_blocks
from schedopt.formulation.candidates.columns import Columns, Prices, make_columns, price_columns
from schedopt.formulation.candidates.listing import Candidates
from schedopt.problem import FloatArray, IntArray

__all__ = ["Priced", "columns_at", "least_compute_costs", "price"]

_CHUNK = 1 << 17
#: Width of the brackets of upload times, in slots: costs are stationary there, so the bounds from both ends differ by its square.
_TIME_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Priced:
    """Best resources of each candidate at some prices: ``cost`` reached by ``columns``, ``lower`` ≤ the true minimum, shape (n,)."""

    cost: FloatArray
    lower: FloatArray
    columns: Columns


def _worth_a_look(candidates: Candidates, prices: Prices, for_bound: bool) -> IntArray:
    """Indices of the candidates that may have a negative cost: all others have none by bounds that take no root.

    The best case of a (device, task, length) computes for as long as the best channel of the horizon allows; to it comes the upload in
    the candidate's own slot, as if it might take all of it. Prices per instant only add to costs, or count as the least of any instant.
    """
    templates, of = candidates.templates
    most = 0.0 if prices.instant_h is None else np.maximum(-prices.instant_h.min(axis=1), 0.0)
    value = prices.value if prices.value.ndim == 2 else prices.value.max(axis=2)
    anywhere = replace(prices, value=value + most, instant_h=None, span_h=None, instant_noise=None, staleness=None)
    best = np.zeros(len(templates))
    per_chunk = max(1, _CHUNK // candidates.steps.shape[1])
    for begin in range(0, len(templates), per_chunk):
        cells = cells_of(*with_blocks(templates.take(slice(begin, begin + per_chunk)), for_bound), anywhere)
        if len(cells.candidate):
            _, compute, _ = best_work(cells, cells.available_s - cells.low_s)
            np.minimum.at(best, begin + cells.candidate, cells.fixed + compute)
    index = np.flatnonzero((best < 0.0)[of])
    for upload in (_least_upload, _best_upload):
        cost = best[of[index]] + upload(candidates, index, prices)
        index = index[cost < 0.0]
    return index


def least_compute_costs(templates: Candidates, prices: Prices, upload_s: FloatArray, *, for_bound: bool) -> FloatArray:
    """Least cost of each candidate but for its upload, if that takes ``upload_s`` (shape (m,)): shape (n, m), +inf = impossible.

    The least over all steps, which are those that can pay at all; with ``for_bound`` from below, as in :func:`price`.
    """
    cells = cells_of(*chunk_of(templates, 0, len(templates), for_bound), prices)
    found = np.full((len(templates), len(upload_s)), np.inf)
    if len(cells.candidate):
        rows, first = np.unique(cells.candidate, return_index=True)
        for k, time_s in enumerate(upload_s):
            late = time_s > cells.high_s
            _, cost, _ = best_work(cells, cells.available_s - np.where(late, cells.low_s, time_s))
            found[rows, k] = np.minimum.reduceat(np.where(late, np.inf, cells.fixed + cost), first)
    return found


def _least_upload(candidates: Candidates, index: IntArray, prices: Prices) -> FloatArray:
    """What an upload costs at least, whatever the bandwidth."""
    return prices.energy[candidates.device[index]] * candidates.uploads.take(index).base_energy_j


def _best_upload(candidates: Candidates, index: IntArray, prices: Prices) -> FloatArray:
    """What an upload costs that takes the whole slot."""
    energy, bandwidth = prices.energy[candidates.device[index]], prices.bandwidth[candidates.end[index] - 1]
    return candidates.uploads.take(index).best(np.full(len(index), candidates.arrays.slot_s), energy, bandwidth).cost


def _solve_cells(cells: Cells, tolerance_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best upload time of each cell, the cost there, and a lower bound of the least cost (tangents of a convex function)."""

    def evaluate(part: Cells, time_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        upload = part.uploads.best(time_s, part.energy_price, part.bandwidth_price)
        _, cost, slope = best_work(part, part.available_s - time_s)
        return part.fixed + cost + upload.cost, upload.slope + slope

    times = cells.high_s.copy()
    cost, slope = evaluate(cells, times)
    lower = cost.copy()
    inside = np.flatnonzero(slope > 0)
    if len(inside):
        sub = cells.take(inside)
        cost_low, slope_low = evaluate(sub, sub.low_s)
        low, high = _bracket_roots(sub, slope_low, lambda part, t: evaluate(part, t)[1], tolerance_s)
        (cost_low, slope_low), (cost_high, slope_high) = evaluate(sub, low), evaluate(sub, high)
        width = high - low
        lower[inside] = np.maximum(cost_low + np.minimum(slope_low, 0.0) * width, cost_high - np.maximum(slope_high, 0.0) * width)
        pick_low = cost_low < cost_high
        times[inside], cost[inside] = np.where(pick_low, low, high), np.minimum(cost_low, cost_high)
    return times, cost, np.minimum(lower, cost)


def _bracket_roots(
    cells: Cells, slope_low: FloatArray, slope: Callable[[Cells, FloatArray], FloatArray], tolerance_s: float
) -> tuple[FloatArray, FloatArray]:
    """Narrow brackets of the upload times where the increasing ``slope`` changes sign (the lowest time where it is positive there)."""
    low, high = cells.low_s.copy(), cells.high_s.copy()
    crossing = np.flatnonzero(slope_low < 0)
    high[slope_low >= 0] = low[slope_low >= 0]
    if len(crossing):
        found = find_root(
            lambda t, k: slope(cells.take(k), t),
            (low[crossing], high[crossing]),
            args=(crossing,),
            tolerances={"xatol": tolerance_s, "xrtol": 0.0, "fatol": 0.0, "frtol": 0.0},
            maxiter=40,
        )
        low[crossing], high[crossing] = np.minimum(*found.bracket), np.maximum(*found.bracket)
    return low, high


def _promising(cells: Cells, count: int) -> np.ndarray:
    """Cells that can hold the best steps of a candidate of negative cost: cheap bounds from both ends of the upload time."""
    at_high = cells.uploads.best(cells.high_s, cells.energy_price, cells.bandwidth_price)
    _, compute_low, _ = best_work(cells, cells.available_s - cells.low_s)
    _, compute_high, _ = best_work(cells, cells.available_s - cells.high_s)
    lower = cells.fixed + at_high.cost + compute_low
    upper = cells.fixed + at_high.cost + compute_high
    best = np.full(count, np.inf)
    np.minimum.at(best, cells.candidate, upper)
    return lower <= np.minimum(best, 0.0)[cells.candidate]


def price(candidates: Candidates, prices: Prices, *, for_bound: bool = False) -> Priced:
    """Least cost of every candidate at ``prices``; candidates that cannot have a negative cost get cost +inf and lower 0.

    With ``for_bound`` the numbers of steps between the points of a coarse grid are covered too, so that ``lower`` holds for all.
    """
    n = len(candidates)
    cost, lower = np.full(n, np.inf), np.zeros(n)
    best = [np.zeros(n) for _ in range(2)]
    per_chunk = max(1, _CHUNK // candidates.steps.shape[1])
    worth = None if candidates.remembered else _worth_a_look(candidates, prices, for_bound)
    for begin in range(0, n if worth is None else len(worth), per_chunk):
        index = np.arange(begin, min(begin + per_chunk, n)) if worth is None else worth[begin : begin + per_chunk]
        if worth is None:
            cells = cells_of(*chunk_of(candidates, begin, begin + len(index), for_bound), prices)
        else:
            cells = cells_of(*with_blocks(candidates.take(index), for_bound), prices)
        cells = cells.take(_promising(cells, len(index)))
        if not len(cells.candidate):
            continue
        times, value, bound = _solve_cells(cells, _TIME_TOLERANCE * candidates.arrays.slot_s)
        order = np.lexsort((value, cells.candidate))
        first = order[np.unique(cells.candidate[order], return_index=True)[1]]
        where = index[cells.candidate[first]]
        cost[where] = value[first]
        np.minimum.at(lower, index[cells.candidate], bound)
        best[0][where], best[1][where] = cells.steps[first], times[first]
    found = np.flatnonzero(np.isfinite(cost))
    columns = columns_at(candidates.take(found), found, best[0][found], best[1][found], prices)
    if for_bound:
        # what a block of steps is priced at bounds its columns from below; their own cost is what they reach
        cost[found] = np.inf
        cost[columns.candidate] = price_columns(candidates, columns, prices)
    return Priced(cost, np.minimum(lower, 0.0), columns)


def columns_at(candidates: Candidates, index: IntArray, steps: FloatArray, times: FloatArray, prices: Prices) -> Columns:
    """Columns at the chosen steps and upload times, with the closed-form work and bandwidth."""
    chosen = steps.astype(np.int64)[:, None]
    blocks = blocks_of(candidates, chosen, chosen)
    # of a block of steps only the first may be possible: such candidates get no column
    kept = blocks.candidate
    candidates, index, steps, times = candidates.take(kept), index[kept], steps[kept], times[kept]
    cells = cells_of(candidates, replace(blocks, candidate=np.arange(len(kept))), prices, prune=False)
    times = np.clip(times, cells.low_s, cells.high_s)
    work, _, _ = best_work(cells, cells.available_s - times)
    upload = cells.uploads.best(times, cells.energy_price, cells.bandwidth_price)
    return make_columns(candidates, index, steps, work, times, upload.bandwidth_hz)
