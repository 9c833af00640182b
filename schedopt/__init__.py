"""schedopt: energy-optimal schedules for training several models over wireless devices.

``Problem`` in, ``Schedule`` out; see ``schedopt.registry`` for the solvers and ``schedopt.io`` for the files. Names are imported on
first use, so that ``import schedopt`` and ``schedopt --help`` stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Margins": "schedopt.robust",
    "Problem": "schedopt.problem",
    "Schedule": "schedopt.schedule",
    "SolveResult": "schedopt.result",
    "SolverSettings": "schedopt.solvers.base",
    "evaluate_objective": "schedopt.objective",
    "load_problem": "schedopt.io",
    "load_schedule": "schedopt.io",
    "save_problem": "schedopt.io",
    "save_schedule": "schedopt.io",
    "solve": "schedopt.registry",
    "validate_schedule": "schedopt.constraints",
    "worst_case": "schedopt.robust",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
