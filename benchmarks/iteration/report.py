"""What was measured, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.iteration.measure import Sample, Settings, Timing
from benchmarks.iteration.ways import Direct, Dpp, OwnSettings, ScalarLoop, Vectorised
from benchmarks.output import WIDTH, machine, versions

__all__ = ["RATIO_SCALAR", "RATIO_VECTORISED", "print_timings", "timings_text"]

SCHEMA = "schedopt.iteration/1"
#: What is asked for: a whole iteration at least this many times faster than with the model rebuilt, vectorised and in scalar loops.
RATIO_VECTORISED, RATIO_SCALAR = 2.0, 50.0
NAMES = tuple(way.name for way in (Direct, Vectorised, OwnSettings, Dpp, ScalarLoop))


def _whole(timing: Timing) -> Any:
    return lambda sample: timing.loop_s + sample.outside_s + sample.solve_s


def _outside(sample: Sample) -> float:
    return sample.outside_s


def print_timings(timings: Sequence[Timing], console: Console | None = None) -> None:
    """A table per problem, then what was not measured and what the ratios say."""
    console = console or Console()
    if not console.is_terminal:
        # in a log there is no width to keep to
        console.width = max(console.width, WIDTH + 40)
    for timing in timings:
        title = f"{timing.problem}: one SCA iteration, ms; conic program of {timing.rows} rows and {timing.variables} variables"
        console.print(_table(title, timing), markup=False, highlight=False)
        for way, reason in timing.skipped.items():
            console.print(f"not measured at this size: {way} ({reason})", markup=False, highlight=False, soft_wrap=True)
        for way, seconds in timing.setup_s.items():
            console.print(f"{way}: {seconds:.2f} s once, not part of its iterations", markup=False, highlight=False)
        for line in _verdicts(timing):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print()
    load, cores = machine()["load"], machine()["cores"]
    note = f"load as it ended: {'unknown' if load is None else f'{load:.1f}'} on {cores} cores"
    console.print(f"medians; ratios within this run, subproblem by subproblem; {note}", highlight=False)
    console.print(
        "iteration = loop (residuals, merits, curvature; the same for all) + outside (build, canonicalise) + solve", highlight=False
    )


def _table(title: str, timing: Timing) -> Table:
    table = Table(title=title, title_justify="left")
    columns = ("way", "runs", "loop", "build", "canonicalise", "outside", "ratio", "solve", "ratio", "iteration", "ratio", "difference")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right", no_wrap=k == 0)
    for name in NAMES:
        runs = timing.of(name)
        if not runs:
            continue
        parts = (_outside, lambda sample: sample.solve_s, _whole(timing))
        pairs = [(_ms(timing.median(name, part)), f"{timing.ratio(name, part):.1f}") for part in parts]
        table.add_row(
            name, str(len(runs)), _ms(timing.loop_s), _ms(timing.median(name, lambda sample: sample.build_s)),
            _ms(timing.median(name, lambda sample: sample.canonicalise_s)), *(cell for pair in pairs for cell in pair),
            f"{timing.disagreement[name]:.0e}",
        )  # fmt: skip
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _verdicts(timing: Timing) -> list[str]:
    """Whether the ratios asked for are reached, at this size."""
    lines = []
    for way, wanted in ((Vectorised.name, RATIO_VECTORISED), (ScalarLoop.name, RATIO_SCALAR)):
        ratio = timing.ratio(way, _whole(timing))
        if ratio is not None:
            working = timing.median(way, _whole(timing)) / timing.working_s
            verdict = "reached" if ratio >= wanted else "not reached"
            outside = timing.ratio(way, _outside)
            lines.append(
                f"{way}: iteration {ratio:.1f} times ours, {wanted:g} asked for: {verdict}; outside the solver {outside:.1f} times; "
                f"{working:.1f} times the mean of {1e3 * timing.working_s:.3g} ms with working sets, as native_sca runs"
            )
    return lines


def timings_text(timings: Sequence[Timing], settings: Settings, *, interrupted: bool) -> str:
    """The timings as JSON text."""
    problems = []
    for timing in timings:
        ratios = {
            name: {"outside": timing.ratio(name, _outside), "iteration": timing.ratio(name, _whole(timing))}
            for name in NAMES if timing.of(name)
        }  # fmt: skip
        problems.append(asdict(timing) | {"ratios": ratios})
    data = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "asked": {"vectorised": RATIO_VECTORISED, "scalar": RATIO_SCALAR},
        "versions": versions(),
        "machine": machine(),
        "interrupted": interrupted,
        "problems": problems,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
