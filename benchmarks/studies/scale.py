"""More devices, more tasks: objective per task, energy and time of the default solver on generated problems.

The band grows with the devices (300 kHz each), so that it does not become scarcer, and all tasks are alike, so that a further one is no
harder. Times are of this machine and of what else it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.studies.common import chosen, describe, mean, solved, values_of, with_limit
from benchmarks.studies.frame import Item, Options, Record, Study, Table
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.result import SolveResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

DEVICES, SHORT_DEVICES = (5, 10, 20, 40, 60), (5, 10)
TASKS, SHORT_TASKS = (1, 2, 4, 6), (1,)
#: what is not varied
MIDDLE = {"devices": 10, "tasks": 3}
SETTINGS: dict[str, Any] = {"slots": 20, "min_batch": 8, "energy_weight": 5.0}
#: every task is that of the preset for MNIST
SETTINGS |= {"model_bits": 44_426 * 32.0, "cycles_per_sample": 2.0e7, "learning_rate": 0.05, "smoothness": 20.0}
SETTINGS |= {"gradient_variance": 120.0, "dissimilarity": 2.0}
LIMIT_S = 40.0
PANELS = {
    "objective_per_task": "objective per task",
    "energy_j": "energy (J)",
    "energy_per_device_j": "energy per device (J)",
    "near_s": "seconds to 1 %",
}


def _items(options: Options) -> Iterator[Item]:
    factors = {"devices": SHORT_DEVICES if options.short else DEVICES, "tasks": SHORT_TASKS if options.short else TASKS}
    for factor, sizes in factors.items():
        for size in sizes:
            for seed in range(options.seeds or (1 if options.short else 2)):
                item = {"factor": factor, **MIDDLE, factor: size, "seed": seed}
                yield with_limit(item, options.short, options.time_limit_s, LIMIT_S)


def _near_s(result: SolveResult, share: float = 0.01) -> float:
    """Seconds until the objective was within ``share`` of what was found in the end."""
    near = (r.elapsed_s for r in result.history if np.isfinite(r.objective) and r.objective <= result.objective * (1 + share))
    return next(near, result.wall_s)


def _measure(item: Item) -> dict[str, Any]:
    settings = GenerateSettings(name="scale", devices=item["devices"], tasks=item["tasks"], **SETTINGS)
    problem = generate_problem(settings, seed=item["seed"])
    schedule, result = solved(problem, item["time_limit_s"], item["seed"])
    found = describe(problem, schedule)
    return found | {
        "objective_per_task": found["objective"] / item["tasks"],
        "energy_per_device_j": found["energy_j"] / item["devices"],
        "uploads": len(schedule),
        "devices_used": len(np.unique(schedule.device)),
        "near_s": _near_s(result),
        "wall_s": result.wall_s,
        "status": result.status.name.lower(),
    }


def _tables(records: Sequence[Record]) -> list[Table]:
    tables = []
    names = ("objective_per_task", "energy_j", "energy_per_device_j", "uploads", "devices_used", "near_s", "wall_s")
    for factor in values_of(records, "factor"):
        head = (factor, "seeds", "objective per task", "energy J", "per device J", "uploads", "devices used", "s to 1 %", "s", "ended")
        rows: list[list[Any]] = []
        for size in values_of(chosen(records, factor=factor), factor):
            mine = [r.result for r in chosen(records, factor=factor, **{factor: size})]
            ended = ", ".join(sorted({r["status"] for r in mine}))
            rows.append([str(size), len(mine), *(mean(r[name] for r in mine) for name in names), ended])
        rest = ", ".join(f"{value} {name}" for name, value in MIDDLE.items() if name != factor)
        note = "s to 1 %: until the objective was within 1 % of what was found in the end."
        tables.append(Table(f"more {factor} ({rest})", head, rows, note))
    return tables


def _draw(records: Sequence[Record], figure: Figure) -> None:
    factors = values_of(records, "factor")
    axes = figure.subplots(len(factors), len(PANELS), squeeze=False)
    figure.set_size_inches(12, 3.2 * len(factors))
    for row, factor in zip(axes, factors, strict=True):
        sizes = values_of(chosen(records, factor=factor), factor)
        for axis, (quantity, label) in zip(row, PANELS.items(), strict=True):
            found = [[r.result[quantity] for r in chosen(records, factor=factor, **{factor: size})] for size in sizes]
            for size, values in zip(sizes, found, strict=True):
                axis.plot([size] * len(values), values, "o", color="C0", alpha=0.4)
            axis.plot(sizes, [mean(values) for values in found], "-", color="C0")
            axis.set_ylim(bottom=0)
            axis.set_xticks(sizes)
            axis.set(xlabel=factor, title=label)
            axis.grid(alpha=0.3)


STUDY = Study("scale", "how do objective, energy and solve time grow with devices and tasks?", _items, _measure, _tables, _draw)
