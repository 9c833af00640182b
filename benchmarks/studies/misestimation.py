"""What wrong constants cost: solve what is believed, execute what is true.

The truth is a shipped problem. The solver sees it with every constant of :class:`schedopt.robust.Margins` off by a factor between
1/(1+s) and 1+s, s the *share*, each device, slot and task for itself. Its schedule meets the truth: assignments, steps, batches and
bandwidths stay; every device chooses frequency and power of least energy for what it sees (:func:`choose_by_device`); an upload that
cannot be made, or for which the device's energy budget no longer suffices, is dropped before anything is spent on it. The loss is that of
the exact objective under the truth against that of the schedule solved for the truth in the same time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.arguments import load_named
from benchmarks.studies.frame import Item, Options, Record, Study, Table
from schedopt.files import parse_problem
from schedopt.formulation.own_choice import choose_by_device
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.robust import Margins, worst_case
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY", "execute", "misestimate"]

PROBLEMS = ("small_4dev_2task", "10dev_3task_cnn", "10dev_3task_certified", "hetero_20dev_4task")
SHARES = (0.1, 0.2, 0.3, 0.5)
#: what --robust is given, by name
MARGINS = {
    "none": "0",
    "limits": "limits={share}",
    "half": "{half}",
    "robust": "{share}",
    "physical": "physical={share}",
    "all": "all={share}",
}
#: what may be lost at a share of 20 % with the robust switch
TARGET_LOSS, TARGET_SHARE = 0.05, 0.2


def misestimate(problem: Problem, share: float, rng: np.random.Generator) -> Problem:
    """What the solver believes: every constant times (1 + share)^u, u uniform in [-1, 1], drawn for each for itself."""
    data = problem.to_dict()

    def off(value: float) -> float:
        return float(value * (1.0 + share) ** rng.uniform(-1.0, 1.0))

    data["spectrum"]["noise_w_per_hz"] = off(data["spectrum"]["noise_w_per_hz"])
    for task in data["tasks"]:
        for name in ("smoothness", "initial_gap", "loss_drift"):
            task[name] = off(task[name])
    for device in data["devices"]:
        gain = device["gain"]
        device["gain"] = [off(value) for value in gain] if isinstance(gain, list | tuple) else off(gain)
        for pair in device["tasks"].values():
            for name in ("cycles_per_sample", "gradient_variance", "dissimilarity", "gradient_drift"):
                pair[name] = off(pair[name])
    return parse_problem(data)


def execute(truth: Problem, schedule: Schedule) -> tuple[Schedule, int]:
    """What becomes of a schedule under ``truth``: the uploads that are made, and the number of those dropped."""
    own, possible = choose_by_device(truth.arrays, schedule.sorted())
    energy = evaluate_objective(truth, own).physics.energy_j
    left, kept = truth.arrays.energy_budget_j.copy(), possible.copy()
    for s in np.flatnonzero(possible):  # in the order in which they start
        kept[s] = energy[s] <= left[own.device[s]]
        left[own.device[s]] -= energy[s] if kept[s] else 0.0
    return own.take(kept), int(np.sum(~kept))


def _items(options: Options) -> Iterator[Item]:
    names = options.problems or (PROBLEMS[:1] if options.short else PROBLEMS)
    seeds = options.seeds or (1 if options.short else 3)
    for name in names:
        limit = options.time_limit_s or (2.0 if options.short else 10.0)
        base = {"problem": name, "digest": load_named(name).digest, "time_limit_s": limit}
        yield base | {"share": 0.0, "seed": 0, "margin": "none"}
        for share in (TARGET_SHARE,) if options.short else SHARES:
            for seed in range(seeds):
                for margin in MARGINS:
                    yield base | {"share": share, "seed": seed, "margin": margin}
        for constant in () if options.short else Margins.names():
            yield base | {"share": 0.0, "seed": 0, "margin": f"{constant}={TARGET_SHARE}"}


def margins_of(item: Item) -> Margins:
    """The margins with which the solver of ``item`` works; a name that is none of the study's is what --robust takes."""
    share = item["share"]
    return Margins.parse(MARGINS.get(item["margin"], item["margin"]).format(share=share, half=share / 2))


def _measure(item: Item) -> dict[str, Any]:
    truth = load_named(item["problem"])
    rng = np.random.default_rng([item["seed"], round(100 * item["share"])])
    believed = misestimate(truth, item["share"], rng) if item["share"] else truth
    settings = SolverSettings(time_limit_s=item["time_limit_s"])
    result = solve(worst_case(believed, margins_of(item)), settings=settings, seed=item["seed"])
    if result.interrupted:
        raise KeyboardInterrupt
    if result.schedule is None:
        return {"objective": None, "planned": 0, "dropped": 0, "reason": result.reason}
    made, dropped = execute(truth, result.schedule)
    evaluation = evaluate_objective(truth, made)
    broken = [c.name for c in evaluation.bound.conditions if not np.all(c.holds)] if truth.objective.enforce_conditions else []
    return {
        "objective": evaluation.objective,
        "energy_j": evaluation.energy_j,
        "bounds": evaluation.bound.total.tolist(),
        "planned": len(result.schedule),
        "dropped": dropped,
        "broken_conditions": broken,
        "believed_objective": result.objective,
        "wall_s": result.wall_s,
    }


