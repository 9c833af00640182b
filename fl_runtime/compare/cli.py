"""``schedopt compare``: our schedules beside what one would run instead, under one clock, one energy meter, on one data set.

Attached to ``schedopt`` by an entry point; torch is imported when the command runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fl_runtime.options import data_options, settings_from, training_options
from schedopt.cli.options import MAX_SEED, PositiveNumber, WholeNumber, json_option, output_option
from schedopt.cli.output import STDOUT, Command, Screen, print_json, report_error
from schedopt.cli.signals import interruptible
from schedopt.errors import InputError, SolverError
from schedopt.registry import DEFAULT_SOLVER

if TYPE_CHECKING:
    from fl_runtime.compare.job import Job

__all__ = ["command"]

INTERRUPTED = 130
#: More seeds or schedules are taken for a mistake.
MOST_SEEDS, MOST_FRONT = 1000, 100

_option = click.option


@click.command("compare", cls=Command, short_help="Our schedules beside online policies, at equal terms.")
@click.argument("problem_path", metavar="PROBLEM", type=click.Path())
@_option("--schedule", "schedules", multiple=True, metavar="FILE", type=click.Path(), help="A schedule to take part; may be repeated.")
@_option("--no-solve", is_flag=True, help="Solve for nothing: the schedules given are ours, the first the one to measure by.")
@_option("--front", type=WholeNumber(0, MOST_FRONT), default=6, show_default=True, metavar="N", help="Schedules at other energies.")
@_option("--energy", "energies", multiple=True, type=PositiveNumber(), metavar="J", help="One more schedule at this energy.")
@_option("--solver", default=DEFAULT_SOLVER, show_default=True, metavar="NAME", help="What solves for our schedules.")
@_option("--time-limit", type=PositiveNumber(), default=20.0, show_default=True, metavar="S", help="Seconds of each solve.")
@_option("--keep", metavar="DIR", type=click.Path(), help="Keep solved schedules here, and take them from here the next time.")
@_option("--policy", "policies", multiple=True, metavar="NAME[:KEY=VALUE,...]", help="May be repeated; 'help' lists all.  [default: all]")
@_option("--variants", is_flag=True, help="Each policy also with mini-batches, steps and server rate sized as those of our schedule.")
@_option("--resources", type=click.Choice(["full", "closed_form", "both"]), default="both", show_default=True, help="Of policies.")
@_option("--seeds", type=WholeNumber(1, MOST_SEEDS), default=5, show_default=True, metavar="N", help="Number of seeds.")
@_option("--first-seed", type=WholeNumber(0, MAX_SEED - MOST_SEEDS), default=0, show_default=True, metavar="N", help="The first of them.")
@_option("--level", "levels", multiple=True, metavar="A|P%|policies", help="Accuracy to be reached, or share of ours.")
@_option("--target", "targets", multiple=True, metavar="TASK=A", help="Accuracy of a task to be reached; may be repeated.")
@_option("--measure-every", type=WholeNumber(1), default=1, show_default=True, metavar="N", help="Measure at every N-th instant.")
@data_options
@training_options
@output_option("Write everything measured here (.json or .json.gz; - is standard output).")
@_option("--resume", is_flag=True, help="Do not repeat runs of the same comparison that are in the -o file.")
@_option("--plot", metavar="FILE.png|DIR", type=click.Path(), help="Draw accuracy over energy (in a folder: and over time).")
@json_option
@click.pass_context
def command(ctx: click.Context, problem_path: str, as_json: bool, **options: Any) -> None:
    """Train by our schedules and by online policies on the same data, from the same models, with the same seeds, and compare.

    Ours are the schedule solved for PROBLEM, a front of schedules at other energies, and those given. Policies run at their defaults
    unless --policy names them, with full power and with the least-energy resources for the same instants. Several variants of a policy
    may take part; the best counts.

    "--policy help" lists policies and their options (PROBLEM may then be anything).

    Ctrl-C (or SIGTERM) writes what is done, marked "interrupted", and the exit code is 130; --resume goes on.
    """
    if "help" in options["policies"]:
        _list_policies(as_json=as_json)
        return
    with interruptible() as interrupts:
        job = _prepare(problem_path, options, as_json=as_json)
        with _live() as show:
            try:
                job.begin(show)
                job.run(show)
            except KeyboardInterrupt:
                job.interrupted = True
        interrupts.hold(job.output, job.plot)
        if job.interrupted:
            ctx.exit(report_error(job.rescue(), INTERRUPTED, as_json=as_json and not job.holds_stdout))
        _deliver(job, as_json=as_json)


def _list_policies(*, as_json: bool) -> None:
    """Every policy with its options: default and meaning."""
    try:
        from fl_runtime.policies.registry import policy_names, policy_options

        known = {name: policy_options(name) for name in policy_names()}
    except ImportError as error:
        raise SolverError(f"compare needs torch ({error}); pip install 'schedopt[runtime]'") from error
    if as_json:
        print_json({n: {key: {"default": d, "meaning": m} for key, (d, m) in options.items()} for n, options in known.items()})
        return
    rows = [[name, key, _default(d), meaning] for name, options in known.items() for key, (d, meaning) in options.items()]
    Screen().table(("policy", "option", "default", "meaning"), rows, left=(0, 1, 2, 3))


def _default(value: Any) -> str:
    return "none" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def _live() -> Iterator[Callable[[str], None]]:
    """A function of a text that shows a live line on a terminal."""
    with Screen(stderr=True).progress("compare") as show:
        yield (lambda text: None) if show is None else show


def _deliver(job: Job, *, as_json: bool) -> None:
    """The file, the pictures, the tables; the tables also where a file cannot be written, for what they tell took long to make."""
    from fl_runtime.compare.table import print_tables, summary_of

    found, written = job.report(interrupted=False), False
    try:
        job.write(found)
        written = True
        for path in job.draw():
            click.echo(f"drawn: {path}", err=True)
    finally:
        kept = job.output if written else None
        if job.output != STDOUT:
            if as_json:
                print_json(summary_of(found, kept))
            else:
                print_tables(found, kept)


def _prepare(problem_path: str, options: dict[str, Any], *, as_json: bool) -> Job:
    """Everything that can be wrong is told here, before any work is done."""
    from schedopt.io import load_problem

    problem = load_problem(problem_path)
    _check_files(problem_path, options)
    try:
        settings = settings_from(options, problem, gradient=False, measure_every=options["measure_every"])
        import torch  # noqa: F401
    except ImportError as error:
        raise SolverError(f"compare needs torch ({error}); pip install 'schedopt[runtime]'") from error
    from fl_runtime.compare.job import Job
    from fl_runtime.compare.levels import parse_levels, parse_targets
    from fl_runtime.compare.settings import CompareSettings
    from fl_runtime.compare.solving import given_schedule

    _check_names(options)
    if options["no_solve"] and not options["schedules"]:
        raise InputError("--no-solve: needs a schedule to take its place; give --schedule FILE")
    compare = CompareSettings(
        seeds=options["seeds"],
        first_seed=options["first_seed"],
        front=options["front"],
        energies_j=tuple(options["energies"]),
        solve=not options["no_solve"],
        solver=options["solver"],
        time_limit_s=options["time_limit"],
    )
    return Job(
        problem=problem,
        options=options,
        output=options["output"],
        plot=options["plot"],
        compare=compare,
        wanted=parse_levels(options["levels"]),
        targets=parse_targets(options["targets"], problem),
        given=[given_schedule(path, problem) for path in options["schedules"]],
        settings=settings,
        say=lambda text: click.echo(text, err=True),
    )


def _check_names(options: dict[str, Any]) -> None:
    """Solver and policies."""
    from fl_runtime.policies.registry import make_policy
    from schedopt.registry import get_solver

    get_solver(options["solver"])
    for text in options["policies"]:
        make_policy(text)


def _check_files(problem_path: str, options: dict[str, Any]) -> None:
    from fl_runtime.compare.plot import check_plot
    from schedopt.io import check_output, is_stream

    output, plot = options["output"], options["plot"]
    if output not in (None, STDOUT):
        check_output(output, inputs=(problem_path, *options["schedules"]))
    if options["resume"] and (output in (None, STDOUT) or is_stream(output)):
        raise InputError("--resume: needs a file to go on from; give -o FILE")
    if plot is not None:
        check_plot(plot)
        if output not in (None, STDOUT) and os.path.realpath(plot) == os.path.realpath(output):
            raise InputError(f"--plot {plot}: is the file of -o too; must be another one")
