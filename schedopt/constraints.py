"""The validator: every constraint of the problem with signed amounts.

An *amount* is how far a row is beyond its limit, in the row's unit: positive = violated, negative = slack left. The constraints are
1-6, C1 and C2 of the formulation, and the limits of the modes (``target``, ``total_energy_j``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from schedopt.objective import Evaluation, evaluate_objective
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["FEASIBILITY_TOLERANCE", "ConstraintCheck", "ValidationReport", "Violation", "validate_schedule"]

#: Relative tolerance of a row: amount ≤ tolerance · max(|limit|, |value|) passes.
FEASIBILITY_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Violation:
    """One violated row: ``value`` against ``limit`` (amount = how far beyond), in ``unit``."""

    where: str
    value: float
    limit: float
    amount: float
    unit: str


@dataclass(frozen=True)
class ConstraintCheck:
    """All rows of one constraint: ``amount`` is the largest signed amount (−inf if there is no row)."""

    name: str
    statement: str
    unit: str
    rows: int
    amount: float
    where: str
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """No violated row."""
        return not self.violations

    @property
    def physical(self) -> bool:
        """Whether it is one of constraints 1 to 6, without which a schedule cannot be executed; the others concern bound and mode."""
        return self.name[0].isdigit()


@dataclass(frozen=True)
class ValidationReport:
    """Every constraint's check and the exact evaluation."""

    checks: tuple[ConstraintCheck, ...]
    evaluation: Evaluation

    @property
    def feasible(self) -> bool:
        """No constraint violated (a task that is never trained makes the objective infinite, not the schedule infeasible)."""
        return all(check.ok for check in self.checks)

    @property
    def violations(self) -> list[tuple[str, Violation]]:
        """All violated rows with the name of their constraint."""
        return [(check.name, violation) for check in self.checks for violation in check.violations]


def _check(
    name: str,
    statement: str,
    unit: str,
    value: np.ndarray,
    limit: np.ndarray | float,
    where: Callable[[int], str],
    tolerance: float,
) -> ConstraintCheck:
    """Rows value ≤ limit; an absent limit is +inf."""
    value = np.asarray(value, float).ravel()
    limit = np.broadcast_to(np.asarray(limit, float), value.shape)
    with np.errstate(invalid="ignore"):
        amount = value - limit
    scale = np.maximum(np.abs(np.where(np.isfinite(limit), limit, 0.0)), np.abs(np.where(np.isfinite(value), value, 0.0)))
    # NaN must count as violated, so the test is for "satisfied"
    bad = np.flatnonzero(~(amount <= tolerance * scale))
    violations = tuple(Violation(where(int(k)), float(value[k]), float(limit[k]), float(amount[k]), unit) for k in bad)
    if not len(value):
        return ConstraintCheck(name, statement, unit, 0, -np.inf, "", violations)
    worst = int(np.argmax(np.where(np.isnan(amount), np.inf, amount)))
    return ConstraintCheck(name, statement, unit, len(value), float(amount[worst]), where(worst), violations)


def validate_schedule(
    problem: Problem, schedule: Schedule, *, tolerance: float = FEASIBILITY_TOLERANCE, evaluation: Evaluation | None = None
) -> ValidationReport:
    """Check every constraint of ``problem`` on ``schedule``; rows within ``tolerance`` (relative) pass.

    Pass ``evaluation`` if it is at hand to save the recomputation.
    """
    evaluation = evaluation or evaluate_objective(problem, schedule)
    checks = tuple(_all_checks(problem, schedule, evaluation, tolerance))
    return ValidationReport(checks, evaluation)


def _all_checks(problem: Problem, schedule: Schedule, evaluation: Evaluation, tol: float) -> Iterator[ConstraintCheck]:
    yield from _scheduling_checks(problem, schedule)
    yield from _time_checks(problem, schedule, evaluation, tol)
    yield from _box_checks(problem, schedule, tol)
    yield from _shared_checks(problem, schedule, evaluation, tol)
    yield from _bound_checks(problem, evaluation, tol)


def _labels(problem: Problem, schedule: Schedule) -> Callable[[int], str]:
    def where(k: int) -> str:
        device, task = problem.devices[schedule.device[k]].name, problem.tasks[schedule.task[k]].name
        return f"assignments[{k}] ({device}, {task}, {schedule.start[k]}->{schedule.end[k]})"

    return where


