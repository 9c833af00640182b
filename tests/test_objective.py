"""The exact objective against the reference: three modes, energy breakdown, large schedules, purity."""

from __future__ import annotations

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
from builders import (
    cases,
    feasible_assignments,
    make,
    plain_assignment,
    plain_device,
    plain_problem,
    plain_task,
    random_assignments,
    random_problem,
    seeds,
)
from hypothesis import given
from reference import evaluate

from schedopt.constraints import validate_schedule
from schedopt.objective import evaluate_objective, weighted_bound

MODES = ("weighted", "min_energy", "min_bound")


@pytest.mark.parametrize("mode", MODES)
@cases(80)
@given(seed=seeds)
def test_objective_and_energies_match_the_reference(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, mode=mode)
    count = 5 * len(problem["tasks"])
    assignments = feasible_assignments(rng, problem) if rng.random() < 0.5 else random_assignments(rng, problem, count)
    value, expected = evaluate_objective(*make(problem, assignments)), evaluate(problem, assignments)
    assert value.objective == pytest.approx(expected.objective, rel=1e-10)
    assert value.energy_j == pytest.approx(expected.energy_j, rel=1e-10)
    assert value.task_energy_j == pytest.approx(expected.task_energy_j, rel=1e-10)
    assert value.device_energy_j == pytest.approx(expected.device_energy_j, rel=1e-10)
    assert value.task_assignments.tolist() == [sum(s["task"] == t["name"] for s in assignments) for t in problem["tasks"]]


def test_the_random_cases_have_finite_objectives_too() -> None:
    """Guards the comparison above: inf == inf must not be all that it sees."""
    rng = np.random.default_rng(2)
    finite = 0
    for _ in range(30):
        problem = random_problem(rng, mode="weighted")
        finite += math.isfinite(evaluate_objective(*make(problem, random_assignments(rng, problem, 5 * len(problem["tasks"])))).objective)
    assert finite >= 10


def test_the_modes_by_hand() -> None:
    """Two tasks of weights 2 and 3, one assignment each."""
    tasks = [plain_task(weight=2.0, target=1.0), plain_task(name="t1", weight=3.0)]
    assignments = [plain_assignment(), plain_assignment(task="t1", start=1, end=2, steps=4)]
    values = {}
    for mode in MODES:
        problem = plain_problem([plain_device(tasks=("t0", "t1"))], tasks, mode=mode)
        values[mode] = evaluate_objective(*make(problem, assignments))
    first, second = values["weighted"].bound.total
    energy = values["weighted"].energy_j
    assert energy == pytest.approx(0.6 + 0.5 * 2e-28 * (1e8 + 0.8e8) * 1.25e8**2, rel=1e-13)
    assert values["min_energy"].objective == energy
    assert values["min_bound"].objective == pytest.approx(2 * first + 3 * second, rel=1e-14)
    assert values["weighted"].objective == pytest.approx(2 * first + 3 * second + 0.5 * energy, rel=1e-14)


def test_an_untrained_task_makes_the_objective_infinite_except_for_energy() -> None:
    tasks = [plain_task(target=1.0), plain_task(name="t1")]
    for mode, expected in zip(MODES, (math.inf, 0.3 + 1.5625e-4, math.inf), strict=True):
        problem = plain_problem([plain_device(tasks=("t0", "t1"))], tasks, mode=mode)
        assert evaluate_objective(*make(problem, [plain_assignment()])).objective == pytest.approx(expected, rel=1e-13)


def test_a_task_of_weight_zero_counts_nothing_trained_or_not() -> None:
    tasks = [plain_task(), plain_task(name="t1", weight=0.0)]
    devices = [plain_device(tasks=("t0", "t1"))]
    alone = evaluate_objective(*make(plain_problem(), [plain_assignment()])).objective
    untrained = evaluate_objective(*make(plain_problem(devices, tasks), [plain_assignment()]))
    assert untrained.objective == alone
    assert untrained.bound.total[1] == math.inf
    extra = plain_assignment(task="t1", start=1, end=2)
    trained = evaluate_objective(*make(plain_problem(devices, tasks), [plain_assignment(), extra]))
    assert trained.objective == pytest.approx(alone + 0.5 * (0.3 + 1.5625e-4), rel=1e-13)


