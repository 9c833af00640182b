"""The validator: every constraint violated on purpose by a known amount, and random schedules against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from reference import AssignmentDict, ProblemDict, Row, evaluate

from schedopt.constraints import FEASIBILITY_TOLERANCE, ConstraintCheck, ValidationReport, validate_schedule

#: Name of each constraint in the report, by its name in the reference.
NAMES = {
    "occupancy": "1 one task at a time",
    "staleness": "2 staleness",
    "time": "3 time",
    "upload time": "3 upload time",
    "steps low": "4 steps low",
    "steps high": "4 steps high",
    "batch low": "4 batch low",
    "batch high": "4 batch high",
    "freq low": "4 freq_hz low",
    "freq high": "4 freq_hz high",
    "power": "4 power_w",
    "spectrum": "5 spectrum",
    "energy budget": "6 energy budget",
    "C1": "C1",
    "C2": "C2",
    "target": "target",
    "total energy": "total energy",
}


def report_of(problem: ProblemDict, assignments: list[AssignmentDict], **options: Any) -> ValidationReport:
    return validate_schedule(*make(problem, assignments), **options)


def broken(report: ValidationReport) -> dict[str, float]:
    """Worst amount of each violated constraint."""
    return {check.name: check.amount for check in report.checks if not check.ok}


def violated(row: Row) -> bool:
    """By the stated tolerance; an infinite value is beyond any finite limit."""
    if np.isinf(row.value) or np.isinf(row.limit):
        return row.value > row.limit
    return row.amount > FEASIBILITY_TOLERANCE * max(abs(row.limit), abs(row.value))


def check_of(report: ValidationReport, name: str) -> ConstraintCheck:
    return next(check for check in report.checks if check.name == name)


# --- against the reference ------------------------------------------------------------------------------------------------------


@cases(250)
@given(seeds)
def test_worst_amounts_and_counts_match_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    assignments = feasible_assignments(rng, problem) if rng.random() < 0.3 else random_assignments(rng, problem, int(rng.integers(1, 25)))
    report, expected = report_of(problem, assignments), evaluate(problem, assignments)
    rows = {name: [row for row in expected.rows if row.constraint == name] for name in NAMES}
    for name, amount in expected.worst().items():
        check = check_of(report, NAMES[name])
        scale = max((abs(x) for row in rows[name] for x in (row.value, row.limit) if np.isfinite(x)), default=0.0)
        assert check.amount == pytest.approx(amount, rel=1e-10, abs=1e-12 * scale), name
        assert len(check.violations) == sum(violated(row) for row in rows[name]), name


@cases(150)
@given(seeds)
def test_a_feasible_schedule_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, mode=str(rng.choice(["weighted", "min_bound"])))
    report = report_of(problem, feasible_assignments(rng, problem))
    assert report.feasible, report.violations
    assert report.violations == []


def test_the_feasible_schedules_are_not_empty() -> None:
    """Guards the test above."""
    rng = np.random.default_rng(8)
    counts = [len(feasible_assignments(rng, random_problem(rng, devices=4, slots=12))) for _ in range(30)]
    assert np.mean(counts) > 5


def test_the_plain_assignment_is_feasible_with_known_slack() -> None:
    report = report_of(plain_problem(), [plain_assignment()])
    assert report.feasible
    slack = {check.name: check.amount for check in report.checks if check.rows}
    assert slack == pytest.approx(
        {
            "1 one task at a time": 0.0,
            "2 staleness": -3.0,
            "3 time": -0.1,
            "3 upload time": -1.0,
            "4 steps low": -4.0,
            "4 steps high": -5.0,
            "4 batch low": -19.0,
            "4 batch high": -80.0,
            "4 whole numbers": 0.0,
            "4 freq_hz low": -2.5e7,
            "4 freq_hz high": -8.75e8,
            "4 power_w": -0.1,
            "5 spectrum": -1.0e6,
            "5 bandwidth_hz": -1.0e6,
            "6 energy budget": -np.inf,
            "C1": -0.025,
            "C2": -0.475,
        },
        rel=1e-12,
    )


# --- each constraint violated on purpose ----------------------------------------------------------------------------------------

ONE_BREACH = [
    ("2 staleness", {"end": 5}, {}, 1.0),
    ("3 time", {"freq_hz": 1.0e8}, {}, 0.1),
    ("3 time", {"batch": 24}, {}, 0.06),
    ("4 steps low", {"steps": 0}, {}, 1.0),
    ("4 steps high", {"steps": 11, "batch": 1}, {"smoothness": 0.1}, 1.0),
    ("4 batch low", {"batch": 6}, {"min_batch": 8}, 2.0),
    ("4 batch high", {"batch": 103, "steps": 1}, {}, 3.0),
    ("4 whole numbers", {"batch": 20.25}, {}, 0.25),
    ("4 whole numbers", {"steps": 4.5}, {}, 0.5),
    ("4 freq_hz low", {"freq_hz": 0.9e8, "batch": 10}, {}, 0.1e8),
    ("4 freq_hz high", {"freq_hz": 1.25e9}, {}, 0.25e9),
    ("4 power_w", {"power_w": 0.7, "bandwidth_hz": 1.0e6}, {}, 0.3),
    ("5 spectrum", {"bandwidth_hz": 2.5e6}, {}, 0.5e6),
    ("C1", {"steps": 8, "batch": 10}, {"smoothness": 1.0}, 0.03),
    ("C2", {}, {"server_rate": 30.0}, 0.25),
]


@pytest.mark.parametrize(("name", "changes", "task", "amount"), ONE_BREACH, ids=lambda value: value if isinstance(value, str) else "")
def test_one_breach_is_reported_alone_with_its_amount(name: str, changes: dict[str, Any], task: dict[str, Any], amount: float) -> None:
    report = report_of(plain_problem(tasks=[plain_task(**task)]), [plain_assignment(**changes)])
    assert not report.feasible
    assert broken(report) == {name: pytest.approx(amount, rel=1e-9)}
    ((constraint, violation),) = report.violations
    assert constraint == name
    assert violation.amount == pytest.approx(amount, rel=1e-9)
    assert violation.value - violation.limit == pytest.approx(amount, rel=1e-9)
    assert violation.where == check_of(report, name).where


def test_an_upload_longer_than_a_slot() -> None:
    """At half the bandwidth: signal-to-noise ratio 6, log2(7)/2 Mbit/s; two slots are time enough for the whole assignment."""
    problem = plain_problem(tasks=[plain_task(model_bits=4.0e6)])
    report = report_of(problem, [plain_assignment(end=3, bandwidth_hz=0.5e6)])
    assert broken(report) == {"3 upload time": pytest.approx(4.0 / (0.5 * np.log2(7)) - 2.0, rel=1e-12)}


def test_two_tasks_at_a_time() -> None:
    problem = plain_problem([plain_device(tasks=("t0", "t1"))], [plain_task(), plain_task(name="t1")])
    report = report_of(problem, [plain_assignment(end=3), plain_assignment(task="t1", start=2, end=4)])
    assert broken(report) == {"1 one task at a time": 1.0}
    assert check_of(report, "1 one task at a time").where == "d0, slot 2"
    # back to back is fine
    assert report_of(problem, [plain_assignment(end=3), plain_assignment(task="t1", start=3, end=4)]).feasible


def test_the_same_task_twice_at_a_time() -> None:
    report = report_of(plain_problem(), [plain_assignment(end=2), plain_assignment(start=0, end=2), plain_assignment(start=1, end=3)])
    assert broken(report)["1 one task at a time"] == 2.0
    assert [v.where for _, v in report.violations if v.unit == "tasks"] == ["d0, slot 0", "d0, slot 1"]


def test_spectrum_is_shared_by_the_uploads_of_a_slot_only() -> None:
    devices = [plain_device(f"d{i}") for i in range(3)]
    share = [plain_assignment(device=f"d{i}", end=2, bandwidth_hz=0.75e6) for i in range(3)]
    report = report_of(plain_problem(devices), share)
    assert broken(report) == {"5 spectrum": pytest.approx(0.25e6)}
    assert check_of(report, "5 spectrum").where == "slot 1"
    assert report_of(plain_problem(devices), [*share[:2], share[2] | {"end": 3}]).feasible


def test_energy_budget_of_a_device() -> None:
    budget = 0.5
    devices = [plain_device("d0", energy_budget_j=budget), plain_device("d1")]
    twice = [plain_assignment(start=g, end=g + 1) for g in range(2)]
    report = report_of(plain_problem(devices), [*twice, plain_assignment(device="d1")])
    assert broken(report) == {"6 energy budget": pytest.approx(2 * (0.3 + 1.5625e-4) - budget, rel=1e-12)}
    assert check_of(report, "6 energy budget").where == "d0"
    assert report_of(plain_problem(devices), twice[:1]).feasible


def test_target_of_min_energy() -> None:
    tasks = [plain_task(target=100.0), plain_task(name="t1")]
    problem = plain_problem([plain_device(tasks=("t0", "t1"))], tasks, mode="min_energy")
    bound = evaluate(problem, [plain_assignment()]).tasks[0].bound
    assert broken(report_of(problem, [plain_assignment()])) == {"target": pytest.approx(bound - 100.0, rel=1e-10)}
    tasks[0]["target"] = bound + 1.0
    report = report_of(problem, [plain_assignment()])
    assert report.feasible  # t1 has no target and need not be trained
    assert broken(report_of(problem, [plain_assignment(task="t1")])) == {"target": np.inf}


def test_total_energy_of_min_bound() -> None:
    problem = plain_problem(mode="min_bound", total_energy_j=0.25)
    assert broken(report_of(problem, [plain_assignment()])) == {"total energy": pytest.approx(0.05 + 1.5625e-4, rel=1e-12)}
    # the limit belongs to that mode alone
    assert report_of(plain_problem(mode="weighted", total_energy_j=0.25), [plain_assignment()]).feasible


@pytest.mark.parametrize("changes", [{"steps": 8, "batch": 10}, {}])
def test_conditions_bind_only_when_enforced(changes: dict[str, Any]) -> None:
    task = plain_task(smoothness=1.0, server_rate=30.0)
    enforced = report_of(plain_problem(tasks=[task]), [plain_assignment(**changes)])
    assert not enforced.feasible
    free = report_of(plain_problem(tasks=[task], enforce_conditions=False), [plain_assignment(**changes)])
    assert free.feasible
    assert not {"C1", "C2"} & {check.name for check in free.checks}


@pytest.mark.parametrize(("field", "constraint"), [("power_w", "4 power_w"), ("bandwidth_hz", "5 bandwidth_hz")])
@pytest.mark.parametrize("value", [0.0, -0.1])
def test_power_and_bandwidth_must_be_positive(field: str, constraint: str, value: float) -> None:
    report = report_of(plain_problem(), [plain_assignment(**{field: value})])
    assert constraint in broken(report)


def test_several_breaches_are_all_reported() -> None:
    changes = {"steps": 11, "batch": 120, "freq_hz": 1.1e9, "power_w": 0.5, "bandwidth_hz": 3.0e6, "end": 6}
    report = report_of(plain_problem(), [plain_assignment(**changes)])
    names = {"2 staleness", "4 steps high", "4 batch high", "4 freq_hz high", "4 power_w", "5 spectrum", "C1"}
    assert set(broken(report)) == names
    assert {name for name, _ in report.violations} == names


def test_violations_name_device_task_and_instants() -> None:
    report = report_of(plain_problem(), [plain_assignment(), plain_assignment(start=2, end=3, power_w=0.5)])
    assert [v.where for _, v in report.violations] == ["assignments[1] (d0, t0, 2->3)"]


# --- tolerance ------------------------------------------------------------------------------------------------------------------


def _at_power(excess: float) -> AssignmentDict:
    return plain_assignment(power_w=0.4 * (1 + excess))


def _at_spectrum(excess: float) -> AssignmentDict:
    return plain_assignment(bandwidth_hz=2.0e6 * (1 + excess))


def _at_frequency(excess: float) -> AssignmentDict:
    return plain_assignment(freq_hz=1.0e9 * (1 + excess))


@pytest.mark.parametrize("at", [_at_power, _at_spectrum, _at_frequency])
def test_the_tolerance_is_relative_and_small(at: Callable[[float], AssignmentDict]) -> None:
    assert FEASIBILITY_TOLERANCE <= 1e-6
    assert report_of(plain_problem(), [at(0.5 * FEASIBILITY_TOLERANCE)]).feasible
    assert not report_of(plain_problem(), [at(2.0 * FEASIBILITY_TOLERANCE)]).feasible
    assert not report_of(plain_problem(), [at(1e-9)], tolerance=0.0).feasible


def test_whole_numbers_have_no_tolerance() -> None:
    assert not report_of(plain_problem(), [plain_assignment(steps=5 + 1e-9)]).feasible
    assert not report_of(plain_problem(tasks=[plain_task(max_staleness=0)]), [plain_assignment(end=2)]).feasible


def test_not_a_number_is_a_violation() -> None:
    report = report_of(plain_problem(), [plain_assignment(freq_hz=np.nan)])
    assert {"3 time", "4 freq_hz low", "4 freq_hz high"} <= set(broken(report))


def test_an_empty_schedule_is_feasible_but_trains_nothing() -> None:
    report = report_of(plain_problem(), [])
    assert report.feasible
    assert report.evaluation.objective == np.inf
    assert check_of(report, "3 time").rows == 0
    assert check_of(report, "3 time").amount == -np.inf


def test_an_evaluation_at_hand_is_used() -> None:
    instance, schedule = make(plain_problem(), [plain_assignment()])
    first = validate_schedule(instance, schedule)
    assert validate_schedule(instance, schedule, evaluation=first.evaluation).evaluation is first.evaluation