def _scheduling_checks(problem: Problem, schedule: Schedule) -> Iterator[ConstraintCheck]:
    a = problem.arrays
    occupancy = np.zeros((a.num_devices, a.slots + 1))
    np.add.at(occupancy, (schedule.device, schedule.start), 1.0)
    np.add.at(occupancy, (schedule.device, schedule.end), -1.0)
    occupancy = np.cumsum(occupancy, axis=1)[:, : a.slots]

    def slot(k: int) -> str:
        return f"{problem.devices[k // a.slots].name}, slot {k % a.slots}"

    yield _check("1 one task at a time", "sum_j occupancy <= 1", "tasks", occupancy, 1.0, slot, 0.0)
    stale, limit = schedule.staleness.astype(float), a.max_staleness[schedule.task].astype(float)
    yield _check("2 staleness", "end - 1 - start <= max_staleness", "slots", stale, limit, _labels(problem, schedule), 0.0)


def _time_checks(problem: Problem, schedule: Schedule, evaluation: Evaluation, tol: float) -> Iterator[ConstraintCheck]:
    where, slot_s = _labels(problem, schedule), problem.arrays.slot_s
    physics = evaluation.physics
    total = "receive + compute + upload <= (end - start) * slot_s"
    yield _check("3 time", total, "s", physics.total_s, schedule.length * slot_s, where, tol)
    yield _check("3 upload time", "upload <= slot_s", "s", physics.upload_s, slot_s, where, tol)


def _box_checks(problem: Problem, schedule: Schedule, tol: float) -> Iterator[ConstraintCheck]:
    a, where = problem.arrays, _labels(problem, schedule)
    i, j = schedule.device, schedule.task

    def box(
        field: str, value: FloatArray, low: np.ndarray | float, high: np.ndarray | float, unit: str, slack: float
    ) -> Iterator[ConstraintCheck]:
        yield _check(f"4 {field} low", f"{field} >= lower limit", unit, -value, -np.asarray(low, float), where, slack)
        yield _check(f"4 {field} high", f"{field} <= upper limit", unit, value, np.asarray(high, float), where, slack)

    yield from box("steps", schedule.steps, 1.0, a.max_steps[j], "steps", 0.0)
    yield from box("batch", schedule.batch, a.min_batch[j], a.samples[i, j], "samples", 0.0)
    fraction = np.maximum(np.abs(schedule.steps % 1.0), np.abs(schedule.batch % 1.0))
    yield _check("4 whole numbers", "steps and batch are whole", "", fraction, 0.0, where, 0.0)
    yield from box("freq_hz", schedule.freq_hz, a.freq_min_hz[i], a.freq_max_hz[i], "Hz", tol)
    power = "0 < power_w <= max_power_w"
    value = np.where(schedule.power_w > 0, schedule.power_w, np.inf)
    yield _check("4 power_w", power, "W", value, a.max_power_w[i], where, tol)


def _shared_checks(problem: Problem, schedule: Schedule, evaluation: Evaluation, tol: float) -> Iterator[ConstraintCheck]:
    a = problem.arrays
    used = np.bincount(schedule.end - 1, weights=schedule.bandwidth_hz, minlength=a.slots)
    spectrum = "sum of bandwidth_hz of a slot's uploads <= spectrum"
    yield _check("5 spectrum", spectrum, "Hz", used, a.bandwidth_hz, lambda g: f"slot {g}", tol)
    negative = np.where(schedule.bandwidth_hz > 0, -schedule.bandwidth_hz, np.inf)
    yield _check("5 bandwidth_hz", "bandwidth_hz > 0", "Hz", negative, 0.0, _labels(problem, schedule), 0.0)
    energy, budget = evaluation.device_energy_j, a.energy_budget_j
    yield _check("6 energy budget", "energy of a device <= budget", "J", energy, budget, lambda i: problem.devices[i].name, tol)


def _bound_checks(problem: Problem, evaluation: Evaluation, tol: float) -> Iterator[ConstraintCheck]:
    a, objective = problem.arrays, problem.objective

    def task(j: int) -> str:
        return problem.tasks[j].name

    for condition in evaluation.bound.enforced:
        yield _check(condition.name, condition.statement, "", condition.value, condition.limit, task, tol)
    if objective.mode == "min_energy":
        yield _check("target", "bound <= target", "", np.where(np.isinf(a.target), 0.0, evaluation.bound.total), a.target, task, tol)
    if objective.mode == "min_bound" and objective.total_energy_j is not None:
        energy = np.array([evaluation.energy_j])
        yield _check("total energy", "energy <= total_energy_j", "J", energy, objective.total_energy_j, lambda _: "all devices", tol)
