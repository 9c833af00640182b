"""Pilot runs: real training by any schedules on the same data, with the models that were visited.

:class:`PilotBench` reads data and makes trainers once; :meth:`PilotBench.run` trains by a schedule and tells what ``simulate`` would, and
visited models besides; :meth:`PilotBench.local_iterates` repeats the local training of one assignment step by step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_runtime.engine import Engine
from fl_runtime.models import initial_parameters
from fl_runtime.report import SimulationReport, diverged, make_report
from fl_runtime.simulate import SimulateSettings, Simulation
from fl_runtime.task_run import BATCH_STREAM, MODEL_STREAM, TaskRun, seed_of
from fl_runtime.timeline import Timeline
from fl_runtime.training.batches import draw_batches
from fl_runtime.training.limits import one_thread
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.schedule import Schedule

if TYPE_CHECKING:
    from fl_runtime.datasets.fetch import Progress

__all__ = ["Pilot", "PilotBench"]


@dataclass(frozen=True)
class Pilot:
    """A run: its schedule and seed, what ``simulate`` would report, and ``models[task][instant]``, flat (P,), at the instants asked for."""

    schedule: Schedule
    seed: int
    report: SimulationReport
    models: tuple[Mapping[int, Tensor], ...]


class PilotBench:
    """Data, models and trainers of a problem, ready for any number of runs. A context manager, which ends the trainers' threads.

    Parameters
    ----------
    problem : its constants need not be right; devices, samples, learning rates and the like must be
    settings : data, partition, drift, models and where to train, as of ``simulate``
    seed : of the data on the devices, the same in all runs; with the same seed and schedule a run is that of ``simulate``
    progress : called while data are downloaded

    Raises what :class:`~fl_runtime.simulate.Simulation` does, but looks at no schedule.
    """

    def __init__(self, problem: Problem, settings: SimulateSettings, *, seed: int = 0, progress: Progress | None = None) -> None:
        self.problem, self.settings, self.seed = problem, settings, seed
        self._ground = Simulation(problem, Schedule.empty(), settings, seed=seed, progress=progress)
        self.data, self.trainers, self.models = self._ground.data, self._ground.trainers, self._ground.models
        self._tensors: dict[tuple[int, int], tuple[object, tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> PilotBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End threads and processes."""
        self._ground.close()

    @property
    def warnings(self) -> list[str]:
        """What is odd about data and models, one line each."""
        return self._ground.warnings

    def initial_model(self, task: int, seed: int) -> Tensor:
        """w^0 (P,) of a task in the run with ``seed``."""
        first = initial_parameters(self.trainers[task].model, seed_of(seed, MODEL_STREAM, task))
        return first.to(self.trainers[task].device)

    def samples(self, task: int, device: int, instant: int) -> tuple[Tensor, Tensor]:
        """A device's features and labels: the same objects as long as its data stay the same."""
        arrays = self.data[task].samples(device, instant)
        known = self._tensors.get((task, device))
        if known is None or known[0] is not arrays[0]:
            # copies: the arrays are read-only, which tensors cannot be
            tensors = torch.from_numpy(arrays[0].copy()), torch.from_numpy(arrays[1].copy())
            known = self._tensors[task, device] = (arrays[0], tensors)
        return known[1]

    def run(
        self,
        schedule: Schedule,
        *,
        seed: int | None = None,
        gradient: bool = False,
        measure_every: int | None = None,
        keep: Collection[int] | None = None,
        on_instant: Callable[[int], None] = lambda instant: None,
    ) -> Pilot:
        """Train all tasks by ``schedule`` from the first instant to the last.

        Parameters
        ----------
        schedule : need not be feasible in energy; batches larger than a device's data are cut to them
        seed : of initial models and mini-batches; default: that of the data
        gradient, measure_every : as of ``simulate``; default: no gradient norms, loss and accuracy first and last
        keep : instants whose models are kept; default: all
        on_instant : called after every instant; may raise to stop
        """
        seed, began = self.seed if seed is None else seed, time.monotonic()
        schedule = self._cut(schedule)
        every = self.problem.arrays.slots if measure_every is None else measure_every
        runs = [self._task_run(j, schedule, seed) for j in range(len(self.data))]
        engine = Engine(Timeline(self.problem, schedule), runs, gradient=gradient, measure_every=every)
        models: tuple[dict[int, Tensor], ...] = tuple({} for _ in runs)

        def after(instant: int) -> None:
            if keep is None or instant in keep:
                for kept, run in zip(models, runs, strict=True):
                    kept[instant] = run.model
            on_instant(instant)

        engine.run(after)
        s = self.settings
        report = make_report(
            engine,
            evaluate_objective(self.problem, schedule),
            self.data,
            self.models,
            seed=seed,
            device=s.device,
            versions={},
            settings={"partition": s.partition, "drift": s.drift, "data_seed": self.seed, "gradient": gradient, "measure_every": every},
            warnings=diverged(engine),
            wall_s=time.monotonic() - began,
        )
        return Pilot(schedule, seed, report, models)

    def local_iterates(self, pilot: Pilot, assignment: int) -> Iterator[Tensor]:
        """w^0 = w^a, w^1, .., w^e of an assignment of ``pilot.schedule``, with the mini-batches that it had; w^a must have been kept."""
        s, k = pilot.schedule, assignment
        device, j, start = int(s.device[k]), int(s.task[k]), int(s.start[k])
        task, trainer = self.problem.tasks[j], self.trainers[j]
        features, labels = self.samples(j, device, start)
        received = w = pilot.models[j][start]
        yield w
        key = (pilot.seed, BATCH_STREAM, j, device, start)
        for rows in draw_batches(key, int(s.steps[k]), int(s.batch[k]), len(labels)):
            with one_thread():
                chosen = torch.from_numpy(rows)
                slope = trainer.gradient(w, features[chosen], labels[chosen])
                w = w - task.learning_rate * (slope + task.prox * (w - received))
            yield w

    def _cut(self, schedule: Schedule) -> Schedule:
        """No batch larger than the device's data, which a partition may have redrawn."""
        sizes = np.array([data.sizes for data in self.data])[schedule.task, schedule.device]
        return schedule.replace(batch=np.minimum(schedule.batch, sizes))

    def _task_run(self, task: int, schedule: Schedule, seed: int) -> TaskRun:
        return TaskRun(self.problem, schedule, task, self.data[task], self.trainers[task], seed, self.initial_model(task, seed))
