"""Moves of two devices at once: whole plans chosen together, where no change of one device alone improves the schedule.

What two devices do in a slot, beside what the others do there, needs an energy that can be tabulated: slots share nothing but the energy
budgets. With these tables, and bounds that depend on sums over assignments alone, every pair of plans is judged exactly but for the
budgets.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from schedopt.bounds.async_schedule import STALE_FACTOR, Aggregates, aggregate
from schedopt.formulation.candidates import Candidates, Columns, Prices, make_columns, price, price_columns, steps_limit
from schedopt.formulation.resources import group_energy_j
from schedopt.participation import participation_groups
from schedopt.polish.estimate import Estimator, Ledger, current_columns, ledger
from schedopt.polish.moves import NEAR_MISS, Move, rows_of
from schedopt.polish.prices import marginal_prices
from schedopt.polish.single import SIZES
from schedopt.problem import TERMS, FloatArray, IntArray, Problem
from schedopt.schedule import Schedule
from schedopt.state import Merit, State

__all__ = ["joint_moves"]

#: Plans of each device that are paired with those of another; fewer where participation is judged by windows, which takes longer.
_PLANS, _PLANS_BY_WINDOWS = 600, 200
#: Moves that are tried for each pair of devices.
_TRIED = 3


@dataclass(frozen=True)
class _Plans:
    """Plans of one device. ``option``: in each slot, which of the device's options ends there (0 = none), shape (plans, G);
    ``h``, ``error``: sums over the plan, shapes (plans, J[, M]) and (plans, J); ``noise``, ``span``: N_g and Σ h κ of what spans an
    instant, (plans, J, G+1).
    """

    option: IntArray
    h: FloatArray
    error: FloatArray
    noise: FloatArray
    span: FloatArray


@dataclass(frozen=True)
class _Options:
    """Assignments that a device may make, one row each; ``number``: 1, 2, ... within those that end in the same slot, shape (n,)."""

    rows: Schedule
    number: IntArray
    cost: FloatArray
    ledger: Ledger
    sums: Aggregates

    def ending(self, slot: int) -> IntArray:
        """Indices of those that end with ``slot``, in the order of their numbers."""
        return np.flatnonzero(self.rows.end == slot + 1)


def joint_moves(problem: Problem, candidates: Candidates, state: State, merit: Merit, most: int) -> list[Move]:
    """New plans of two devices: for each pair of devices those of the largest estimated gains, ``most`` in all; best first."""
    a = problem.arrays
    prices = marginal_prices(problem, state, merit)
    options = [_options(problem, candidates, state, prices, i) for i in range(a.num_devices)]
    most_plans = _PLANS if a.windows is None else _PLANS_BY_WINDOWS
    plans = [_cheapest_plans(a.slots, each, most_plans) for each in options]
    sums = aggregate(a, state.schedule)
    now = ledger(candidates, current_columns(candidates, state), prices, participation_groups(problem))
    estimate = Estimator(problem, state, merit)
    energy_price = float(prices.energy.min())
    staleness = _staleness_scale(problem) * (sums.noise_instant * sums.stale_span).sum(axis=1)
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
        error += (_pair_staleness(problem, (plans[i], plans[k]), others) - staleness)[first, second]
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
    """Assignments worth considering: every candidate's best ones at some worths of h, every candidate with most steps and least batch,
    and the present ones with a step or a sample more or less; each once, and only if the device can do it alone on the band."""
    columns = _resized(problem, candidates, current_columns(candidates, state)).concat(_smallest(problem, candidates))
    for factor in SIZES:
        columns = columns.concat(price(candidates, replace(prices, value=prices.value * factor)).columns)
    columns = columns.take(candidates.device[columns.candidate] == device)
    rows = rows_of(problem, candidates, columns)
    once = np.unique(np.stack([columns.candidate, rows.steps, rows.batch]), axis=1, return_index=True)[1]
    columns, rows = columns.take(once), rows.take(once)
    energy = group_energy_j(problem.arrays, rows, np.arange(len(rows)), len(rows))
    columns, rows, energy = columns.take(np.isfinite(energy)), rows.take(np.isfinite(energy)), energy[np.isfinite(energy)]
    columns = _columns(candidates, columns.candidate, rows.steps, rows.batch, energy)
    number = np.zeros(len(rows), dtype=np.int64)
    for g in range(problem.arrays.slots):
        ending = rows.end == g + 1
        number[ending] = np.arange(1, np.count_nonzero(ending) + 1)
    cost, sums = price_columns(candidates, columns, prices), aggregate(problem.arrays, rows)
    return _Options(rows, number, cost, ledger(candidates, columns, prices, participation_groups(problem)), sums)


def _columns(candidates: Candidates, k: IntArray, steps: FloatArray, batch: FloatArray, energy_j: FloatArray) -> Columns:
    """Columns of given energies; how they split time and band is left open."""
    chosen = candidates.take(k)
    time_s = 0.5 * chosen.available_s
    columns = make_columns(chosen, k, steps, steps * batch, time_s, chosen.uploads.bits / time_s)
    return replace(columns, energy_j=energy_j, bandwidth_hz=np.zeros(len(k)))


def _smallest(problem: Problem, candidates: Candidates) -> Columns:
    """Every candidate with most steps and least batch."""
    k, a = np.arange(len(candidates)), problem.arrays
    steps = steps_limit(problem)[candidates.task].astype(float)
    return _columns(candidates, k, steps, a.min_batch[candidates.task].astype(float), np.zeros(len(k)))


def _resized(problem: Problem, candidates: Candidates, columns: Columns) -> Columns:
    """The columns as they are, and with one step or one sample of the batch more and less, within the limits."""
    a, limit, k = problem.arrays, steps_limit(problem), columns.candidate
    i, j = candidates.device[k], candidates.task[k]
    everything = columns
    for more_steps, more_batch in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        steps, batch = columns.steps + more_steps, np.round(columns.work / columns.steps) + more_batch
        allowed = (steps >= 1) & (steps <= limit[j]) & (batch >= a.min_batch[j]) & (batch <= a.samples[i, j])
        zero = np.zeros(np.count_nonzero(allowed))
        everything = everything.concat(_columns(candidates, k[allowed], steps[allowed], batch[allowed], zero))
    return everything


def _cheapest_plans(slots: int, options: _Options, most: int) -> _Plans:
    """The ``most`` cheapest sets of disjoint options at the marginal prices."""
    kept: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())]]
    for g in range(slots):
        ending = [(float(options.cost[m]), int(options.rows.start[m]), int(m)) for m in options.ending(g)]

        def extended(ending: list[tuple[float, int, int]] = ending) -> Iterator[tuple[float, tuple[int, ...]]]:
            for cost, begin, index in ending:
                for total, plan in kept[begin]:
                    yield total + cost, (*plan, index)

        kept.append(heapq.nsmallest(most, [*kept[-1], *extended()]))
    chosen = [plan for _, plan in kept[-1]]
    owner = np.repeat(np.arange(len(chosen)), [len(plan) for plan in chosen])
    flat = np.array([index for plan in chosen for index in plan], dtype=np.int64)
    option = np.zeros((len(chosen), slots), dtype=np.int64)
    option[owner, options.rows.end[flat] - 1] = options.number[flat]
    tasks = options.ledger.error.shape[1]
    h, error = np.zeros((len(chosen), *options.ledger.h.shape[1:])), np.zeros((len(chosen), tasks))
    np.add.at(h, owner, options.ledger.h[flat])
    np.add.at(error, owner, options.ledger.error[flat])
    noise, opened = np.zeros((len(chosen), tasks, slots + 1)), np.zeros((len(chosen), tasks, slots + 1))
    rows, sums = options.rows.take(flat), options.sums
    stale = sums.h[flat] * rows.staleness
    np.add.at(noise, (owner, rows.task, rows.end), sums.noise[flat])
    np.add.at(opened, (owner, rows.task, rows.start + 1), stale)
    np.add.at(opened, (owner, rows.task, rows.end), -stale)
    return _Plans(option, h, error, noise, np.maximum(np.cumsum(opened, axis=2), 0.0))


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


def _staleness_scale(problem: Problem) -> FloatArray:
    """What multiplies Σ_k N_k Σ h κ in the scaled T_stale of each task, shape (J,); with windows, whose T_stale is another, nothing."""
    if problem.arrays.windows is not None:
        return np.zeros(problem.arrays.num_tasks)
    return problem.arrays.term_scale[TERMS.index("stale")] * STALE_FACTOR * problem.arrays.smoothness**2


def _pair_staleness(problem: Problem, plans: tuple[_Plans, _Plans], others: Schedule) -> FloatArray:
    """Scaled T_stale of every task with each pair of plans beside ``others``, shape (plans, plans, J)."""
    sums = aggregate(problem.arrays, others)
    mine, other = plans
    # Σ_k (N0 + Na + Nb)(S0 + Sa + Sb), with what the first plan and the others make up taken together
    noise, span = mine.noise + sums.noise_instant, mine.span + sums.stale_span
    total = (noise * span).sum(axis=2)[:, None] + (other.noise * other.span).sum(axis=2)[None, :]
    total = total + np.einsum("ajk,bjk->abj", noise, other.span) + np.einsum("ajk,bjk->abj", span, other.noise)
    return _staleness_scale(problem) * total
