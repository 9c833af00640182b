"""Options that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from schedopt.cli.output import STDOUT
from schedopt.errors import InputError

__all__ = ["OutputPath", "PositiveNumber", "WholeNumber", "json_option", "key_and_value", "output_option", "seed_option"]

Function = TypeVar("Function", bound=Callable[..., Any])

#: NumPy, SCIP and torch all take seeds of 32 bits.
MAX_SEED = 2**32 - 1

_STDOUT_DESCRIPTOR = 1


class PositiveNumber(click.ParamType):
    """A finite number greater than 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that ``value`` is."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value}; must be a finite number greater than 0", param, ctx)
        return number


class WholeNumber(click.ParamType):
    """A whole number from ``low`` to ``high`` (None = any from ``low``)."""

    name = "whole number"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The whole number that ``value`` is."""
        try:
            number = int(value)
        except ValueError:
            number = self.low - 1
        if number < self.low or (self.high is not None and number > self.high):
            allowed = f"of at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
            self.fail(f"{value}; must be a whole number {allowed}", param, ctx)
        return number


class OutputPath(click.Path):
    """A file to write; whatever names standard output (``-``, ``/dev/stdout``) becomes ``-``."""

    def __init__(self) -> None:
        super().__init__(allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path as it was given, or ``-``."""
        from schedopt.io import descriptor_of

        path = os.fsdecode(super().convert(value, param, ctx))
        return STDOUT if descriptor_of(path) == _STDOUT_DESCRIPTOR else path


def key_and_value(change: str, form: str, remedy: str) -> tuple[str, str]:
    """Both sides of the first ``=`` of a ``--set``. Raises :class:`~schedopt.errors.InputError`: what was given, ``form``, ``remedy``."""
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change}: must be {form}; {remedy}")
    return key, text


def json_option(function: Function) -> Function:
    """``--json``."""
    text = "Print one JSON object on standard output and nothing else."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def output_option(text: str, metavar: str = "FILE") -> Callable[[Function], Function]:
    """``-o FILE``."""
    return click.option("-o", "--output", type=OutputPath(), metavar=metavar, help=text)


def seed_option(function: Function) -> Function:
    """``--seed N``."""
    kind = WholeNumber(0, MAX_SEED)
    return click.option("--seed", type=kind, default=0, show_default=True, metavar="N", help="Seed of every random choice.")(function)
