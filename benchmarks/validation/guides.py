"""What guides say of schedules, and how well that agrees with training: rank correlations, choices at equal energy, caps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata

from benchmarks.validation.ground import Cell
from benchmarks.validation.runs import FORMS, SATURATIONS, Record
from fl_runtime.calibrate.term_fit import (
    LEAST_SAMPLES,
    START,
    PilotSample,
    TermFit,
    best_form,
    guide_values,
    rank_correlation,
)
from fl_runtime.calibrate.term_pilots import SATURATIONS as CALIBRATED
from schedopt.problem import TERMS, FloatArray

__all__ = ["CAPS", "FITTED", "OUTCOMES", "Cap", "CellResult", "Decision", "caps", "is_event", "judge", "of_cells"]

#: outcomes, all of which are better when smaller (accuracy with its sign changed)
OUTCOMES = ("loss", "late_loss", "accuracy", "gradient2")
#: guides that are fitted, each with the forms of the bound that it may choose from: Theorem 1's terms, with T_part judged per instant, over
#: the horizon or by windows ("part"); the same with local steps that saturate ("horizon, saturating" is what ``schedopt calibrate`` fits);
#: all terms of Theorem 2
FITTED: dict[str, tuple[str, ...]] = {
    "instant": ("instant",),
    "horizon": ("horizon 0",),
    "horizon, saturating": tuple(f"horizon {mu:g}" for mu in CALIBRATED),
    "theorem 2": ("window 0",),
    "window": ("part 0",),
    "saturating": tuple(f"part {mu:g}" for mu in SATURATIONS),
}
FOLDS = 5
#: schedules whose energies differ by less than this factor, at least so many, are alternatives
ENERGY_FACTOR, ALTERNATIVES = 1.3, 5
#: a run loses what it had gained if its loss ends above the least on its way by this factor
LOST = 1.1
CAPS = ("eta_beta_e", "beta_h", "beta_span", "condition")


@dataclass(frozen=True)
class Decision:
    """Choosing the least guide among alternatives of about equal energy: means over choices.

    ``regret``: loss above the best alternative's; ``share``: the same in units of the mean alternative's; ``place``: 0 best, 1 worst.
    """

    regret: float
    share: float
    place: float


@dataclass(frozen=True)
class Runs:
    """The runs of a cell by schedule (n,) and seed: ``outcome[name]`` (n, seeds), inf where a run diverged.

    ``terms[form]`` (n, 7) and ``h_form[form]`` (n,): of the forms of the bound.
    """

    names: list[str]
    terms: Mapping[str, FloatArray]
    h_form: Mapping[str, FloatArray]
    h_total: FloatArray
    energy: FloatArray
    uploads: FloatArray
    seconds: FloatArray
    outcome: Mapping[str, FloatArray]

    @cached_property
    def random(self) -> np.ndarray:
        """Which schedules are random ones, shape (n,), bool."""
        return np.array([name.startswith("random") for name in self.names])


@dataclass(frozen=True)
class CellResult:
    """What a cell's runs say.

    ``names``: of different schedules; ``ceiling``: rank correlation of the same schedules with two seeds, by outcome;
    ``correlation[guide][outcome]``, with runs of schedules and a seed that fits have not seen; ``on_random``: the same with the final loss,
    random schedules alone; ``decision[guide]``; ``fits``: form and multipliers, on all schedules; ``guides``: the values, fitted ones out
    of fold; ``loss``: final losses of the seed that is judged; ``losses``: means of all seeds, by name.
    """

    cell: Cell
    names: list[str]
    seeds: int
    ceiling: dict[str, float]
    correlation: dict[str, dict[str, float]]
    on_random: dict[str, float]
    decision: dict[str, Decision]
    fits: dict[str, tuple[str, TermFit]]
    guides: dict[str, FloatArray]
    loss: FloatArray
    losses: dict[str, float]
    seconds: float

    @property
    def schedules(self) -> int:
        """How many different ones there are."""
        return len(self.names)


def of_cells(records: Iterable[Record]) -> dict[Cell, list[Record]]:
    """Records by cell, in the order in which cells come first."""
    found: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        found[Cell(**record["cell"])].append(record)
    return dict(found)


def judge(cell: Cell, records: Sequence[Record], seed: int = 0) -> CellResult | None:
    """Compare all guides on a cell; None if there are too few schedules. ``seed``: of folds and fits."""
    every = _runs_of(records)
    runs = _runs_of(_distinct(records))
    if len(runs.names) < 2 * LEAST_SAMPLES:
        return None
    judged = {name: values[:, -1] for name, values in runs.outcome.items()}
    guides = {
        "uploads": -runs.uploads,
        "plain 1/H": 1.0 / runs.h_total,
        "theorem": guide_values(np.ones(len(TERMS)), runs.terms["instant"], runs.h_total),
        "start": guide_values(START, runs.terms["horizon 0"], runs.h_total),
        "start, window": guide_values(START, runs.terms["part 0"], runs.h_total),
        "start, saturating": guide_values(START, runs.terms["horizon 0.2"], runs.h_form["horizon 0.2"]),
        "start, window, saturating": guide_values(START, runs.terms["part 0.2"], runs.h_form["part 0.2"]),
    }
    guides |= {f"fit, {kind}": _out_of_fold(runs, forms, seed) for kind, forms in FITTED.items()}
    loss = judged["loss"]
    return CellResult(
        cell=cell,
        names=runs.names,
        seeds=runs.outcome["loss"].shape[1],
        ceiling={name: rank_correlation(values[:, 0], values[:, -1]) for name, values in runs.outcome.items()},
        correlation={g: {o: rank_correlation(values, judged[o]) for o in OUTCOMES} for g, values in guides.items()},
        on_random={g: rank_correlation(values[runs.random], loss[runs.random]) for g, values in guides.items()},
        decision={g: decision(values, loss, runs.energy) for g, values in guides.items()},
        fits={kind: _fit(runs, forms, np.arange(len(loss)), seed) for kind, forms in FITTED.items()},
        guides=guides,
        loss=loss,
        losses=dict(zip(every.names, every.outcome["loss"].mean(axis=1).tolist(), strict=True)),
        seconds=float(every.seconds.sum()),
    )


def _distinct(records: Sequence[Record]) -> list[Record]:
    """Without schedules that an earlier one equals but for its name, as that in the middle of each factor's levels does."""
    first: dict[str, str] = {}
    return [record for record in records if first.setdefault(json.dumps(record["assignments"]), record["schedule"]) == record["schedule"]]


