"""Make a set of assignments possible: shrink or drop what breaks a deadline, the band, an energy budget or a condition."""

from __future__ import annotations

import numpy as np

from schedopt.bounds.async_schedule import C2_LIMIT, STALE_FACTOR, aggregate
from schedopt.conditions import meet_conditions
from schedopt.formulation.candidates import steps_limit
from schedopt.formulation.resources import allocate, feasible_times, least_bandwidth_hz
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.schedule import Schedule
from schedopt.state import State, state_of

__all__ = ["repair"]

_ROUNDS = 200
_SHRINK = 0.8


def repair(problem: Problem, schedule: Schedule) -> State | None:
    """A feasible state near ``schedule`` (its steps and batches only shrink, its assignments are only dropped), or None.

    Targets and the total energy of a mode are not repaired here: they show in the state's merit.
    """
    schedule = _fit_deadlines(problem, _fit_conditions(problem, schedule))
    schedule = _fit_band(problem, schedule)
    for _ in range(_ROUNDS):
        if len(schedule) == 0:
            return None
        state = state_of(problem, schedule)
        if state is not None:
            return state
        schedule = _fit_budgets(problem, schedule)
    return None


def _shrink(problem: Problem, schedule: Schedule, which: np.ndarray, factor: np.ndarray | float) -> Schedule:
    """Less work for the assignments in the mask: smaller batches first, then fewer steps; those at their least are dropped."""
    a = problem.arrays
    least = a.min_batch[schedule.task]
    batch = np.where(which, np.maximum(np.floor(schedule.batch * factor), least), schedule.batch)
    stuck = which & (batch == schedule.batch)
    steps = np.where(stuck, np.floor(schedule.steps * factor), schedule.steps)
    return schedule.replace(batch=batch, steps=steps).take(steps >= 1)


def _fit_conditions(problem: Problem, schedule: Schedule) -> Schedule:
    """Steps within C1 (or max_steps), then less h where C2 or C3 fails."""
    limit = steps_limit(problem)[schedule.task]
    schedule = schedule.replace(steps=np.minimum(schedule.steps, limit)).take(limit >= 1)
    if not problem.objective.enforce_conditions:
        return schedule
    if problem.arrays.windows is not None or problem.arrays.enforced == "stability":
        return meet_conditions(problem.arrays, schedule)[0]
    for _ in range(_ROUNDS):
        sums = aggregate(problem.arrays, schedule)
        beta = problem.arrays.smoothness[:, None]
        value = beta * sums.h_instant * (1.0 + STALE_FACTOR * beta * sums.stale_span)
        bad = value > C2_LIMIT
        if not np.any(bad):
            break
        here = bad[schedule.task, schedule.end]
        # what spans a bad instant with many missed slots weighs as much as what is aggregated there
        worst = here | (bad[schedule.task].cumsum(axis=1)[np.arange(len(schedule)), schedule.end - 1] > 0) & (schedule.staleness > 0)
        steps = np.where(worst, np.floor(schedule.steps * _SHRINK), schedule.steps)
        schedule = schedule.replace(steps=steps).take(steps >= 1)
    return schedule


def _fit_deadlines(problem: Problem, schedule: Schedule) -> Schedule:
    """Work that the fastest processor finishes in the time that the shortest upload leaves."""
    a = problem.arrays
    for _ in range(_ROUNDS):
        available, shortest, longest = feasible_times(a, schedule)
        late = shortest > longest
        if not np.any(late):
            break
        possible = (available - shortest) * a.freq_max_hz[schedule.device]
        needed = a.cycles_per_sample[schedule.device, schedule.task] * schedule.steps * schedule.batch
        hopeless = late & ((shortest > a.slot_s) | (possible <= 0))
        schedule, late = schedule.take(~hopeless), late[~hopeless]
        share = np.clip(np.divide(possible, needed)[~hopeless], 0.0, 0.999)
        schedule = _shrink(problem, schedule, late, np.where(late, share, 1.0))
    return schedule


def _fit_band(problem: Problem, schedule: Schedule) -> Schedule:
    """Drop the most demanding upload of every slot whose uploads do not fit the band even at full power."""
    a = problem.arrays
    for _ in range(_ROUNDS):
        need = least_bandwidth_hz(a, schedule)
        used = np.bincount(schedule.end - 1, weights=need, minlength=a.slots)
        full = used > a.bandwidth_hz * (1.0 - 1e-9)
        crowded = full & (np.bincount(schedule.end - 1, minlength=a.slots) > 1)
        if not np.any(crowded):
            break
        order = np.lexsort((-need, schedule.end))
        first = order[np.unique(schedule.end[order], return_index=True)[1]]
        drop = first[crowded[schedule.end[first] - 1]]
        schedule = schedule.take(np.setdiff1d(np.arange(len(schedule)), drop))
    return schedule


def _fit_budgets(problem: Problem, schedule: Schedule) -> Schedule:
    """Shrink the work of devices whose energy is over budget even with all prices on them."""
    a = problem.arrays
    allocation = allocate(a, schedule, budget_j=np.full(a.num_devices, np.inf))
    if allocation is None:
        return schedule.take(np.arange(len(schedule)) < len(schedule) - 1)
    evaluation = evaluate_objective(problem, allocation.schedule)
    over = evaluation.device_energy_j > a.energy_budget_j
    mine = over[schedule.device]
    if not np.any(mine):
        return schedule.take(np.arange(len(schedule)) < len(schedule) - 1)
    # the dearest assignment of each such device goes if the work is already at its least, else all shrink
    energy = evaluation.physics.energy_j
    shrunk = _shrink(problem, schedule, mine, _SHRINK)
    if len(shrunk) < len(schedule) or np.any(shrunk.batch != schedule.batch) or np.any(shrunk.steps != schedule.steps):
        return shrunk
    return schedule.take(np.arange(len(schedule)) != int(np.argmax(np.where(mine, energy, -np.inf))))
