"""Where the time of a solve goes: building, canonicalising, the conic solver, rounding, polish, each without what it calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import cvxpy as cp

from benchmarks.iteration.clock import solver_clock
from schedopt.sca.native_step import Subproblem
from schedopt.solvers import assignment_sca, native_sca

__all__ = ["PARTS", "profiled"]

PARTS = ("build", "canonicalise", "solve", "round", "polish")
#: What counts as which part, where the solvers call it. "solve" is the time inside the conic solver, of whoever poses the program.
_PLACES: tuple[tuple[Any, str, str], ...] = (
    (assignment_sca, "build_candidates", "build"),
    (native_sca, "build_candidates", "build"),
    (native_sca, "build_native", "build"),
    (Subproblem, "__init__", "build"),
    (Subproblem, "solve", "canonicalise"),
    (cp.Problem, "solve", "canonicalise"),
    (assignment_sca, "dive", "round"),
    (assignment_sca, "round_columns", "round"),
    (assignment_sca, "repair", "round"),
    (native_sca, "round_native", "round"),
    (native_sca, "repair", "round"),
    (assignment_sca, "polish", "polish"),
    (native_sca, "polish", "polish"),
)


class _Stopwatch:
    """Seconds per part; one part runs at a time, the innermost."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._running: list[str] = []
        self._since = time.perf_counter()

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` whose time counts as ``part``."""

        @wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self._lap()
            self._running.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self._lap()
                self._running.pop()

        return wrapper


@contextmanager
def profiled() -> Iterator[dict[str, float]]:
    """Seconds per part of what runs inside, filled in as it ends."""
    watch, result = _Stopwatch(), dict.fromkeys(PARTS, 0.0)
    with ExitStack() as stack:
        clock = stack.enter_context(solver_clock())
        clock.shared = False
        for owner, name, part in _PLACES:
            stack.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        try:
            yield result
        finally:
            # Clarabel is called by what canonicalises
            inside = min(clock.seconds, watch.seconds["canonicalise"])
            result.update(watch.seconds, solve=inside, canonicalise=watch.seconds["canonicalise"] - inside)
