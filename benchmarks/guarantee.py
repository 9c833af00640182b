"""Does the native route converge? KKT residuals of the relaxed program on random instances, recomputed from the final points alone.

``python -m benchmarks.guarantee [--runs N] [--seed S] [-o FILE.json]``: instances of 2 to 5 devices, 1 to 3 tasks and 4 to 8 slots, all
modes, both regimes and participations. A run counts if its scaled residual, computed anew from problem, point and multipliers, is at most
1e-4; every other run says what ended it. Exit code 1 if fewer than 95 % of the runs count.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from schedopt.errors import SchedOptError
from schedopt.files import parse_problem
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.io import write_text
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import get_solver
from schedopt.solvers.base import SolverSettings
from schedopt.solvers.native_sca import STARTS

__all__ = ["Run", "instance", "measure"]

#: Scaled residual that counts as converged, and the share of runs that must reach it.
REACHED, SHARE = 1e-4, 0.95
#: Iterations that a run may take, and no search after it: the relaxation is what is measured.
SWITCHES = {"binary_iterations": "0", "rounding": "weights", "samples": "0", "polish_rounds": "0"}


@dataclass(frozen=True)
class Run:
    """One instance: sizes, kind, iterations, residual of the relaxation (None if there is no point), of the final program, and the end."""

    seed: int
    kind: str
    iterations: int
    residual: float | None
    final_residual: float | None
    end: str

    @property
    def reached(self) -> bool:
        """Whether the relaxation ended at a KKT point."""
        return self.residual is not None and self.residual <= REACHED


def instance(seed: int) -> Problem:
    """Random instance ``seed``. Targets and energy limits lie around what a heuristic's schedule reaches, so that there is a schedule:
    without one, the relaxed program need not have a KKT point."""
    rng = np.random.default_rng([7, seed])
    regime = ("practical", "certified")[seed // 3 % 2]
    sizes = {"devices": int(rng.integers(2, 6)), "tasks": int(rng.integers(1, 4)), "slots": int(rng.integers(4, 9))}
    options = {"regime": regime, "participation": ("instant", "horizon")[seed // 2 % 2], "max_staleness": 2}
    weighted = generate_problem(GenerateSettings(**sizes, **options), seed=seed)  # type: ignore[arg-type]
    mode = ("weighted", "min_energy", "min_bound")[seed % 3]
    found = get_solver("greedy_energy").solve(weighted, settings=SolverSettings()).schedule
    if mode == "weighted" or found is None:
        return weighted
    reached = evaluate_objective(weighted, found)
    data = weighted.to_dict()
    data["objective"]["mode"] = mode
    if mode == "min_bound":
        data["objective"]["total_energy_j"] = float(reached.energy_j * rng.uniform(1.0, 2.0))
    else:
        for task, bound in zip(data["tasks"], reached.bound.total, strict=True):
            task["target"] = float(bound * rng.uniform(1.0, 1.5)) if np.isfinite(bound) else None
    return parse_problem(data)


def measure(seed: int, solver: str = "native_sca", start: str = "heuristic") -> Run:
    """Solve instance ``seed`` from ``start`` and recompute its residuals."""
    problem = instance(seed)
    kind = f"{problem.objective.mode} {len(problem.devices)}x{len(problem.tasks)}x{problem.horizon.slots}"
    try:
        settings = SolverSettings(switches={**SWITCHES, "start": start}, max_iterations=1000)
        result = get_solver(solver).solve(problem, settings=settings, seed=0)
    except SchedOptError as error:
        return Run(seed, kind, 0, None, None, str(error))
    if result.iterate is None:
        return Run(seed, kind, result.iterations, None, None, result.reason or result.status.value)
    relaxed, final = result.iterate.residuals(problem)
    end = str(result.details.get("relaxed_end", ""))
    return Run(seed, kind, result.iterations, relaxed.total, None if final is None else final.total, end)


@click.command()
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="First seed; the others follow.")
@click.option("--solver", type=click.Choice(("native_sca", "native_sca_log")), default="native_sca", show_default=True)
@click.option("--start", type=click.Choice(STARTS), default="heuristic", show_default=True, help="The others are infeasible.")
@click.option("-o", "--output", type=click.Path(), help="Write all runs here as JSON.")
def main(runs: int, seed: int, solver: str, start: str, output: str | None) -> None:
    """Residuals of random instances."""
    found: list[Run] = []
    console = Console()
    with click.progressbar(range(seed, seed + runs), file=sys.stderr, label=solver) as seeds:
        for number in seeds:
            found.append(measure(number, solver, start))
    # instances that no schedule fits have no program to solve
    posed = [run for run in found if run.residual is not None or run.iterations > 0]
    reached = sum(run.reached for run in posed)
    table = Table("seed", "instance", "iterations", "KKT residual", "ended")
    for run in posed:
        if not run.reached:
            table.add_row(str(run.seed), run.kind, str(run.iterations), "-" if run.residual is None else f"{run.residual:.1e}", run.end)
    if reached < len(posed):
        console.print(table)
    count = f"{reached} of {len(posed)} runs reach {REACHED:g}"
    console.print(f"{solver} from {start}: {count} ({runs - len(posed)} instances are infeasible)", soft_wrap=True)
    counts = [run.iterations for run in posed if run.reached]
    if counts:
        middle, most = np.percentile(counts, [50, 90])
        console.print(f"iterations: median {middle:.0f}, 90 % within {most:.0f}, most {max(counts)}", soft_wrap=True)
    if output is not None:
        write_text(output, json.dumps({"solver": solver, "start": start, "runs": [asdict(run) for run in found]}, indent=1) + "\n")
    sys.exit(0 if reached >= SHARE * len(posed) else 1)


if __name__ == "__main__":
    main()
