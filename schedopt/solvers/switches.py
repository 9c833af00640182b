"""Switches of a solver: a dataclass of numbers, words and truth values, set from ``key=value`` texts."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from schedopt.errors import InputError

__all__ = ["list_switches", "read_switches"]

Switches = TypeVar("Switches")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_switches(solver: str, kind: type[Switches], given: Mapping[str, str]) -> Switches:
    """``kind()`` with the fields in ``given`` changed. Raises :class:`~schedopt.errors.InputError`: key, value and what is allowed."""
    fields = _fields(kind)
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            allowed = f"must be one of {', '.join(fields)}" if fields else f"solver {solver!r} has none"
            raise InputError(f"switch {key} of solver {solver!r}: there is none of that name; " + (f"{near[0]}?" if near else allowed))
        values[key] = _converted(solver, key, text, fields[key].default)
    try:
        return kind(**values)
    except ValueError as error:
        raise InputError(f"switch of solver {solver!r}: {error}") from None


def list_switches(kind: type) -> dict[str, Any]:
    """Names and defaults of the switches of ``kind``."""
    return {name: field.default for name, field in _fields(kind).items()}


def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """Fields that users may set: all but those with ``metadata={"switch": False}``."""
    return {field.name: field for field in dataclasses.fields(kind) if field.metadata.get("switch", True)}


def _converted(solver: str, key: str, text: str, default: Any) -> object:
    """``text`` in the type of the default."""
    kind, wanted = type(default), {bool: "true or false", int: "a whole number", float: "a finite number"}
    try:
        value = _TRUTH[text.lower()] if kind is bool else kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError):
        raise InputError(f"switch {key} of solver {solver!r} = {text!r}; must be {wanted[kind]}") from None
    return value