def _runs_of(records: Sequence[Record]) -> Runs:
    """Schedules that were run with every seed and trained something."""
    by_name: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record["h_total"] > 0:
            by_name[record["schedule"]][record["seed"]] = record
    seeds = sorted({seed for runs in by_name.values() for seed in runs})
    whole = {name: [runs[seed] for seed in seeds] for name, runs in by_name.items() if len(runs) == len(seeds)}
    first = [runs[0] for runs in whole.values()]

    def column(name: str) -> FloatArray:
        return np.array([record[name] for record in first], dtype=float)

    def outcome(name: str) -> FloatArray:
        sign = -1.0 if name == "accuracy" else 1.0
        rows = [[np.inf if run["diverged"] or run[name] is None else sign * run[name] for run in runs] for runs in whole.values()]
        return np.array(rows, dtype=float).reshape(len(rows), len(seeds))

    terms = {form: np.array([record["forms"][form]["terms"] for record in first]).reshape(-1, len(TERMS)) for form in FORMS}
    h_form = {form: np.array([record["forms"][form]["h_total"] for record in first]) for form in FORMS}
    for mu in SATURATIONS:
        part = TERMS.index("part")
        terms[f"part {mu:g}"], h_form[f"part {mu:g}"] = terms[f"horizon {mu:g}"].copy(), h_form[f"horizon {mu:g}"]
        terms[f"part {mu:g}"][:, part] = terms[f"window {mu:g}"][:, part]
    outcomes = {name: outcome(name) for name in OUTCOMES}
    seconds = np.array([sum(run["seconds"] for run in runs) for runs in whole.values()])
    return Runs(list(whole), terms, h_form, column("h_total"), column("energy_j"), column("uploads"), seconds, outcomes)


