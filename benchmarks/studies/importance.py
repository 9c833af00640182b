"""One task's weight γ_j is swept: does it gain in the bound and in real training, do the others pay, and with what energy?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.arguments import load_named
from benchmarks.studies.common import changed, chosen, describe, mean, solved, train, values_of, with_limit
from benchmarks.studies.frame import Item, Options, Record, Study, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

PROBLEMS = ("quickstart",)
FACTORS, SHORT_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0), (0.1, 10.0)
LIMIT_S = 10.0
#: what is drawn: relative to the same task at factor 1
PANELS = {"bound": "bound Ψ", "energy_j": "energy", "loss": "training loss"}


def _items(options: Options) -> Iterator[Item]:
    for name in options.problems or PROBLEMS:
        problem = load_named(name)
        tasks = [task.name for task in problem.tasks]
        for task in tasks[:1] if options.short else tasks:
            for factor in SHORT_FACTORS if options.short else FACTORS:
                item = {"problem": name, "digest": problem.digest, "task": task, "factor": factor}
                item["seeds"] = options.seeds or (1 if options.short else 3)
                yield with_limit(item, options.short, options.time_limit_s, LIMIT_S)


def _measure(item: Item) -> dict[str, Any]:
    given = load_named(item["problem"])

    def emphasise(data: dict[str, Any]) -> None:
        data["tasks"][given.task_index[item["task"]]]["weight"] *= item["factor"]

    problem = changed(given, emphasise)
    schedule, _ = solved(problem, item["time_limit_s"])
    return describe(problem, schedule) | {"training": [train(problem, schedule, seed)[0] for seed in range(item["seeds"])]}


def _figures(record: Record, task: str) -> dict[str, float | None]:
    """What became of one task."""
    own = record.result["tasks"][task]
    runs = [run[task] for run in record.result["training"]]
    return {
        **{name: own[name] for name in ("bound", "energy_j", "uploads")},
        **{name: mean(run[name] for run in runs) for name in ("loss", "test_loss", "accuracy")},
    }


def _tables(records: Sequence[Record]) -> list[Table]:
    tables = []
    for problem in values_of(records, "problem"):
        head = ("weight of", "times", "task", "bound", "energy J", "uploads", "training loss", "test loss", "accuracy", "all energy J")
        rows: list[list[Any]] = []
        for record in chosen(records, problem=problem):
            for task in record.result["tasks"]:
                mark = f"{task} *" if task == record.item["task"] else task
                f = _figures(record, task)
                numbers = [f[name] for name in ("bound", "energy_j", "uploads", "loss", "test_loss", "accuracy")]
                rows.append([record.item["task"], record.item["factor"], mark, *numbers, record.result["energy_j"]])
        note = "*: the emphasised task. Losses and accuracies: real training, means over the seeds."
        tables.append(Table(f"{problem}: importance of one task", head, rows, note))
    return tables


def _draw(records: Sequence[Record], figure: Figure) -> None:
    tasks = values_of(records, "task")
    axes = figure.subplots(1, len(PANELS))
    for axis, (quantity, label) in zip(axes, PANELS.items(), strict=True):
        for colour, task in enumerate(tasks):
            mine = sorted(chosen(records, task=task), key=lambda r: r.item["factor"])
            names = list(mine[0].result["tasks"]) if mine else []
            for name in names:
                curve = [_figures(record, name)[quantity] for record in mine]
                base = next((v for r, v in zip(mine, curve, strict=True) if r.item["factor"] == 1.0), curve[0])
                own = name == task
                axis.plot(
                    [r.item["factor"] for r in mine],
                    [value / base for value in curve],
                    "o-" if own else ":",
                    color=f"C{colour}",
                    lw=2.0 if own else 1.0,
                    label=task if own else None,
                )
        axis.axhline(1.0, color="0.7", lw=0.8)
        axis.set(xscale="log", yscale="log", xlabel="weight, times", title=label)
        for side, ticks in ((axis.xaxis, FACTORS), (axis.yaxis, (0.2, 0.5, 1.0, 2.0, 5.0))):
            side.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            side.set_ticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative to weight times 1\n(dotted: the other tasks)")
    axes[0].legend(title="emphasised")


STUDY = Study("importance", "does an emphasised task gain, and do the others pay?", _items, _measure, _tables, _draw)
