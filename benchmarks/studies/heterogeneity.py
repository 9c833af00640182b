"""Devices whose gradients differ more and more: do schedules turn to those that are like the whole, or cover them all?

Two ways to differ: the spread of δ among devices of generated problems, and labels of real data spread by Dirichlet(α), where δ is measured
on the data (at the first and the last model of a run), put into the problem, and training by the schedule is real. Where participation is
charged per upload ("instant"), an upload of a device with large δ is dear; where it is charged over the horizon, leaving it out is.
Devices hold about equally many samples, so that covering all of them alike would give every quartile of δ a quarter of the uploads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.studies.common import changed, chosen, describe, mean, solved, train, values_of, with_limit
from benchmarks.studies.frame import Item, Options, Record, Study, Table
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY", "measured_dissimilarity", "quartile_shares"]

SPREADS, SHORT_SPREADS = (0.1, 0.5, 1.0, 1.5), (0.1, 1.5)
ALPHAS, SHORT_ALPHAS = (100.0, 1.0, 0.3, 0.1), (0.3,)
PARTICIPATIONS = ("instant", "horizon")
LIMIT_S = 8.0
QUARTILES = ("least δ", "second", "third", "largest δ")
#: what is generated: about equal sizes, four devices a quartile; small models on the data that come with scikit-learn
COMMON = {"devices": 16, "min_batch": 8, "size_dirichlet": 200.0}
SPREAD_SETTINGS = COMMON | {"name": "spread", "tasks": 2, "slots": 20, "energy_weight": 5.0}
LABEL_SETTINGS = COMMON | {"name": "labels", "tasks": 1, "task_names": ("digits",), "slots": 20, "energy_weight": 0.1}


def _items(options: Options) -> Iterator[Item]:
    spreads, alphas = (SHORT_SPREADS, SHORT_ALPHAS) if options.short else (SPREADS, ALPHAS)
    for kind, levels in (("spread", spreads), ("labels", alphas)):
        for level in levels:
            for participation in PARTICIPATIONS:
                for seed in range(options.seeds or (1 if options.short else 3)):
                    item = {"kind": kind, "level": level, "participation": participation, "seed": seed}
                    yield with_limit(item, options.short, options.time_limit_s, LIMIT_S)


def measured_dissimilarity(problem: Problem, schedule: Schedule, seed: int, partition: str) -> FloatArray:
    """δ_ij on real data: root mean square of ‖∇L_i − ∇F‖ over the first and the last model of a run, shape (I, J)."""
    import torch

    from fl_runtime.settings import SimulateSettings
    from fl_runtime.simulate import Simulation

    a = problem.arrays
    settings = SimulateSettings(partition=partition, gradient=False, measure_every=a.slots, workers=1, download=False)
    squares = np.zeros((2, a.num_devices, a.num_tasks))
    with Simulation(problem, schedule, settings, seed=seed) as simulation:
        for moment in range(2):
            for j, run in enumerate(simulation.engine.runs):
                held = [i for i in range(a.num_devices) if a.has_data[i, j]]
                slopes = []
                for i in held:
                    features, labels = simulation.data[j].samples(i, 0)
                    slopes.append(run.trainer.gradient(run.model, torch.tensor(features), torch.tensor(labels)).double().numpy())
                whole = a.aggregation_weight[held, j] @ np.array(slopes)
                squares[moment, held, j] = ((np.array(slopes) - whole) ** 2).sum(axis=1)
            if moment == 0:
                simulation.run()
    return np.sqrt(squares.mean(axis=0))


def quartile_shares(dissimilarity: FloatArray, amounts: FloatArray) -> list[float]:
    """Shares of ``amounts`` (per device) that devices of each quartile of δ have, from the least δ to the largest; sums to one."""
    rank = np.argsort(np.argsort(dissimilarity, kind="stable"), kind="stable")
    quartile = rank * 4 // len(rank)
    return (np.bincount(quartile, weights=amounts, minlength=4) / max(amounts.sum(), 1e-300)).tolist()


def _problem(item: Item) -> Problem:
    own = {"participation": item["participation"]}
    if item["kind"] == "spread":
        return generate_problem(GenerateSettings(**SPREAD_SETTINGS, **own, dissimilarity_spread=item["level"]), seed=item["seed"])
    given = generate_problem(GenerateSettings(**LABEL_SETTINGS, **own), seed=item["seed"])
    first, _ = solved(given, min(item["time_limit_s"], 3.0), item["seed"])
    delta = measured_dissimilarity(given, first, item["seed"], f"dirichlet:{item['level']:g}")

    def put(data: dict[str, Any]) -> None:
        for i, device in enumerate(data["devices"]):
            for name, pair in device["tasks"].items():
                pair["dissimilarity"] = float(delta[i, given.task_index[name]])

    return changed(given, put)


def _measure(item: Item) -> dict[str, Any]:
    problem = _problem(item)
    schedule, _ = solved(problem, item["time_limit_s"], item["seed"])
    a = problem.arrays
    shares = []
    for j in range(a.num_tasks):
        uploads = np.bincount(schedule.device[schedule.task == j], minlength=a.num_devices).astype(float)
        shares.append(quartile_shares(a.dissimilarity[:, j], uploads))
    devices = [len(np.unique(schedule.device[schedule.task == j])) for j in range(a.num_tasks)]
    delta = np.median(a.dissimilarity, axis=0)
    found = {"shares": np.mean(shares, axis=0).tolist(), "devices_used": float(np.mean(devices)), "median_delta": delta.tolist()}
    found["delta_ratio"] = float(np.mean([np.quantile(column, 0.875) / np.quantile(column, 0.125) for column in a.dissimilarity.T]))
    if item["kind"] == "labels":
        runs, _ = train(problem, schedule, item["seed"], f"dirichlet:{item['level']:g}")
        found["training"] = runs
    return describe(problem, schedule) | found


def _tables(records: Sequence[Record]) -> list[Table]:
    titles = {"spread": "spread of δ among devices (generated problems)", "labels": "labels by Dirichlet(α), δ measured, real training"}
    tables = []
    for kind, title in titles.items():
        head = ("level", "participation", "seeds", "δ: upper / lower", *QUARTILES, "devices used", "energy J", "loss", "accuracy")
        rows: list[list[Any]] = []
        for level in values_of(chosen(records, kind=kind), "level"):
            for participation in PARTICIPATIONS:
                mine = [r.result for r in chosen(records, kind=kind, level=level, participation=participation)]
                if mine:
                    shares = [f"{100 * x:.0f} %" for x in np.mean([r["shares"] for r in mine], axis=0)]
                    means = [mean(r[name] for r in mine) for name in ("devices_used", "energy_j")]
                    trained = [mean(t[name] for r in mine for t in r.get("training", {}).values()) for name in ("loss", "accuracy")]
                    ratio = mean(r["delta_ratio"] for r in mine)
                    rows.append([f"{level:g}", participation, len(mine), ratio, *shares, *means, *trained])
        if rows:
            note = f"Shares of the uploads by quartile of δ, of {COMMON['devices']} devices with about equal data. Means over seeds."
            tables.append(Table(title, head, rows, note))
    return tables


def _draw(records: Sequence[Record], figure: Figure) -> None:
    panels = [(kind, participation) for kind in values_of(records, "kind") for participation in PARTICIPATIONS]
    axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)[0]
    for axis, (kind, participation) in zip(axes, panels, strict=False):
        mine = chosen(records, kind=kind, participation=participation)
        levels = values_of(mine, "level")
        bottom = np.zeros(len(levels))
        for quartile, name in enumerate(QUARTILES):
            height = np.array([100 * np.mean([r.result["shares"][quartile] for r in chosen(mine, level=level)]) for level in levels])
            axis.bar(range(len(levels)), height, bottom=bottom, color=f"{0.85 - 0.22 * quartile}", label=name, edgecolor="white")
            bottom += height
        axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axis.set(xlabel="spread of δ" if kind == "spread" else "Dirichlet α of real labels", title=participation)
        for level in (25, 50, 75):
            axis.axhline(level, color="C3", lw=0.7, ls=":")
    axes[0].set_ylabel("share of the uploads (%)")
    axes[-1].legend(title="quartile of δ", loc="center left", bbox_to_anchor=(1.0, 0.5))


STUDY = Study("heterogeneity", "do schedules prefer devices that are like the whole, or cover all?", _items, _measure, _tables, _draw)