def _fit(runs: Runs, forms: Sequence[str], rows: np.ndarray, seed: int) -> tuple[str, TermFit]:
    """Form and multipliers from the runs ``rows`` with the first seed, which fits may see."""
    loss, count = runs.outcome["loss"], runs.outcome["loss"].shape[1]
    samples = {
        form: [
            PilotSample(runs.terms[form][k], float(runs.h_form[form][k]), float(loss[k, 0]), float(runs.seconds[k]) / count) for k in rows
        ]
        for form in forms
    }
    return best_form(samples, seed=seed)


def _out_of_fold(runs: Runs, forms: Sequence[str], seed: int) -> FloatArray:
    """Place of every schedule among all by a fit to the other folds: a guide needs no outcome, so nothing of it is known."""
    count = len(runs.names)
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    values = np.empty(count)
    for k in range(FOLDS):
        form, fit = _fit(runs, forms, np.flatnonzero(fold != k), seed)
        guide = guide_values(fit.multipliers, runs.terms[form], runs.h_form[form])
        values[fold == k] = rankdata(guide)[fold == k]
    return values


def decision(guide: FloatArray, loss: FloatArray, energy: FloatArray) -> Decision:
    """What the least ``guide`` among schedules of about equal energy gives, for every schedule's energy."""
    loss = np.where(np.isfinite(loss), loss, np.max(loss, initial=0.0, where=np.isfinite(loss)) + 1.0)
    rows = []
    for k in range(len(loss)):
        near = np.flatnonzero(np.abs(np.log(energy / energy[k])) < np.log(ENERGY_FACTOR))
        spread = loss[near].mean() - loss[near].min()
        if len(near) < ALTERNATIVES or not spread > 0:
            continue
        got = loss[near[np.argmin(guide[near])]]
        regret = got - loss[near].min()
        rows.append((regret, regret / spread, np.mean(loss[near] < got)))
    return Decision(*(float(x) for x in np.mean(rows, axis=0))) if rows else Decision(*[float("nan")] * 3)


# --- stability --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cap:
    """``quantity`` above ``limit`` as a sign of runs that lose: of those it names, ``precision`` do, and it names ``recall`` of all."""

    quantity: str
    limit: float
    precision: float
    recall: float
    events: int
    runs: int


def is_event(record: Record) -> bool:
    """Whether a run diverged, or ended above the least loss on its way by the factor :data:`LOST`."""
    return record["diverged"] or record["loss"] > LOST * record["least_loss"]


def caps(records: Sequence[Record]) -> list[Cap]:
    """Of every quantity the limit with the best F1; the best quantity first. Empty where no run loses."""
    event = np.array([is_event(record) for record in records], dtype=bool)
    found = []
    for quantity in CAPS:
        value = np.array([record[quantity] for record in records])
        order = np.argsort(-value, kind="stable")
        hits = np.cumsum(event[order])
        # a limit lies between different values only
        ends = np.flatnonzero(np.append(np.diff(value[order]) < 0, True))
        if not event.any():
            return []
        f1 = 2 * hits[ends] / (ends + 1 + event.sum())
        best = ends[int(np.argmax(f1))]
        limit = value[order[best + 1]] if best + 1 < len(value) else 0.0
        precision, recall = float(hits[best] / (best + 1)), float(hits[best] / event.sum())
        found.append(Cap(quantity, float(limit), precision, recall, int(event.sum()), len(event)))
    return sorted(found, key=lambda cap: -2 * cap.precision * cap.recall / max(cap.precision + cap.recall, 1e-300))
