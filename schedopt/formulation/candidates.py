r"""Candidate assignments, their best resources at given prices, and the best plan of every device (formulation 4b).

At prices of energy, bandwidth, aggregation weight h and noise, a candidate assignment s = (device, task, start, end) costs

    min over e, y = eB, T_ul, W of   −π h(e) + ρ n(e, y) + ξ E(y, T_ul, W) + ν W,

where n(e, y) = F(e) + K(e)·e/y collects the terms of Theorem 1 that are sums over assignments. For each e this is convex: y and W have
closed forms, and one root in T_ul remains. The cheapest plan of a device is then a shortest path over instants. Everything is
vectorised over candidates, steps and devices. Tested in ``tests/test_candidates.py`` against brute force.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.optimize.elementwise import find_root

from schedopt.bounds.async_schedule import (
    C1_LIMIT,
    LOCAL_DRIFT_FACTOR,
    LOCAL_NOISE_FACTOR,
    prox_step_square_sum,
    prox_step_sum,
)
from schedopt.errors import InputError
from schedopt.formulation.resources import MARGIN
from schedopt.formulation.uplink import LN2, Uploads, energy_shape, uploads_of
from schedopt.problem import TERMS, FloatArray, IntArray, Problem, ProblemArrays

__all__ = [
    "Candidates",
    "Columns",
    "Paths",
    "Priced",
    "Prices",
    "backward_values",
    "best_paths",
    "build_candidates",
    "candidates_among",
    "check_size",
    "forward_values",
    "least_compute_costs",
    "make_columns",
    "price",
    "price_columns",
    "steps_limit",
]

#: Up to this many numbers of steps are all tried; beyond, a geometric grid of about this size.
MAX_STEP_GRID = 48
#: More possible assignments than this are refused: :func:`build_candidates` alone takes about 200 bytes for each.
MAX_ASSIGNMENTS = 20_000_000
_CHUNK = 1 << 17
#: Pairs of a candidate and its steps whose constants are kept between pricings.
_REMEMBERED = 1 << 22
#: Width of the brackets of upload times, in slots: costs are stationary there, so the bounds from both ends differ by its square.
_TIME_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Prices:
    """Prices at which candidates compete.

    ``energy``: per J, shape (I,), positive; ``bandwidth``: per Hz and slot, shape (G,); ``value``: worth of one unit of h of device i in
    task j, shape (I, J); ``noise``: price of one unit of the scaled error terms of task j, shape (J,). Optional, shape (J, G+1):
    ``instant_h`` price of h aggregated at an instant, ``span_h`` price of h·κ at each instant it spans, ``instant_noise`` price of
    noise N aggregated at an instant.
    """

    energy: FloatArray
    bandwidth: FloatArray
    value: FloatArray
    noise: FloatArray
    instant_h: FloatArray | None = None
    span_h: FloatArray | None = None
    instant_noise: FloatArray | None = None


@dataclass(frozen=True)
class Candidates:
    """All assignments that can be carried out alone, parallel arrays of shape (n,), and the grid of steps, shape (J, m).

    ``available_s``: time for compute plus upload; ``uploads``: constants of the uploads; ``scale``: multipliers of the terms.
    """

    arrays: ProblemArrays
    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    available_s: FloatArray
    uploads: Uploads
    #: (J, m): steps tried per task (0 = no entry), ascending, and the first steps of the block that each entry ends
    steps: IntArray
    block: IntArray
    #: error terms that are linear in h (scaled): shape (n,)
    linear_error: FloatArray
    scale: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.device)

    @property
    def staleness(self) -> IntArray:
        """κ, shape (n,)."""
        return self.end - 1 - self.start

    @cached_property
    def _codes(self) -> IntArray:
        """One number per candidate, ascending (candidates are ordered by device, task, end and length)."""
        return self._code(self.device, self.task, self.start, self.end)

    def _code(self, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> IntArray:
        slots = self.arrays.slots + 1
        return ((device * self.arrays.num_tasks + task) * slots + end) * slots + (end - start)

    def find(self, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> IntArray:
        """Index of each (device, task, start, end). Raises KeyError if one is not a candidate."""
        codes = self._code(device, task, start, end)
        index = np.searchsorted(self._codes, codes)
        if np.any(index >= len(self)) or np.any(self._codes[index] != codes):
            raise KeyError("not a candidate assignment")
        return index

    def chunk(self, begin: int, stop: int, for_bound: bool) -> tuple[Candidates, _Blocks]:
        """Candidates begin..stop and their (candidate, steps) pairs, remembered while they fit in memory."""
        key = (begin, stop, for_bound and bool(np.any(self.block != self.steps)))
        if key in self._chunks:
            return self._chunks[key]
        made = _with_blocks(self.take(slice(begin, stop)), for_bound)
        if self.remembered:
            self._chunks[key] = made
        return made

    @property
    def remembered(self) -> bool:
        """Whether what does not depend on prices is kept for all candidates."""
        return len(self) * self.steps.shape[1] <= _REMEMBERED

    @cached_property
    def templates(self) -> tuple[Candidates, IntArray]:
        """The best case of every (device, task, length), with the best channel of the horizon; and which of them each candidate has."""
        a = self.arrays
        codes = (self.device * a.num_tasks + self.task) * (a.slots + 1) + self.end - self.start
        _, first, of = np.unique(codes, return_index=True, return_inverse=True)
        best = self.take(first)
        noise = np.full(len(first), np.inf)
        np.minimum.at(noise, of, self.uploads.noise_over_gain)
        return replace(best, uploads=replace(best.uploads, noise_over_gain=noise)), of.astype(np.int32)

    @cached_property
    def _chunks(self) -> dict[tuple[int, int, bool], tuple[Candidates, _Blocks]]:
        return {}

    def take(self, index: object) -> Candidates:
        """The candidates at ``index``."""
        names = ("device", "task", "start", "end", "available_s", "linear_error")
        cut = {name: getattr(self, name)[index] for name in names}
        return Candidates(self.arrays, **cut, uploads=self.uploads.take(index), steps=self.steps, block=self.block, scale=self.scale)


@dataclass(frozen=True)
class Columns:
    """Candidates with chosen resources, arrays of one shape: a point of the feasible set of each.

    ``candidate``: index into :class:`Candidates`; ``steps`` e, ``work`` y = eB, ``upload_s``, ``bandwidth_hz``, ``energy_j``; ``h``;
    ``error``: its scaled sum of error terms; ``noise``: its share of N_g.
    """

    candidate: IntArray
    steps: FloatArray
    work: FloatArray
    upload_s: FloatArray
    bandwidth_hz: FloatArray
    energy_j: FloatArray
    h: FloatArray
    error: FloatArray
    noise: FloatArray

    def __len__(self) -> int:
        return len(self.candidate)

    def take(self, index: object) -> Columns:
        """The columns at ``index``."""
        return Columns(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def relabel(self, index: IntArray) -> Columns:
        """The same columns of candidates that were ``index`` before a selection."""
        return replace(self, candidate=index[self.candidate])

    def concat(self, other: Columns) -> Columns:
        """Both sets."""
        return Columns(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in self.__dataclass_fields__))


@dataclass(frozen=True)
class Priced:
    """Best resources of each candidate at some prices: ``cost`` reached by ``columns``, ``lower`` ≤ the true minimum, shape (n,)."""

    cost: FloatArray
    lower: FloatArray
    columns: Columns


def steps_limit(problem: Problem) -> IntArray:
    """Largest number of steps of each task: ``max_steps``, and C1 where conditions are enforced; shape (J,), 0 = none allowed."""
    a = problem.arrays
    limit = a.max_steps.astype(float)
    if problem.objective.enforce_conditions:
        limit = np.minimum(limit, np.floor(C1_LIMIT / (a.learning_rate * a.smoothness) * (1.0 + MARGIN)))
    return limit.astype(np.int64)


def step_grid(limits: IntArray) -> tuple[IntArray, IntArray]:
    """Steps to try per task and the block of steps that each stands for, both (J, m); unused entries are zero."""
    rows = []
    for limit in limits:
        if limit <= MAX_STEP_GRID:
            rows.append(np.arange(1, limit + 1))
        else:
            rows.append(np.unique(np.round(np.geomspace(1, limit, MAX_STEP_GRID)).astype(np.int64)))
    width = max((len(row) for row in rows), default=0)
    steps = np.zeros((len(rows), max(width, 1)), dtype=np.int64)
    block = np.zeros_like(steps)
    for j, row in enumerate(rows):
        steps[j, : len(row)] = row
        block[j, : len(row)] = np.concatenate([[1], row[:-1] + 1])[: len(row)]
    return steps, block


def check_size(pairs: int, slots: int, lengths: int = 1) -> None:
    """Refuse what would exhaust memory: more than :data:`MAX_ASSIGNMENTS` of pairs (device, task) x slots x lengths.

    Raises :class:`~schedopt.errors.InputError`.
    """
    product = pairs * slots * lengths
    if product > MAX_ASSIGNMENTS:
        factors = f"{pairs:,} pairs of device and task x {slots:,} slots"
        if lengths > 1:
            factors += f" x {lengths:,} lengths (max_staleness + 1)"
        raise InputError(f"problem too large: {factors} = {product:,}; must be at most {MAX_ASSIGNMENTS:,}")


def build_candidates(problem: Problem) -> Candidates:
    """All (device, task, start, end) that some choice of resources makes possible, ordered by device, task, end and length.

    Raises :class:`~schedopt.errors.InputError` if there are too many (see :func:`check_size`).
    """
    a = problem.arrays
    pair_device, pair_task = np.nonzero(a.has_data)
    longest = int(min(a.max_staleness.max() + 1, a.slots))
    check_size(len(pair_device), a.slots, longest)
    pair, end, length = (x.ravel() for x in np.indices((len(pair_device), a.slots, longest), dtype=np.int64))
    device, task, end, length = pair_device[pair], pair_task[pair], end + 1, length + 1
    return candidates_among(problem, device, task, end, length)


def candidates_among(
    problem: Problem, device: IntArray, task: IntArray, end: IntArray, length: IntArray, *, anywhere: bool = False
) -> Candidates:
    """Those of the given assignments (index arrays of one shape, instants and slots) that some choice of resources makes possible.

    ``anywhere``: they stand for all of their length, so that they may seem to start before instant 0.
    """
    a = problem.arrays
    limit = steps_limit(problem)
    keep = (anywhere | (length <= end)) & (length - 1 <= a.max_staleness[task]) & (limit[task] >= 1)
    keep &= (a.samples[device, task] >= a.min_batch[task]) & (a.aggregation_weight[device, task] > 0)
    device, task, end, length = device[keep], task[keep], end[keep], length[keep]
    uploads = uploads_of(a, device, task, end)
    available = (length * a.slot_s - a.model_bits[task] / a.downlink_bps[device]) * (1.0 - MARGIN)
    fastest = a.cycles_per_sample[device, task] * a.min_batch[task] / a.freq_max_hz[device] * (1.0 + MARGIN)
    shortest = uploads.shortest_s * (1.0 + MARGIN)
    possible = (shortest <= a.slot_s * (1.0 - MARGIN)) & (shortest + fastest <= available)
    steps, block = step_grid(limit)
    scale = dict(zip(TERMS, a.term_scale.tolist(), strict=True))
    kappa = (length - 1).astype(float)
    drift = a.gradient_drift[device, task] ** 2 + a.mean_gradient_drift[task] ** 2 / 16.0
    linear = scale["data"] * 2.0 * kappa**2 * drift
    if problem.objective.participation == "instant":
        linear = linear + scale["part"] * 2.0 * a.dissimilarity[device, task] ** 2
    everything = Candidates(a, device, task, end - length, end, available, uploads, steps, block, linear, scale)
    return everything.take(possible)


@dataclass(frozen=True)
class _Cells:
    """(candidate, steps) pairs to price, flat arrays: constants of min_y,T  fixed + Ke/y + ξ E_cmp(y, T_c) + upload(T_ul)."""

    candidate: IntArray
    steps: FloatArray
    fixed: FloatArray
    ke: FloatArray
    energy_price: FloatArray
    bandwidth_price: FloatArray
    capacitance: FloatArray
    cycles: FloatArray
    freq_min: FloatArray
    freq_max: FloatArray
    work_low: FloatArray
    work_high: FloatArray
    available_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    uploads: Uploads

    def take(self, index: object) -> _Cells:
        cut = {n: getattr(self, n)[index] for n in self.__dataclass_fields__ if n != "uploads"}
        return _Cells(**cut, uploads=self.uploads.take(index))


def _best_work(cells: _Cells, time_s: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best y at compute time ``time_s``: y, its cost Ke/y + ξ E_cmp, and −d cost/d time (all of the cells' shape).

    E_cmp = ½κ c y max(f_min, c y/T)² is convex with a kink at y0 = f_min T/c; both branches have closed-form minimisers.
    """
    c, f_min, weight = cells.cycles, cells.freq_min, cells.energy_price * cells.capacitance
    kink = f_min * time_s / c
    fast = np.sqrt(np.sqrt(cells.ke / (1.5 * weight * c)) * time_s / c)
    slow = np.sqrt(cells.ke / (0.5 * weight * c)) / f_min
    ceiling = cells.freq_max * time_s / c
    wanted = np.where(fast > kink, fast, np.minimum(slow, kink))
    y = np.clip(wanted, cells.work_low, np.minimum(cells.work_high, np.maximum(ceiling, cells.work_low)))
    freq = np.maximum(f_min, c * y / time_s)
    marginal_noise = cells.ke / (y * y)
    cost = marginal_noise * y + 0.5 * weight * c * y * freq * freq
    share = np.where(y > kink, 1.0, np.where(y < kink, 0.0, np.clip(marginal_noise / (weight * c * f_min * f_min) - 0.5, 0.0, 1.0)))
    slope = share * weight * freq**3
    capped = (wanted > ceiling) & (ceiling < cells.work_high)
    slope = slope + np.where(capped, np.maximum(marginal_noise - 1.5 * weight * c * freq * freq, 0.0) * cells.freq_max / c, 0.0)
    return y, cost, slope


