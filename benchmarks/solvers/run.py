"""Every variant on every problem: the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.references import SAME, Reference, load_references
from benchmarks.solvers.profile import profiled
from benchmarks.solvers.variants import Variant
from schedopt.constraints import validate_schedule
from schedopt.errors import SchedOptError
from schedopt.formulation.native import build_native
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult
from schedopt.solvers.base import SolverSettings

__all__ = ["Comparison", "Row", "Settings", "Trace", "compare", "row_data"]


@dataclass(frozen=True)
class Settings:
    """Seconds that every variant has per problem, the seed, and the variants' names."""

    time_limit_s: float
    seed: int
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """Convergence, iteration by iteration; objectives in the problem's unit. ``phase``: empty where only the schedule held is known.

    ``merit``: of the iterate that was kept, at the penalties of its iteration; it may rise where these do.
    """

    objective: tuple[float, ...] = ()
    merit: tuple[float, ...] = ()
    residual: tuple[float, ...] = ()
    #: whether the step was one of the whole program: only then are the multipliers of all rows of its iterate
    whole: tuple[bool, ...] = ()
    phase: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One variant on one problem; None where there is no such number.

    ``relaxed``, ``rounded``: objective of the relaxed point and of the schedule rounded from it, before resources and local moves;
    ``relaxed_residual``, ``final_residual``: KKT residuals of the relaxation and of the program with its binaries fixed.
    """

    variant: str
    status: str
    objective: float | None
    feasible: bool
    lower_bound: float | None
    iterations: int
    wall_s: float
    parts_s: dict[str, float]
    relaxed: float | None = None
    rounded: float | None = None
    relaxed_residual: float | None = None
    final_residual: float | None = None
    fallbacks: int = 0
    message: str = ""
    trace: Trace = field(default=Trace(), repr=False)

    @property
    def gap_rounded(self) -> float | None:
        """How far the rounded schedule is above the relaxed point, relative to the schedule."""
        return _distance(self.relaxed, self.rounded)

    @property
    def gap_final(self) -> float | None:
        """The same for the schedule in the end."""
        return _distance(self.relaxed, self.objective)


def _distance(low: float | None, high: float | None) -> float | None:
    return None if low is None or not high else (high - low) / abs(high)


@dataclass
class Comparison:
    """A problem and a row per variant, as they are made; ``reference``: what is stored of the problem, if anything."""

    problem: str
    digest: str
    reference: Reference | None = None
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def best(self) -> float | None:
        """Least objective known: of this run and of the stored references."""
        stored = self.reference.objectives.values() if self.reference else ()
        return min((*(row.objective for row in self.rows if row.feasible and row.objective is not None), *stored), default=None)

    @property
    def lower_bound(self) -> float | None:
        """Largest proven bound known."""
        stored = [self.reference.lower_bound] if self.reference else []
        return max((bound for bound in (*(row.lower_bound for row in self.rows), *stored) if bound is not None), default=None)

    def excess(self, row: Row) -> float | None:
        """(objective − best known)/|best known|, zero where that is rounding."""
        if row.objective is None or self.best is None:
            return None
        difference = row.objective - self.best
        return 0.0 if difference <= SAME * abs(self.best) else difference / abs(self.best)

    def gap(self, row: Row) -> float | None:
        """(objective − proven bound)/|objective|."""
        return _distance(self.lower_bound, row.objective)


def compare(
    problems: Iterable[Problem], variants: Sequence[Variant], settings: Settings, *, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Comparison], bool]:
    """Run ``variants`` on ``problems`` in turn; the rows, and whether Ctrl-C ended it early."""
    references = load_references()
    results: list[Comparison] = []
    for problem in problems:
        comparison = Comparison(problem.name, problem.digest, references.get(problem.digest))
        results.append(comparison)
        try:
            for variant in variants:
                tell(f"{problem.name}: {variant.name}, {variant.asks}")
                comparison.rows.append(_row(problem, variant, settings))
        except KeyboardInterrupt:
            comparison.interrupted = True
            return results, True
    return results, False


def _row(problem: Problem, variant: Variant, settings: Settings) -> Row:
    limits = SolverSettings(time_limit_s=settings.time_limit_s, switches=variant.switches)
    with profiled() as parts:
        try:
            result = solve(problem, solver=variant.solver, settings=limits, seed=settings.seed)
        except SchedOptError as error:
            return Row(variant.name, "failed", None, False, None, 0, 0.0, parts, message=str(error))
    if result.interrupted:
        raise KeyboardInterrupt
    details = result.details
    return Row(
        variant=variant.name,
        status=result.status.name.lower(),
        objective=result.objective if np.isfinite(result.objective) else None,
        feasible=result.schedule is not None and validate_schedule(problem, result.schedule).feasible,
        lower_bound=result.lower_bound,
        iterations=result.iterations,
        wall_s=result.wall_s,
        parts_s=parts | {"other": max(result.wall_s - sum(parts.values()), 0.0)},
        relaxed=details.get("relaxed_objective"),
        rounded=details.get("rounded_objective"),
        relaxed_residual=result.kkt_residual,
        final_residual=details.get("final_residual"),
        fallbacks=len(details.get("fallbacks", ())),
        message=result.reason,
        trace=_trace(problem, variant, result),
    )


def _trace(problem: Problem, variant: Variant, result: SolveResult) -> Trace:
    """The iterates of a native solver; of the others, the schedule that is held."""
    records = result.details.get("history")
    if not records:
        return Trace(objective=tuple(record.objective for record in result.history if np.isfinite(record.objective)))
    unit = build_native(problem, logs=variant.solver.endswith("_log")).cost_scale
    most = {phase: max(record.variables for record in records if record.phase == phase) for phase in {record.phase for record in records}}
    return Trace(
        objective=tuple(unit * record.objective for record in records),
        merit=tuple(unit * (record.merit_after if record.taken else record.merit_before) for record in records),
        residual=tuple(record.residual for record in records),
        whole=tuple(record.phase not in ("dive", "mend") and record.variables == most[record.phase] for record in records),
        phase=tuple(record.phase for record in records),
    )


def row_data(comparison: Comparison, row: Row) -> dict[str, Any]:
    """A row for JSON, with what is derived."""
    derived = {"excess": comparison.excess(row), "gap": comparison.gap(row), "gap_rounded": row.gap_rounded, "gap_final": row.gap_final}
    return asdict(row) | derived
