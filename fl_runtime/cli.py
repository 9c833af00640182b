"""``schedopt simulate``: a schedule in, real training by it, a report and a table out.

Attached to ``schedopt`` by an entry point; torch is imported when the command runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from schedopt.cli.options import PositiveNumber, WholeNumber, json_option, output_option, seed_option
from schedopt.cli.output import STDOUT, Command, Screen, number, print_json, report_error, write_output
from schedopt.cli.signals import interruptible
from schedopt.errors import InputError, SolverError

if TYPE_CHECKING:
    from fl_runtime.report import SimulationReport
    from fl_runtime.simulate import SimulateSettings, Simulation
    from schedopt.files import ScheduleFile

__all__ = ["command"]

INTERRUPTED = 130


@click.command("simulate", cls=Command, short_help="Train for real by a schedule, measure, report.")
@click.option("--schedule", "schedule_path", required=True, metavar="FILE", type=click.Path(), help="The schedule file to execute.")
@click.option("--data-dir", metavar="DIR", type=click.Path(), help="Where data sets are; else SCHEDOPT_DATA_DIR, the cache, a download.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train.")
@seed_option
@output_option("Write the report here (.json or .json.gz; - is standard output). Without it only the tables are printed.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of the same run, if there is one.")
@click.option("--checkpoint", metavar="FILE", type=click.Path(), help="Where to keep the checkpoint.  [default: the -o file + .checkpoint]")
@click.option("--checkpoint-every", type=PositiveNumber(), default=10.0, show_default=True, metavar="S", help="Seconds between them.")
@click.option("--events", metavar="FILE", type=click.Path(allow_dash=True), help="Write one JSON line per event here, in order.")
@click.option("--partition", default="dirichlet:0.3", show_default=True, metavar="KIND", help="iid, dirichlet:A, shards:K, size[:SIGMA].")
@click.option("--drift", default="", metavar="RATES", help="KIND:RATE[@DEVICE],... per slot; kinds labels, arrivals, rotation.")
@click.option("--dataset", "datasets", multiple=True, metavar="[TASK=]NAME", help="Data set in place of the problem's; may be repeated.")
@click.option("--model", "models", multiple=True, metavar="[TASK=]NAME", help="Model in place of the problem's; may be repeated.")
@click.option("--accept-incomplete", is_flag=True, help="Take data sets that are knowingly incomplete.")
@click.option("--no-download", is_flag=True, help="Never touch the network.")
@click.option("--no-gradient", is_flag=True, help="Do not measure gradient norms (they take a pass over all data).")
@click.option("--measure-every", type=WholeNumber(1), default=1, show_default=True, metavar="N", help="Measure at every N-th instant.")
@click.option("--path", "path", default="auto", show_default=True, metavar="NAME", help="How devices are trained; see the README.")
@click.option("--workers", type=WholeNumber(1), metavar="N", help="Threads or processes on a CPU.  [default: its cores]")
@json_option
@click.pass_context
def command(ctx: click.Context, schedule_path: str, output: str | None, resume: bool, as_json: bool, **options: Any) -> None:
    """Train by the schedule in FILE: every reception, local training, upload and aggregation at its instant.

    Reports accuracy and loss over virtual time, energy, staleness, and measured gradient norms beside the bound. Ctrl-C (or SIGTERM)
    keeps a checkpoint, if there is a file for it, and the exit code is 130; --resume goes on to the same report.
    """
    from fl_runtime.timeline import events_text
    from schedopt.io import check_output, load_schedule

    kept = _checkpoint_path(options["checkpoint"], output, resume=resume)
    if as_json and options["events"] == STDOUT:
        raise InputError("--events -: standard output has one JSON object with --json; give a file")
    for path in (output, options["events"], kept):
        if path not in (None, STDOUT):
            check_output(path, inputs=(schedule_path,))
    _require_distinct(output, options["events"], kept)
    file = load_schedule(schedule_path)
    settings = _settings(options)
    with ExitStack() as stack:
        interrupts = stack.enter_context(interruptible())
        simulation = _prepare(stack, file, settings, options, kept, resume=resume)
        told = len(simulation.warnings)
        try:
            with _live(simulation) as show:
                report = simulation.run(checkpoint=kept, every_s=options["checkpoint_every"], on_instant=show)
        except KeyboardInterrupt:
            where = f"; go on with --resume, checkpoint in {kept}" if kept is not None and simulation.save(kept) else ""
            ctx.exit(report_error(f"interrupted{where}", INTERRUPTED, as_json=as_json))
        interrupts.armed = False
        for warning in report.warnings[told:]:
            click.echo(f"warning: {warning}", err=True)
        if options["events"] is not None:
            write_output(options["events"], "".join(events_text(simulation.engine.timeline)))
        _deliver(report, output, as_json=as_json)
        if kept is not None:
            simulation.discard(kept)


def _checkpoint_path(given: str | None, output: str | None, *, resume: bool) -> str | None:
    if given == STDOUT:
        raise InputError("--checkpoint -: must be a file; it is not text")
    if given is not None:
        return given
    if output not in (None, STDOUT):
        return f"{output}.checkpoint"
    if resume:
        raise InputError("--resume: needs a file to go on from; give -o FILE or --checkpoint FILE")
    return None


def _require_distinct(*paths: str | None) -> None:
    given = [path for path in paths if path is not None]
    real = [path if path == STDOUT else os.path.realpath(path) for path in given]
    for k, path in enumerate(real):
        if path in real[:k]:
            raise InputError(f"{given[k]}: is given for two outputs; they must be different files")


def _settings(options: dict[str, Any]) -> SimulateSettings:
    try:
        import torch
    except ImportError as error:
        raise SolverError(f"simulate needs torch ({error}); pip install 'schedopt[runtime]'") from error
    from fl_runtime.simulate import SimulateSettings

    device = options["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return SimulateSettings(
        partition=options["partition"],
        drift=options["drift"],
        device=device,
        path=options["path"],
        workers=options["workers"],
        gradient=not options["no_gradient"],
        measure_every=options["measure_every"],
        datasets=_by_task("--dataset", options["datasets"]),
        models=_by_task("--model", options["models"]),
        data_dir=options["data_dir"],
        accept_incomplete=options["accept_incomplete"],
        download=not options["no_download"],
    )


def _by_task(option: str, choices: tuple[str, ...]) -> dict[str, str]:
    """``[TASK=]NAME`` texts as a dict; the key "" stands for all tasks that are not named."""
    found: dict[str, str] = {}
    for choice in choices:
        task, equals, name = choice.rpartition("=")
        if not name or (equals and not task):
            raise InputError(f"{option} {choice}: must be NAME or TASK=NAME")
        if task in found:
            raise InputError(f"{option} {choice}: {f'task {task!r}' if task else 'all tasks'} is given more than once")
        found[task] = name
    return found


def _prepare(
    stack: ExitStack, file: ScheduleFile, settings: SimulateSettings, options: dict[str, Any], kept: str | None, *, resume: bool
) -> Simulation:
    """The simulation, at the instant from which it is to go on."""
    from fl_runtime.datasets.progress import download_bars
    from fl_runtime.simulate import Simulation

    with download_bars() as bars:
        simulation = stack.enter_context(Simulation(file.problem, file.schedule, settings, seed=options["seed"], progress=bars))
    for warning in simulation.warnings:
        click.echo(f"warning: {warning}", err=True)
    if resume and kept is not None and simulation.resume(kept):
        click.echo(f"resumed at instant {simulation.engine.instant} of {simulation.engine.slots}", err=True)
    return simulation


@contextmanager
def _live(simulation: Simulation) -> Iterator[Any]:
    """A function of the instant that shows a live line on a terminal."""
    engine, names = simulation.engine, [task.name for task in simulation.problem.tasks]
    with Screen(stderr=True).progress("simulate") as show:

        def at(instant: int) -> None:
            if show is not None:
                accuracy = ", ".join(f"{name} {record.accuracy[-1]:.3f}" for name, record in zip(names, engine.records, strict=True))
                show(f"instant {instant} of {engine.slots}, accuracy {accuracy}")

        yield at


def _deliver(report: SimulationReport, output: str | None, *, as_json: bool) -> None:
    if output is not None:
        write_output(output, report.text())
    if as_json and output != STDOUT:
        print_json(_summary(report, output))
    elif not as_json and output != STDOUT:
        _print_tables(report, output)


def _summary(report: SimulationReport, output: str | None) -> dict[str, Any]:
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


def _print_tables(report: SimulationReport, output: str | None) -> None:
    screen = Screen()
    screen.line(f"{report.problem}: trained by the schedule on {report.device} in {report.wall_s:.1f} s, seed {report.seed}")
    head = ["task", "data", "model", "updates", "accuracy", "loss", "energy (J)", "mean staleness", "measured", "bound"]
    rows = []
    for name, task in report.tasks.items():
        late = sum(int(k) * n for k, n in task.staleness.items()) / max(task.assignments, 1)
        bound = f"{number(task.bound)}{'' if task.certified else ' *'}"
        first, last = task.accuracy[0], task.accuracy[-1]
        figures = [f"{first:.3f} -> {last:.3f}", f"{task.loss[0]:.3f} -> {task.loss[-1]:.3f}", number(task.energy_j[-1]), f"{late:.1f}"]
        data = task.dataset["name"] + ("" if task.dataset["complete"] else " (incomplete)")
        rows.append([name, data, task.model["name"], str(task.assignments), *figures, number(task.measured), bound])
    screen.table(head, rows, left=(0, 1, 2))
    if not all(task.certified for task in report.tasks.values()):
        screen.line("measured: left side of Theorem 1; *: not certified, for its conditions do not hold or its terms are scaled")
    spent = [(name, device) for name, device in report.devices.items() if device.busy_slots]
    spent.sort(key=lambda pair: -pair[1].energy_j)
    shown = spent[:10]
    device_rows = [
        [name, str(d.busy_slots), number(d.receive_j), number(d.compute_j), number(d.upload_j), number(d.energy_j)] for name, d in shown
    ]
    screen.table(["device", "busy slots", "receive (J)", "compute (J)", "upload (J)", "energy (J)"], device_rows)
    if len(shown) < len(spent):
        screen.line(f"... and {len(spent) - len(shown)} other devices (the report has all)")
    screen.line(f"energy {report.energy_j:.6g} J executed, {report.planned_energy_j:.6g} J planned")
    if output is not None:
        screen.line(f"report written to {output}")
