"""A simulation from start to end: data, models and trainers for a problem, the event loop, checkpoints, the report."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fl_runtime.checkpoint import load_checkpoint, save_checkpoint
from fl_runtime.engine import Engine
from fl_runtime.environment import BITS_PER_PARAMETER, Environment
from fl_runtime.report import SimulationReport, diverged, make_report
from fl_runtime.settings import SimulateSettings
from fl_runtime.task_run import TaskRun
from fl_runtime.timeline import Timeline
from fl_runtime.training import check_placement
from schedopt.constraints import ValidationReport, validate_schedule
from schedopt.errors import InfeasibleError, InputError
from schedopt.problem import Problem
from schedopt.schedule import Schedule

if TYPE_CHECKING:
    from fl_runtime.datasets.fetch import Progress

__all__ = ["BITS_PER_PARAMETER", "SimulateSettings", "Simulation"]


class Simulation:
    """Real training by a schedule. A context manager, which ends the trainers' threads and processes.

    Parameters
    ----------
    problem, schedule : what to execute; physically infeasible schedules are refused
    settings, seed : the rest of what decides the outcome
    progress : called while data are downloaded

    Raises :class:`~schedopt.errors.InfeasibleError` naming the violated constraint, :class:`~schedopt.errors.InputError` for tasks without
    data set or model and the like, :class:`~fl_runtime.errors.DataError` for data that cannot be had.
    """

    def __init__(
        self, problem: Problem, schedule: Schedule, settings: SimulateSettings, *, seed: int = 0, progress: Progress | None = None
    ) -> None:
        self.problem, self.schedule, self.settings, self.seed = problem, schedule, settings, seed
        settings.check(problem)
        check_placement(settings.device, settings.path)
        report = validate_schedule(problem, schedule)
        self.evaluation = report.evaluation
        _refuse_infeasible(report)
        self._ground = Environment(problem, settings, seed=seed, progress=progress)
        self.warnings = self._ground.warnings
        self.data, self.models, self.trainers = self._ground.data, self._ground.models, self._ground.trainers
        try:
            self._check_batches()
            runs = [self._run_of(j) for j in range(len(problem.tasks))]
        except BaseException:
            self.close()
            raise
        timeline = Timeline(problem, schedule)
        self.engine = Engine(timeline, runs, gradient=settings.gradient, measure_every=settings.measure_every)
        self._before_s, self._begun = 0.0, time.monotonic()
        #: whether the checkpoint file is this run's: written by it or resumed from
        self._own = False

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End threads and processes."""
        self._ground.close()

    @property
    def identity(self) -> str:
        """Tells this run from all whose outcome may differ: schedule, seed, data, models, settings, versions of what computes."""
        chosen = {name: value for name, value in vars(self.settings).items() if name not in ("data_dir", "download")}
        chosen |= {"datasets": [data.dataset.digest for data in self.data], "models": [model["name"] for model in self.models]}
        parts = [self.problem.digest, self.schedule.digest, self.seed, chosen, _versions()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def resume(self, checkpoint: str | Path) -> bool:
        """Go on from ``checkpoint``; False if there is no such file. Raises InputError for one that is not of this run."""
        if not Path(checkpoint).exists():
            return False
        state = load_checkpoint(checkpoint, self.identity)
        self._own = True
        self._before_s = float(state["wall_s"])
        self.engine.restore(state["engine"])
        return True

    def run(
        self, *, checkpoint: str | Path | None = None, every_s: float = 10.0, on_instant: Callable[[int], None] = lambda instant: None
    ) -> SimulationReport:
        """Run to the end and report; ``checkpoint`` is written when ``every_s`` seconds have passed since the last.

        Raises :class:`~schedopt.errors.InputError` if that file holds anything but a checkpoint of this same run, which is replaced.
        """
        self._begun = last = time.monotonic()
        if checkpoint is not None and not self._own and Path(checkpoint).exists():
            load_checkpoint(checkpoint, self.identity)
            self._own = True

        def after(instant: int) -> None:
            nonlocal last
            if checkpoint is not None and time.monotonic() - last >= every_s:
                self.save(checkpoint)
                last = time.monotonic()
            on_instant(instant)

        self.engine.run(after)
        return self.report()

    def save(self, checkpoint: str | Path) -> bool:
        """Write a checkpoint: of the last whole instant, if the run was stopped in the middle of one; whether that could be done.

        A checkpoint is an aid: one that cannot be written is a warning, not the end of the training.
        """
        try:
            save_checkpoint(checkpoint, self.identity, {"engine": self.engine.state(), "wall_s": self._wall_s()})
        except InputError as error:
            warning = f"checkpoint not written: {error}"
            if warning not in self.warnings:
                self.warnings.append(warning)
            return False
        self._own = True
        return True

    def discard(self, checkpoint: str | Path) -> None:
        """Remove the checkpoint, if it is this run's."""
        if self._own:
            Path(checkpoint).resolve().unlink(missing_ok=True)

    def report(self) -> SimulationReport:
        """What happened so far."""
        s = self.settings
        settings = {"partition": s.partition, "drift": s.drift, "gradient": s.gradient, "measure_every": s.measure_every}
        return make_report(
            self.engine,
            self.evaluation,
            self.data,
            self.models,
            seed=self.seed,
            device=s.device,
            versions=_versions(),
            settings=settings,
            warnings=[*self.warnings, *diverged(self.engine)],
            wall_s=self._wall_s(),
        )

    def _wall_s(self) -> float:
        return self._before_s + time.monotonic() - self._begun

    def _check_batches(self) -> None:
        """A partition may have redrawn how many samples a device has."""
        s = self.schedule
        for k in range(len(s)):
            i, j, batch = int(s.device[k]), int(s.task[k]), int(s.batch[k])
            held = self.data[j].sizes[i]
            if batch > held:
                few = f"device {self.problem.devices[i].name!r} has {held} samples of {self.problem.tasks[j].name!r}"
                raise InputError(f"partition {self.settings.partition_spec()}: {few}; must be at least the batch of {batch}")

    def _run_of(self, j: int) -> TaskRun:
        ground = self._ground
        return TaskRun(self.problem, self.schedule, j, ground.data[j], ground.trainers[j], self.seed, ground.first_model(j))


def _refuse_infeasible(report: ValidationReport) -> None:
    """What can be executed may break what concerns the bound and the mode."""
    for check in report.checks:
        if not check.ok and check.physical:
            worst = max(check.violations, key=lambda violation: violation.amount)
            value, limit = _apart(worst.value, worst.limit)
            raise InfeasibleError(
                f"the schedule cannot be executed: {check.name} at {worst.where} = {value} {worst.unit}; must be at most"
                f" {limit} ({check.statement}); 'schedopt validate' tells all"
            )


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Both as texts, with as many digits as it takes to see that they are not the same."""
    for digits in (6, 9):
        texts = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return repr(value), repr(limit)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("schedopt", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
