"""`SimulationReport`: what happened, beside what was planned and what the bound promised (``report.json``)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fl_runtime.device_data import TaskData
from fl_runtime.engine import Engine
from schedopt.jsontext import plain
from schedopt.objective import Evaluation

__all__ = ["REPORT_SCHEMA", "DeviceReport", "SimulationReport", "TaskReport", "diverged", "make_report"]

REPORT_SCHEMA = "schedopt.report/1"


@dataclass(frozen=True)
class TaskReport:
    """One task: lists over the measured instants; ``bound`` is Ψ, ``measured`` the left side of Theorem 1, which Ψ bounds if certified.

    ``bound_terms``: each term's share of Ψ; ``staleness``: aggregated updates by κ; ``energy_j`` cumulative, in J; ``loss``: F_g(w^g) on
    the devices' data, ``test_loss`` and ``accuracy`` on the test part.
    """

    instants: list[int]
    time_s: list[float]
    accuracy: list[float]
    loss: list[float]
    test_loss: list[float]
    gradient_norm2: list[float | None]
    energy_j: list[float]
    bound: float | None
    bound_terms: dict[str, float] | None
    measured: float | None
    certified: bool
    staleness: dict[str, int]
    assignments: int
    dataset: dict[str, Any]
    model: dict[str, Any]


@dataclass(frozen=True)
class DeviceReport:
    """One device: energy per phase in J, slots it was busy in, and how many samples of each label it held first and last, by task."""

    receive_j: float
    compute_j: float
    upload_j: float
    energy_j: float
    busy_slots: int
    label_counts: dict[str, list[int]]
    final_label_counts: dict[str, list[int]]


@dataclass(frozen=True)
class SimulationReport:
    """A whole run. ``planned_energy_j`` is what the schedule's own formulas say; ``settings``: partition, drift and the like."""

    problem: str
    problem_digest: str
    schedule_digest: str
    seed: int
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    warnings: list[str]
    energy_j: float
    planned_energy_j: float
    wall_s: float
    tasks: dict[str, TaskReport]
    devices: dict[str, DeviceReport]

    def to_dict(self) -> dict[str, Any]:
        """As in ``report.json``."""
        return {"schema": REPORT_SCHEMA, **asdict(self)}

    def text(self) -> str:
        """The text of ``report.json``; what training drove to infinity or beyond is null."""
        return json.dumps(plain(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def diverged(engine: Engine) -> list[str]:
    """A warning for every task whose loss is no number at some instant."""
    found = []
    for task, record in zip(engine.timeline.problem.tasks, engine.records, strict=True):
        lost = [g for g, loss in zip(record.instants, record.loss, strict=True) if not math.isfinite(loss)]
        if lost:
            found.append(f"task {task.name!r}: training diverged, the loss is no finite number from instant {lost[0]} on")
    return found


def make_report(
    engine: Engine, evaluation: Evaluation, data: list[TaskData], models: list[dict[str, Any]], **entries: Any
) -> SimulationReport:
    """The report of a run that is over; ``entries``: seed, device, versions, settings, warnings, wall_s."""
    problem, schedule, meter = engine.timeline.problem, engine.timeline.schedule, engine.meter
    tasks = {task.name: _task_report(engine, evaluation, j, data[j], models[j]) for j, task in enumerate(problem.tasks)}
    return SimulationReport(
        problem=problem.name,
        problem_digest=problem.digest,
        schedule_digest=schedule.digest,
        energy_j=float(meter.energy_j().sum()),
        planned_energy_j=evaluation.energy_j,
        tasks=tasks,
        devices={device.name: _device_report(engine, i, data) for i, device in enumerate(problem.devices)},
        **entries,
    )


def _task_report(engine: Engine, evaluation: Evaluation, j: int, data: TaskData, model: dict[str, Any]) -> TaskReport:
    schedule, bound = engine.timeline.schedule, evaluation.bound
    merged = (schedule.task == j) & engine.meter.finished
    kappa, count = np.unique(schedule.staleness[merged], return_counts=True)
    trained = bool(np.isfinite(bound.total[j]))
    dataset = data.dataset
    return TaskReport(
        **vars(engine.records[j]),
        bound=float(bound.total[j]) if trained else None,
        bound_terms=dict(zip(bound.term_names, map(float, bound.terms[j]), strict=True)) if trained else None,
        measured=engine.measured(j),
        certified=bool(bound.certified[j]),
        staleness={str(k): int(n) for k, n in zip(kappa, count, strict=True)},
        assignments=int(merged.sum()),
        dataset={
            "name": dataset.name,
            "source": dataset.source,
            "complete": dataset.complete,
            "digest": dataset.digest,
            "samples_shared_by_devices": data.reused,
        },
        model=model,
    )


def _device_report(engine: Engine, i: int, data: list[TaskData]) -> DeviceReport:
    problem, schedule, meter = engine.timeline.problem, engine.timeline.schedule, engine.meter
    mine = (schedule.device == i) & meter.received
    held = [j for j in range(len(problem.tasks)) if data[j].sizes[i]]

    def labels(instant: int) -> dict[str, list[int]]:
        return {problem.tasks[j].name: data[j].label_counts(i, instant).tolist() for j in held}

    return DeviceReport(
        receive_j=float(meter.receive_j()[mine].sum()),
        compute_j=float(meter.compute_j()[mine].sum()),
        upload_j=float(meter.upload_j()[mine].sum()),
        energy_j=float(meter.energy_j()[mine].sum()),
        busy_slots=int(schedule.length[mine].sum()),
        label_counts=labels(0),
        final_label_counts=labels(problem.arrays.slots),
    )

