"""What a solver returns: outcomes are values, exceptions are for wrong input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from schedopt.schedule import Schedule

__all__ = ["IterationRecord", "SolveResult", "SolveStatus"]


class SolveStatus(Enum):
    """How a solve ended; the value is a sentence for people."""

    SOLVED = "the method ran to its own end"
    TIME_LIMIT = "stopped at the time limit with the best schedule found"
    INTERRUPTED = "interrupted; the best schedule found so far"
    INFEASIBLE = "no feasible schedule exists, or none could be found"


@dataclass(frozen=True)
class IterationRecord:
    """One line of a solver's history; ``objective`` and ``lower_bound`` may be infinite while unknown."""

    iteration: int
    elapsed_s: float
    objective: float
    lower_bound: float
    phase: str


@dataclass(frozen=True)
class SolveResult:
    """Outcome of a solve.

    ``schedule``, ``objective``: the best feasible schedule and its exact objective (None, +inf if there is none); ``lower_bound``: a
    proven lower bound on the optimum of the problem, or None; ``reason``: why it is infeasible, in one line.
    """

    status: SolveStatus
    schedule: Schedule | None
    objective: float
    solver: str
    backend: str | None = None
    lower_bound: float | None = None
    lower_bound_method: str | None = None
    iterations: int = 0
    kkt_residual: float | None = None
    wall_s: float = 0.0
    seed: int = 0
    reason: str = ""
    history: tuple[IterationRecord, ...] = field(default=())
    #: what the KKT residual can be recomputed from (a ``schedopt.sca.iterate.NativeIterate``), where a solver keeps it
    iterate: Any = field(default=None, repr=False)
    #: seconds per phase, and what else a solver has measured, for benchmarks
    timings: Mapping[str, float] = field(default_factory=dict, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def gap(self) -> float | None:
        """(objective − lower_bound) / |objective|; None without a lower bound; 0 if both are zero."""
        if self.lower_bound is None or self.schedule is None or not np.isfinite(self.objective):
            return None
        difference = self.objective - self.lower_bound
        return 0.0 if difference == 0 else difference / abs(self.objective) if self.objective else None

    @property
    def interrupted(self) -> bool:
        """Ended by Ctrl-C."""
        return self.status is SolveStatus.INTERRUPTED

    def replace(self, **changes: Any) -> SolveResult:
        """A copy with some fields exchanged."""
        return replace(self, **changes)
