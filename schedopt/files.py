"""What the files hold: pydantic models of ``schedule.json``, and the way from plain JSON data to objects and back.

``problem.json`` is :class:`~schedopt.problem.Problem` itself. Nothing here opens a file (see :mod:`schedopt.io`); every error is one
line with the path of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, ValidationError

from schedopt.errors import InputError
from schedopt.jsontext import preview
from schedopt.messages import describe_validation_error
from schedopt.objective import Evaluation, evaluate_objective
from schedopt.problem import (
    PROBLEM_SCHEMA,
    Name,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Problem,
    _Model,
    _number,
)
from schedopt.result import SolveResult
from schedopt.schedule import SCHEDULE_SCHEMA, Schedule

__all__ = [
    "AssignmentEntry",
    "ResultEntry",
    "ScheduleDocument",
    "ScheduleFile",
    "SolverEntry",
    "TaskResultEntry",
    "parse_problem",
    "parse_schedule",
    "result_to_dict",
    "schedule_to_dict",
]

Finite = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]

ModelT = TypeVar("ModelT", bound=BaseModel)


class AssignmentEntry(_Model):
    """One device trains one task from instant ``start`` to instant ``end``."""

    device: Name
    """Name of the device."""
    task: Name
    """Name of the task; the device must hold data of it."""
    start: NonNegativeInt
    """Instant a at which the device receives the model."""
    end: PositiveInt
    """Instant b at which the update is aggregated; start < end <= horizon.slots."""
    steps: PositiveInt
    """Local SGD steps e."""
    batch: PositiveInt
    """Mini-batch B."""
    freq_hz: Positive
    """CPU frequency in Hz."""
    power_w: Positive
    """Transmit power in W."""
    bandwidth_hz: Positive
    """Uplink bandwidth in Hz."""


class TaskResultEntry(_Model):
    """What the writer of the file says about one task."""

    bound: Finite | None
    """Ψ_j; null if the task is never trained (Ψ is infinite)."""
    energy_j: NonNegative | None
    """Energy of the task's assignments in J; null if infinite."""
    assignments: NonNegativeInt
    """Number of the task's assignments."""
    certified: StrictBool
    """Whether Theorem 1 covers the bound."""


class SolverEntry(_Model):
    """How the schedule was found."""

    name: Name
    """Name of the solver."""
    backend: str | None = None
    """Conic backend; null if none was used."""
    iterations: NonNegativeInt | None = None
    """Iterations of the main loop."""
    kkt_residual: NonNegative | None = None
    """Residual of the optimality conditions of the relaxed problem at exit; null if not measured."""
    wall_s: NonNegative | None = None
    """Wall-clock time in seconds."""
    seed: NonNegativeInt | None = None
    """Seed of every random choice."""


class ResultEntry(_Model):
    """What the writer of the file says about the schedule; ``schedopt validate`` recomputes it."""

    objective: Finite | None
    """Minimised quantity of the problem's mode; null if infinite."""
    energy_j: NonNegative | None
    """Energy of all assignments in J; null if infinite."""
    tasks: dict[Name, TaskResultEntry]
    """Results by task name."""
    lower_bound: Finite | None = None
    """Proven lower bound on the optimum; null if there is none."""
    gap: Finite | None = None
    """(objective − lower_bound) / |objective|; null without a lower bound."""
    solver: SolverEntry | None = None
    """How the schedule was found."""
    interrupted: StrictBool = False
    """True if the solve was interrupted; absent otherwise."""


