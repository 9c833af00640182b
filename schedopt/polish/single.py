"""Moves of one device: an assignment inserted in place of what it overlaps, one dropped, or a whole new plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, Priced, Prices, best_paths, price, price_columns
from schedopt.participation import participation_groups
from schedopt.polish.estimate import Estimator, Ledger, current_columns, ledger
from schedopt.polish.moves import FEW_CANDIDATES, NEAR_MISS, Move, rows_of
from schedopt.polish.prices import marginal_prices
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.schedule import Schedule
from schedopt.state import Merit, State

__all__ = ["SIZES", "single_moves"]

#: Worth of h at which sizes are proposed where there are few candidates, relative to the marginal one.
SIZES = (1.0, 0.4, 2.5)


def single_moves(problem: Problem, candidates: Candidates, state: State, merit: Merit, most: int) -> list[Move]:
    """The ``most`` single insertions of largest estimated gain, the best drops, and a new plan for every device; best first.

    Sizes are proposed at the marginal prices and, where few candidates make that cheap, also at less and more worth of h.
    """
    prices = marginal_prices(problem, state, merit)
    columns = current_columns(candidates, state)
    now = ledger(candidates, columns, prices, participation_groups(problem))
    estimate = Estimator(problem, state, merit)
    moves: list[Move] = []
    for factor in SIZES if len(candidates) <= FEW_CANDIDATES else SIZES[:1]:
        priced = price(candidates, replace(prices, value=prices.value * factor))
        moves += _insertions(candidates, estimate, now, priced.columns, prices, most)
        if factor == 1.0:
            moves += _plans(problem, candidates, state.schedule, price_columns(candidates, columns, prices), priced)
    moves += _drops(state.schedule, estimate, now, max(1, most // 4))
    return sorted(moves, key=lambda move: -move.gain)


def _insertions(candidates: Candidates, estimate: Estimator, now: Ledger, columns: Columns, prices: Prices, most: int) -> list[Move]:
    problem, state, k = estimate.problem, estimate.state, columns.candidate
    device, start, end = candidates.device[k], candidates.start[k], candidates.end[k]
    shape = (problem.arrays.num_devices, problem.arrays.slots + 1)
    freed = Ledger(*(_overlapped(shape, state.schedule, getattr(now, name), device, start, end) for name in now.__dataclass_fields__))
    change = ledger(candidates, columns, prices, participation_groups(problem)) - freed
    gain = estimate(change, [(device, change.h)])
    order = np.argsort(-gain, kind="stable")
    least = -NEAR_MISS * abs(estimate.merit(state)) if len(candidates) <= FEW_CANDIDATES else 0.0
    order = order[gain[order] > least][:most]
    rows = rows_of(problem, candidates, columns.take(order))
    return [Move((int(device[o]),), int(start[o]), int(end[o]), rows.take([m]), float(gain[o])) for m, o in enumerate(order)]


def _drops(s: Schedule, estimate: Estimator, now: Ledger, most: int) -> list[Move]:
    """The assignments that seem least worth their cost; the best few are tried whatever the sign of the estimate."""
    change = -now
    gain = estimate(change, [(s.device, change.h)])
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > -0.2 * np.median(np.abs(gain))][:most] if len(s) else order
    return [Move((int(s.device[o]),), int(s.start[o]), int(s.end[o]), Schedule.empty(), float(gain[o])) for o in order]


def _plans(problem: Problem, candidates: Candidates, s: Schedule, cost: FloatArray, priced: Priced) -> list[Move]:
    """The cheapest whole plan of every device whose present plan is dearer."""
    a = problem.arrays
    paths = best_paths(candidates, priced.cost)
    gain = np.bincount(s.device, weights=cost, minlength=a.num_devices) - paths.value
    chosen = priced.columns.take(np.isin(priced.columns.candidate, paths.chosen))
    rows = rows_of(problem, candidates, chosen)
    devices = np.flatnonzero(gain > 0)
    return [Move((int(i),), 0, a.slots, rows.take(rows.device == i), float(gain[i])) for i in devices]


def _overlapped(
    shape: tuple[int, int], s: Schedule, values: FloatArray, device: IntArray, start: IntArray, end: IntArray
) -> FloatArray:
    """Σ of the values (shape (len(s), ...)) of a device's assignments that overlap [start, end), for each query."""
    begins, ends = np.zeros(shape + values.shape[1:]), np.zeros(shape + values.shape[1:])
    np.add.at(begins, (s.device, s.start), values)
    np.add.at(ends, (s.device, s.end), values)
    begun, ended = np.cumsum(begins, axis=1), np.cumsum(ends, axis=1)
    # those that begin before the end, less those that have ended by the start
    return begun[device, end - 1] - ended[device, start]
