"""Local moves on the exact objective: resize, add, drop, move, swap (formulation 4c).

At the marginal prices of a schedule, every candidate assignment has a best size and a cost; using it instead of whatever it overlaps on
its device is a move, and the difference of costs estimates its gain to first order. The most promising moves are tried on the exact
objective with re-allocated resources of the slots they touch, and kept if they improve it. "Resize" is a candidate in place of the
assignment with the same interval; "drop" needs no candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, STALE_FACTOR, aggregate
from schedopt.formulation.candidates import (
    Candidates,
    Columns,
    Priced,
    Prices,
    best_paths,
    make_columns,
    price,
    price_columns,
)
from schedopt.formulation.resources import marginal_bandwidth_value
from schedopt.problem import TERMS, FloatArray, IntArray, Problem
from schedopt.schedule import Schedule
from schedopt.state import Merit, State, reallocate

__all__ = ["marginal_prices", "polish"]

def marginal_prices(problem: Problem, state: State, merit: Merit) -> Prices:
    """First-order prices of energy, bandwidth, h and errors at a schedule (gradients of the objective).

    Limits of the mode count at the relaxation's prices, and at the penalty's where a target is missed.
    """
    a, mode = problem.arrays, problem.objective.mode
    scale = dict(zip(TERMS, a.term_scale, strict=True))
    sums = aggregate(a, state.schedule)
    bound = state.evaluation.bound
    h = np.maximum(sums.h_total, 1e-300)
    w = FACTOR * a.weight
    noise = w / h
    total_terms = np.where(np.isfinite(bound.total), bound.total, 0.0) * h / FACTOR
    value = noise * total_terms / h
    energy = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": merit.energy_price / merit.factor}[mode]
    if mode == "min_energy":
        missed = merit.target_misses(state.evaluation) > 0
        noise = np.where(np.isfinite(a.target), merit.target_price * np.where(missed, 1.0, 1.0 / merit.factor), 0.0)
        value = noise * np.where(np.isfinite(a.target), a.target, 0.0) / FACTOR
    worth = np.broadcast_to(value, a.has_data.shape)
    if problem.objective.participation == "horizon":
        off = sums.h_device - a.aggregation_weight * sums.h_total
        sign = np.sign(off) * a.dissimilarity
        distance = (np.abs(off) * a.dissimilarity).sum(axis=0)
        slope = 2.0 * distance / h * (sign - (sign * a.aggregation_weight).sum(axis=0)) - distance**2 / h**2
        worth = worth - noise * 2.0 * scale["part"] * slope
    stale = (noise * scale["stale"] * STALE_FACTOR * a.smoothness**2)[:, None]
    bandwidth = energy * marginal_bandwidth_value(a, state.schedule)
    return Prices(
        energy=np.full(a.num_devices, max(energy, 1e-12)),
        bandwidth=bandwidth,
        value=worth,
        noise=noise,
        span_h=stale * sums.noise_instant,
        instant_noise=stale * sums.stale_span,
    )


@dataclass(frozen=True)
class _Move:
    """Replace what a device does in [start, end) by the given rows (possibly none); ``gain`` is the estimated improvement."""

    device: int
    start: int
    end: int
    insert: Schedule
    gain: float


@dataclass(frozen=True)
class _Ledger:
    """What each of some columns costs and brings: resource cost, cost with h and errors, and its part of the targets' slack.

    ``surplus`` is (3/8) ε h − errors, by which a column lowers its task's miss (zero outside mode min_energy).
    """

    task: IntArray
    resource: FloatArray
    cost: FloatArray
    energy: FloatArray
    surplus: FloatArray


def _ledger(problem: Problem, candidates: Candidates, columns: Columns, prices: Prices) -> _Ledger:
    a = problem.arrays
    task = candidates.task[columns.candidate]
    bare = replace(prices, value=np.zeros_like(prices.value), noise=np.zeros_like(prices.noise), span_h=None, instant_noise=None)
    surplus = np.zeros(len(columns))
    if problem.objective.mode == "min_energy":
        target = np.where(np.isfinite(a.target), a.target, 0.0)[task]
        surplus = np.where(target > 0, target / FACTOR * columns.h - columns.error, 0.0)
    return _Ledger(
        task,
        price_columns(candidates, columns, bare),
        price_columns(candidates, columns, prices),
        columns.energy_j,
        surplus,
    )


def _current_columns(candidates: Candidates, state: State) -> Columns:
    s = state.schedule
    index = candidates.find(s.device, s.task, s.start, s.end)
    return make_columns(candidates.take(index), index, s.steps, s.steps * s.batch, state.evaluation.physics.upload_s, s.bandwidth_hz)


def _gains(problem: Problem, state: State, merit: Merit, now: _Ledger, new: _Ledger, freed: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Estimated improvement of the merit for each new column in place of what it overlaps.

    To first order in H and N; the penalties of missed limits are piecewise linear and are taken exactly.
    """
    mode = problem.objective.mode
    if mode == "weighted":
        return freed(now.cost) - new.cost
    evaluation = state.evaluation
    if mode == "min_bound":
        # prices carry the energy at the limit's price: take the excess over the limit apart
        miss, weight = merit.energy_miss(evaluation), merit.energy_price
        change = new.energy - freed(now.energy)
        exact = weight * (np.maximum(miss + change, 0.0) - max(miss, 0.0))
        return freed(now.cost) - new.cost - exact
    miss = merit.target_misses(evaluation)
    total = freed(now.resource) - new.resource
    for j in np.flatnonzero(np.isfinite(problem.arrays.target)):
        change = freed(np.where(now.task == j, now.surplus, 0.0)) - np.where(new.task == j, new.surplus, 0.0)
        total -= merit.target_price[j] * (np.maximum(miss[j] + change, 0.0) - max(miss[j], 0.0))
    return total


