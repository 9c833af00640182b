"""What studies do over and over: change a problem, solve it, describe the schedule, train by it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.studies.frame import Item, Record
from schedopt.errors import SolverError
from schedopt.files import parse_problem
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["changed", "chosen", "describe", "mean", "solved", "train", "values_of", "with_limit"]


def changed(problem: Problem, change: Callable[[dict[str, Any]], None]) -> Problem:
    """The problem after ``change`` of its JSON object, checked anew."""
    data = problem.to_dict()
    change(data)
    return parse_problem(data)


def solved(problem: Problem, time_limit_s: float, seed: int = 0) -> tuple[Schedule, SolveResult]:
    """What the default solver finds in that time. Raises KeyboardInterrupt if it was interrupted, SolverError if there is nothing."""
    result = solve(problem, settings=SolverSettings(time_limit_s=time_limit_s), seed=seed)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.schedule is None:
        raise SolverError(f"{problem.name}: no schedule found ({result.reason or result.status.value})")
    return result.schedule, result


def describe(problem: Problem, schedule: Schedule) -> dict[str, Any]:
    """Objective and energy, and by task: bound, energy, uploads, means of steps, batch, length and staleness, share of fresh ones."""
    evaluation = evaluate_objective(problem, schedule)
    tasks = {}
    for j, task in enumerate(problem.tasks):
        mine = schedule.take(schedule.task == j)
        means = {"steps": mine.steps, "batch": mine.batch, "length": mine.length, "staleness": mine.staleness, "fresh": mine.staleness == 0}
        tasks[task.name] = {
            "bound": float(evaluation.bound.total[j]),
            "energy_j": float(evaluation.task_energy_j[j]),
            "uploads": len(mine),
            **{name: float(np.mean(values)) if len(mine) else None for name, values in means.items()},
        }
    return {"objective": evaluation.objective, "energy_j": evaluation.energy_j, "tasks": tasks}


def train(
    problem: Problem, schedule: Schedule, seed: int, partition: str = "dirichlet:0.3", start: Sequence[Tensor] | None = None
) -> tuple[dict[str, dict[str, float]], list[Tensor]]:
    """Real training by a schedule: accuracy, loss and test loss of each task at the end (and ``first_loss``), and the final models.

    ``start``: initial models by task, in place of random ones.
    """
    from fl_runtime.settings import SimulateSettings
    from fl_runtime.simulate import Simulation

    settings = SimulateSettings(partition=partition, gradient=False, measure_every=problem.arrays.slots, workers=1, download=False)
    with Simulation(problem, schedule, settings, seed=seed) as simulation:
        for run, model in zip(simulation.engine.runs, start or (), strict=False):
            run.model = model
        report = simulation.run()
        models = [run.model for run in simulation.engine.runs]
    ends = {
        name: {"accuracy": t.accuracy[-1], "loss": t.loss[-1], "test_loss": t.test_loss[-1], "first_loss": t.loss[0]}
        for name, t in report.tasks.items()
    }
    return ends, models


def chosen(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records whose items say so."""
    return [r for r in records if all(r.item.get(name) == value for name, value in wanted.items())]


def values_of(records: Iterable[Record], field: str) -> list[Any]:
    """The values of a field of the items, each once, as they come."""
    return list(dict.fromkeys(r.item[field] for r in records if field in r.item))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are numbers; None without any."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def with_limit(item: Item, short: bool, given: float | None, own: float) -> Item:
    """The item with the seconds of its solve: those given, else the study's own, a third of them for a short run."""
    return item | {"time_limit_s": given or (own / 3 if short else own)}