@dataclass(frozen=True)
class _Blocks:
    """What does not depend on prices of (candidate, block of steps) pairs, flat arrays.

    ``steps``: last of the block; ``h_low``, ``h_high``: h at its ends; ``linear``: scaled error terms without σ at its first steps;
    ``local``, ``noise``: coefficients of σ²-terms times e at its first steps (they multiply 1/y); ``local_full``, ``noise_full``: the
    same at its last steps over D (a full batch has no noise). Bounds of y and T_ul.
    """

    candidate: IntArray
    steps: FloatArray
    h_low: FloatArray
    h_high: FloatArray
    linear: FloatArray
    local: FloatArray
    noise: FloatArray
    local_full: FloatArray
    noise_full: FloatArray
    work_low: FloatArray
    work_high: FloatArray
    low_s: FloatArray
    high_s: FloatArray

    def take(self, index: object) -> _Blocks:
        return _Blocks(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _blocks(candidates: Candidates, first: IntArray, last: IntArray) -> _Blocks:
    """Every allowed pair of a candidate and a block of steps ``first``..``last`` (both (n, m), 0 = none).

    Coefficients bound those of all steps of a block from below; they are exact where first = last.
    """
    a = candidates.arrays
    row, column = np.nonzero(last > 0)
    i, j = candidates.device[row], candidates.task[row]
    e_low, e_high = first[row, column].astype(float), last[row, column].astype(float)
    eta, theta, beta = a.learning_rate[j], a.server_weight[i, j], a.smoothness[j]
    shrink, weight = eta * a.prox[j], eta * theta
    h_low, h_high = weight * prox_step_sum(e_low, shrink), weight * prox_step_sum(e_high, shrink)
    local = candidates.scale["local"] * 2.0 * (beta * eta) ** 2
    variance, samples = a.gradient_variance[i, j], a.samples[i, j].astype(float)
    per_local = local * LOCAL_NOISE_FACTOR * variance
    per_noise = weight**2 * variance
    drift = local * LOCAL_DRIFT_FACTOR * e_low**2 * a.dissimilarity[i, j] ** 2
    work_low = e_low * a.min_batch[j]
    fastest = a.cycles_per_sample[i, j] * work_low / a.freq_max_hz[i]
    low_s = candidates.uploads.take(row).shortest_s * (1.0 + MARGIN)
    high_s = np.minimum(a.slot_s * (1.0 - MARGIN), candidates.available_s[row] - fastest * (1.0 + MARGIN))
    blocks = _Blocks(
        candidate=row,
        steps=e_high,
        h_low=h_low,
        h_high=h_high,
        linear=h_low * (candidates.linear_error[row] + drift),
        local=per_local * e_low**2 * h_low,
        noise=per_noise * prox_step_square_sum(e_low, shrink) * e_low,
        local_full=per_local * e_high * h_high / samples,
        noise_full=per_noise * prox_step_square_sum(e_high, shrink) / samples,
        work_low=work_low,
        work_high=e_high * samples,
        low_s=low_s,
        high_s=high_s,
    )
    return blocks.take(low_s <= high_s)


def _with_blocks(candidates: Candidates, for_bound: bool) -> tuple[Candidates, _Blocks]:
    """``candidates`` and their pairs with steps, or with blocks of steps where bounds must hold for all."""
    last = candidates.steps[candidates.task]
    return candidates, _blocks(candidates, candidates.block[candidates.task] if for_bound else last, last)


def _worth_a_look(candidates: Candidates, prices: Prices, for_bound: bool) -> IntArray:
    """Indices of the candidates that may have a negative cost: all others have none by bounds that take no root.

    The best case of a (device, task, length) computes for as long as the best channel of the horizon allows; to it comes the upload in
    the candidate's own slot, as if it might take all of it. Prices per instant only add to costs.
    """
    templates, of = candidates.templates
    anywhere = replace(prices, instant_h=None, span_h=None, instant_noise=None)
    best = np.zeros(len(templates))
    per_chunk = max(1, _CHUNK // candidates.steps.shape[1])
    for begin in range(0, len(templates), per_chunk):
        cells = _cells(*_with_blocks(templates.take(slice(begin, begin + per_chunk)), for_bound), anywhere)
        if len(cells.candidate):
            _, compute, _ = _best_work(cells, cells.available_s - cells.low_s)
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
    cells = _cells(*templates.chunk(0, len(templates), for_bound), prices)
    found = np.full((len(templates), len(upload_s)), np.inf)
    if len(cells.candidate):
        rows, first = np.unique(cells.candidate, return_index=True)
        for k, time_s in enumerate(upload_s):
            late = time_s > cells.high_s
            _, cost, _ = _best_work(cells, cells.available_s - np.where(late, cells.low_s, time_s))
            found[rows, k] = np.minimum.reduceat(np.where(late, np.inf, cells.fixed + cost), first)
    return found


def _least_upload(candidates: Candidates, index: IntArray, prices: Prices) -> FloatArray:
    """What an upload costs at least, whatever the bandwidth."""
    return prices.energy[candidates.device[index]] * candidates.uploads.take(index).base_energy_j


def _best_upload(candidates: Candidates, index: IntArray, prices: Prices) -> FloatArray:
    """What an upload costs that takes the whole slot."""
    energy, bandwidth = prices.energy[candidates.device[index]], prices.bandwidth[candidates.end[index] - 1]
    return candidates.uploads.take(index).best(np.full(len(index), candidates.arrays.slot_s), energy, bandwidth).cost


def _cells(candidates: Candidates, blocks: _Blocks, prices: Prices, *, prune: bool = True) -> _Cells:
    """Constants of the pairs at ``prices``; ``prune``: less those that cost more than they are worth even with free work."""
    a = candidates.arrays
    per_error = prices.noise[candidates.task]
    per_noise = per_error * candidates.scale["noise"] * a.smoothness[candidates.task]
    if prices.instant_noise is not None:
        per_noise = per_noise + prices.instant_noise[candidates.task, candidates.end]
    energy = prices.energy[candidates.device]
    receive = a.receive_power_w[candidates.device] * a.model_bits[candidates.task] / a.downlink_bps[candidates.device]
    least = energy * (receive + candidates.uploads.base_energy_j)
    row = blocks.candidate
    value = _value_of_h(candidates, prices)[row]
    fixed = per_error[row] * (blocks.linear - blocks.local_full) - per_noise[row] * blocks.noise_full
    fixed -= np.where(value > 0, value * blocks.h_high, value * blocks.h_low)
    keep = np.flatnonzero((fixed + least[row] < 0.0) | (not prune))
    blocks, row, fixed = blocks.take(keep), row[keep], fixed[keep]
    i, j = candidates.device[row], candidates.task[row]
    return _Cells(
        candidate=row,
        steps=blocks.steps,
        fixed=fixed + (energy * receive)[row],
        ke=per_error[row] * blocks.local + per_noise[row] * blocks.noise,
        energy_price=energy[row],
        bandwidth_price=prices.bandwidth[candidates.end[row] - 1],
        capacitance=a.capacitance[i],
        cycles=a.cycles_per_sample[i, j],
        freq_min=a.freq_min_hz[i],
        freq_max=a.freq_max_hz[i],
        work_low=blocks.work_low,
        work_high=blocks.work_high,
        available_s=candidates.available_s[row],
        low_s=blocks.low_s,
        high_s=blocks.high_s,
        uploads=candidates.uploads.take(row),
    )


def _value_of_h(candidates: Candidates, prices: Prices) -> FloatArray:
    """Worth of one unit of h of each candidate, shape (n,)."""
    j, kappa = candidates.task, candidates.staleness
    value = prices.value[candidates.device, j]
    if prices.instant_h is not None:
        value = value - prices.instant_h[j, candidates.end]
    if prices.span_h is not None:
        total = np.cumsum(prices.span_h, axis=1)
        value = value - kappa * (total[j, candidates.end - 1] - total[j, candidates.start])
    return value


def _solve_cells(cells: _Cells, tolerance_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best upload time of each cell, the cost there, and a lower bound of the least cost (tangents of a convex function)."""

    def evaluate(part: _Cells, time_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        upload = part.uploads.best(time_s, part.energy_price, part.bandwidth_price)
        _, cost, slope = _best_work(part, part.available_s - time_s)
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
    cells: _Cells, slope_low: FloatArray, slope: Callable[[_Cells, FloatArray], FloatArray], tolerance_s: float
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


def _promising(cells: _Cells, count: int) -> np.ndarray:
    """Cells that can hold the best steps of a candidate of negative cost: cheap bounds from both ends of the upload time."""
    at_high = cells.uploads.best(cells.high_s, cells.energy_price, cells.bandwidth_price)
    _, compute_low, _ = _best_work(cells, cells.available_s - cells.low_s)
    _, compute_high, _ = _best_work(cells, cells.available_s - cells.high_s)
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
            cells = _cells(*candidates.chunk(begin, begin + len(index), for_bound), prices)
        else:
            cells = _cells(*_with_blocks(candidates.take(index), for_bound), prices)
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
    columns = _columns(candidates.take(found), found, best[0][found], best[1][found], prices)
    if for_bound:
        # what a block of steps is priced at bounds its columns from below; their own cost is what they reach
        cost[found] = np.inf
        cost[columns.candidate] = price_columns(candidates, columns, prices)
    return Priced(cost, np.minimum(lower, 0.0), columns)


def _columns(candidates: Candidates, index: IntArray, steps: FloatArray, times: FloatArray, prices: Prices) -> Columns:
    """Columns at the chosen steps and upload times, with the closed-form work and bandwidth."""
    chosen = steps.astype(np.int64)[:, None]
    blocks = _blocks(candidates, chosen, chosen)
    # of a block of steps only the first may be possible: such candidates get no column
    kept = blocks.candidate
    candidates, index, steps, times = candidates.take(kept), index[kept], steps[kept], times[kept]
    cells = _cells(candidates, replace(blocks, candidate=np.arange(len(kept))), prices, prune=False)
    times = np.clip(times, cells.low_s, cells.high_s)
    work, _, _ = _best_work(cells, cells.available_s - times)
    upload = cells.uploads.best(times, cells.energy_price, cells.bandwidth_price)
    return make_columns(candidates, index, steps, work, times, upload.bandwidth_hz)


def make_columns(
    candidates: Candidates, index: IntArray, steps: FloatArray, work: FloatArray, upload_s: FloatArray, bandwidth_hz: FloatArray
) -> Columns:
    """Columns of ``candidates`` (whose indices are ``index``) with given e, y = eB, T_ul (s) and W (Hz); energy, h and errors follow."""
    a, i, j = candidates.arrays, candidates.device, candidates.task
    eta, theta, beta = a.learning_rate[j], a.server_weight[i, j], a.smoothness[j]
    shrink = eta * a.prox[j]
    h = eta * theta * prox_step_sum(steps, shrink)
    sigma2 = a.gradient_variance[i, j] * np.maximum(steps / work - 1.0 / a.samples[i, j], 0.0)
    noise = (eta * theta) ** 2 * prox_step_square_sum(steps, shrink) * sigma2
    local = LOCAL_NOISE_FACTOR * steps * sigma2 + LOCAL_DRIFT_FACTOR * steps**2 * a.dissimilarity[i, j] ** 2
    scale = candidates.scale
    error = h * candidates.linear_error + scale["local"] * 2.0 * h * (beta * eta) ** 2 * local + scale["noise"] * beta * noise
    cycles = a.cycles_per_sample[i, j] * work
    freq = np.maximum(a.freq_min_hz[i], cycles / (candidates.available_s - upload_s))
    nats = candidates.uploads.bits * LN2
    upload_j = candidates.uploads.base_energy_j * energy_shape(nats / (upload_s * bandwidth_hz))
    receive_j = a.receive_power_w[i] * a.model_bits[j] / a.downlink_bps[i]
    energy = 0.5 * a.capacitance[i] * cycles * freq**2 + upload_j + receive_j
    return Columns(index, steps, work, upload_s, bandwidth_hz, energy, h, error, noise)


def price_columns(candidates: Candidates, columns: Columns, prices: Prices) -> FloatArray:
    """Cost of given columns at ``prices``, shape of the columns."""
    chosen = candidates.take(columns.candidate)
    i, j = chosen.device, chosen.task
    error_price = prices.noise[j] * columns.error
    if prices.instant_noise is not None:
        error_price = error_price + prices.instant_noise[j, chosen.end] * columns.noise
    resources = prices.energy[i] * columns.energy_j + prices.bandwidth[chosen.end - 1] * columns.bandwidth_hz
    return error_price + resources - _value_of_h(chosen, prices) * columns.h


@dataclass(frozen=True)
class Paths:
    """Best plan of every device: ``value`` ≤ 0, shape (I,); ``chosen``: candidate indices of all plans; ``regret``, shape (n,): how
    much more a device pays if it must use the candidate (0 on a best plan, +inf without a cost)."""

    value: FloatArray
    chosen: IntArray
    regret: FloatArray


def best_paths(candidates: Candidates, cost: FloatArray, first: int = 0, last: int | None = None) -> Paths:
    """Cheapest set of disjoint candidates of every device: weighted interval scheduling by dynamic programming over instants.

    ``cost``: shape (n,), +inf = not available. ``first``, ``last``: the candidates are of the devices first .. last − 1 alone, and so is
    the answer. Ties go to the idle slot, then to the shorter candidate.
    """
    a = candidates.arrays
    count = (a.num_devices if last is None else last) - first
    row = candidates.device - first
    length = candidates.end - candidates.start
    longest = int(length.max(initial=1))
    best, pick = _cheapest_task(candidates, row, count, cost, longest)
    forward, take = forward_values(best)
    backward = backward_values(best)
    through = forward[row, candidates.start] + cost + backward[row, candidates.end]
    chosen = []
    position = np.full(count, a.slots)
    rows = np.arange(count)
    while np.any(position > 0):
        slot = np.maximum(position - 1, 0)
        span = np.where(position > 0, take[rows, slot], 0)
        use = span > 0
        chosen.append(pick[rows[use], slot[use], span[use] - 1])
        position = np.where(position > 0, position - np.maximum(span, 1), 0)
    value = forward[:, -1]
    index = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
    return Paths(value, index, through - value[row])


def _cheapest_task(candidates: Candidates, row: IntArray, count: int, cost: FloatArray, longest: int) -> tuple[FloatArray, IntArray]:
    """Cheapest candidate per (device, last slot, length): cost and index, shape (I, G, L)."""
    shape = (count, candidates.arrays.slots, longest)
    flat = np.ravel_multi_index((row, candidates.end - 1, candidates.end - candidates.start - 1), shape)
    best, pick = np.full(int(np.prod(shape)), np.inf), np.full(int(np.prod(shape)), -1, dtype=np.int64)
    order = np.lexsort((candidates.task, cost, flat))
    first = order[np.unique(flat[order], return_index=True)[1]]
    best[flat[first]], pick[flat[first]] = cost[first], first
    return best.reshape(shape), pick.reshape(shape)


def forward_values(best: FloatArray) -> tuple[FloatArray, IntArray]:
    """Least cost of slots 0..g−1, shape (I, G+1), and the length of the candidate that ends there (0 = idle), shape (I, G)."""
    devices, slots, longest = best.shape
    value, take = np.zeros((devices, slots + 1)), np.zeros((devices, slots), dtype=np.int64)
    for g in range(1, slots + 1):
        spans = min(longest, g)
        options = np.concatenate([value[:, g - 1 : g], best[:, g - 1, :spans] + value[:, g - 1 - np.arange(spans)]], axis=1)
        take[:, g - 1] = np.argmin(options, axis=1)
        value[:, g] = options.min(axis=1)
    return value, take


def backward_values(best: FloatArray) -> FloatArray:
    """Least cost of slots g..G−1, shape (I, G+1)."""
    devices, slots, longest = best.shape
    value = np.zeros((devices, slots + 1))
    for g in range(slots - 1, -1, -1):
        spans = np.arange(min(longest, slots - g))
        options = best[:, g + spans, spans] + value[:, g + spans + 1]
        value[:, g] = np.minimum(value[:, g + 1], options.min(axis=1, initial=np.inf))
    return value