def _rows(problem: Problem, candidates: Candidates, columns: Columns) -> Schedule:
    """Assignments of columns with whole batches; resources not yet set."""
    a, k = problem.arrays, columns.candidate
    i, j = candidates.device[k], candidates.task[k]
    batch = np.clip(np.round(columns.work / columns.steps), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(k))
    return Schedule(i, j, candidates.start[k], candidates.end[k], columns.steps, batch, zero, zero, zero)


def _moves(problem: Problem, candidates: Candidates, state: State, merit: Merit, most: int) -> list[_Move]:
    """The ``most`` single insertions of largest estimated gain, the best drops, and a new plan for every device; best first."""
    a, s = problem.arrays, state.schedule
    prices = marginal_prices(problem, state, merit)
    now = _ledger(problem, candidates, _current_columns(candidates, state), prices)
    priced = price(candidates, prices)
    columns, k = priced.columns, priced.columns.candidate
    device, start, end = candidates.device[k], candidates.start[k], candidates.end[k]

    def freed(values: FloatArray) -> FloatArray:
        return _overlapped(a.num_devices, a.slots, s, values, device, start, end)

    gain = _gains(problem, state, merit, now, _ledger(problem, candidates, columns, prices), freed)
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > 0][:most]
    rows = _rows(problem, candidates, columns.take(order))
    moves = [_Move(int(device[o]), int(start[o]), int(end[o]), rows.take([m]), float(gain[o])) for m, o in enumerate(order)]
    moves += _drops(problem, state, merit, now, max(1, most // 4))
    moves += _plans(problem, candidates, s, now, priced)
    return sorted(moves, key=lambda move: -move.gain)


def _drops(problem: Problem, state: State, merit: Merit, now: _Ledger, most: int) -> list[_Move]:
    """The assignments that seem least worth their cost; the estimate is too coarse to tell sign, so the best few are tried."""
    s = state.schedule
    nothing = _Ledger(np.full(len(s), -1), *(np.zeros(len(s)) for _ in range(4)))
    gain = _gains(problem, state, merit, now, nothing, lambda values: values)
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > -0.2 * np.median(np.abs(gain))][:most] if len(s) else order
    return [_Move(int(s.device[o]), int(s.start[o]), int(s.end[o]), Schedule.empty(), float(gain[o])) for o in order]


def _plans(problem: Problem, candidates: Candidates, s: Schedule, now: _Ledger, priced: Priced) -> list[_Move]:
    """The cheapest whole plan of every device whose present plan is dearer."""
    a = problem.arrays
    paths = best_paths(candidates, priced.cost)
    gain = np.bincount(s.device, weights=now.cost, minlength=a.num_devices) - paths.value
    chosen = priced.columns.take(np.isin(priced.columns.candidate, paths.chosen))
    rows = _rows(problem, candidates, chosen)
    devices = np.flatnonzero(gain > 0)
    return [_Move(int(i), 0, a.slots, rows.take(rows.device == i), float(gain[i])) for i in devices]


def _overlapped(
    devices: int, slots: int, s: Schedule, values: FloatArray, device: IntArray, start: IntArray, end: IntArray
) -> FloatArray:
    """Σ of the values of a device's assignments that overlap [start, end), for each query."""
    begins, ends = np.zeros((devices, slots + 1)), np.zeros((devices, slots + 1))
    np.add.at(begins, (s.device, s.start), values)
    np.add.at(ends, (s.device, s.end), values)
    begun, ended = np.cumsum(begins, axis=1), np.cumsum(ends, axis=1)
    # those that begin before the end, less those that have ended by the start
    return begun[device, end - 1] - ended[device, start]


def _apply(problem: Problem, state: State, move: _Move) -> State | None:
    """The schedule after ``move``, with the resources of the touched slots re-allocated; None if that is impossible."""
    s = state.schedule
    hit = (s.device == move.device) & (s.start < move.end) & (s.end > move.start)
    touched = np.concatenate([s.end[hit], move.insert.end])
    merged = s.take(~hit).concat(move.insert)
    return reallocate(problem, merged, np.isin(merged.end, touched))


def polish(
    problem: Problem,
    candidates: Candidates,
    state: State,
    merit: Merit,
    *,
    max_rounds: int = 30,
    moves_per_round: int = 60,
    tolerance: float = 1e-7,
    on_improvement: Callable[[State], None] | None = None,
    on_round: Callable[[], None] | None = None,
) -> State:
    """Improve a schedule by local moves until a round finds none (relative ``tolerance``), or ``max_rounds``.

    ``on_improvement(state)`` sees every better schedule, ``on_round()`` every round; both may raise to stop.
    """
    value = merit(state)
    for _ in range(max_rounds):
        if on_round is not None:
            on_round()
        before = value
        changed: set[int] = set()
        for move in _moves(problem, candidates, state, merit, moves_per_round):
            if move.device in changed:
                continue
            new = _apply(problem, state, move)
            reached = np.inf if new is None else merit(new)
            if new is not None and reached < value - tolerance * abs(value):
                state, value = new, reached
                changed.add(move.device)
                if on_improvement is not None:
                    on_improvement(state)
        if not value < before - tolerance * abs(before):
            break
    return state
