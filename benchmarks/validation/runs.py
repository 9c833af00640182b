"""One run: training by a schedule with the real engine, what it gave, and what the bound is made of. Records are lines of JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from benchmarks.validation.ground import SLOTS, Ground
from benchmarks.validation.schedules import WINDOW, judged_by
from fl_runtime.engine import Engine
from fl_runtime.models import initial_parameters
from fl_runtime.task_run import MODEL_STREAM, TaskRun, seed_of
from fl_runtime.timeline import Timeline
from fl_runtime.training import LocalTrainer
from schedopt.bounds.async_schedule import STALE_FACTOR, aggregate, raw_terms
from schedopt.errors import InputError
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["FORMS", "SATURATIONS", "Record", "features", "key_of", "lines_of", "open_to_add", "read_records", "record_of", "train"]

Record = dict[str, Any]

#: saturations of local steps that are tried
SATURATIONS = (0.0, 0.1, 0.2, 0.3, 0.5)
#: forms of the bound by name: participation and saturation
FORMS: dict[str, tuple[Any, float]] = {"instant": ("instant", 0.0)}
FORMS |= {f"{name} {mu:g}": (how, mu) for mu in SATURATIONS for name, how in (("horizon", "horizon"), ("window", {"window": WINDOW}))}
#: instants at which loss and gradient are measured on some of the data, and the samples of them
EVERY, SAMPLES = 4, 1_000
#: instants of the last quarter at which the loss is measured on all data
LATE = tuple(range(3 * SLOTS // 4, SLOTS + 1, 5))


def key_of(record: Mapping[str, Any]) -> str:
    """Tells runs apart."""
    return json.dumps([record["cell"], record["schedule"], record["seed"]], sort_keys=True)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file; a line that was cut off does not count. Raises :class:`~schedopt.errors.InputError` for other files."""
    for number, record in lines_of(path):
        if not (isinstance(record, dict) and {"cell", "schedule", "seed", "forms"} <= record.keys()):
            raise InputError(f"{path}: line {number} is no run; must be a file of --runs")
        yield record


def lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines with their numbers; a line that was cut off does not count.

    Raises :class:`~schedopt.errors.InputError` for what cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; must be a file of JSON lines") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError:
            continue


def open_to_add(path: Path) -> TextIO:
    """A file of lines, made with its folder if there is none, to add to; a last line that was cut off is ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", encoding="utf-8")
    with open(path, "rb") as last:
        if last.seek(0, os.SEEK_END) and last.seek(-1, os.SEEK_END) >= 0 and last.read() != b"\n":
            file.write("\n")
    return file


def record_of(ground: Ground, name: str, schedule: Schedule, seed: int) -> Record:
    """Train, and tell everything of the run."""
    began = time.monotonic()
    outcome = train(ground, schedule, seed)
    seconds = time.monotonic() - began
    columns = (schedule.device, schedule.start, schedule.end, schedule.steps, schedule.batch)
    assignments = [[int(value) for value in row] for row in zip(*columns, strict=True)]
    head = {"cell": ground.cell.to_dict(), "schedule": name, "seed": seed}
    return {**head, **outcome, "seconds": seconds, **features(ground.problem, schedule), "assignments": assignments}


def features(problem: Problem, schedule: Schedule) -> Record:
    """What guides are made of: the terms by each way to judge participation, H, and what else is simple to say of a schedule."""
    a = problem.arrays
    sums, beta, eta = aggregate(a, schedule), float(a.smoothness[0]), float(a.learning_rate[0])
    h, span = beta * sums.h_instant[0], beta * sums.stale_span[0]
    return {
        "forms": {name: _form(problem, schedule, *form) for name, form in FORMS.items()},
        "h_total": float(sums.h_total[0]),
        "energy_j": evaluate_objective(problem, schedule).energy_j,
        "uploads": len(schedule),
        "steps": float(schedule.steps.sum()),
        "samples": float(schedule.steps @ schedule.batch),
        "staleness": float(schedule.staleness.mean()),
        "devices": len(np.unique(schedule.device)),
        "eta_beta_e": eta * beta * float(schedule.steps.max()),
        "beta_h": float(h.max()),
        "beta_span": float(span.max()),
        "condition": float((h + STALE_FACTOR * h * span).max()),
    }


def _form(problem: Problem, schedule: Schedule, participation: Any, saturation: float) -> Record:
    """Terms T_k and H of a form of the bound."""
    judged = _judged(_Same(problem), str(participation), saturation)
    sums = aggregate(judged.arrays, schedule)
    return {"terms": [float(term) for term in raw_terms(judged, schedule, sums)[0]], "h_total": float(sums.h_total[0])}


@dataclass(frozen=True)
class _Same:
    """A problem that is equal to itself alone, as a key."""

    problem: Problem

    def __hash__(self) -> int:
        return id(self.problem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.problem is self.problem


@lru_cache(maxsize=2 * len(FORMS))
def _judged(same: _Same, participation: str, saturation: float) -> Problem:
    kinds = {str(how): how for how, _ in FORMS.values()}
    return judged_by(same.problem, kinds[participation], saturation)


def train(ground: Ground, schedule: Schedule, seed: int) -> Record:
    """Loss at the end and on the way, accuracy, and (1/H) Σ h_g ‖∇F‖² with the gradient of some samples at the last measured instant.

    Numbers that are not finite are None, as JSON has none; ``diverged`` tells so.
    """
    problem = ground.problem
    first = initial_parameters(ground.model, seed_of(seed, MODEL_STREAM, 0))
    losses, squares, late = {}, np.zeros(SLOTS), []
    with LocalTrainer(ground.model, learning_rate=problem.tasks[0].learning_rate, workers=1, path=_path(ground)) as trainer:
        run = TaskRun(problem, schedule, 0, ground.data, trainer, seed, first)
        some = _some(ground)

        def after(instant: int) -> None:
            if instant % EVERY == 0 and instant < SLOTS:
                losses[instant] = trainer.evaluate(run.model, *some)[0]
                slope = trainer.gradient(run.model, *some).double()
                squares[instant : instant + EVERY] = float(slope @ slope)
            if instant in LATE:
                late.append(run.measure(instant, gradient=False))

        with np.errstate(all="ignore"):
            Engine(Timeline(problem, schedule), [run], gradient=False, measure_every=10**9).run(after)
    h = aggregate(problem.arrays, schedule).h_instant[0]
    end, path = late[-1], [*losses.values(), late[-1].loss]
    values = {
        "loss": end.loss,
        "late_loss": float(np.mean([m.loss for m in late])),
        "accuracy": end.accuracy,
        "gradient2": float(h[1:] @ squares / h.sum()) if h.sum() > 0 else float("nan"),
        "first_loss": losses[0],
        "least_loss": float(np.nanmin(path)),
        "largest_loss": float(np.max(path)),
    }
    finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
    return {**finite, "diverged": not np.isfinite(end.loss)}


def _path(ground: Ground) -> str:
    return "sequential" if ground.cell.model == "cnn" else "closed_form"


def _some(ground: Ground) -> tuple[Tensor, Tensor]:
    """Samples of all devices, in proportion to what they hold, of the first instant."""
    parts = [ground.data.samples(i, 0) for i in range(len(ground.data.sizes))]
    features, labels = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    chosen = np.random.default_rng(0).choice(len(labels), min(SAMPLES, len(labels)), replace=False)
    return torch.from_numpy(features[chosen]), torch.from_numpy(labels[chosen])
