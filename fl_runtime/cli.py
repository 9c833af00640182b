"""``schedopt simulate``: a schedule in, real training by it, a report and a table out.

Attached to ``schedopt`` by an entry point; torch is imported when the command runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fl_runtime.options import data_options, settings_from, training_options
from schedopt.cli.options import OutputPath, PositiveNumber, WholeNumber, json_option, output_option, seed_option
from schedopt.cli.output import STDOUT, Command, print_json, report_error, write_output
from schedopt.cli.signals import interruptible
from schedopt.errors import InputError, SchedOptError, SolverError

if TYPE_CHECKING:
    from fl_runtime.report import SimulationReport
    from fl_runtime.simulate import Simulation

__all__ = ["command"]

INTERRUPTED = 130

CHECKPOINT_HELP = (
    "Where to keep the checkpoint. One of the same run is replaced (or, with --resume, gone on from), one of another run never."
    "  [default: the -o file + .checkpoint]"
)


@click.command("simulate", cls=Command, short_help="Train for real by a schedule, measure, report.")
@click.option("--schedule", required=True, metavar="FILE", type=click.Path(), help="The schedule file to execute.")
@data_options
@training_options
@seed_option
@output_option("Write the report here (.json or .json.gz; - is standard output). Without it only the tables are printed.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of the same run, if there is one; else the run starts anew.")
@click.option("--checkpoint", metavar="FILE", type=OutputPath(), help=CHECKPOINT_HELP)
@click.option("--checkpoint-every", type=PositiveNumber(), default=10.0, show_default=True, metavar="S", help="Seconds between them.")
@click.option("--events", metavar="FILE", type=OutputPath(), help="Write one JSON line per event here, in order.")
@click.option("--no-gradient", is_flag=True, help="Do not measure gradient norms (they take a pass over all data).")
@click.option("--measure-every", type=WholeNumber(1), default=1, show_default=True, metavar="N", help="Measure at every N-th instant.")
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, **options: Any) -> None:
    """Train by the schedule in FILE: every reception, local training, upload and aggregation at its instant.

    Reports accuracy and loss over virtual time, energy, staleness, and measured gradient norms beside the bound. Ctrl-C (or SIGTERM)
    keeps a checkpoint, if there is a file for it, and the exit code is 130; --resume goes on to the same report.
    """
    with interruptible() as interrupts:
        files = _files(options, as_json=as_json)
        with _prepared(files, options) as simulation:
            try:
                report = _run(simulation, files, options)
            except KeyboardInterrupt:
                saved = files.checkpoint is not None and simulation.save(files.checkpoint)
                where = f"; go on with --resume, checkpoint in {files.checkpoint}" if saved else ""
                ctx.exit(report_error(f"interrupted{where}", INTERRUPTED, as_json=as_json))
            interrupts.hold(files.output, files.events)
            _deliver(simulation, report, files, as_json=as_json)


@dataclass(frozen=True)
class _Files:
    """What is read and written; ``-`` is standard output."""

    schedule: str
    output: str | None
    events: str | None
    checkpoint: str | None


def _files(options: dict[str, Any], *, as_json: bool) -> _Files:
    """The files of the options, checked before any work is done."""
    from schedopt.io import check_output

    output, events = options["output"], options["events"]
    kept = _checkpoint_path(options["checkpoint"], output, resume=options["resume"])
    if as_json and events == STDOUT:
        raise InputError("--events -: standard output has one JSON object with --json; give a file")
    for path in (output, events, kept):
        if path not in (None, STDOUT):
            check_output(path, inputs=(options["schedule"],), streams=path != kept)
    _require_distinct(output, events, kept)
    return _Files(options["schedule"], output, events, kept)


def _checkpoint_path(given: str | None, output: str | None, *, resume: bool) -> str | None:
    if given == STDOUT:
        raise InputError("--checkpoint -: must be a file; it is not text")
    from schedopt.io import is_stream

    if given is not None:
        return given
    if output not in (None, STDOUT) and not is_stream(output):
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


@contextmanager
def _prepared(files: _Files, options: dict[str, Any]) -> Iterator[Simulation]:
    """The simulation, at the instant from which it is to go on."""
    from schedopt.io import load_schedule

    file = load_schedule(files.schedule)
    try:
        amount = {"gradient": not options["no_gradient"], "measure_every": options["measure_every"]}
        settings = settings_from(options, file.problem, **amount)
        from fl_runtime.datasets.progress import download_bars
        from fl_runtime.simulate import Simulation
    except ImportError as error:
        raise SolverError(f"simulate needs torch ({error}); pip install 'schedopt[runtime]'") from error
    with ExitStack() as stack:
        with download_bars() as bars:
            simulation = stack.enter_context(Simulation(file.problem, file.schedule, settings, seed=options["seed"], progress=bars))
        _warn(simulation.warnings)
        if files.checkpoint is not None and options["resume"] and simulation.resume(files.checkpoint):
            click.echo(f"resumed at instant {simulation.engine.instant} of {simulation.engine.slots}", err=True)
        yield simulation


def _run(simulation: Simulation, files: _Files, options: dict[str, Any]) -> SimulationReport:
    from fl_runtime.cli_output import live

    told = len(simulation.warnings)
    with live(simulation) as show:

        def after(instant: int) -> None:
            nonlocal told
            _warn(simulation.warnings[told:])  # now, while a full disk can still be seen to
            told = len(simulation.warnings)
            show(instant)

        report = simulation.run(checkpoint=files.checkpoint, every_s=options["checkpoint_every"], on_instant=after)
    _warn(report.warnings[told:])
    return report


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _deliver(simulation: Simulation, report: SimulationReport, files: _Files, *, as_json: bool) -> None:
    """Write and print; the checkpoint goes when that is done, and is brought up to date if it cannot be done."""
    from fl_runtime.timeline import events_text

    try:
        if files.output is not None:
            write_output(files.output, report.text())
        if files.events is not None:
            write_output(files.events, "".join(events_text(simulation.engine.timeline)))
        if files.output is None:
            _show(report, None, as_json=as_json)
    except SchedOptError as error:
        if files.checkpoint is None or not simulation.save(files.checkpoint):
            raise
        raise type(error)(f"{error}; the run is over and kept in {files.checkpoint}: --resume delivers it") from error
    if files.checkpoint is not None:
        simulation.discard(files.checkpoint)
    if files.output not in (None, STDOUT):
        _show(report, files.output, as_json=as_json)


def _show(report: SimulationReport, output: str | None, *, as_json: bool) -> None:
    from fl_runtime.cli_output import print_tables, summary

    if as_json:
        print_json(summary(report, output))
    else:
        print_tables(report, output)
