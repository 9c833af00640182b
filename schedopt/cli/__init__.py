"""The command line. Commands are imported when they are called, so that ``schedopt --help`` is instant.

Other packages attach commands by an entry point in the group ``schedopt.commands`` (name = the command, value = ``module:command``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from schedopt import __version__
from schedopt.cli.output import flush_output, open_streams, print_text, report_error, silence_output, tolerate_encoding, writing_stdout
from schedopt.cli.signals import terminable
from schedopt.errors import InputError, SchedOptError, SolverError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["COMMANDS", "main"]

#: What a shell reports for a program that a closed pipe ended (128 + SIGPIPE).
PIPE_CLOSED = 141

#: Ended by Ctrl-C or SIGTERM (128 + SIGINT).
INTERRUPTED = 130

#: command -> what the overview says; the module of the same name in this package has the object ``command``
COMMANDS: dict[str, str] = {
    "solve": "Find a schedule for a problem.",
    "bound": "Evaluate the convergence bounds of a schedule, term by term.",
    "validate": "Check a problem or a schedule: feasible, or what is violated.",
    "generate": "Make a random but physical problem.",
    "schema": "Print the JSON Schema of a file.",
    "doctor": "Tell which solvers, licences, packages and data sets are usable here.",
}


class _PipeClosed(Exception):
    """Whoever read our output has gone."""


class LazyGroup(click.Group):
    """A group that knows its commands by name, and turns every expected error into one line and an exit code."""

    @cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """Commands that other packages bring."""
        from importlib.metadata import entry_points

        return {entry.name: entry for entry in entry_points(group="schedopt.commands") if entry.name not in COMMANDS}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our own commands, then the attached ones by name."""
        return [*COMMANDS, *sorted(self.plugins)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called ``cmd_name``."""
        if cmd_name in COMMANDS:
            command: click.Command = import_module(f"schedopt.cli.{cmd_name}").command
            return command
        if cmd_name not in self.plugins:
            return None
        try:
            loaded: click.Command = self.plugins[cmd_name].load()
        except ImportError as error:
            message = f"command {cmd_name} cannot be loaded ({error}); pip install 'schedopt[runtime]' may help"
            raise SolverError(message) from error
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing our own commands."""
        rows = list(COMMANDS.items())
        for name in sorted(self.plugins):
            try:
                command = self.get_command(ctx, name)
            except SolverError as error:
                rows.append((name, f"({error})"))
            else:
                rows.append((name, command.get_short_help_str(80) if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the arguments; all that is printed meanwhile is the overview or the version."""
        try:
            with writing_stdout():
                return super().make_context(*args, **options)
        except KeyboardInterrupt:
            raise click.Abort from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click would handle with lines and codes of its own goes to :func:`_exit_code`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except BrokenPipeError:
            raise _PipeClosed from None

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run the command line and exit; outside ``standalone_mode`` return or raise as click does."""
        args = sys.argv[1:] if args is None else list(args)
        if not standalone_mode:
            return super().main(args, prog_name or "schedopt", standalone_mode=False, **extra)
        call = super().main

        def command_line() -> Any:
            open_streams()
            tolerate_encoding()
            return call(args, prog_name or "schedopt", standalone_mode=False, **extra)

        with terminable():
            code = _exit_code(command_line, as_json="--json" in args)
        if code == INTERRUPTED:
            # Python remembers an interrupt inside exec() of a text, as where an import makes a dataclass, even if it was caught, and would
            # end the process by a signal in place of our exit code; the next exec() makes it forget
            exec("")
        sys.exit(code)


def _exit_code(call: Callable[[], Any], *, as_json: bool) -> int:
    """What the process returns; every expected error becomes one line on stderr (and an object on stdout with ``--json``)."""
    try:
        code = call()
        flush_output()  # here a closed pipe or a full disk can still be told
    except SchedOptError as error:
        return report_error(str(error), error.exit_code, as_json=as_json)
    except click.ClickException as error:
        return report_error(_usage_message(error), InputError.exit_code, as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        return report_error("interrupted", INTERRUPTED, as_json=as_json)
    except (_PipeClosed, BrokenPipeError):
        silence_output()
        return PIPE_CLOSED
    return code if isinstance(code, int) else 0


def _usage_message(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{text} (see '{context.command_path} --help')" if context else text


@click.command(cls=LazyGroup, name="schedopt", invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="schedopt")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Schedules for training several models over wireless devices: who trains what, when, and with which resources.

    Every command takes --json: one JSON object on standard output and nothing else.

    \b
    Exit codes: 0 done; 1 standard output is closed or full; 2 bad input or
    usage; 3 infeasible; 4 a solver or licence is missing or failed; 130
    interrupted.
    """
    if ctx.invoked_subcommand is None:
        print_text(ctx.get_help() + "\n")
