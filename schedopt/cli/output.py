"""Standard output and standard error: JSON objects, tables, one-line errors."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

import click

from schedopt.errors import OutputError
from schedopt.jsontext import plain

__all__ = [
    "STDOUT",
    "Command",
    "Screen",
    "flush_output",
    "number",
    "open_streams",
    "print_json",
    "print_text",
    "report_error",
    "silence_output",
    "tolerate_encoding",
    "write_output",
]

#: As the name of an output file: standard output.
STDOUT = "-"

#: Columns of a table that goes to a file or a pipe.
PIPE_WIDTH = 160


class Command(click.Command):
    """A command whose ``--help`` fails as its own output does when stdout is closed or full."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the arguments; all that is printed meanwhile is the help."""
        with writing_stdout():
            return super().make_context(*args, **options)


def one_line(text: str) -> str:
    """``text`` without line breaks or other control characters, which names in a file may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def report_error(message: str, exit_code: int, *, as_json: bool) -> int:
    """Print one line on stderr (with ``as_json`` also an object on stdout) and return ``exit_code``."""
    line = one_line(message)
    with contextlib.suppress(OSError):  # a full stderr; the exit code still tells
        click.echo(f"schedopt: error: {line}", err=True)
    if as_json:
        try:
            print_json({"error": line, "exit_code": exit_code})
            flush_output()
        except (OSError, OutputError):  # stdout is what failed; stderr has said it
            silence_output()
    return exit_code


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print_text(json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """``text`` on stdout as UTF-8, whatever the locale says: it is a file's content."""
    with writing_stdout():
        click.echo(text.encode(), nl=False)


def write_output(path: str, text: str) -> None:
    """Write ``text`` to the file ``path``, or to stdout if it is ``-``."""
    from schedopt.io import write_text

    if path == STDOUT:
        print_text(text)
    else:
        write_text(path, text)


class Screen:
    """Lines and tables for people, on stdout or stderr; names from files are printed as they are, control characters escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        from rich.console import Console

        class _Console(Console):
            def on_broken_pipe(self) -> NoReturn:
                """rich would exit with 1; a closed pipe is :func:`schedopt.cli.main`'s to tell."""
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        # a file or a pipe has no width: no reason to wrap a table at 80 columns
        stream = sys.stderr if stderr else sys.stdout
        columns = os.environ.get("COLUMNS", "")
        stated = columns.isdigit() and int(columns) > 0
        width = None if stated or (stream.isatty() and not columns) else PIPE_WIDTH
        self.console = _Console(file=stream, markup=False, emoji=False, highlight=False, width=width)

    def line(self, text: str = "") -> None:
        """One line, never wrapped."""
        with writing_stdout():
            self.console.out(one_line(text), highlight=False)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int] = (0,)) -> None:
        """A table; the columns in ``left`` are aligned left, the others right."""
        from rich.table import Table

        table = Table()
        for k, title in enumerate(head):
            table.add_column(one_line(title), justify="left" if k in left else "right")
        for row in rows:
            table.add_row(*(one_line(cell) for cell in row))
        with writing_stdout():
            self.console.print(table)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[str], None] | None]:
        """A function that shows a live line on a terminal; None elsewhere."""
        if not self.console.is_terminal:
            yield None
            return
        with self.console.status(f"{title} ...") as status:
            yield lambda text: status.update(f"{title}: {text}")


def number(value: float | None) -> str:
    """A number for people: four significant digits."""
    if value is None or math.isnan(value):
        return "-"
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def open_streams() -> None:
    """Put something in the place of standard streams that were closed before we started.

    Python has None there, and the system would give their descriptors to the next files opened. What stdout gets refuses to be
    written to, so that the failure is told where the output is lost; stderr, which could only tell of itself, is silent.
    """
    if sys.stdout is None:
        sys.stdout = _null_stream(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _null_stream(2, os.O_WRONLY)


def _null_stream(descriptor: int, mode: int) -> TextIO:
    opened = os.open(os.devnull, mode)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")


def tolerate_encoding() -> None:
    """Print what the terminal's encoding lacks as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Flush stdout. Raises :class:`~schedopt.errors.OutputError` if it cannot take what was printed (a full disk)."""
    with writing_stdout():
        sys.stdout.flush()


@contextlib.contextmanager
def writing_stdout() -> Iterator[None]:
    """Turn a failure of stdout into an error of ours; a closed pipe stays ``BrokenPipeError``."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE or error.filename is not None:
            raise
        silence_output()
        closed = error.errno == errno.EBADF
        raise OutputError(f"standard output: {'is closed' if closed else error.strerror or error}") from error


def silence_output() -> None:
    """Send stdout nowhere, lest the interpreter try to flush it once more on its way out."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: stdout is no real file
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
