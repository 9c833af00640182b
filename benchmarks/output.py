"""Results as tables for people and as JSON for programs, and the frame of a benchmark that makes them one by one."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import INTERRUPTED, check_results_file
from benchmarks.drivers import TARGET_EXCESS, TARGET_GAP, TARGET_IMPROVEMENT, CaseResult, Settings
from schedopt.errors import SchedOptError
from schedopt.io import write_text

__all__ = ["machine", "print_results", "results_text", "run_and_deliver", "versions"]

Result = TypeVar("Result")

SCHEMA = "schedopt.benchmarks/1"
#: Columns of the tables where standard output is not a terminal.
WIDTH = 120
PACKAGES = ("schedopt", "numpy", "scipy", "cvxpy", "clarabel", "highspy")


def run_and_deliver(
    name: str, output: str | None, results: Callable[[], Iterable[Result]], deliver: Callable[[list[Result], bool], tuple[str, bool]]
) -> int:
    """Run a benchmark; what its process returns: 0, 1 for a target missed, an error's own code after one line, 130 for an interrupt.

    Parameters
    ----------
    name : of the benchmark, for errors
    output : the file for the results, if any
    results : makes them one by one; what there is when Ctrl-C comes is still delivered
    deliver : takes the results and whether there was an interrupt, prints them, returns the file's text and whether a target was missed
    """
    found: list[Result] = []
    interrupted = missed = False
    try:
        check_results_file(output)
        try:
            for result in results():
                found.append(result)
        except KeyboardInterrupt:
            interrupted = True
        if found:
            text, missed = deliver(found, interrupted)
            if output:
                write_text(output, text)
    except SchedOptError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    return INTERRUPTED if interrupted else int(missed)


def versions() -> dict[str, str | None]:
    """Versions of Python and of what does the numerical work."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """What the times depend on: system, architecture, cores of this process and load as the run ended."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"system": platform.system(), "architecture": platform.machine(), "cores": cores, "load": load}


def results_text(results: Sequence[CaseResult], settings: Settings, *, interrupted: bool) -> str:
    """The results as JSON text."""
    data = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "targets": {"gap": TARGET_GAP, "improvement": TARGET_IMPROVEMENT, "excess": TARGET_EXCESS},
        "versions": versions(),
        "machine": machine(),
        "interrupted": interrupted,
        "cases": [_case_data(result) for result in results],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _case_data(result: CaseResult) -> dict[str, Any]:
    return asdict(result) | {"case": result.case.name, "question": result.case.question, "stresses": result.case.stresses}


def print_results(results: Sequence[CaseResult], *, interrupted: bool = False, console: Console | None = None) -> None:
    """Tables on standard output, then the targets that were missed."""
    console = console or Console()
    if not console.is_terminal:
        # in a log there is no width to keep to, and names must not be cut
        console.width = max(console.width, WIDTH)
    for result in results:
        table = _variant_table(result) if result.case.question == "oracle" else _solver_table(result)
        console.print(table)
        if result.improvement is not None:
            console.print(f"better than the best heuristic by {_percent(result.improvement)}", highlight=False)
        if result.interrupted:
            console.print("interrupted: incomplete, not judged as a whole")
        for line in result.missed:
            console.print(f"missed: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
        console.print()
    judged = sum(not result.interrupted for result in results)
    good = sum(not result.interrupted and not result.missed for result in results)
    ending = "; interrupted" if interrupted else ""
    console.print(f"{good} of {judged} complete cases reach every target{ending}", highlight=False)


def _optional(form: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else form(value)


_number = _optional(lambda value: f"{value:.5g}")
_percent = _optional(lambda value: f"{100 * value:.3g} %")
_seconds = _optional(lambda value: f"{value:.1f}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    return table


def _solver_table(result: CaseResult) -> Table:
    columns = ("solver", "objective", "lower bound", "gap", f"s to {100 * TARGET_GAP:g} %", "s", "s / greedy", "energy J", "ended")
    table = _table(result.case.name, columns)
    for row in result.solvers:
        table.add_row(
            row.solver,
            _number(row.objective) + ("" if row.feasible or row.objective is None else " infeasible"),
            _number(row.lower_bound),
            _percent(row.gap),
            _seconds(row.seconds_to_target),
            _seconds(row.wall_s),
            _number(row.time_ratio),
            _number(row.energy_j),
            row.status,
        )
    return table


def _variant_table(result: CaseResult) -> Table:
    rows = result.variants
    table = _table(f"{result.case.name}: variants against enumeration", ("quantity", "value"))
    excesses = [row.excess for row in rows if row.excess is not None]
    gaps = [1 - row.lower_bound / row.optimum for row in rows if row.lower_bound is not None and row.optimum]
    table.add_row("variants", str(len(rows)))
    table.add_row("without any schedule", str(sum(row.optimum is None for row in rows)))
    table.add_row("without a lower bound", str(sum(row.lower_bound is None for row in rows)))
    table.add_row("largest excess over the optimum", _percent(max(excesses, default=None)))
    table.add_row("largest distance of the bound below it", _percent(max(gaps, default=None)))
    table.add_row("longest solve, s", _seconds(max((row.wall_s for row in rows), default=None)))
    table.add_row("longest enumeration, s", _seconds(max((row.oracle_s for row in rows), default=None)))
    return table
