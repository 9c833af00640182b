"""How to simulate: what a problem and a schedule do not say. No torch here, so that what is wrong with an option is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_runtime.drift import DriftSpec
from fl_runtime.partition import PartitionSpec
from schedopt.errors import InputError
from schedopt.problem import Problem

__all__ = ["SimulateSettings"]


@dataclass(frozen=True)
class SimulateSettings:
    """How to simulate. Raises :class:`~schedopt.errors.InputError` for a partition or a number that is none."""

    #: labels over devices: iid, dirichlet:ALPHA, shards:K, size[:SIGMA]
    partition: str = "dirichlet:0.3"
    #: change over time: KIND:RATE[@DEVICE],... with kinds labels, arrivals, rotation; empty = none
    drift: str = ""
    #: where to train: "cpu" or "cuda"; and how (see LocalTrainer)
    device: str = "cpu"
    path: str = "auto"
    #: threads or processes on a CPU; None: its cores. More than there are cores only get into each other's way: they are not used
    workers: int | None = None
    #: measure ‖∇F_g‖² on all devices' data, and measure at instants that are multiples of this
    gradient: bool = True
    measure_every: int = 1
    #: data set and model by task, in place of the problem's
    datasets: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    #: where data are (see load_dataset)
    data_dir: str | None = None
    accept_incomplete: bool = False
    download: bool = True

    def __post_init__(self) -> None:
        self.partition_spec()
        if self.measure_every < 1:
            raise InputError(f"measure_every = {self.measure_every}; must be at least 1")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers = {self.workers}; must be at least 1")

    def partition_spec(self) -> PartitionSpec:
        """Who holds which samples."""
        return PartitionSpec.parse(self.partition)

    def drift_spec(self, problem: Problem) -> DriftSpec:
        """What changes on which devices of ``problem``. Raises :class:`~schedopt.errors.InputError` for a drift that is none there."""
        names = [device.name for device in problem.devices]
        drift = DriftSpec.parse(self.drift, {name: i for i, name in enumerate(names)})
        drift.check_devices(len(names), names)
        return drift

    def chosen(self, problem: Problem, kind: str) -> list[str]:
        """``kind`` "dataset" or "model" of every task: the one given by hand, else the problem's."""
        overrides = self.datasets if kind == "dataset" else self.models
        for name in overrides:
            if name and name not in problem.task_index:
                raise InputError(f"--{kind} {name}=...: no such task; must be one of {', '.join(problem.task_index)}")
        found = []
        for j, task in enumerate(problem.tasks):
            name = overrides.get(task.name, overrides.get("", getattr(task, kind)))
            if name is None:
                raise InputError(f"tasks[{j}].{kind} = null; must name one to simulate (in the problem file, or --{kind} {task.name}=NAME)")
            found.append(name)
        return found

    def check(self, problem: Problem) -> None:
        """Raises :class:`~schedopt.errors.InputError` for what does not go with ``problem``."""
        self.drift_spec(problem)
        for kind in ("dataset", "model"):
            self.chosen(problem, kind)
