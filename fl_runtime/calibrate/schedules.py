"""Schedules for pilot runs: cheap, made for the problem's times and band, whatever its constants and energy limits say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schedopt.errors import InputError
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule
from schedopt.solvers.heuristics import Context, Skeleton, fit, length_grid, prepare
from schedopt.solvers.random_feasible import random_skeleton
from schedopt.solvers.synchronous import synchronous_skeleton

__all__ = ["KINDS", "check_fits", "pilot_schedule"]

#: Kinds of schedules, in the order in which pilot runs take them in turn: all devices at the same pace, and each at its own.
KINDS = ("synchronous", "random")
#: Mini-batch of the synchronous schedule, and the largest of the random one.
BATCH, MOST_BATCH = 32, 256
#: Share of the time in which a device of the random schedule is busy.
ACTIVITY = 0.8


def pilot_schedule(problem: Problem, kind: str, rng: np.random.Generator) -> Schedule:
    """A schedule of one of the :data:`KINDS` that trains every task as much as time and band allow, of several round lengths the best.

    Feasible but for energy limits and the conditions of the theorem: what they allow depends on the constants that are sought. Tasks
    that neither time nor band leave room for stay untrained.
    """
    context = Context.of(_free(problem))
    found = [_fitted(context, skeleton, kind, rng) for skeleton in _skeletons(context, kind, rng)]
    return max(found, key=lambda schedule: _training(context, schedule)).sorted()


def _free(problem: Problem) -> Problem:
    """The problem without what depends on constants or energy, every task being wanted."""
    data = problem.to_dict()
    data["objective"] |= {"mode": "weighted", "total_energy_j": None, "enforce_conditions": False}
    for task in data["tasks"]:
        task["weight"] = 1.0
    for device in data["devices"]:
        device["energy_budget_j"] = None
    return Problem.model_validate(data)


def _skeletons(context: Context, kind: str, rng: np.random.Generator) -> Iterator[Skeleton]:
    for length in length_grid(context):
        if kind == "random":
            yield random_skeleton(context, rng, ACTIVITY, float(length))
        else:
            for alternate in (False, True):
                yield synchronous_skeleton(context, int(length), int(length), 1.0, alternate=alternate)


def _fitted(context: Context, skeleton: Skeleton, kind: str, rng: np.random.Generator) -> Schedule:
    most = context.arrays.max_steps[skeleton.task].astype(float)
    if kind == "random":
        steps = np.floor(1.0 + rng.random(len(skeleton)) * most)
        low = float(context.arrays.min_batch.min())
        batch = np.asarray(np.round(np.exp(rng.uniform(np.log(low), np.log(max(low, MOST_BATCH)), len(skeleton)))), float)
        return fit(context, prepare(context, skeleton), steps, batch)
    return fit(context, prepare(context, skeleton), most, float(BATCH))


def _training(context: Context, schedule: Schedule) -> tuple[float, float]:
    """Σ λ e of the task that has least of it, and of all."""
    done: FloatArray = np.zeros(context.arrays.num_tasks)
    np.add.at(done, schedule.task, context.arrays.aggregation_weight[schedule.device, schedule.task] * schedule.steps)
    return float(done.min()), float(done.sum())


def check_fits(problem: Problem, planned: Problem) -> None:
    """Refuse a schedule made for ``planned`` unless it has the devices, tasks and slots of ``problem``."""
    for kind in ("tasks", "devices"):
        wanted, given = ([entry.name for entry in getattr(p, kind)] for p in (problem, planned))
        if wanted != given:
            at = next((k for k, pair in enumerate(zip(wanted, given, strict=False)) if pair[0] != pair[1]), min(len(wanted), len(given)))
            names = [repr(entries[at]) if at < len(entries) else "none" for entries in (given, wanted)]
            raise InputError(f"the schedule is of another problem: {kind}[{at}] = {names[0]}; must be {names[1]}")
    if problem.horizon.slots != planned.horizon.slots:
        raise InputError(f"the schedule is of another problem: {planned.horizon.slots} slots; must be {problem.horizon.slots}")