def test_weighted_bound() -> None:
    assert weighted_bound(np.array([2.0, 0.0, 1.0]), np.array([3.0, np.inf, 4.0])) == 10.0
    assert weighted_bound(np.array([2.0, 0.5]), np.array([3.0, np.inf])) == math.inf


def test_without_assignments_no_energy_is_spent() -> None:
    value = evaluate_objective(*make(plain_problem(), []))
    assert (value.energy_j, value.objective) == (0.0, math.inf)
    assert value.device_energy_j.tolist() == [0.0]
    assert value.task_assignments.tolist() == [0]


@cases(30)
@given(seeds)
def test_the_order_of_assignments_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    instance, schedule = make(problem, random_assignments(rng, problem, 30))
    one = evaluate_objective(instance, schedule)
    other = evaluate_objective(instance, schedule.take(rng.permutation(len(schedule))))
    assert other.objective == pytest.approx(one.objective, rel=1e-11)
    assert other.bound.conditions[1].value == pytest.approx(one.bound.conditions[1].value, rel=1e-11)


@cases(20)
@given(seeds)
def test_evaluation_changes_neither_problem_nor_schedule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    instance, schedule = make(problem, random_assignments(rng, problem, 15))
    before = copy.deepcopy(instance.to_dict())
    arrays = {f.name: np.copy(getattr(instance.arrays, f.name)) for f in fields(instance.arrays)}
    columns = {f.name: np.copy(getattr(schedule, f.name)) for f in fields(schedule)}
    digests = instance.digest, schedule.digest
    first = evaluate_objective(instance, schedule)
    validate_schedule(instance, schedule)
    schedule.tensors(instance)
    second = evaluate_objective(instance, schedule)
    assert first.objective == second.objective
    assert instance.to_dict() == before
    assert (instance.digest, schedule.digest) == digests
    for name, array in arrays.items():
        assert np.array_equal(getattr(instance.arrays, name), array), name
    for name, array in columns.items():
        assert np.array_equal(getattr(schedule, name), array), name


def test_arrays_of_problem_and_schedule_are_read_only() -> None:
    instance, schedule = make(plain_problem(), [plain_assignment()])
    for holder in (instance.arrays, schedule):
        for f in fields(holder):
            array = getattr(holder, f.name)
            if isinstance(array, np.ndarray):
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0


def test_a_schedule_does_not_follow_the_arrays_it_was_made_from() -> None:
    _, schedule = make(plain_problem(), [plain_assignment()])
    batch = np.array([20.0])
    copied = schedule.replace(batch=batch)
    batch[0] = 1.0
    assert copied.batch.tolist() == [20.0]


def test_a_hundred_thousand_assignments() -> None:
    """Vectorised: a schedule of this size is evaluated and validated, and every total is still right."""
    rng = np.random.default_rng(17)
    problem = random_problem(rng, devices=40, tasks=3, slots=300, mode="weighted", participation="horizon")
    assignments = random_assignments(rng, problem, 100_000)
    instance, schedule = make(problem, assignments)
    report = validate_schedule(instance, schedule)
    expected = evaluate(problem, assignments)
    assert report.evaluation.objective == pytest.approx(expected.objective, rel=1e-10)
    assert report.evaluation.energy_j == pytest.approx(expected.energy_j, rel=1e-10)
    for j, task in enumerate(expected.tasks):
        assert report.evaluation.bound.raw_terms[j] == pytest.approx(list(task.raw.values()), rel=1e-9)
        assert report.evaluation.bound.conditions[1].value[j] == pytest.approx(task.c2, rel=1e-10)
    worst = {check.name: check.amount for check in report.checks}
    assert worst["5 spectrum"] == pytest.approx(expected.worst()["spectrum"], rel=1e-10)
    assert worst["1 one task at a time"] == expected.worst()["occupancy"]
