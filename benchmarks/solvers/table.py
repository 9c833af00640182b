"""The rows as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from benchmarks.output import WIDTH, machine, versions
from benchmarks.solvers.profile import PARTS
from benchmarks.solvers.run import Comparison, Settings, row_data

__all__ = ["comparison_text", "print_comparison"]

SCHEMA = "schedopt.solver-variants/1"


def _number(value: float | None, form: str = ".5g") -> str:
    return "-" if value is None else f"{value:{form}}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right", no_wrap=k == 0)
    return table


def print_comparison(results: Sequence[Comparison], console: Console | None = None) -> None:
    """Two tables per problem on standard output: what was found, and what it took."""
    console = console or Console()
    if not console.is_terminal:
        # in a log there is no width to keep to
        console.width = max(console.width, WIDTH + 30)
    for result in results:
        for table in (_found(result), _took(result)):
            console.print(table, markup=False, highlight=False)
        for row in result.rows:
            if row.message:
                console.print(f"{row.variant}: {row.message}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    for note in (
        "above best: the least objective of this run and of benchmarks/references.json; gap: to the largest proven lower bound of both;",
        "relaxed: objective of the relaxed point, which is no bound; above it: the schedule as rounded, and in the end",
    ):
        console.print(note, highlight=False, soft_wrap=True)


def _found(result: Comparison) -> Table:
    bound = _number(result.lower_bound, ".6g")
    title = f"{result.problem}: proven lower bound {bound}" + (" (interrupted)" if result.interrupted else "")
    columns = (
        "variant",
        "objective",
        "above best",
        "gap",
        "relaxed",
        "rounded",
        "above",
        "final above",
        "KKT relaxed",
        "KKT fixed",
        "ended",
    )
    table = _table(title, columns)
    for row in result.rows:
        table.add_row(
            row.variant,
            _number(row.objective, ".6g") + ("" if row.feasible or row.objective is None else " infeasible"),
            _percent(result.excess(row)),
            _percent(result.gap(row)),
            _number(row.relaxed),
            _number(row.rounded),
            _percent(row.gap_rounded),
            _percent(row.gap_final),
            _number(row.relaxed_residual, ".0e"),
            _number(row.final_residual, ".0e"),
            row.status,
        )
    return table


def _took(result: Comparison) -> Table:
    columns = ("variant", "iterations", "s", *PARTS, "other", "s per iteration", "fallbacks")
    table = _table(f"{result.problem}: seconds", columns)
    for row in result.rows:
        parts = [f"{row.parts_s.get(part, 0.0):.2f}" for part in (*PARTS, "other")]
        each = _number(row.wall_s / row.iterations, ".2g") if row.iterations else "-"
        table.add_row(row.variant, str(row.iterations), f"{row.wall_s:.1f}", *parts, each, str(row.fallbacks))
    return table


def comparison_text(results: Sequence[Comparison], settings: Settings, *, interrupted: bool) -> str:
    """The results as JSON text."""
    problems = [
        {
            "problem": result.problem,
            "digest": result.digest,
            "best": result.best,
            "lower_bound": result.lower_bound,
            "interrupted": result.interrupted,
            "rows": [row_data(result, row) for row in result.rows],
        }
        for result in results
    ]
    data = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "versions": versions(),
        "machine": machine(),
        "interrupted": interrupted,
        "problems": problems,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
