"""What was measured, as tables and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.output import machine, versions
from benchmarks.theory.runs import BATCHES, DRIFTS, LEVELS, PARTITIONS, SCHEDULES, Run
from schedopt.problem import TERMS

__all__ = ["print_runs", "results_text"]

SCHEMA = "schedopt.theory-benchmark/1"
#: columns of the tables where standard output is not a terminal
WIDTH = 215
#: what the runs are grouped by in the summary
GROUPS = {"partition": PARTITIONS, "drift": DRIFTS, "schedule": SCHEDULES, "level": tuple(LEVELS), "batch": BATCHES}


def print_runs(runs: Sequence[Run], source: str, console: Console | None = None) -> None:
    """Every run with its terms, the summary by setting, and what contradicts the theorem."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(_runs_table(runs), highlight=False, markup=False)
    console.print(_groups_table(runs), highlight=False, markup=False)
    console.print(
        f"data: {source}, softmax regression. A term of Psi above, what it was in the run below; local and stale are in Psi only as far as"
        " C1 and C2 do not pay for them out of the descent, and may exceed their terms.",
        highlight=False,
    )
    broken = [run for run in runs if run.violations]
    for run in broken:
        for line in run.violations:
            console.print(f"violated: {run.setting}: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(runs) - len(broken)} of {len(runs)} runs agree with the theorem", highlight=False)


def _runs_table(runs: Sequence[Run]) -> Table:
    table = Table(title="measured gradient norms, Theorem 1 and its tighter forms", title_justify="left")
    for name in ("labels", "drift", "schedule", "steps", "batch", "slots"):
        table.add_column(name, no_wrap=True)
    for name in ("kappa", "loss", "measured", "Psi", "ratio", "sharp ratio", "tight ratio", *TERMS):
        table.add_column(name, justify="right")
    for run in runs:
        s = run.setting
        names = (s.partition, s.drift, s.schedule, s.level, s.batch, str(s.slots))
        numbers = (f"{run.measured:.4g}", f"{run.bound:.4g}", f"{run.ratio:.4g}", f"{run.sharp_ratio:.4g}", f"{run.tight_ratio:.4g}")
        table.add_row(*names, str(run.staleness), f"{run.loss[0]:.2f}", *numbers, *(f"{run.terms[t]:.3g}" for t in TERMS))
        table.add_row(*[""] * 7, f"{run.loss[1]:.2f}", *[""] * 5, *(f"{run.realised[t]:.2g}" for t in TERMS))
    return table


def _groups_table(runs: Sequence[Run]) -> Table:
    title = "Psi / measured, and terms of Psi / what they were (medians of the runs in which both are positive)"
    table = Table(title=title, title_justify="left")
    table.add_column("setting")
    for name in ("runs", "least", "median", "sharp, least", "sharp, median", "tight, least", "tight, median", *TERMS):
        table.add_column(name, justify="right")
    for name, chosen in _groups(runs):
        kinds = [[getattr(run, kind) for run in chosen] for kind in ("ratio", "sharp_ratio", "tight_ratio")]
        ends = (f"{value:.4g}" for values in kinds for value in (min(values), statistics.median(values)))
        table.add_row(name, str(len(chosen)), *ends, *(_share(chosen, term) for term in TERMS), end_section=name == "all")
    return table


def _groups(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    if runs:
        yield "all", list(runs)
    for field, values in GROUPS.items():
        for value in values:
            chosen = [run for run in runs if getattr(run.setting, field) == value]
            if chosen:
                yield f"{field} {value}", chosen
    long = [run for run in runs if run.setting.slots == max(other.setting.slots for other in runs)]
    if 0 < len(long) < len(runs):
        yield f"{long[0].setting.slots} slots", long


def _share(runs: Sequence[Run], term: str) -> str:
    # where nothing is left but rounding, a ratio says nothing
    found = [run.terms[term] / run.realised[term] for run in runs if run.terms[term] > 0 and run.realised[term] > 1e-6 * run.terms[term]]
    return f"{statistics.median(found):.3g}" if found else "-"


def results_text(runs: Sequence[Run], source: str, understate: Mapping[str, float], *, interrupted: bool) -> str:
    """The results as JSON text."""
    data = {
        "schema": SCHEMA,
        "data": source,
        "understate": dict(understate),
        "versions": versions() | {"torch": version("torch")},
        "machine": machine(),
        "interrupted": interrupted,
        "runs": [_run_data(run) for run in runs],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _run_data(run: Run) -> dict[str, Any]:
    return asdict(run) | {"ratio": run.ratio, "sharp_ratio": run.sharp_ratio, "tight_ratio": run.tight_ratio, "violations": run.violations}
