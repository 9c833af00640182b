"""Does S2 tell where training diverges? ``python -m benchmarks.stability [--models M ...] [--ratios R ...] [--seeds N] [-o FILE.json]``

Ten devices train one model each in turn, every update κ instants late, 5 steps of batch 32; the server rate is what makes the left side of
S2 (:mod:`schedopt.bounds.stability`) a given number. MNIST where it is found (as ``python -m benchmarks.validation``), non-IID labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.output import machine, run_and_deliver, versions
from benchmarks.validation.ground import MODELS, SLOTS, Cell, Ground, make_ground
from benchmarks.validation.runs import train
from fl_runtime.training.limits import one_thread
from schedopt.bounds.stability import SPAN_WEIGHT, STEP_LIMIT, stability_sums
from schedopt.problem import Problem
from schedopt.schedule import Schedule
from schedopt.solvers.heuristics import Context, Skeleton, fit, prepare

SCHEMA = "schedopt.stability-benchmark/1"
VALUES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
STALENESS = (0, 2, 5)
STEPS, BATCH = 5.0, 32.0
WIDTH = 120
#: a run fails if it diverges or ends this far above the least loss that it had
LOST = 1.1


def pipeline(problem: Problem, kappa: int) -> Schedule:
    """Every device back to back, each update ``kappa`` instants late, devices spread evenly over the instants."""
    devices, length = problem.arrays.num_devices, kappa + 1
    rows = [(i, 0, g, g + length) for i in range(devices) for g in range(i % length, SLOTS - length + 1, length)]
    context = Context.of(problem)
    return fit(context, prepare(context, Skeleton(*np.array(rows, dtype=np.int64).T)), STEPS, BATCH)


def at_value(ground: Ground, schedule: Schedule, value: float) -> Ground:
    """The ground with the server rate at which the left side of S2 is ``value``: a quadratic in the rate."""
    sums = stability_sums(ground.problem.arrays, schedule)
    linear, square = sums.instant, SPAN_WEIGHT * sums.instant * sums.span
    on = linear > 0
    rate = np.min(2 * value / (linear[on] + np.sqrt(linear[on] ** 2 + 4 * value * square[on])))
    data = ground.problem.to_dict()
    data["tasks"][0]["server_rate"] *= float(rate)
    return replace(ground, problem=Problem.model_validate(data))


def measure(cell: Cell, kappa: int, value: float, seed: int) -> dict[str, Any]:
    """One run."""
    ground = make_ground(cell)
    schedule = pipeline(ground.problem, kappa)
    ground = at_value(ground, schedule, value)
    with one_thread():
        outcome = train(ground, schedule, seed)
    lost = outcome["diverged"] or outcome["loss"] > LOST * outcome["least_loss"]
    names = ("first_loss", "least_loss", "loss", "diverged")
    head = {"cell": cell.to_dict(), "staleness": kappa, "value": value, "seed": seed, "server_rate": ground.problem.tasks[0].server_rate}
    return head | {name: outcome[name] for name in names} | {"lost": bool(lost)}


def table_of(runs: list[dict[str, Any]]) -> Table:
    """Loss by model, regime and staleness over the left side of S2; ``*`` lost, ``!`` diverged."""
    table = Table(title="final loss by the left side of S2 (limit 2); * ends above the least it had, ! diverged", title_justify="left")
    for name in ("model", "eta beta e", "kappa", *(f"{v:g}" for v in sorted({r["value"] for r in runs}))):
        table.add_column(name, justify="right")
    rows: dict[tuple[str, float, int], dict[float, list[str]]] = {}
    for r in runs:
        mark = "!" if r["diverged"] else "*" if r["lost"] else ""
        shown = "-" if r["loss"] is None else f"{r['loss']:.2f}"
        rows.setdefault((r["cell"]["model"], r["cell"]["ratio"], r["staleness"]), {}).setdefault(r["value"], []).append(shown + mark)
    for (model, ratio, kappa), cells in rows.items():
        table.add_row(model, f"{ratio:g}", str(kappa), *(" ".join(cells[v]) for v in sorted(cells)))
    return table


def deliver(runs: list[dict[str, Any]], interrupted: bool) -> tuple[str, bool]:
    """Print what was found; the results' text, and whether a run that S2 allows was lost."""
    Console(width=WIDTH).print(table_of(runs), highlight=False)
    allowed = [r for r in runs if r["value"] <= STEP_LIMIT]
    refused = [r for r in runs if r["value"] > STEP_LIMIT]
    bad = [sum(r["lost"] for r in part) for part in (allowed, refused)]
    print(f"S2 holds: {bad[0]} of {len(allowed)} runs lost; S2 fails: {bad[1]} of {len(refused)}")
    data = {"schema": SCHEMA, "versions": versions(), "machine": machine(), "interrupted": interrupted, "runs": runs}
    return json.dumps(data, indent=1, allow_nan=False) + "\n", bad[0] > 0


@click.command()
@click.option("--data", default="mnist", show_default=True)
@click.option("--models", "models", multiple=True, type=click.Choice(MODELS), default=MODELS, show_default=True)
@click.option("--ratios", "ratios", multiple=True, type=float, default=(0.6, 4.0), show_default=True, help="eta beta e at ten steps.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True)
@click.option("-o", "output", type=click.Path(), help="Write the runs as JSON.")
def main(data: str, models: tuple[str, ...], ratios: tuple[float, ...], seeds: int, output: str | None) -> None:
    """Train near the limit of stability and see where it is."""

    def results() -> Iterator[dict[str, Any]]:
        for model, ratio, kappa, value, seed in product(models, ratios, STALENESS, VALUES, range(seeds)):
            yield measure(Cell(data, model, ratio, "dirichlet:0.3"), kappa, value, seed)
            click.echo(f"{model}, eta beta e {ratio:g}, kappa {kappa}, S2 {value:g}", err=True)

    sys.exit(run_and_deliver("stability", output, results, deliver))


if __name__ == "__main__":
    main()
