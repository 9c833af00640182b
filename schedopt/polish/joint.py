"""Moves of two devices at once: whole plans chosen together, where no change of one device alone improves the schedule.

What two devices do in a slot, beside what the others do there, needs an energy that can be tabulated: slots share nothing but the energy
budgets. With these tables, and bounds that depend on sums over assignments alone, every pair of plans is judged exactly but for the
budgets and the staleness term.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, Prices, price, price_columns
from schedopt.formulation.resources import group_energy_j
from schedopt.polish.estimate import Estimator, Ledger, current_columns, ledger
from schedopt.polish.moves import NEAR_MISS, Move, rows_of
from schedopt.polish.prices import marginal_prices
from schedopt.polish.single import SIZES
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.schedule import Schedule
from schedopt.state import Merit, State

__all__ = ["joint_moves"]

#: Plans of each device that are paired with those of another.
_PLANS = 600
#: Moves that are tried for each pair of devices.
_TRIED = 3


@dataclass(frozen=True)
class _Plans:
    """Plans of one device. ``option``: in each slot, which of the device's options ends there (0 = none), shape (plans, G);
    ``h``, ``error``: sums over the plan, shape (plans, J)."""

    option: IntArray
    h: FloatArray
    error: FloatArray


@dataclass(frozen=True)
class _Options:
    """Assignments that a device may make, one row each; ``number``: 1, 2, ... within those that end in the same slot, shape (n,)."""

    rows: Schedule
    number: IntArray
    cost: FloatArray
    ledger: Ledger

    def ending(self, slot: int) -> IntArray:
        """Indices of those that end with ``slot``, in the order of their numbers."""
        return np.flatnonzero(self.rows.end == slot + 1)


def joint_moves(problem: Problem, candidates: Candidates, state: State, merit: Merit, most: int) -> list[Move]:
    """New plans of two devices: for each pair of devices those of the largest estimated gains, ``most`` in all; best first."""
    a = problem.arrays
    prices = marginal_prices(problem, state, merit)
    options = [_options(problem, candidates, state, prices, i) for i in range(a.num_devices)]
    plans = [_cheapest_plans(a.slots, each) for each in options]
    now = ledger(candidates, current_columns(candidates, state), prices)
    estimate = Estimator(problem, state, merit)
    energy_price = float(prices.energy.min())
    least = -NEAR_MISS * abs(merit(state))
    found: list[Move] = []
    for i, k in combinations(range(a.num_devices), 2):
        pair = np.isin(state.schedule.device, (i, k))
        others = state.schedule.take(~pair)
        energy = _pair_energy(problem, (options[i], options[k]), (plans[i], plans[k]), others)
        energy = energy - float(state.evaluation.physics.energy_j.sum())
        first, second = np.nonzero(np.isfinite(energy))
        gone = [np.array([now.h[state.schedule.device == x].sum(axis=0)]) for x in (i, k)]
        mine, other = plans[i].h[first] - gone[0], plans[k].h[second] - gone[1]
        error = plans[i].error[first] + plans[k].error[second] - now.error[pair].sum(axis=0)
        change = Ledger(energy_price * energy[first, second], energy[first, second], mine + other, error)
        gain = estimate(change, [(np.full(len(first), i), mine), (np.full(len(first), k), other)])
        for o in _largest(gain, _TRIED, least):
            rows = _chosen(options[i], plans[i].option[first[o]]).concat(_chosen(options[k], plans[k].option[second[o]]))
            found.append(Move((i, k), 0, a.slots, rows, float(gain[o])))
    return sorted(found, key=lambda move: -move.gain)[:most]


def _largest(gain: FloatArray, most: int, least: float) -> IntArray:
    """Indices of the ``most`` largest gains above ``least``, largest first."""
    worth = np.flatnonzero(gain > least)
    if len(worth) > most:
        worth = worth[np.argpartition(-gain[worth], most)[:most]]
    return worth[np.argsort(-gain[worth], kind="stable")]


def _options(problem: Problem, candidates: Candidates, state: State, prices: Prices, device: int) -> _Options:
    """The present assignments and every candidate's best ones at some worths of h, with whole steps and batches, each once."""
    columns = current_columns(candidates, state)
    for factor in SIZES:
        columns = columns.concat(price(candidates, replace(prices, value=prices.value * factor)).columns)
    columns = columns.take(candidates.device[columns.candidate] == device)
    rows = rows_of(problem, candidates, columns)
    once = np.unique(np.stack([columns.candidate, rows.steps, rows.batch]), axis=1, return_index=True)[1]
    columns, rows = columns.take(once), rows.take(once)
    columns = replace(columns, work=rows.steps * rows.batch)
    number = np.zeros(len(rows), dtype=np.int64)
    for g in range(problem.arrays.slots):
        ending = rows.end == g + 1
        number[ending] = np.arange(1, np.count_nonzero(ending) + 1)
    return _Options(rows, number, price_columns(candidates, columns, prices), ledger(candidates, columns, prices))


def _cheapest_plans(slots: int, options: _Options) -> _Plans:
    """The :data:`_PLANS` cheapest sets of disjoint options at the marginal prices."""
    kept: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())]]
    for g in range(slots):
        ending = [(float(options.cost[m]), int(options.rows.start[m]), int(m)) for m in options.ending(g)]

        def extended(ending: list[tuple[float, int, int]] = ending) -> Iterator[tuple[float, tuple[int, ...]]]:
            for cost, begin, index in ending:
                for total, plan in kept[begin]:
                    yield total + cost, (*plan, index)

        kept.append(heapq.nsmallest(_PLANS, [*kept[-1], *extended()]))
    chosen = [plan for _, plan in kept[-1]]
    owner = np.repeat(np.arange(len(chosen)), [len(plan) for plan in chosen])
    flat = np.array([index for plan in chosen for index in plan], dtype=np.int64)
    option = np.zeros((len(chosen), slots), dtype=np.int64)
    option[owner, options.rows.end[flat] - 1] = options.number[flat]
    h, error = (np.zeros((len(chosen), options.ledger.h.shape[1])) for _ in range(2))
    np.add.at(h, owner, options.ledger.h[flat])
    np.add.at(error, owner, options.ledger.error[flat])
    return _Plans(option, h, error)


def _chosen(options: _Options, option: IntArray) -> Schedule:
    """The rows of one plan."""
    slot = options.rows.end - 1
    return options.rows.take(options.number == option[slot])


def _pair_energy(problem: Problem, options: tuple[_Options, _Options], plans: tuple[_Plans, _Plans], others: Schedule) -> FloatArray:
    """Energy of the whole schedule with each pair of plans beside ``others``, shape (plans, plans), in J; budgets left out."""
    total = np.zeros((len(plans[0].option), len(plans[1].option)))
    for g in range(problem.arrays.slots):
        mine, other = (each.ending(g) for each in options)
        beside = others.take(others.end == g + 1)
        shape = (len(mine) + 1, len(other) + 1)
        first, second = (x.ravel() for x in np.indices(shape))
        groups = np.arange(first.size)
        rows = options[0].rows.take(mine[first[first > 0] - 1]).concat(options[1].rows.take(other[second[second > 0] - 1]))
        rows = rows.concat(beside.take(np.tile(np.arange(len(beside)), first.size)))
        group = np.concatenate([groups[first > 0], groups[second > 0], np.repeat(groups, len(beside))])
        table = group_energy_j(problem.arrays, rows, group, first.size).reshape(shape)
        total += table[np.ix_(plans[0].option[:, g], plans[1].option[:, g])]
    return total
