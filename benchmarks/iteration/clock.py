"""One clock for every way of modelling: the time inside the conic solver, whoever calls it, with the same settings for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import clarabel

__all__ = ["SolverClock", "solver_clock"]


@dataclass
class SolverClock:
    """Seconds inside Clarabel (set-up and solve) since the last :meth:`reset`; size of the conic program it saw last; its settings."""

    seconds: float = 0.0
    calls: int = 0
    iterations: int = 0
    rows: int = 0
    columns: int = 0
    #: whether every caller gets the settings that the first one asked for
    shared: bool = True
    settings: Any = field(default=None, repr=False)

    def reset(self) -> None:
        """Start anew; the settings stay."""
        self.seconds, self.calls, self.iterations = 0.0, 0, 0


class _Timed:
    """A Clarabel solver whose set-up and solve are timed."""

    def __init__(self, clock: SolverClock, make: Any, arguments: tuple[Any, ...]) -> None:
        *data, settings = arguments
        clock.settings = settings if clock.settings is None else clock.settings
        self._settings = clock.settings if clock.shared else settings
        clock.rows, clock.columns = data[2].shape
        self._clock = clock
        begin = time.perf_counter()
        self._solver = make(*data, self._settings)
        clock.seconds += time.perf_counter() - begin

    def solve(self) -> Any:
        begin = time.perf_counter()
        solution = self._solver.solve()
        self._clock.seconds += time.perf_counter() - begin
        self._clock.calls += 1
        self._clock.iterations += solution.iterations
        return solution

    def update(self, *arguments: Any, **changes: Any) -> None:
        begin = time.perf_counter()
        self._solver.update(*arguments, **changes)
        self._clock.seconds += time.perf_counter() - begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solver, name)


@contextmanager
def solver_clock() -> Iterator[SolverClock]:
    """While it lasts, every Clarabel solver is timed and uses the settings that the first one was given."""
    clock, make = SolverClock(), clarabel.DefaultSolver
    with patch.object(clarabel, "DefaultSolver", lambda *arguments: _Timed(clock, make, arguments)):
        yield clock
