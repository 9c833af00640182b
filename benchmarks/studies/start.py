"""Warm against cold start: models that are already trained leave less to gain, so that less energy should be spent.

For a warm start the tasks are really trained beforehand, by the schedule for the cold start, once or several times over. The loss of these
models on the devices' data is the new ``initial_gap`` (F* is taken to be 0). From the same warm models, training by the schedule made for
them is then compared with training once more by the schedule made for the cold start.
"""

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
PASSES, SHORT_PASSES = (0, 1, 3), (0, 1)
LIMIT_S = 10.0
#: what is drawn, of both schedules
PANELS = {"energy_j": "energy (J)", "uploads": "uploads", "loss": "training loss at the end", "accuracy": "test accuracy at the end"}


def _items(options: Options) -> Iterator[Item]:
    for name in options.problems or PROBLEMS:
        for passes in SHORT_PASSES if options.short else PASSES:
            for seed in range(options.seeds or (1 if options.short else 3)):
                item = {"problem": name, "digest": load_named(name).digest, "passes": passes, "seed": seed}
                yield with_limit(item, options.short, options.time_limit_s, LIMIT_S)


def _measure(item: Item) -> dict[str, Any]:
    cold = load_named(item["problem"])
    cold_schedule, _ = solved(cold, item["time_limit_s"])
    models = None
    for _ in range(item["passes"]):
        _, models = train(cold, cold_schedule, item["seed"], start=models)
    again, _ = train(cold, cold_schedule, item["seed"], start=models)
    gaps = {name: run["first_loss"] for name, run in again.items()}

    def nearer(data: dict[str, Any]) -> None:
        for task in data["tasks"]:
            task["initial_gap"] = max(gaps[task["name"]], 1e-6)

    warm = changed(cold, nearer)
    schedule, _ = solved(warm, item["time_limit_s"])
    own, _ = train(warm, schedule, item["seed"], start=models)
    return {
        "gaps": gaps,
        "own": describe(warm, schedule) | {"training": own},
        "cold": describe(warm, cold_schedule) | {"training": again},
    }


def _figure(records: Sequence[Record], which: str, quantity: str) -> float | None:
    if quantity == "energy_j":
        return mean(r.result[which]["energy_j"] for r in records)
    kind = "tasks" if quantity in ("uploads", "bound") else "training"
    return mean(task[quantity] for r in records for task in r.result[which][kind].values())


def _tables(records: Sequence[Record]) -> list[Table]:
    tables = []
    for problem in values_of(records, "problem"):
        head = ("trained before", "schedule made for", "initial gap", "seeds", "energy J", "uploads", "bound", "loss", "accuracy")
        rows: list[list[Any]] = []
        for passes in values_of(chosen(records, problem=problem), "passes"):
            mine = chosen(records, problem=problem, passes=passes)
            gap = mean(value for r in mine for value in r.result["gaps"].values())
            for which, made_for in (("own", "this start"), ("cold", "the file's initial gap")):
                figures = [_figure(mine, which, name) for name in ("energy_j", "uploads", "bound", "loss", "accuracy")]
                rows.append([f"{passes} times", made_for, gap, len(mine), *figures])
        note = "Real training from the same models; means over tasks and seeds. The initial gap is the loss of these models."
        tables.append(Table(f"{problem}: warm and cold start", head, rows, note))
    return tables


def _draw(records: Sequence[Record], figure: Figure) -> None:
    axes = figure.subplots(1, len(PANELS))
    passes = values_of(records, "passes")
    for axis, (quantity, label) in zip(axes, PANELS.items(), strict=True):
        for which, made_for, style in (("own", "for this start", "o-"), ("cold", "for the cold start", "s:")):
            axis.plot(passes, [_figure(chosen(records, passes=p), which, quantity) for p in passes], style, label=made_for)
        axis.set_xticks(passes)
        axis.set(xlabel="times trained before", title=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[0].legend(title="schedule made")


STUDY = Study("start", "does a schedule for models that are already trained spend less, at what loss?", _items, _measure, _tables, _draw)
