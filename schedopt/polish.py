"""Local moves on the exact objective: resize, add, drop, move, swap (formulation 4c).

At the marginal prices of a schedule, every candidate assignment has a best size and a cost; using it instead of whatever it overlaps on
its device is a move, and the difference of costs estimates its gain to first order. The most promising moves are tried on the exact
objective with re-allocated resources of the slots they touch, and kept if they improve it. "Resize" is a candidate in place of the
assignment with the same interval; "drop" needs no candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, STALE_FACTOR, aggregate
from schedopt.formulation.candidates import Candidates, Prices, make_columns, price, price_columns
from schedopt.formulation.resources import marginal_bandwidth_value
from schedopt.problem import TERMS, FloatArray, IntArray, Problem
from schedopt.schedule import Schedule
from schedopt.state import State, reallocate

__all__ = ["DualPrices", "marginal_prices", "polish"]

@dataclass(frozen=True)
class DualPrices:
    """Prices that only the relaxation knows: ``energy`` per J (modes min_bound) and ``error`` per unit of N_j (min_energy), shape (J,)."""

    energy: float
    error: FloatArray


def marginal_prices(problem: Problem, state: State, duals: DualPrices) -> Prices:
    """First-order prices of energy, bandwidth, h and errors at a schedule (gradients of the exact objective)."""
    a, mode = problem.arrays, problem.objective.mode
    scale = dict(zip(TERMS, a.term_scale, strict=True))
    sums = aggregate(a, state.schedule)
    bound = state.evaluation.bound
    h = np.maximum(sums.h_total, 1e-300)
    w = FACTOR * a.weight
    noise = w / h
    total_terms = np.where(np.isfinite(bound.total), bound.total, 0.0) * h / FACTOR
    value = noise * total_terms / h
    energy = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": duals.energy}[mode]
    if mode == "min_energy":
        noise = np.where(np.isfinite(a.target), duals.error, 0.0)
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
class _Moves:
    """Moves by estimated gain: candidate to insert (−1 = drop only), its steps and batch, and the device whose plan changes."""

    candidate: IntArray
    device: IntArray
    start: IntArray
    end: IntArray
    steps: FloatArray
    batch: FloatArray
    gain: FloatArray


def _current_costs(problem: Problem, candidates: Candidates, state: State, prices: Prices) -> FloatArray:
    """Cost of each assignment of the schedule at the prices, shape (n,)."""
    s, a = state.schedule, problem.arrays
    index = candidates.find(s.device, s.task, s.start, s.end)
    columns = make_columns(candidates.take(index), index, s.steps, s.steps * s.batch, state.evaluation.physics.upload_s, s.bandwidth_hz)
    return price_columns(candidates, columns, prices)


def _moves(problem: Problem, candidates: Candidates, state: State, prices: Prices, most: int) -> _Moves:
    """The ``most`` moves of largest estimated gain, and all drops that gain."""
    s, a = state.schedule, problem.arrays
    current = _current_costs(problem, candidates, state, prices)
    priced = price(candidates, prices)
    columns = priced.columns
    k = columns.candidate
    device, start, end = candidates.device[k], candidates.start[k], candidates.end[k]
    freed = _overlapped_cost(a.num_devices, a.slots, s, current, device, start, end)
    gain = freed - priced.cost[k]
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > 0][:most]
    task = candidates.task[k[order]]
    batch = np.clip(np.round(columns.work[order] / columns.steps[order]), a.min_batch[task], a.samples[device[order], task])
    drop = np.argsort(-current, kind="stable")
    drop = drop[current[drop] > -0.2 * np.median(np.abs(current))][: max(1, most // 4)] if len(s) else drop[:0]
    return _Moves(
        candidate=np.concatenate([k[order], np.full(len(drop), -1)]),
        device=np.concatenate([device[order], s.device[drop]]),
        start=np.concatenate([start[order], s.start[drop]]),
        end=np.concatenate([end[order], s.end[drop]]),
        steps=np.concatenate([columns.steps[order], np.zeros(len(drop))]),
        batch=np.concatenate([batch, np.zeros(len(drop))]),
        gain=np.concatenate([gain[order], current[drop]]),
    )


def _overlapped_cost(
    devices: int, slots: int, s: Schedule, cost: FloatArray, device: IntArray, start: IntArray, end: IntArray
) -> FloatArray:
    """Σ of the costs of a device's assignments that overlap [start, end), for each query."""
    begins, ends = np.zeros((devices, slots + 1)), np.zeros((devices, slots + 1))
    np.add.at(begins, (s.device, s.start), cost)
    np.add.at(ends, (s.device, s.end), cost)
    begun, ended = np.cumsum(begins, axis=1), np.cumsum(ends, axis=1)
    # those that begin before the end, less those that have ended by the start
    return begun[device, end - 1] - ended[device, start]


def _apply(problem: Problem, candidates: Candidates, state: State, moves: _Moves, m: int) -> State | None:
    """The schedule after move ``m``, with the resources of the touched slots re-allocated; None if that is impossible."""
    s = state.schedule
    hit = (s.device == moves.device[m]) & (s.start < moves.end[m]) & (s.end > moves.start[m])
    touched = set((s.end[hit] - 1).tolist())
    kept = s.take(~hit)
    if moves.candidate[m] >= 0:
        k = moves.candidate[m]
        touched.add(int(candidates.end[k] - 1))
        row = [candidates.device[k], candidates.task[k], candidates.start[k], candidates.end[k], moves.steps[m], moves.batch[m], 0, 0, 0]
        kept = kept.concat(Schedule(*([value] for value in row)))
    again = np.isin(kept.end - 1, list(touched))
    return reallocate(problem, kept, again)


def polish(
    problem: Problem,
    candidates: Candidates,
    state: State,
    duals: DualPrices,
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
    for _ in range(max_rounds):
        if on_round is not None:
            on_round()
        before = state.merit
        prices = marginal_prices(problem, state, duals)
        moves = _moves(problem, candidates, state, prices, moves_per_round)
        changed: set[int] = set()
        for m in range(len(moves.gain)):
            if int(moves.device[m]) in changed:
                continue
            new = _apply(problem, candidates, state, moves, m)
            if new is not None and new.merit < state.merit - tolerance * abs(state.merit):
                state = new
                changed.add(int(moves.device[m]))
                if on_improvement is not None:
                    on_improvement(state)
        if not state.merit < before - tolerance * abs(before):
            break
    return state
