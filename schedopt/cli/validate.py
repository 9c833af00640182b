"""``schedopt validate``: feasible, or each violated constraint with its amount."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from schedopt.cli.options import json_option
from schedopt.cli.output import Command, Screen, number, print_json
from schedopt.errors import InfeasibleError

if TYPE_CHECKING:
    from schedopt.constraints import ConstraintCheck, ValidationReport
    from schedopt.files import ResultEntry, ScheduleFile
    from schedopt.objective import Evaluation
    from schedopt.problem import Problem

__all__ = ["Mismatch", "command", "result_mismatches"]

#: A stated result may differ from the recomputed one by this much, relatively.
RESULT_TOLERANCE = 1e-6

#: At most this many violated rows of a constraint are printed; ``--json`` has all.
PRINTED_ROWS = 10


@dataclass(frozen=True)
class Mismatch:
    """A number that the file's ``result`` states wrongly; ``None`` is an infinite one."""

    field: str
    stated: float | bool | None
    recomputed: float | bool | None


@click.command("validate", cls=Command, short_help="Check a problem or a schedule.")
@click.argument("path", metavar="FILE", type=click.Path())
@json_option
@click.pass_context
def command(ctx: click.Context, path: str, as_json: bool) -> None:
    """Check FILE, a problem or a schedule.

    A schedule is feasible, or each violated constraint is shown with the amount by which it is violated, and the exit code is 3; so it
    is when the result that the file states is not the recomputed one. A FILE that cannot be read has exit code 2.
    """
    from schedopt.io import load_any
    from schedopt.problem import Problem

    loaded = load_any(path)
    if isinstance(loaded, Problem):
        _show_problem(loaded, as_json=as_json)
    elif not _show_schedule(loaded, as_json=as_json):
        ctx.exit(InfeasibleError.exit_code)


def _show_problem(problem: Problem, *, as_json: bool) -> None:
    summary = _problem_summary(problem)
    if as_json:
        print_json({"kind": "problem", "valid": True, **summary})
        return
    screen = Screen()
    screen.line(f"{problem.name}: valid problem")
    for key, value in summary.items():
        if key != "name":
            text = json.dumps(value) if isinstance(value, dict) else value
            screen.line(f"  {key.replace('_', ' '):<22}{text}")


def _problem_summary(problem: Problem) -> dict[str, Any]:
    """Sizes of a problem; ``possible_assignments`` counts (device, task, start, end) within the staleness limit."""
    import numpy as np

    arrays = problem.arrays
    # start/end pairs of at most K + 1 slots: sum over lengths L of G - L + 1
    longest = np.minimum(arrays.max_staleness + 1, arrays.slots)
    spans = longest * (arrays.slots + 1) - longest * (longest + 1) // 2
    return {
        "name": problem.name,
        "digest": problem.digest,
        "devices": arrays.num_devices,
        "tasks": arrays.num_tasks,
        "slots": arrays.slots,
        "slot_s": arrays.slot_s,
        "mode": problem.objective.mode,
        "participation": problem.objective.model_dump(mode="json")["participation"],
        "enforce_conditions": problem.objective.enforce_conditions,
        "device_task_pairs": int(arrays.has_data.sum()),
        "possible_assignments": int((arrays.has_data.sum(axis=0) * spans).sum()),
    }


def _show_schedule(file: ScheduleFile, *, as_json: bool) -> bool:
    """Print the report; tell whether the schedule is feasible and its stated result right."""
    import numpy as np

    from schedopt.constraints import validate_schedule

    with np.errstate(all="ignore"):  # absurd but legal numbers may overflow; the rows say so
        report = validate_schedule(file.problem, file.schedule)
    mismatches = result_mismatches(file.problem, file.result, report)
    if as_json:
        print_json(_report_dict(file, report, mismatches))
    else:
        _print_report(file, report, mismatches)
    return report.feasible and not mismatches


def result_mismatches(problem: Problem, result: ResultEntry | None, report: ValidationReport) -> list[Mismatch]:
    """Every number of the file's ``result`` that differs from the recomputed one by more than :data:`RESULT_TOLERANCE`.

    A stated lower bound above the objective of a feasible schedule is one too: no lower bound can be.
    """
    if result is None:
        return []
    evaluation = report.evaluation
    pairs: list[tuple[str, Any, Any]] = [
        ("objective", result.objective, evaluation.objective),
        ("energy_j", result.energy_j, evaluation.energy_j),
        *_task_pairs(problem, result, evaluation),
    ]
    wrong = [Mismatch(f"result.{field}", stated, _finite(true)) for field, stated, true in pairs if not _agree(stated, true)]
    return wrong + _bound_mismatches(result, report)