def losses(records: Sequence[Record], problem: str, share: float, margin: str) -> list[float]:
    """Loss of each seed, relative to the schedule that knew the truth; infinite where a task is never trained."""
    known = [r.result["objective"] for r in _chosen(records, problem, 0.0, "none")]
    return [
        float("inf") if r.result["objective"] is None else r.result["objective"] / known[0] - 1.0
        for r in _chosen(records, problem, share, margin)
        if known and known[0]
    ]


def _chosen(records: Sequence[Record], problem: str, share: float, margin: str) -> list[Record]:
    wanted = {"problem": problem, "share": share, "margin": margin}
    return [r for r in records if all(r.item[name] == value for name, value in wanted.items())]


def _values(records: Sequence[Record], field: str) -> list[Any]:
    found = dict.fromkeys(r.item[field] for r in records if r.item["share"] > 0)
    return [name for name in MARGINS if name in found] if field == "margin" else sorted(found) if field == "share" else list(found)


def _tables(records: Sequence[Record]) -> list[Table]:
    head = ("problem", "share", "margin", "seeds", "loss median", "mean", "most", "dropped uploads", "of", "conditions missed")
    rows: list[list[Any]] = []
    for problem in _values(records, "problem"):
        for share in _values(records, "share"):
            for margin in _values(records, "margin"):
                lost = losses(records, problem, share, margin)
                if not lost:
                    continue
                mine = [r.result for r in _chosen(records, problem, share, margin)]
                dropped, planned = (sum(r[name] for r in mine) for name in ("dropped", "planned"))
                missed = sum(bool(r.get("broken_conditions")) for r in mine)
                figures = [_percent(f(lost)) for f in (statistics.median, statistics.fmean, max)]
                rows.append([problem, _percent(share), margin, len(lost), *figures, dropped, planned, missed])
    note = (
        "loss: of the exact objective under the truth, against the schedule solved for the truth in the same time. none: the solver trusts"
        " its constants; limits: --robust limits at the share; half, robust: --robust at half the share and at the share; physical: gain,"
        " noise, cycles; all: smoothness too."
        " Conditions missed: solves after which C1 or C2 fails under the truth where it is enforced; their loss compares unlike things."
    )
    prices = _prices(records)
    return [Table("Misestimated constants", head, rows, note), *([prices] if prices.rows else [])]


def _prices(records: Sequence[Record]) -> Table:
    """What a margin on each constant alone costs."""
    problems = list(dict.fromkeys(r.item["problem"] for r in records))
    constants = [name for name in Margins.names() if any(r.item["margin"].startswith(f"{name}=") for r in records)]
    rows = []
    for constant in constants:
        lost = [losses(records, problem, 0.0, f"{constant}={TARGET_SHARE}") for problem in problems]
        rows.append([constant, *(_percent(values[0]) if values else None for values in lost)])
    note = "Loss as above, of schedules for the worst case of one constant, executed where all constants are as given."
    return Table(f"What a margin of {_percent(TARGET_SHARE)} costs if nothing is wrong", ("constant", *problems), rows, note)


def _percent(value: float) -> str:
    return "infinite" if np.isinf(value) else f"{100 * value:.1f} %"


def _draw(records: Sequence[Record], figure: Figure) -> None:
    problems, margins = _values(records, "problem"), _values(records, "margin")
    axes = figure.subplots(1, max(len(problems), 1), squeeze=False, sharey=True)[0]
    for axis, problem in zip(axes, problems, strict=False):
        for margin in margins:
            shares = [share for share in _values(records, "share") if losses(records, problem, share, margin)]
            lost = [losses(records, problem, share, margin) for share in shares]
            middle = [100 * statistics.median(values) for values in lost]
            (line,) = axis.plot([100 * share for share in shares], middle, "o-", label=margin)
            axis.plot([100 * share for share in shares], [100 * max(values) for values in lost], ":", color=line.get_color())
        axis.axhline(100 * TARGET_LOSS, color="0.6", lw=0.8)
        axis.set(title=problem, xlabel="constants off by (%)", xlim=(5, 55))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("objective lost (%): median, dotted most")
    axes[0].legend(title="margin")


STUDY = Study("misestimation", "what do wrong constants cost, and what does --robust save?", _items, _measure, _tables, _draw)
