"""Errors that end a command: one class per exit code, one clear line each.

Exceptions are for wrong input and for tools that are missing or fail. The outcome of a solve (optimal, infeasible, interrupted)
is a value: see :mod:`schedopt.result`.
"""

from __future__ import annotations

__all__ = ["InfeasibleError", "InputError", "OutputError", "SchedOptError", "SolverError"]


class SchedOptError(Exception):
    """Base of every error that schedopt raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class OutputError(SchedOptError):
    """Standard output is closed or cannot take what was printed: neither the input nor a solver is to blame."""


class InputError(SchedOptError):
    """Bad input or usage: the message says where, which value, and what is allowed."""

    exit_code = 2


class InfeasibleError(SchedOptError):
    """The problem has no feasible schedule of finite objective: the message says which constraint makes it so."""

    exit_code = 3


class SolverError(SchedOptError):
    """A solver, a licence or an optional package is missing or has failed: the message says the remedy."""

    exit_code = 4