def _task_pairs(problem: Problem, result: ResultEntry, evaluation: Evaluation) -> list[tuple[str, Any, Any]]:
    pairs: list[tuple[str, Any, Any]] = []
    for name, entry in result.tasks.items():
        j, path = problem.task_index[name], f"tasks.{name}"
        pairs += [
            (f"{path}.bound", entry.bound, float(evaluation.bound.total[j])),
            (f"{path}.energy_j", entry.energy_j, float(evaluation.task_energy_j[j])),
            (f"{path}.assignments", entry.assignments, int(evaluation.task_assignments[j])),
            (f"{path}.certified", entry.certified, bool(evaluation.bound.certified[j])),
        ]
    return pairs


def _bound_mismatches(result: ResultEntry, report: ValidationReport) -> list[Mismatch]:
    bound, objective = result.lower_bound, report.evaluation.objective
    if bound is None:
        return []
    wrong = []
    slack = RESULT_TOLERANCE * abs(objective)
    if report.feasible and bound > objective + slack:
        wrong.append(Mismatch("result.lower_bound", bound, _finite(objective)))
    gap = (objective - bound) / abs(objective) if objective else 0.0
    # the gap is a small difference of numbers that agree to the tolerance, so it is judged on their scale
    if result.gap is not None and not abs(result.gap - gap) <= RESULT_TOLERANCE * max(1.0, abs(gap)):
        wrong.append(Mismatch("result.gap", result.gap, _finite(gap)))
    return wrong


def _agree(stated: float | bool | None, true: float | bool) -> bool:
    if stated is None:
        return not math.isfinite(true)
    if isinstance(true, (bool, int)):
        return stated == true
    return math.isclose(stated, true, rel_tol=RESULT_TOLERANCE, abs_tol=1e-300)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _report_dict(file: ScheduleFile, report: ValidationReport, mismatches: list[Mismatch]) -> dict[str, Any]:
    return {
        "kind": "schedule",
        "problem": file.problem.name,
        "digest": file.schedule.digest,
        "assignments": len(file.schedule),
        "feasible": report.feasible,
        "result_matches": not mismatches if file.result else None,
        "objective": report.evaluation.objective,
        "energy_j": report.evaluation.energy_j,
        "constraints": [asdict(check) | {"ok": check.ok} for check in report.checks],
        "mismatches": [asdict(mismatch) for mismatch in mismatches],
    }


def _print_report(file: ScheduleFile, report: ValidationReport, mismatches: list[Mismatch]) -> None:
    screen = Screen()
    violated = len(report.violations)
    verdict = "feasible" if report.feasible else f"infeasible, {violated} violated row{'s' * (violated != 1)}"
    screen.line(f"{file.problem.name}: {len(file.schedule)} assignments, {verdict}")
    _print_constraints(screen, report)
    for check in report.checks:
        _print_violations(screen, check)
    evaluation = report.evaluation
    screen.line(f"objective {number(evaluation.objective)}, energy {number(evaluation.energy_j)} J")
    for mismatch in mismatches:
        screen.line(f"stated {mismatch.field} = {_text(mismatch.stated)} is wrong: recomputed {_text(mismatch.recomputed)}")


def _text(value: float | bool | None) -> str:
    return "null (infinite)" if value is None else repr(value)


def _print_constraints(screen: Screen, report: ValidationReport) -> None:
    rows = [(check.name, _amount(check.amount), check.unit, check.where, "ok" if check.ok else "VIOLATED") for check in report.checks]
    screen.table(("constraint", "worst amount", "unit", "at", ""), rows, left=(0, 2, 3, 4))


def _amount(amount: float) -> str:
    return "no limit" if amount == -math.inf else number(amount)


def _print_violations(screen: Screen, check: ConstraintCheck) -> None:
    for row in check.violations[:PRINTED_ROWS]:
        values = f"value {number(row.value)}, limit {number(row.limit)}"
        # an infinite value and no limit, or an undefined value, violate by no amount
        excess = "" if math.isnan(row.amount) else f"by {number(row.amount)} {row.unit}".rstrip() + " "
        screen.line(f"violated: {check.name}: {row.where}: {excess}({values})")
    if len(check.violations) > PRINTED_ROWS:
        screen.line(f"violated: {check.name}: ... and {len(check.violations) - PRINTED_ROWS} more rows (all with --json)")
