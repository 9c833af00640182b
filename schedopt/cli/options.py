"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["FiniteRange", "json_option", "output_option", "seed_option"]

Function = TypeVar("Function", bound=Callable[..., Any])

#: NumPy, SCIP and torch all take seeds of 32 bits.
MAX_SEED = 2**32 - 1


class FiniteRange(click.FloatRange):
    """A float range that refuses NaN (which every comparison lets through) and infinities."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The finite number that ``value`` is."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def json_option(function: Function) -> Function:
    """``--json``."""
    text = "Print one JSON object on standard output and nothing else."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def output_option(text: str, metavar: str = "FILE") -> Callable[[Function], Function]:
    """``-o FILE``."""
    return click.option("-o", "--output", type=click.Path(allow_dash=True), metavar=metavar, help=text)


def seed_option(function: Function) -> Function:
    """``--seed N``."""
    kind = click.IntRange(0, MAX_SEED)
    return click.option("--seed", type=kind, default=0, show_default=True, metavar="N", help="Seed of every random choice.")(function)
