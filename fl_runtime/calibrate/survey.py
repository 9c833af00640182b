"""What pilot runs show of one task's constants: series of measured values, one for each constant and device.

Where Theorem 1 asks (formulation section 3): V at local iterates and at global models on the data of that instant; δ at global models;
Δ at the model of instant g between the data of neighbouring instants back to the earliest reception of an update that is due next; Φ at
the model of instant g. Curvature (β) at global models, and as secants ‖∇L(w) − ∇L(w')‖ / ‖w − w'‖ between models of a run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fl_runtime.calibrate.geometry import LossGeometry
from fl_runtime.calibrate.pilots import Pilot, PilotBench
from fl_runtime.calibrate.settings import CalibrateSettings
from schedopt.problem import FloatArray
from schedopt.schedule import Schedule

__all__ = ["Seen", "Survey", "Tell"]

#: Domain of the random streams of calibration, next to those of :mod:`fl_runtime.task_run`.
STREAM = 4
#: Devices whose curvature is measured on all their samples, at each point: those with most of it on a part of them.
LEADERS = 2
#: Bootstrap: resamplings, and the interval's quantiles.
RESAMPLINGS, QUANTILES = 200, (0.025, 0.975)
#: Models that are as near as this, relative to their size, make no secant: rounding of single precision would be most of it.
NEAR = 1e-5

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """A value measured at an instant of a pilot run; ``low`` to ``high``: its bootstrap interval where samples were drawn."""

    value: float
    pilot: int
    instant: int
    low: float
    high: float


@dataclass
class Survey:
    """One task's series over all runs.

    ``series[name, device]``: names are curvature, secant, rise, first_loss, least_loss with device None, and gradient_variance,
    dissimilarity, gradient_drift of a device. ``sampled``: whether some variance is of a part of a device's samples; ``skipped``:
    points at which the model was no longer finite.
    """

    bench: PilotBench
    task: int
    settings: CalibrateSettings
    seed: int = 0
    series: dict[tuple[str, int | None], list[Seen]] = field(default_factory=lambda: defaultdict(list))
    sampled: bool = False
    skipped: int = 0

    def __post_init__(self) -> None:
        a, trainer = self.bench.problem.arrays, self.bench.trainers[self.task]
        self.weight: FloatArray = a.aggregation_weight[:, self.task]
        self.drifts = bool(self.bench.settings.drift_spec(self.bench.problem).rules)
        self.devices = [i for i, size in enumerate(self.bench.data[self.task].sizes) if size]
        self.geometry = LossGeometry(trainer.model, trainer.device)
        self._directions: dict[int, FloatArray] = {}

    def points(self, schedule: Schedule) -> list[int]:
        """Instants to measure at in a run by ``schedule``, the first and the last that count among them."""
        slots = self.bench.problem.arrays.slots
        mine = schedule.task == self.task
        wanted = {0} | set(schedule.start[mine].tolist()) | set((schedule.end[mine] - 1).tolist())
        instants = list(range(slots)) if self.drifts else sorted(wanted)
        chosen = np.unique(np.round(np.linspace(0, len(instants) - 1, min(self.settings.points, len(instants)))).astype(int))
        return [instants[k] for k in chosen]

    def add(self, number: int, pilot: Pilot, tell: Tell = lambda text: None) -> None:
        """Measure run ``number``."""
        points = self.points(pilot.schedule)
        for before, instant in pairwise([None, *points]):
            assert instant is not None
            if not np.isfinite(self._loss(instant, pilot.models[self.task][instant])):
                self.skipped += 1
                continue
            tell(f"instant {instant}")
            self._at(number, pilot, instant, None if before is None else pilot.models[self.task][before], tell)

    # --- at one instant ---------------------------------------------------------------------------------------------------------

    def _at(self, number: int, pilot: Pilot, instant: int, before: Tensor | None, tell: Tell) -> None:
        model = pilot.models[self.task][instant]
        slopes, loss = self._slopes(instant, model), self._loss(instant, model)

        def note(name: str, device: int | None, value: float, low: float | None = None, high: float | None = None) -> None:
            if np.isfinite(value):
                self.series[name, device].append(
                    Seen(value, number, instant, value if low is None else low, value if high is None else high)
                )

        if instant == 0:
            note("first_loss", None, loss)
        note("least_loss", None, loss)
        overall = sum(float(self.weight[i]) * slopes[i].double() for i in self.devices)
        for i in self.devices:
            note("dissimilarity", i, float((slopes[i].double() - overall).norm()))
            note("gradient_variance", i, *self._variance(model, i, instant, (number, instant)))
        self._note_drift(note, pilot, instant, model, slopes, loss)
        if before is not None and _apart(model, before):
            earlier = self._slopes(instant, before)
            note("secant", None, max(_secant(slopes[i], earlier[i], model, before) for i in self.devices))
        tell(f"instant {instant}, curvature")
        note("curvature", None, self._curvature(model, instant, number))
        tell(f"instant {instant}, local steps")
        self._uploads(note, pilot, instant, number)

    def _slopes(self, instant: int, model: Tensor) -> dict[int, Tensor]:
        """∇L_i of all devices."""
        trainer = self.bench.trainers[self.task]
        return {i: trainer.gradient(model, *self.bench.samples(self.task, i, instant)) for i in self.devices}

    def _loss(self, instant: int, model: Tensor) -> float:
        """F_g."""
        trainer = self.bench.trainers[self.task]
        held = [i for i in self.devices if self.weight[i] > 0]
        return sum(float(self.weight[i]) * trainer.evaluate(model, *self.bench.samples(self.task, i, instant))[0] for i in held)

    def _variance(self, model: Tensor, device: int, instant: int, key: tuple[int, ...]) -> tuple[float, float, float]:
        """V of a device, with D − 1, and a bootstrap interval: of all samples, or of as many as are to be used."""
        features, labels = self._some(device, instant, key)
        squares = self.geometry.squared_distances(model, features, labels)
        count = len(squares)
        if count < 2:
            return 0.0, 0.0, 0.0
        value = float(squares.sum()) / (count - 1)
        if count == len(self.bench.samples(self.task, device, instant)[1]):
            return value, value, value
        self.sampled = True
        draws = self._rng(device, *key, 1).choice(squares, (RESAMPLINGS, count)).sum(axis=1) / (count - 1)
        low, high = np.quantile(draws, QUANTILES)
        return value, float(low), float(high)

    def _some(self, device: int, instant: int, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """At most ``settings.samples`` of a device's samples."""
        features, labels = self.bench.samples(self.task, device, instant)
        if len(labels) <= self.settings.samples:
            return features, labels
        rows = torch.from_numpy(self._rng(device, *key, 0).choice(len(labels), self.settings.samples, replace=False))
        return features[rows], labels[rows]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, STREAM, self.task, *key])

    # --- smoothness -------------------------------------------------------------------------------------------------------------

    def _curvature(self, model: Tensor, instant: int, number: int) -> float:
        """Largest spectral norm of the devices' Hessians: of those with few samples, and of those that lead on a part of theirs."""
        found, parts = 0.0, {}
        for i in self.devices:
            part = self._some(i, instant, (number, instant))
            start = self._directions.get(i)
            if start is None:
                start = self._rng(i, number, instant, 2).normal(size=self.geometry.layout.total)
            value, self._directions[i] = self.geometry.largest_curvature(model, *part, start)
            if len(part[1]) < len(self.bench.samples(self.task, i, instant)[1]):
                parts[i] = value
            else:
                found = max(found, value)
        for i in sorted(parts, key=lambda i: -parts[i])[:LEADERS]:
            samples = self.bench.samples(self.task, i, instant)
            value, self._directions[i] = self.geometry.largest_curvature(model, *samples, self._directions[i])
            found = max(found, value)
        return found

    # --- change of the data -----------------------------------------------------------------------------------------------------

    def _note_drift(
        self, note: Callable[..., None], pilot: Pilot, instant: int, model: Tensor, slopes: dict[int, Tensor], loss: float
    ) -> None:
        if instant == 0 or not self.drifts:
            return
        note("rise", None, loss - self._loss(instant - 1, model))
        s = pilot.schedule
        due = s.start[(s.task == self.task) & (s.end == instant + 1)]
        earliest = min(int(due.min(initial=instant)), instant - 1)
        trainer = self.bench.trainers[self.task]
        for i in self.devices:
            later = slopes[i]
            for g in range(instant - 1, earliest - 1, -1):
                earlier = trainer.gradient(model, *self.bench.samples(self.task, i, g))
                note("gradient_drift", i, float((later.double() - earlier.double()).norm()))
                later = earlier

    # --- local training ---------------------------------------------------------------------------------------------------------

    def _uploads(self, note: Callable[..., None], pilot: Pilot, instant: int, number: int) -> None:
        """V at local iterates, and secants from them to the model received."""
        s, trainer = pilot.schedule, self.bench.trainers[self.task]
        starting = np.flatnonzero((s.task == self.task) & (s.start == instant))
        chosen = self._rng(number, instant, 3).permutation(starting)[: self.settings.uploads]
        for k in sorted(chosen.tolist()):
            device, steps = int(s.device[k]), int(s.steps[k])
            wanted = set(np.unique(np.round(np.linspace(steps - 1, 1, self.settings.iterates))).astype(int).tolist()) - {0}
            samples = self.bench.samples(self.task, device, instant)
            received = pilot.models[self.task][instant]
            slope = trainer.gradient(received, *samples)
            for step, model in enumerate(self.bench.local_iterates(pilot, k)):
                if step not in wanted or step >= steps or not bool(torch.isfinite(model).all()):
                    continue
                note("gradient_variance", device, *self._variance(model, device, instant, (number, instant, k, step)))
                if _apart(model, received):
                    note("secant", None, _secant(trainer.gradient(model, *samples), slope, model, received))


def _apart(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) > NEAR * float(other.norm())


def _secant(slope: Tensor, other_slope: Tensor, model: Tensor, other: Tensor) -> float:
    return float((slope.double() - other_slope.double()).norm() / (model.double() - other.double()).norm())
