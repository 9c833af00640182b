"""From mixed columns to one plan per device: diving on the master, and re-planning by the schedule's own marginal prices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from schedopt.bounds.async_schedule import aggregate, assignment_errors
from schedopt.colgen.workers import PlanRequest
from schedopt.formulation.candidates import Prices, chosen_spans, forward_values
from schedopt.formulation.tables import PlanColumns, Plans
from schedopt.participation import at_upload
from schedopt.polish.prices import marginal_prices
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.repair import repair
from schedopt.sca.loop import next_model, next_scale
from schedopt.sca.master import MasterPoint, solve_columns_master
from schedopt.schedule import Schedule
from schedopt.state import Merit, State

__all__ = ["dive_plans", "heaviest_plans", "likely_plans", "plan_schedule", "replan"]

#: Columns of less weight are not used.
_USED = 1e-5
#: A device whose plan explains this much of its used slots needs no further master.
_DECIDED = 0.98
#: Of the devices that gain by re-planning, this share changes at once; less when that fails.
_FIRST_SHARE, _LESS = 0.5, 0.4
#: Relative gain of a round of re-planning below which there is no other.
_WORTH_A_ROUND = 2e-4


def supported_plans(problem: Problem, point: MasterPoint[PlanColumns]) -> tuple[np.ndarray, FloatArray]:
    """Columns of the plan of each device with the most weight per slot (mask), and the share of its used slots that it explains, (I,)."""
    a, columns = problem.arrays, point.columns
    span = columns.end - columns.start
    longest = int(span.max(initial=1))
    shape = (a.num_devices, a.slots, longest, a.num_tasks)
    place = np.ravel_multi_index((columns.device, columns.end - 1, span - 1, columns.task), shape)
    places, which = np.unique(place, return_inverse=True)
    support = np.bincount(which, weights=point.weights * (point.weights > _USED))
    worth = np.zeros(shape[:3])
    row, slot, length, task = np.unravel_index(places, shape)
    gain = -support * (length + 1)
    np.minimum.at(worth, (row, slot, length), gain)
    value, take = forward_values(np.where(worth < 0, worth, np.inf))
    chosen = np.zeros(len(places), dtype=bool)
    best = np.full(shape[:3], -1)
    order = np.argsort(-gain, kind="stable")
    best[row[order], slot[order], length[order]] = order
    chosen[best[chosen_spans(take)]] = True
    total = np.bincount(row, weights=support * (length + 1), minlength=a.num_devices)
    share = np.divide(-value[:, -1], total, out=np.ones(a.num_devices), where=total > 1e-9)
    return chosen[which], share


def dive_plans(
    problem: Problem, relaxed: MasterPoint[PlanColumns], *, backend: str, rounds: int, tick: Callable[[], None]
) -> tuple[PlanColumns, FloatArray]:
    """Fix the plans of the most decided devices, solve the master over what is left of the columns, and repeat.

    Returns the columns of one plan per device and their weights.
    """
    point = relaxed
    free = np.ones(problem.arrays.num_devices, dtype=bool)
    fixed = np.zeros(0, dtype=np.int64)
    for left in range(rounds, 0, -1):
        planned, share = supported_plans(problem, point)
        order = np.flatnonzero(free)[np.argsort(-share[free], kind="stable")]
        count = max(-(-len(order) // left), int(np.sum(share[order] > _DECIDED)))
        free[order[:count]] = False
        columns = point.columns
        fixed = np.unique(np.concatenate([fixed, _assignments(problem, columns.take(planned & ~free[columns.device]))]))
        if left == 1 or not np.any(free):
            break
        allowed = free[columns.device] | np.isin(_assignments(problem, columns), fixed)
        new = solve_columns_master(
            problem, columns.take(allowed), next_model(problem, point), next_scale(problem, point), backend=backend
        )
        tick()
        if new is None:
            continue
        point = new
    return likely_plans(problem, point)


def heaviest_plans(problem: Problem, point: MasterPoint[PlanColumns]) -> np.ndarray:
    """The plan of each device with the most weight, as a mask with one column per assignment: its heaviest."""
    planned = np.flatnonzero(supported_plans(problem, point)[0])
    assignments = _assignments(problem, point.columns.take(planned))
    order = np.lexsort((-point.weights[planned], assignments))
    _, first = np.unique(assignments[order], return_index=True)
    mask = np.zeros(len(point.columns), dtype=bool)
    mask[planned[order[first]]] = True
    return mask


def likely_plans(problem: Problem, point: MasterPoint[PlanColumns]) -> tuple[PlanColumns, FloatArray]:
    """Columns of the plan of each device with the most weight, and their weights."""
    planned, _ = supported_plans(problem, point)
    return point.columns.take(planned), point.weights[planned]


def _assignments(problem: Problem, columns: PlanColumns) -> IntArray:
    """One number per assignment."""
    slots = problem.arrays.slots + 1
    return ((columns.device * problem.arrays.num_tasks + columns.task) * slots + columns.start) * slots + columns.end


def plan_schedule(problem: Problem, columns: PlanColumns, weights: FloatArray | None = None) -> Schedule:
    """Whole steps and batches for planned assignments, near the means of their columns; resources not yet set.

    ``weights``: of the columns (each counts alike if not given); assignments of next to no weight are left out.
    """
    a = problem.arrays
    weights = np.ones(len(columns)) if weights is None else weights
    _, first, which = np.unique(_assignments(problem, columns), return_index=True, return_inverse=True)
    total = np.bincount(which, weights=weights)
    steps = np.bincount(which, weights=weights * columns.steps) / np.maximum(total, 1e-300)
    work = np.bincount(which, weights=weights * columns.work) / np.maximum(total, 1e-300)
    # a sliver of an assignment is not one, unless there is nothing else
    kept = total > min(0.05, float(total.max(initial=0.0)) / 2.0)
    one = columns.take(first[kept])
    e = np.maximum(np.round(steps[kept]), 1.0)
    batch = np.clip(np.round(work[kept] / e), a.min_batch[one.task], a.samples[one.device, one.task])
    zero = np.zeros(len(one))
    return Schedule(one.device, one.task, one.start, one.end, e, batch, zero, zero, zero)


def replan(
    problem: Problem,
    state: State,
    merit: Merit,
    ask: Callable[..., Sequence[Plans]],
    *,
    rounds: int,
    on_improvement: Callable[[State], None],
    tick: Callable[[], None],
) -> State:
    """Let devices change to their best plans at the schedule's own marginal prices, those with most to gain first.

    The prices are exact for a small change; how many devices may change at once is found by trying, on the exact merit.
    """
    share = _FIRST_SHARE
    for _ in range(rounds):
        prices = marginal_prices(problem, state, merit)
        # what staleness costs by instants is more than tables know; by windows it is a price of h like others
        prices = replace(prices, value=np.array(prices.value), span_h=None, instant_noise=None)
        plans = ask(PlanRequest(prices))[0]
        tick()
        gain = _spent(problem, state, prices) - plans.cost
        order = np.argsort(-gain, kind="stable")
        order = order[gain[order] > 1e-9 * abs(state.evaluation.objective)]
        better = None
        while len(order) and better is None:
            count = max(1, int(share * len(order)))
            better = _moved(problem, state, merit, plans, order[:count])
            tick()
            if better is None:
                if count == 1:
                    return state
                share *= _LESS
        if better is None:
            return state
        before, state = merit(state), better
        on_improvement(state)
        if merit(state) > before * (1.0 - _WORTH_A_ROUND):
            break
    return state


def _moved(problem: Problem, state: State, merit: Merit, plans: Plans, devices: IntArray) -> State | None:
    """The state with new plans of ``devices``, if it is better."""
    rest = state.schedule.take(~np.isin(state.schedule.device, devices))
    new = plan_schedule(problem, plans.columns.take(np.isin(plans.columns.device, devices)))
    tried = repair(problem, rest.concat(new))
    return tried if tried is not None and merit(tried) < merit(state) * (1.0 - 1e-7) else None


def _spent(problem: Problem, state: State, prices: Prices) -> FloatArray:
    """What each device's assignments cost at ``prices`` (negative where they pay), shape (I,)."""
    a, s = problem.arrays, state.schedule
    sums = aggregate(a, s)
    cost = prices.energy[s.device] * state.evaluation.physics.energy_j + prices.bandwidth[s.end - 1] * s.bandwidth_hz
    cost += prices.noise[s.task] * assignment_errors(problem, s, sums) - at_upload(prices.value, a, s.device, s.task, s.end) * sums.h
    if prices.staleness is not None:
        cost += prices.noise[s.task] * prices.staleness.per_h(s.device, s.task, s.start, s.end) * sums.h
    spent: np.ndarray = np.bincount(s.device, weights=cost, minlength=a.num_devices)
    return spent
