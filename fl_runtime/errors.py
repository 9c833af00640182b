"""Errors of the runtime that :mod:`schedopt.errors` has no class for."""

from __future__ import annotations

from schedopt.errors import SchedOptError

__all__ = ["DataError"]


class DataError(SchedOptError):
    """A data set is missing, damaged or not what its name says: the message says where it was looked for and the ways out."""

    exit_code = 4
