"""Does a calibration help who follows it? Schedules optimised under it against those under plain H, at equal energy, on fresh seeds.

A cell is calibrated as ``schedopt calibrate --fit-terms`` does: a fit by rank to runs of every second random schedule with one seed, and a
tournament at energies and with seeds of its own. What wins is optimised at other energies, plain H too, each the best for it of what was
found for both, and trained by with seeds that nothing has seen. Every schedule found and every run is a line of the kept file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.validation.ground import Cell, Ground
from benchmarks.validation.runs import Record, features, key_of, lines_of, open_to_add, train
from benchmarks.validation.schedules import BUDGETS, judged_by, random_schedules
from fl_runtime.calibrate.term_choice import QUANTILES, admitted, guide_of, ranked
from fl_runtime.calibrate.term_fit import PilotSample, best_form, guide_values, rank_correlation
from fl_runtime.calibrate.term_pilots import SATURATIONS
from fl_runtime.calibrate.tournament import Guide, Tournament, find_schedules, optimise, plain_guide
from schedopt.errors import InputError
from schedopt.jsontext import plain
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["DIVERGED", "AtEnergy", "DecisionResult", "Kept", "decide"]

#: Seeds of the tournament's runs begin here, those of the test there.
TOURNAMENT_SEED, TEST_SEED = 50, 100
#: Loss of a run that diverged.
DIVERGED = 99.0


class Kept:
    """Values by key that are made once: each is a line of JSON in a file, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        for number, entry in lines_of(path) if path is not None else ():
            if not (isinstance(entry, dict) and entry.keys() == {"key", "value"}):
                raise InputError(f"{path}: line {number} is no value that was kept; must be a file of --decide")
            self._known[_text(entry["key"])] = entry["value"]

    def get(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """The value of ``key``, made if it is not known."""
        text = _text(key)
        if text not in self._known:
            self._known[text] = plain(make())
            if self.path is not None:
                with open_to_add(self.path) as file:
                    file.write(json.dumps({"key": plain(key), "value": self._known[text]}, allow_nan=False) + "\n")
        return self._known[text]


def _text(key: list[Any]) -> str:
    return json.dumps(plain(key), sort_keys=True)


@dataclass(frozen=True)
class AtEnergy:
    """Losses of the same seeds by the two schedules at one energy; ``uploads``, ``steps``, ``batch``: of (plain, calibrated), means."""

    energy_j: float
    plain: list[float]
    calibrated: list[float]
    uploads: tuple[int, int]
    steps: tuple[float, float]
    batch: tuple[float, float]

    @property
    def wins(self) -> int:
        """Seeds with which the calibrated schedule gives the lower loss."""
        return sum(one < other for one, other in zip(self.calibrated, self.plain, strict=True))


@dataclass(frozen=True)
class DecisionResult:
    """A cell: the guide that won the tournament, the energies, and the rank correlation of guide, fit and plain H with unseen runs."""

    cell: Cell
    guide: Guide
    fit: Guide
    table: dict[str, Any]
    energies: list[AtEnergy]
    spearman: float
    spearman_fit: float
    spearman_plain: float


def decide(
    ground: Ground, records: Mapping[str, Record], kept: Kept, *, schedules: int, seeds: int, runs: int, limits_s: tuple[float, float]
) -> DecisionResult:
    """Calibrate a cell and test the calibration.

    ``records``: runs that are known, by their key; ``schedules``: random ones, of which the fit sees every second; ``seeds``: of the test;
    ``runs``: of the tournament at most; ``limits_s``: of the solver in the tournament and in the test.
    """
    problem = judged_by(ground.problem, "horizon", 0.0)
    problem = problem.model_copy(update={"objective": problem.objective.model_copy(update={"enforce_conditions": False})})
    work = _Work(ground, problem, records, kept)
    named = [(entry.name, entry.make()) for entry in random_schedules(problem, schedules, ground.cell.draw)]
    energies = np.array([evaluate_objective(problem, schedule).energy_j for _, schedule in named])
    samples = work.samples(named[::2], seed=0)
    saturation, fit = best_form(samples, seed=0)
    fitted = guide_of(fit, saturation)
    tournament = Tournament(
        problem,
        admitted(ranked(samples, fitted, fit)),
        [float(np.quantile(energies, share)) for share in QUANTILES],
        lambda schedule, seed: np.array([work.loss(schedule, TOURNAMENT_SEED + seed)]),
        runs,
        optimise_by=partial(work.optimise, limits_s[0]),
    )
    guide = tournament.run() or fitted
    unseen = work.samples(named[1::2], seed=1)
    ranks = [_rank(unseen, each) for each in (guide, fitted, plain_guide())]
    at = [work.test(guide, float(np.quantile(energies, share)), range(TEST_SEED, TEST_SEED + seeds), limits_s[1]) for share in BUDGETS]
    return DecisionResult(ground.cell, guide, fitted, tournament.to_dict(), at, *ranks)


def _rank(samples: Mapping[float, list[PilotSample]], guide: Guide) -> float:
    mine = samples[guide.saturation]
    terms, h_total = np.array([sample.terms for sample in mine]), np.array([sample.h_total for sample in mine])
    return rank_correlation(guide_values(np.array(guide.multipliers), terms, h_total), np.array([sample.outcome for sample in mine]))


@dataclass(frozen=True)
class _Work:
    """Training and optimising in a cell, each done once."""

    ground: Ground
    problem: Problem
    records: Mapping[str, Record]
    kept: Kept

    def loss(self, schedule: Schedule, seed: int) -> float:
        """Final loss, inf if training diverges."""
        key = ["loss", self.ground.cell.to_dict(), schedule.digest, seed]
        found = self.kept.get(key, lambda: train(self.ground, schedule, seed)["loss"])
        return np.inf if found is None else float(found)

    def optimise(self, limit_s: float, asked: Problem, start: Schedule | None) -> Schedule | None:
        """The solver's best, see :func:`fl_runtime.calibrate.tournament.optimise`."""

        def rows() -> list[list[float]] | None:
            found = optimise(asked, start, limit_s=limit_s)
            return None if found is None else np.array(astuple(found)).T.tolist()

        key = ["schedule", self.ground.cell.to_dict(), asked.digest, None if start is None else start.digest, limit_s]
        rows_found = self.kept.get(key, rows)
        return None if rows_found is None else Schedule.from_records(rows_found)

    def samples(self, named: list[tuple[str, Schedule]], seed: int) -> dict[float, list[PilotSample]]:
        """Runs by these schedules as pilot runs, by saturation."""
        found: dict[float, list[PilotSample]] = {mu: [] for mu in SATURATIONS}
        for name, schedule in named:
            known = self.records.get(key_of({"cell": self.ground.cell.to_dict(), "schedule": name, "seed": seed}))
            outcome = self.loss(schedule, seed) if known is None else known["loss"]
            forms = features(self.problem, schedule)["forms"]
            for mu, samples in found.items():
                form = forms[f"horizon {mu:g}"]
                if form["h_total"] > 0:
                    samples.append(PilotSample(np.array(form["terms"]), form["h_total"], np.inf if outcome is None else outcome))
        return found

    def test(self, guide: Guide, energy_j: float, seeds: range, limit_s: float) -> AtEnergy:
        """Both schedules at one energy, trained by with all seeds."""
        found = find_schedules(self.problem, [plain_guide(), guide], energy_j, partial(self.optimise, limit_s))
        pair = [Schedule.empty() if schedule is None else schedule for schedule in found]
        by_plain, by_guide = ([min(self.loss(schedule, seed), DIVERGED) for seed in seeds] for schedule in pair)
        first, other = pair
        means = [(_mean(first, name), _mean(other, name)) for name in ("steps", "batch")]
        return AtEnergy(energy_j, by_plain, by_guide, (len(first), len(other)), *means)


def _mean(schedule: Schedule, name: str) -> float:
    return float(getattr(schedule, name).mean()) if len(schedule) else 0.0
