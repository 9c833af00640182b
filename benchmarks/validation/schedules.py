"""Schedules that are trained: random ones, optimised ones, and some in which one thing varies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedopt.generate.presets import OBJECTIVES
from schedopt.problem import TERMS, Problem
from schedopt.registry import solve
from schedopt.schedule import Schedule
from schedopt.solvers.heuristics import Context, Skeleton, fit, prepare
from schedopt.solvers.random_feasible import random_skeleton

__all__ = ["FACTORS", "OPTIMISED", "WINDOW", "Named", "factor_schedules", "judged_by", "optimised_schedules", "random_schedules"]

#: instants over which participation is judged by the windowed guides
WINDOW = 4
#: saturation of the optimised schedules that have any
SATURATION = 0.2
#: the starting scale without stale: Theorem 2's stale term holds more than Theorem 1's, to which the starting scale belongs
_FRESH = OBJECTIVES["practical"]["term_scale"] | {"stale": 0.0}
#: objectives under which schedules are optimised: participation, multipliers of the terms, saturation
OPTIMISED: dict[str, tuple[Any, dict[str, float], float]] = {
    "plain": ("instant", {term: float(term in ("opt", "loss")) for term in TERMS}, 0.0),
    "start": ("horizon", OBJECTIVES["practical"]["term_scale"], 0.0),
    "window": ({"window": WINDOW}, _FRESH, 0.0),
    "saturating": ({"window": WINDOW}, _FRESH, SATURATION),
}
#: energies that optimised schedules may use: quantiles of what the random ones use
BUDGETS = (0.1, 0.3, 0.6)
SOLVER = "greedy_energy"
MOST_BATCH, MOST_STEPS = 128, 10
RANDOM_STREAM, TURNS_STREAM = 7, 8

#: One factor at a time: what it is, and its levels; all else is that of the base, which is one of the levels.
FACTORS: dict[str, tuple[int, ...]] = {
    "staleness": (0, 1, 3, 5),
    "steps": (1, 3, 5, 10),
    "batch": (1, 8, 32, 128),
    "uploads": (33, 66, 132),
    "devices": (2, 4, 7, 10),
    "turns": (4, 8, 20, 40),
}


@dataclass(frozen=True)
class Named:
    """A schedule with a name that says where it comes from; it is made when it is asked for."""

    name: str
    make: Callable[[], Schedule]


def random_schedules(problem: Problem, count: int, draw: int = 0) -> Iterator[Named]:
    """Steps 1 to 10, batches 1 to 128, lengths 1 to 6, 20 to 100 % of the time; half of them leave out some devices."""
    for k in range(count):
        yield Named(f"random-{k}", lambda k=k: _random(problem, np.random.default_rng([RANDOM_STREAM, k, draw])))  # type: ignore[misc]


def _random(problem: Problem, rng: np.random.Generator) -> Schedule:
    context, devices = Context.of(problem), problem.arrays.num_devices
    skeleton = random_skeleton(context, rng, rng.uniform(0.2, 1.0), rng.uniform(1.0, 5.0))
    taking_part = np.arange(devices) if rng.random() < 0.5 else rng.choice(devices, rng.integers(2, devices + 1), replace=False)
    skeleton = skeleton.take(np.isin(skeleton.device, taking_part))
    n = len(skeleton)
    if rng.random() < 1 / 3:  # every upload has its own, else all have about the same
        steps = rng.integers(1, MOST_STEPS + 1, n).astype(float)
        batch = np.exp(rng.uniform(0, np.log(MOST_BATCH), n))
    else:
        steps, batch = (np.exp(rng.uniform(0, np.log(most))) * 2 ** rng.uniform(-0.5, 0.5, n) for most in (MOST_STEPS, MOST_BATCH))
    steps, batch = (np.clip(np.round(x), 1, most) for x, most in ((steps, MOST_STEPS), (batch, MOST_BATCH)))
    return fit(context, prepare(context, skeleton), steps, batch)


def optimised_schedules(problem: Problem, energies: np.ndarray) -> Iterator[Named]:
    """The least Ψ at an energy, by each of the objectives; ``energies``: of random schedules."""
    for name in OPTIMISED:
        for share in BUDGETS:
            budget = float(np.quantile(energies, share))
            yield Named(f"{name}-{share:g}", lambda name=name, budget=budget: _optimised(problem, name, budget))  # type: ignore[misc]


def _optimised(problem: Problem, name: str, budget: float) -> Schedule:
    participation, scale, saturation = OPTIMISED[name]
    data = judged_by(problem, participation, saturation).to_dict()
    data["objective"] |= {"mode": "min_bound", "total_energy_j": budget, "term_scale": scale, "enforce_conditions": False}
    found = solve(Problem.model_validate(data), solver=SOLVER).schedule
    return Schedule.empty() if found is None else found


def judged_by(problem: Problem, participation: Any, saturation: float) -> Problem:
    """``problem`` as the bound is to see it: what participation is, and the saturation of local steps."""
    data = problem.to_dict()
    data["objective"]["participation"] = participation
    data["tasks"][0]["step_saturation"] = saturation
    return Problem.model_validate(data)


def factor_schedules(problem: Problem) -> Iterator[Named]:
    """All devices in turn, every sixth slot, with length 2, five steps of batch 32; and the same with one thing changed."""
    for factor, levels in FACTORS.items():
        for level in levels:
            yield Named(f"{factor}={level}", lambda f=factor, v=level: _varied(problem, f, v))  # type: ignore[misc]


def _varied(problem: Problem, factor: str, level: int) -> Schedule:
    context, slots, devices = Context.of(problem), problem.arrays.slots, problem.arrays.num_devices
    if factor == "turns":
        return _turns(context, level)
    length = level + 1 if factor == "staleness" else 2
    pause = {33: 12, 66: 6, 132: 3}[level] if factor == "uploads" else 6
    count = level if factor == "devices" else devices
    # uploads are due at the same instants whatever the length
    rows = [(i, 0, end - length, end) for i in range(count) for end in range(6 + i % pause, slots + 1, pause)]
    steps, batch = (float(level) if factor == name else usual for name, usual in (("steps", 5.0), ("batch", 32.0)))
    return fit(context, prepare(context, Skeleton(*np.array(rows, dtype=np.int64).T)), steps, batch)


def _turns(context: Context, period: int) -> Schedule:
    """Two halves of the devices take turns, each half a period; all devices upload equally often."""
    a = context.arrays
    halves = np.array_split(np.random.default_rng(TURNS_STREAM).permutation(a.num_devices), 2)
    rows = [(int(i), 0, s, s + 2) for s in range(0, a.slots - 1, 2) for i in halves[int(s % period * 2 >= period)]]
    return fit(context, prepare(context, Skeleton(*np.array(rows, dtype=np.int64).T)), 5.0, 32.0)
