"""What ``schedopt simulate`` shows: a live line, tables, the object of ``--json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from schedopt.cli.output import Screen, number

if TYPE_CHECKING:
    from fl_runtime.report import SimulationReport, TaskReport
    from fl_runtime.simulate import Simulation

__all__ = ["live", "print_tables", "summary"]

#: Devices in the table; the report has all.
MOST_DEVICES = 10
TASK_HEAD = ("task", "data", "model", "updates", "accuracy", "loss", "energy (J)", "mean staleness", "measured", "bound")
DEVICE_HEAD = ("device", "busy slots", "receive (J)", "compute (J)", "upload (J)", "energy (J)")


@contextmanager
def live(simulation: Simulation) -> Iterator[Callable[[int], None]]:
    """A function of the instant that shows a live line on a terminal."""
    engine, names = simulation.engine, [task.name for task in simulation.problem.tasks]
    with Screen(stderr=True).progress("simulate") as show:

        def at(instant: int) -> None:
            if show is not None:
                accuracy = ", ".join(f"{name} {record.accuracy[-1]:.3f}" for name, record in zip(names, engine.records, strict=True))
                show(f"instant {instant} of {engine.slots}, accuracy {accuracy}")

        yield at


def summary(report: SimulationReport, output: str | None) -> dict[str, Any]:
    """The object of ``--json``."""
    tasks = {
        name: {
            "accuracy": task.accuracy[-1],
            "loss": task.loss[-1],
            "energy_j": task.energy_j[-1],
            "bound": task.bound,
            "measured": task.measured,
            "certified": task.certified,
            "assignments": task.assignments,
        }
        for name, task in report.tasks.items()
    }
    whole = {"problem": report.problem, "energy_j": report.energy_j, "planned_energy_j": report.planned_energy_j, "wall_s": report.wall_s}
    return {**whole, "device": report.device, "seed": report.seed, "tasks": tasks, "warnings": report.warnings, "output": output}


def print_tables(report: SimulationReport, output: str | None) -> None:
    """Tasks, devices and energies on standard output."""
    screen = Screen()
    screen.line(f"{report.problem}: trained by the schedule on {report.device} in {report.wall_s:.1f} s, seed {report.seed}")
    screen.table(TASK_HEAD, [_task_row(name, task) for name, task in report.tasks.items()], left=(0, 1, 2))
    if not all(task.certified for task in report.tasks.values()):
        screen.line("measured: left side of Theorem 1; *: not certified, for its conditions do not hold or its terms are scaled")
    _print_devices(screen, report)
    screen.line(f"energy {report.energy_j:.6g} J executed, {report.planned_energy_j:.6g} J planned")
    if output is not None:
        screen.line(f"report written to {output}")


def _task_row(name: str, task: TaskReport) -> list[str]:
    late = sum(int(k) * n for k, n in task.staleness.items()) / max(task.assignments, 1)
    bound = f"{number(task.bound)}{'' if task.certified else ' *'}"
    first, last = task.accuracy[0], task.accuracy[-1]
    figures = [f"{first:.3f} -> {last:.3f}", f"{task.loss[0]:.3f} -> {task.loss[-1]:.3f}", number(task.energy_j[-1]), f"{late:.1f}"]
    data = task.dataset["name"] + ("" if task.dataset["complete"] else " (incomplete)")
    return [name, data, task.model["name"], str(task.assignments), *figures, number(task.measured), bound]


def _print_devices(screen: Screen, report: SimulationReport) -> None:
    """The devices that did anything, those that spent most first."""
    spent = sorted(((name, device) for name, device in report.devices.items() if device.busy_slots), key=lambda pair: -pair[1].energy_j)
    rows = [
        [name, str(d.busy_slots), number(d.receive_j), number(d.compute_j), number(d.upload_j), number(d.energy_j)]
        for name, d in spent[:MOST_DEVICES]
    ]
    screen.table(DEVICE_HEAD, rows)
    if len(rows) < len(spent):
        screen.line(f"... and {len(spent) - len(rows)} other devices (the report has all)")