class ScheduleDocument(_Model):
    """A whole schedule, as in ``schedule.json``."""

    schema_: Literal["schedopt.schedule/1"] = Field(alias="schema")
    problem: Problem
    """The problem that the schedule is for: a schedule file is self-contained."""
    assignments: tuple[AssignmentEntry, ...]
    """The assignments."""
    result: ResultEntry | None = None
    """What the writer of the file says about the schedule; may be absent."""


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule file: the problem, the assignments in the order of the file, and the stated result (None if absent)."""

    problem: Problem
    schedule: Schedule
    result: ResultEntry | None = None


def parse_problem(data: Mapping[str, Any]) -> Problem:
    """The problem that ``data`` (the JSON object of a problem file) describes.

    Raises :class:`~schedopt.errors.InputError` with the path of the first field that is wrong.
    """
    return _parse(Problem, data, PROBLEM_SCHEMA)


def parse_schedule(data: Mapping[str, Any]) -> ScheduleFile:
    """The schedule file that ``data`` (its JSON object) describes, references between its parts checked.

    Raises :class:`~schedopt.errors.InputError` with the path of the first field that is wrong. Values that merely violate a
    constraint of the problem (a batch above the number of samples) pass: they are the validator's business.
    """
    document = _parse(ScheduleDocument, data, SCHEDULE_SCHEMA)
    problem, entries = document.problem, document.assignments
    schedule = Schedule(
        device=_indices(entries, "device", problem.device_index),
        task=_indices(entries, "task", problem.task_index),
        **{name: np.array([getattr(e, name) for e in entries]) for name in list(AssignmentEntry.model_fields)[2:]},
    )
    _check_structure(problem, schedule)
    for name in document.result.tasks if document.result else ():
        if name not in problem.task_index:
            raise InputError(f"result.tasks has a key = {preview(name)}; {_known('tasks', problem.task_index)}")
    return ScheduleFile(problem, schedule, document.result)


def _parse(model: type[ModelT], data: Mapping[str, Any], schema: str) -> ModelT:
    # the schema first: all other complaints about a file of another kind would mislead
    if data.get("schema") != schema:
        stated = f"schema = {preview(data['schema'])}" if "schema" in data else "schema: missing"
        raise InputError(f'{stated}; must be "{schema}"')
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, data, model)) from None


def _indices(entries: tuple[AssignmentEntry, ...], field: str, index: dict[str, int]) -> np.ndarray:
    names = [getattr(entry, field) for entry in entries]
    for k, name in enumerate(names):
        if name not in index:
            raise InputError(f"assignments[{k}].{field} = {preview(name)}; {_known(f'{field}s', index)}")
    return np.array([index[name] for name in names], dtype=np.int64)


def _known(kind: str, index: Mapping[str, int]) -> str:
    names = ", ".join(list(index)[:10])
    return f"must be one of the problem's {kind}: {names}{', ...' if len(index) > 10 else ''}"


def _check_structure(problem: Problem, schedule: Schedule) -> None:
    """Refuse assignments that no formula can evaluate: outside the horizon, without data, or with values that are no quantities."""
    arrays = problem.arrays
    bad = ~arrays.has_data[schedule.device, schedule.task]
    if bad.any():
        k = int(np.argmax(bad))
        device, task = problem.devices[schedule.device[k]], problem.tasks[schedule.task[k]]
        raise InputError(f"assignments[{k}].task = {preview(task.name)}; device {preview(device.name)} holds no data of this task")
    _refuse(schedule, "start", schedule.start < 0, "must be at least 0")
    _refuse(schedule, "end", schedule.end <= schedule.start, lambda k: f"must be after start = {schedule.start[k]}")
    _refuse(schedule, "end", schedule.end > arrays.slots, f"must be at most horizon.slots = {arrays.slots}")
    for name in ("steps", "batch"):
        values = getattr(schedule, name)
        _refuse(schedule, name, ~((values >= 1) & (values % 1 == 0)), "must be a whole number, at least 1")
    for name in ("freq_hz", "power_w", "bandwidth_hz"):
        values = getattr(schedule, name)
        _refuse(schedule, name, ~((values > 0) & np.isfinite(values)), "must be a finite number greater than 0")


def _refuse(schedule: Schedule, name: str, bad: np.ndarray, allowed: str | Callable[[int], str]) -> None:
    if bad.any():
        k = int(np.argmax(bad))
        limit = allowed if isinstance(allowed, str) else allowed(k)
        raise InputError(f"assignments[{k}].{name} = {getattr(schedule, name)[k].item()}; {limit}")


def schedule_to_dict(
    problem: Problem, schedule: Schedule, result: SolveResult | None = None, *, evaluation: Evaluation | None = None
) -> dict[str, Any]:
    """The JSON object of a schedule file, assignments in the order of :meth:`~schedopt.schedule.Schedule.sorted`.

    ``evaluation`` is the exact value of ``schedule`` if it is at hand; it is computed otherwise. Without ``result`` the file states
    the exact value but no solver. Raises :class:`~schedopt.errors.InputError` if an assignment could not be read back.
    """
    schedule = schedule.sorted()
    if len(schedule) and not (_within(schedule.device, len(problem.devices)) and _within(schedule.task, len(problem.tasks))):
        raise InputError("assignments: a device or task index outside the problem's lists")
    _check_structure(problem, schedule)
    if evaluation is None:
        with np.errstate(all="ignore"):  # absurd but legal numbers may overflow; the file says null
            evaluation = evaluate_objective(problem, schedule)
    columns: dict[str, list[Any]] = {
        "device": [problem.devices[i].name for i in schedule.device],
        "task": [problem.tasks[j].name for j in schedule.task],
    }
    for name in list(AssignmentEntry.model_fields)[2:]:
        array = getattr(schedule, name)
        columns[name] = (array if name.endswith(("_hz", "_w")) else array.astype(np.int64)).tolist()
    return {
        "schema": SCHEDULE_SCHEMA,
        "problem": problem.to_dict(),
        "assignments": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "result": result_to_dict(problem, result, evaluation),
    }


def _within(index: np.ndarray, length: int) -> bool:
    return bool(index.min() >= 0 and index.max() < length)


def result_to_dict(problem: Problem, result: SolveResult | None, evaluation: Evaluation) -> dict[str, Any]:
    """The ``result`` object of a schedule file: exact values, and how they were found; infinite values become null."""
    data: dict[str, Any] = {
        "objective": _finite(evaluation.objective),
        "energy_j": _finite(evaluation.energy_j),
        "tasks": {
            task.name: {
                "bound": _finite(float(evaluation.bound.total[j])),
                "energy_j": _finite(float(evaluation.task_energy_j[j])),
                "assignments": int(evaluation.task_assignments[j]),
                "certified": bool(evaluation.bound.certified[j]),
            }
            for j, task in enumerate(problem.tasks)
        },
        "lower_bound": None,
        "gap": None,
    }
    if result is not None:
        data |= {"lower_bound": result.lower_bound, "gap": result.gap, "solver": _solver_to_dict(result)}
        if result.interrupted:
            data["interrupted"] = True
    return data


def _solver_to_dict(result: SolveResult) -> dict[str, Any]:
    return {
        "name": result.solver,
        "backend": result.backend,
        "iterations": result.iterations,
        "kkt_residual": result.kkt_residual,
        "wall_s": result.wall_s,
        "seed": result.seed,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
