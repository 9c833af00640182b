"""How time and memory of ``column_generation`` grow with devices, tasks, slots and staleness: growth exponents, a table, a picture.

``python -m benchmarks.scale [--full] [--participation instant|horizon] [--limit S] [--plot FILE.png] [-o FILE.json]``: one factor at a
time is varied around a middle size; every size is solved in a process of its own, whose peak memory (with its workers) is read when it
ends. The exponent of a factor is the slope of log time over log size, fitted by least squares over the sizes that ended by themselves;
runs stopped by ``--limit`` are listed and left out of the fit. ``--full`` goes on to 10,000 devices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.output import WIDTH, machine, versions
from schedopt.io import write_text

__all__ = ["MIDDLE", "Size", "Taken", "exponent", "sizes_of"]

#: Sizes tried per factor, the middle one apart; those of --full come on top.
FACTORS: dict[str, tuple[int, ...]] = {
    "devices": (10, 30, 100, 300, 1000),
    "tasks": (1, 2, 4, 8, 16),
    "slots": (10, 20, 40, 80),
    "max_staleness": (0, 2, 5, 10),
}
FULL: dict[str, tuple[int, ...]] = {"devices": (3000, 10_000)}
#: Seed of every problem.
SEED = 1


@dataclass(frozen=True)
class Size:
    """One size: devices, tasks, slots and the most staleness."""

    devices: int
    tasks: int
    slots: int
    max_staleness: int


MIDDLE = Size(100, 4, 30, 5)


@dataclass(frozen=True)
class Taken:
    """What one solve took: seconds, peak memory in MiB, proven gap, masters, and how it ended."""

    factor: str
    size: Size
    assignments: int
    wall_s: float
    memory_mib: float
    gap: float | None
    masters: int
    status: str


def sizes_of(factor: str, full: bool) -> list[Size]:
    """All sizes of a factor, ascending."""
    values = FACTORS[factor] + (FULL.get(factor, ()) if full else ())
    return [Size(**(asdict(MIDDLE) | {factor: value})) for value in values]


def exponent(taken: list[Taken], factor: str, quantity: str = "wall_s") -> float | None:
    """Slope of log ``quantity`` over log size, by least squares over the solved ones; None with fewer than two sizes."""
    solved = [t for t in taken if t.factor == factor and t.status == "solved"]
    # staleness k means k + 1 lengths
    sizes = [getattr(t.size, factor) + (factor == "max_staleness") for t in solved]
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log([getattr(t, quantity) for t in solved]), 1)[0])


def one(size: Size, participation: str, limit: float) -> dict[str, object]:
    """Solve one size here; for the child process."""
    import resource

    from schedopt.generate import GenerateSettings, generate_problem
    from schedopt.registry import get_solver
    from schedopt.solvers.base import SolverSettings

    problem = generate_problem(GenerateSettings(**asdict(size), participation=participation), seed=SEED)
    # local moves are for problems whose assignments can be listed: the same phases for all sizes
    settings = SolverSettings(time_limit_s=limit, switches={"polish_rounds": "0"})
    result = get_solver("column_generation").solve(problem, settings=settings)
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    workers = max(1, min(size.devices // 100, 64))
    # the children's figure is the largest of them: as many as there can be are taken to be as large
    memory = (own + (children * min(workers, 2) if size.devices >= 200 else 0)) / 1024.0
    return {
        "wall_s": result.wall_s,
        "memory_mib": memory,
        "gap": result.gap,
        "masters": result.iterations,
        "status": result.status.name.lower(),
        "assignments": 0 if result.schedule is None else len(result.schedule),
    }


def measure(factor: str, size: Size, participation: str, limit: float) -> Taken:
    """Solve one size in a child process. Raises RuntimeError with the end of its output if it fails."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", json.dumps(asdict(size))]
    command += ["--participation", participation, "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode != 0:
        raise RuntimeError(f"{size}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    return Taken(factor, size, **json.loads(done.stdout.strip().splitlines()[-1]))


def table(taken: list[Taken]) -> Table:
    """All sizes with what they took, and the exponents in the captions of their factors."""
    out = Table("factor", "size", "assigned", "time s", "memory MiB", "gap", "masters", "end")
    for factor in FACTORS:
        for t in (t for t in taken if t.factor == factor):
            gap = "-" if t.gap is None else f"{100 * t.gap:.2f} %"
            row = [factor, str(getattr(t.size, factor)), str(t.assignments), f"{t.wall_s:.1f}", f"{t.memory_mib:.0f}", gap, str(t.masters)]
            out.add_row(*row, t.status)
        slopes = [exponent(taken, factor, quantity) for quantity in ("wall_s", "memory_mib")]
        shown = ["-" if slope is None else f"x^{slope:.2f}" for slope in slopes]
        out.add_row(factor, "growth", "", *shown, "", "", "", end_section=True, style="bold")
    return out


def picture(taken: list[Taken], file: Path) -> None:
    """Time and memory over each factor on logarithmic axes, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(FACTORS), figsize=(13, 6.4), sharey="row", constrained_layout=True)
    for column, factor in enumerate(FACTORS):
        for row, (quantity, label) in enumerate((("wall_s", "solve time (s)"), ("memory_mib", "peak memory (MiB)"))):
            axis, mine = axes[row][column], [t for t in taken if t.factor == factor and t.status == "solved"]
            x = np.array([getattr(t.size, factor) + (factor == "max_staleness") for t in mine], dtype=float)
            y = np.array([getattr(t, quantity) for t in mine])
            slope = exponent(taken, factor, quantity)
            axis.loglog(x, y, "o", color="tab:blue")
            if slope is not None:
                level = np.exp(np.mean(np.log(y)) - slope * np.mean(np.log(x)))
                axis.loglog(x, level * x**slope, "-", color="tab:orange", label=f"exponent {slope:.2f}")
                axis.legend(frameon=False)
            axis.set_xlabel("max_staleness + 1" if factor == "max_staleness" else factor)
            axis.minorticks_off()
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.set_ylabel(label if column == 0 else "")
            axis.grid(True, which="both", alpha=0.2)
    middle = f"{MIDDLE.devices} devices, {MIDDLE.tasks} tasks, {MIDDLE.slots} slots, staleness {MIDDLE.max_staleness}"
    figure.suptitle(f"column_generation: one factor varied around {middle}")
    figure.savefig(file, dpi=110)


@click.command()
@click.option("--full", is_flag=True, help="Go on to 10,000 devices.")
@click.option("--factor", "factors", multiple=True, type=click.Choice(list(FACTORS)), help="Only this factor; may be repeated.")
@click.option("--participation", type=click.Choice(["instant", "horizon"]), default="instant", show_default=True)
@click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds for one solve.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the picture here.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here (JSON).")
@click.option("--one", "size", hidden=True, help="Solve one size here and print what it took.")
def main(
    full: bool, factors: tuple[str, ...], participation: str, limit: float, plot: Path | None, output: Path | None, size: str | None
) -> None:
    """Growth of time and memory with devices, tasks, slots and staleness."""
    if size is not None:
        click.echo(json.dumps(one(Size(**json.loads(size)), participation, limit)))
        return
    console = Console(width=WIDTH if not sys.stdout.isatty() else None)
    taken: list[Taken] = []
    for factor in factors or tuple(FACTORS):
        for each in sizes_of(factor, full):
            taken.append(measure(factor, each, participation, limit))
            click.echo(f"{factor} {getattr(each, factor)}: {taken[-1].wall_s:.1f} s, gap {taken[-1].gap}", err=True)
            if output is not None:
                record = {"participation": participation, "versions": versions(), "machine": machine(), "runs": [asdict(t) for t in taken]}
                write_text(output, json.dumps(record, indent=1) + "\n")
    console.print(table(taken))
    if plot is not None:
        picture(taken, plot)


if __name__ == "__main__":
    main()
