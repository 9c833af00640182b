"""What was measured, as tables and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.output import WIDTH, machine, versions
from benchmarks.runtime.measure import QUIET, Case
from fl_runtime.training.limits import default_workers

__all__ = ["TARGETS", "missed", "print_cases", "results_text"]

SCHEMA = "schedopt.runtime-benchmark/1"
#: Least ratios of path "auto" to the plain loop on two cores, on the common workload.
TARGETS = {"softmax": 5.0, "mlp": 3.0, "cnn": 1.9}


def missed(cases: Sequence[Case], *, common: bool) -> list[str]:
    """Targets that path "auto" misses: the ratios above on the common workload, never slower than the plain loop in any."""
    lines = []
    for case in cases:
        ratio = case.ratio("auto")
        target = TARGETS.get(case.model, 1.0) if common and default_workers() >= 2 else 1.0
        if ratio is not None and ratio < target:
            lines.append(f"{case.model}, {_words(case)}: {ratio:.2f} times the plain loop; target {target:g}")
    return lines


def _words(case: Case) -> str:
    setting = case.setting
    return f"{setting.clients} clients, {setting.steps} steps of batch {setting.batch}"


def print_cases(cases: Sequence[Case], source: str, lines: Sequence[str], *, grid: bool, console: Console | None = None) -> None:
    """Tables on standard output, then the targets that were missed."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for table in [_grid(cases)] if grid else [_table(case) for case in cases]:
        console.print(table, markup=False, highlight=False)
    load, cores = machine()["load"], default_workers()
    console.print(f"data: {source}; {cores} cores, load as it ended {'unknown' if load is None else f'{load:.1f}'}", highlight=False)
    console.print(f"medians; ratios within a sample, which is quiet if others kept less than {QUIET:g} cores busy", highlight=False)
    for line in lines:
        console.print(f"missed: {line}", style="red", highlight=False, markup=False, soft_wrap=True)


def _table(case: Case) -> Table:
    quiet, samples = len(case.quiet()), len(case.ways[0].seconds)
    used = "those" if len(case.judged()) < samples else "all"
    title = f"{case.model}, {case.parameters:,} parameters, {_words(case)}; {quiet} of {samples} samples quiet, {used} used"
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(("way", "local steps/s", "ratio", "lowest", "highest", "path")):
        table.add_column(column, justify="left" if k in (0, 5) else "right")
    for way in case.ways:
        ratios = case.ratios(way)
        numbers = (statistics.median(ratios), ratios[0], ratios[-1])
        table.add_row(way.name, f"{case.steps_per_s(way):,.0f}", *(f"{number:.2f}" for number in numbers), way.chosen_path or "")
    return table


def _grid(cases: Sequence[Case]) -> Table:
    table = Table(title='path "auto" over the plain loop: median ratio, lowest and highest', title_justify="left")
    columns = ("model", "clients", "steps", "batch", "plain steps/s", "auto steps/s", "ratio", "lowest", "highest", "quiet")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    for case in cases:
        setting = case.setting
        plain, auto = case.ways[0], case.ways[-1]
        ratios = case.ratios(auto)
        table.add_row(
            case.model, str(setting.clients), str(setting.steps), str(setting.batch), f"{case.steps_per_s(plain):,.0f}",
            f"{case.steps_per_s(auto):,.0f}", *(f"{number:.2f}" for number in (statistics.median(ratios), ratios[0], ratios[-1])),
            f"{len(case.quiet())} of {len(auto.seconds)}",
        )  # fmt: skip
    return table


def results_text(cases: Sequence[Case], source: str, lines: Sequence[str], *, interrupted: bool, peers: Sequence[Any] = ()) -> str:
    """The results as JSON text."""
    data = {
        "schema": SCHEMA,
        "data": source,
        "targets": TARGETS,
        "versions": versions() | {"torch": version("torch")},
        "machine": machine(),
        "interrupted": interrupted,
        "missed": list(lines),
        "cases": [_case_data(case) for case in cases],
        "peers": list(peers),
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _case_data(case: Case) -> dict[str, Any]:
    data = asdict(case) | {"quiet_samples": case.quiet(), "used_samples": case.judged()}
    for way, row in zip(case.ways, data["ways"], strict=True):
        row["steps_per_s"] = case.steps_per_s(way)
        row["ratio"] = statistics.median(case.ratios(way))
    return data
