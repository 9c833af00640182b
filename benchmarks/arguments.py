"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from schedopt.io import check_output

__all__ = ["INTERRUPTED", "check_results_file", "positive"]

#: what a process returns that Ctrl-C ended
INTERRUPTED = 130


def positive(text: str) -> float:
    """The number that ``text`` says, for ``argparse``: finite and greater than 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; must be greater than 0")
    return value


def check_results_file(path: str | None) -> None:
    """Make sure beforehand that results can be written to ``path``, if any: a wrong path must not cost minutes of work."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        check_output(path)
