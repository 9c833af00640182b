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
from benchmarks.runtime.measure import QUIET
from benchmarks.runtime_peers.compare import CHECK_ROUNDS, TARGET, Case, Way
from benchmarks.runtime_peers.registry import PEERS

__all__ = ["missed", "print_cases", "results_text"]

SCHEMA = "schedopt.runtime-peers/1"
COLUMNS = ("", "version", "way", "local steps/s", "ours / it", "lowest", "highest", f"loss, round {CHECK_ROUNDS}", "remark")


def missed(cases: Sequence[Case]) -> list[str]:
    """What failed of ours, and models for which the target is missed; no peer that runs is no miss."""
    lines = []
    for case in cases:
        ours, fastest = case.ways[0] if case.ways else None, case.fastest
        if ours is not None and ours.status != "ok":
            lines.append(f"{case.task.model_name}: {ours.message}")
        elif fastest is not None:
            ratio = statistics.median(case.ratios(fastest))
            if ratio < TARGET:
                words = f"{ratio:.2f} times the fastest peer ({fastest.peer}, {fastest.mode}); target {TARGET:g}"
                lines.append(f"{case.task.model_name}: {words}")
    return lines


def print_cases(cases: Sequence[Case], source: str, lines: Sequence[str], console: Console | None = None) -> None:
    """A table per model on standard output, then the targets that were missed."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH + 40)
    for case in cases:
        console.print(_table(case), markup=False, highlight=False)
        fastest = case.fastest
        if fastest is not None:
            words = f"{statistics.median(case.ratios(fastest)):.2f} times the fastest peer: {fastest.peer}, {fastest.mode}"
            console.print(f"{case.task.model_name}: {words}", highlight=False, markup=False)
    about = machine()
    load = "unknown" if about["load"] is None else f"{about['load']:.1f}"
    console.print(f"data: {source}; {about['cores']} cores, load as it ended {load}", highlight=False)
    console.print(f"medians; ratios within a sample, which is quiet if less than {QUIET:g} cores were busy around it", highlight=False)
    for line in lines:
        console.print(f"missed: {line}", style="red", highlight=False, markup=False, soft_wrap=True)


def _title(case: Case) -> str:
    task, used = case.task, "those" if len(case.judged()) < case.samples else "all"
    words = f"{task.per_round} of {task.clients} clients a round, {task.steps} steps of batch {task.batch} on {task.samples} samples"
    quiet = f"{len(case.quiet())} of {case.samples} samples quiet, {used} used"
    ending = " (interrupted)" if case.interrupted else ""
    return f"{task.model_name}, {case.parameters:,} parameters; {words}; {quiet}{ending}"


def _table(case: Case) -> Table:
    table = Table(title=_title(case), title_justify="left")
    for k, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 3 <= k <= 7 else "left", overflow="fold")
    for way in case.ways:
        rate, ratios = case.rate(way), case.ratios(way)
        numbers = [f"{rate:,.0f}" if rate else "-"]
        numbers += [f"{number:.2f}" for number in (statistics.median(ratios), ratios[0], ratios[-1])] if ratios else ["-"] * 3
        loss = "-" if way.loss_after is None else f"{way.loss_after:.3f}"
        table.add_row(way.peer, way.version or "", way.mode, *numbers, loss, _remark(case, way))
    return table


def _remark(case: Case, way: Way) -> str:
    if way.status == "failed":
        return f"failed: {way.message}"
    words = [way.message] if way.message else []
    if way.status == "ok" and way.loss_after is not None and not case.learned(way):
        words.append("learned less than ours, does not count")
    return "; ".join(words)


def results_text(cases: Sequence[Case], source: str, lines: Sequence[str], *, interrupted: bool) -> str:
    """The results as JSON text."""
    data = {
        "schema": SCHEMA,
        "data": source,
        "target": TARGET,
        "versions": versions() | {"torch": version("torch")} | {peer.name: peer.version for peer in PEERS.values()},
        "machine": machine(),
        "interrupted": interrupted,
        "missed": list(lines),
        "cases": [_case_data(case) for case in cases],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _case_data(case: Case) -> dict[str, Any]:
    data = asdict(case) | {"quiet_samples": case.quiet(), "used_samples": case.judged()}
    fastest = case.fastest
    data["fastest"] = None if fastest is None else {"peer": fastest.peer, "mode": fastest.mode}
    for way, row in zip(case.ways, data["ways"], strict=True):
        ratios = case.ratios(way)
        row["steps_per_s"] = case.rate(way)
        row["ratio"] = statistics.median(ratios) if ratios else None
        row["learned"] = case.learned(way)
    return data
