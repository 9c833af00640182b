"""The oracle against a dumber one: every set of assignments, every whole (steps, batch), resources by the allocator it does not use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.formulation.resources import allocate
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import get_solver
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings
from tests.tiny import tiny_problem

Row = tuple[float, ...]


def _plans(problem: Problem, device: int) -> list[tuple[Row, ...]]:
    """All sets of disjoint assignments of a device, with every whole (steps, batch)."""
    a = problem.arrays
    single: list[Row] = []
    for j, start in itertools.product(range(a.num_tasks), range(a.slots)):
        for end in range(start + 1, min(a.slots, start + 1 + int(a.max_staleness[j])) + 1):
            for steps in range(1, int(a.max_steps[j]) + 1):
                for batch in range(int(a.min_batch[j]), int(a.samples[device, j]) + 1):
                    single.append((device, j, start, end, steps, batch, 0.0, 0.0, 0.0))

    def extend(chosen: tuple[Row, ...], free_from: int) -> Iterator[tuple[Row, ...]]:
        yield chosen
        for row in single:
            if row[2] >= free_from:
                yield from extend((*chosen, row), int(row[3]))

    return list(extend((), 0))


def _brute_force(problem: Problem) -> float:
    best = np.inf
    for plans in itertools.product(*(_plans(problem, i) for i in range(len(problem.devices)))):
        rows = [row for plan in plans for row in plan]
        allocation = allocate(problem.arrays, Schedule.from_records(rows)) if rows else None
        if allocation is None:
            continue
        evaluation = evaluate_objective(problem, allocation.schedule)
        report = validate_schedule(problem, allocation.schedule, tolerance=1e-9, evaluation=evaluation)
        if report.feasible and evaluation.objective < best:
            best = evaluation.objective
    return best


@pytest.mark.parametrize(("devices", "tasks", "slots"), [(1, 1, 2), (2, 1, 1), (1, 2, 1), (1, 1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_enumeration_finds_the_brute_force_optimum(devices: int, tasks: int, slots: int, seed: int) -> None:
    problem = tiny_problem(
        np.random.default_rng(seed), devices=devices, tasks=tasks, slots=slots, samples=(3, 4), task={"max_steps": 2, "min_batch": 2}
    )
    found = get_solver("enumeration").solve(problem, settings=SolverSettings())
    if tasks > devices * slots:
        # a task is left untrained in every schedule
        assert found.schedule is None and found.reason and not np.isfinite(_brute_force(problem))
        return
    assert found.objective == pytest.approx(_brute_force(problem), rel=1e-7)
    assert found.lower_bound is not None and found.lower_bound <= found.objective


def test_too_large_a_problem_is_refused_in_one_line() -> None:
    problem = tiny_problem(np.random.default_rng(0), devices=3, tasks=2, slots=12)
    with pytest.raises(InputError) as refused:
        get_solver("enumeration").solve(problem, settings=SolverSettings())
    assert "\n" not in str(refused.value)
