"""A simulation from start to end: data, models and trainers for a problem, the event loop, checkpoints, the report."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fl_runtime.checkpoint import load_checkpoint, save_checkpoint
from fl_runtime.datasets import Dataset, load_dataset
from fl_runtime.device_data import TaskData, make_task_data
from fl_runtime.engine import Engine
from fl_runtime.models import build_model, initial_parameters, num_parameters
from fl_runtime.report import SimulationReport, diverged, make_report
from fl_runtime.settings import SimulateSettings
from fl_runtime.task_run import DATA_STREAM, MODEL_STREAM, TaskRun, seed_of
from fl_runtime.timeline import Timeline
from fl_runtime.training import LocalTrainer, check_placement
from fl_runtime.training.limits import default_workers
from schedopt.constraints import ValidationReport, validate_schedule
from schedopt.errors import InfeasibleError, InputError
from schedopt.problem import Problem
from schedopt.schedule import Schedule

if TYPE_CHECKING:
    from fl_runtime.datasets.fetch import Progress

__all__ = ["BITS_PER_PARAMETER", "SimulateSettings", "Simulation"]

#: Parameters travel as float32.
BITS_PER_PARAMETER = 32


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
        self.warnings: list[str] = []
        names = settings.chosen(problem, "dataset"), settings.chosen(problem, "model")
        self._partition, self._drift = settings.partition_spec(), settings.drift_spec(problem)
        check_placement(settings.device, settings.path)
        self._workers = self._usable_workers()
        report = validate_schedule(problem, schedule)
        self.evaluation = report.evaluation
        _refuse_infeasible(report)
        datasets = self._load(names[0], progress)
        self.data = [self._task_data(j, datasets[name]) for j, name in enumerate(names[0])]
        self.models: list[dict[str, Any]] = []
        self.trainers: list[LocalTrainer] = []
        try:
            runs = [self._run_of(j, name) for j, name in enumerate(names[1])]
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
        for trainer in self.trainers:
            trainer.close()

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

    def _usable_workers(self) -> int | None:
        asked, cores = self.settings.workers, default_workers()
        if asked is None or asked <= cores or self.settings.device != "cpu":
            return asked
        self.warnings.append(
            f"workers = {asked}: this process may use {cores} core{'s' * (cores > 1)}, and no more workers than that are used"
        )
        return cores

    def _load(self, names: list[str], progress: Progress | None) -> dict[str, Dataset]:
        s = self.settings
        return {
            name: load_dataset(name, data_dir=s.data_dir, accept_incomplete=s.accept_incomplete, download=s.download, progress=progress)
            for name in dict.fromkeys(names)
        }

    def _task_data(self, j: int, dataset: Dataset) -> TaskData:
        task, sizes = self.problem.tasks[j], self.problem.arrays.samples[:, j]
        most = len(dataset.train_labels)
        for i in np.flatnonzero(sizes > most)[:1]:
            few = f"device {self.problem.devices[i].name!r} has {int(sizes[i]):,} samples of task {task.name!r}"
            raise InputError(f"{few}; must be at most {most:,}, which is what data set {dataset.name!r} has")
        try:
            seed = seed_of(self.seed, DATA_STREAM, j)
            data = make_task_data(
                dataset, [int(n) for n in sizes], self._partition, self._drift, slots=self.problem.arrays.slots, seed=seed
            )
        except InputError as error:
            raise InputError(f"task {task.name!r}, data set {dataset.name!r}: {error}") from error
        if data.reused:
            held = int(sizes.sum())
            self.warnings.append(
                f"task {task.name!r}: devices hold {held:,} samples in all, data set {dataset.name!r} has {len(dataset.train_labels):,};"
                " devices share samples"
            )
        mine = self.schedule.task == j
        for i, batch in zip(self.schedule.device[mine], self.schedule.batch[mine], strict=True):
            if batch > data.sizes[i]:
                name = self.problem.devices[i].name
                few = f"device {name!r} has {data.sizes[i]} samples of {task.name!r}"
                raise InputError(f"partition {self._partition}: {few}; must be at least the batch of {int(batch)}")
        return data

    def _run_of(self, j: int, name: str) -> TaskRun:
        task, dataset = self.problem.tasks[j], self.data[j].dataset
        try:
            model = build_model(name, dataset.shape, dataset.num_classes)
        except InputError as error:
            raise InputError(f"task {task.name!r}, data set {dataset.name!r}: {error}") from error
        bits = BITS_PER_PARAMETER * num_parameters(model)
        if abs(bits - task.model_bits) > 0.01 * bits:
            self.warnings.append(
                f"task {task.name!r}: model_bits = {task.model_bits:g}, but model {name!r} has {num_parameters(model):,} parameters,"
                f" {bits:,} bits; times and energies are those of model_bits"
            )
        trainer = LocalTrainer(
            model,
            learning_rate=task.learning_rate,
            prox=task.prox,
            device=self.settings.device,
            path=self.settings.path,
            workers=self._workers,
        )
        self.trainers.append(trainer)
        self.models.append({"name": name, "parameters": num_parameters(model), "bits": bits})
        first = initial_parameters(model, seed_of(self.seed, MODEL_STREAM, j))
        return TaskRun(self.problem, self.schedule, j, self.data[j], trainer, self.seed, first)


def _refuse_infeasible(report: ValidationReport) -> None:
    """Constraints 1 to 6 must hold; the others concern the bound and the mode, not what can be executed."""
    for check in report.checks:
        if not check.ok and check.name[0].isdigit():
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
