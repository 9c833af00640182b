"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import PROBLEMS
from schedopt.errors import InputError
from schedopt.io import check_output, load_problem
from schedopt.problem import Problem

__all__ = ["INTERRUPTED", "at_least", "check_results_file", "load_named", "positive"]

#: what a process returns that Ctrl-C ended
INTERRUPTED = 130


def positive(text: str) -> float:
    """The number that ``text`` says, for ``argparse``: finite and greater than 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; must be greater than 0")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers of at least ``least``, for ``argparse``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}; must be at least {least}")
        return value

    return number


def load_named(name: str) -> Problem:
    """The problem of that name in problems/, or the file. Raises :class:`~schedopt.errors.InputError` if there is neither."""
    known = PROBLEMS / f"{name}.json"
    if not known.is_file() and not Path(name).is_file():
        raise InputError(f"problem = {name!r}; must be a file or one of {', '.join(sorted(path.stem for path in PROBLEMS.glob('*.json')))}")
    return load_problem(known if known.is_file() else name)


def check_results_file(path: str | None) -> None:
    """Make sure beforehand that results can be written to ``path``, if any: a wrong path must not cost minutes of work."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        check_output(path)
