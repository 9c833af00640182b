"""What is measured: one function per question, and the loop over cases.

Times are reported and never judged: they depend on the machine and on what else runs. The targets are on what is found and proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.cases import Case
from benchmarks.variants import variant
from schedopt.constraints import validate_schedule
from schedopt.errors import SchedOptError
from schedopt.io import load_problem
from schedopt.problem import Problem
from schedopt.registry import DEFAULT_SOLVER, solve
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.solvers.base import SolverSettings

__all__ = ["HEURISTICS", "CaseResult", "Settings", "SolverRow", "VariantRow", "run_cases", "seconds_to_gap"]

HEURISTICS = ("round_robin", "random_feasible", "synchronous", "greedy_energy")
ORACLE = "enumeration"
#: Times are also given as multiples of this solver's, which takes some of the machine out of them.
YARDSTICK = "greedy_energy"

#: A proven gap of at most this on the main problems.
TARGET_GAP = 0.02
#: The objective is this much better than the best heuristic's.
TARGET_IMPROVEMENT = 0.15
#: Largest relative excess over the enumerated optimum.
TARGET_EXCESS = 0.005
#: Rounding allowed between a bound and an optimum, relative; the oracle is exact to 1e-9.
BOUND_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Settings:
    """Settings of a run: seed, seconds of each certified solve, the gap at which it may stop, and number of variants."""

    seed: int = 0
    time_limit_s: float = 60.0
    target_gap: float = 0.005
    variants: int = 20


@dataclass(frozen=True)
class SolverRow:
    """One solver on one problem; None where there is no such number. ``time_ratio``: time relative to the yardstick's."""

    solver: str
    status: str
    objective: float | None
    lower_bound: float | None
    gap: float | None
    wall_s: float
    seconds_to_target: float | None
    time_ratio: float | None
    feasible: bool
    energy_j: float | None = None


@dataclass(frozen=True)
class VariantRow:
    """One variant of a tiny problem: optimum by enumeration, the solver's objective and bound, relative excess."""

    problem: str
    status: str
    optimum: float | None
    objective: float | None
    lower_bound: float | None
    excess: float | None
    wall_s: float
    oracle_s: float
    feasible: bool


@dataclass
class CaseResult:
    """What a case gave, complete or not: rows as they are made, the targets missed, and whether it was interrupted."""

    case: Case
    digest: str
    solvers: list[SolverRow] = field(default_factory=list)
    variants: list[VariantRow] = field(default_factory=list)
    improvement: float | None = None
    missed: list[str] = field(default_factory=list)
    interrupted: bool = False


class _Interrupted(Exception):
    """Ctrl-C reached a solver, which returned what it had."""


def seconds_to_gap(history: Iterable[IterationRecord], gap: float) -> float | None:
    """Seconds until a schedule within ``gap`` of the bound proven by then was held; None if that never was."""
    for record in history:
        difference = record.objective - record.lower_bound
        if np.isfinite(difference) and difference <= gap * abs(record.objective):
            return record.elapsed_s
    return None


def _is_feasible(problem: Problem, result: SolveResult) -> bool:
    return result.schedule is not None and validate_schedule(problem, result.schedule).feasible


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _solver_row(problem: Problem, result: SolveResult, yardstick_s: float | None) -> SolverRow:
    feasible, energy = False, None
    if result.schedule is not None:
        report = validate_schedule(problem, result.schedule)
        feasible, energy = report.feasible, report.evaluation.energy_j
    return SolverRow(
        solver=result.solver,
        status=result.status.name.lower(),
        objective=_finite(result.objective),
        lower_bound=result.lower_bound,
        gap=result.gap,
        wall_s=result.wall_s,
        seconds_to_target=seconds_to_gap(result.history, TARGET_GAP),
        time_ratio=result.wall_s / yardstick_s if yardstick_s else None,
        feasible=feasible,
        energy_j=energy,
    )


def _measure_main(problem: Problem, settings: Settings, outcome: CaseResult) -> None:
    """The default solver with certificates against the heuristics."""
    limits = SolverSettings(time_limit_s=settings.time_limit_s)
    certified = SolverSettings(time_limit_s=settings.time_limit_s, certify=True, target_gap=settings.target_gap)
    yardstick_s: float | None = None
    # the yardstick first, so that every row has its ratio
    for name in (YARDSTICK, *(h for h in HEURISTICS if h != YARDSTICK), DEFAULT_SOLVER):
        result = solve(problem, solver=name, settings=certified if name == DEFAULT_SOLVER else limits, seed=settings.seed)
        if name == YARDSTICK:
            yardstick_s = result.wall_s
        outcome.solvers.append(_solver_row(problem, result, yardstick_s))
        if result.interrupted:
            raise _Interrupted
    _judge_main(outcome)


def _judge_main(outcome: CaseResult) -> None:
    *heuristics, row = outcome.solvers
    for other in outcome.solvers:
        # a heuristic may find nothing, but what it hands out must be feasible
        if not other.feasible and (other is row or other.objective is not None):
            outcome.missed.append(f"{other.solver}: no feasible schedule ({other.status})")
        if row.lower_bound is not None and other.feasible and other.objective is not None:
            if row.lower_bound > other.objective * (1 + BOUND_TOLERANCE):
                outcome.missed.append(f"the lower bound {row.lower_bound:.6g} is above the objective of {other.solver}")
    found = [other.objective for other in heuristics if other.feasible and other.objective is not None]
    if found and row.objective is not None:
        outcome.improvement = 1.0 - row.objective / min(found)
    if outcome.case.question != "main":
        return
    if row.gap is None or row.gap > TARGET_GAP:
        proven = "none" if row.gap is None else f"{100 * row.gap:.2f} %"
        outcome.missed.append(f"proven gap {proven}; target {100 * TARGET_GAP:g} %")
    if found and (outcome.improvement is None or outcome.improvement < TARGET_IMPROVEMENT):
        better = "no schedule" if outcome.improvement is None else f"{100 * outcome.improvement:.1f} %"
        outcome.missed.append(f"better than the best heuristic by {better}; target {100 * TARGET_IMPROVEMENT:g} %")


def _measure_oracle(problem: Problem, settings: Settings, outcome: CaseResult) -> None:
    """The default solver, certified, against the enumerated optimum of random variants."""
    certified = SolverSettings(time_limit_s=settings.time_limit_s, certify=True, target_gap=settings.target_gap)
    for number in range(settings.variants):
        changed = variant(problem, number, settings.seed)
        oracle = solve(changed, solver=ORACLE, settings=SolverSettings(time_limit_s=settings.time_limit_s), seed=settings.seed)
        if oracle.interrupted:
            raise _Interrupted
        result = solve(changed, settings=certified, seed=settings.seed)
        if result.interrupted:
            raise _Interrupted
        row = _variant_row(changed, oracle, result)
        outcome.variants.append(row)
        outcome.missed += _judge_variant(row, oracle)


def _variant_row(problem: Problem, oracle: SolveResult, result: SolveResult) -> VariantRow:
    optimum, objective = _finite(oracle.objective), _finite(result.objective)
    excess = None
    if optimum is not None and objective is not None:
        excess = 0.0 if objective == optimum else (objective - optimum) / abs(optimum)
    return VariantRow(
        problem=problem.name,
        status=result.status.name.lower(),
        optimum=optimum,
        objective=objective,
        lower_bound=result.lower_bound,
        excess=excess,
        wall_s=result.wall_s,
        oracle_s=oracle.wall_s,
        feasible=_is_feasible(problem, result),
    )


def _judge_variant(row: VariantRow, oracle: SolveResult) -> list[str]:
    if oracle.status is SolveStatus.INFEASIBLE:
        return [f"{row.problem}: a schedule where enumeration says there is none"] if row.objective is not None else []
    if oracle.status is not SolveStatus.SOLVED or row.optimum is None:
        return [f"{row.problem}: enumeration did not end in time, nothing to compare with"]
    missed = []
    if not row.feasible:
        missed.append(f"{row.problem}: no feasible schedule ({row.status})")
    if row.excess is not None and row.excess > TARGET_EXCESS:
        missed.append(f"{row.problem}: {100 * row.excess:.3f} % above the optimum; target {100 * TARGET_EXCESS:g} %")
    if row.excess is not None and row.excess < -BOUND_TOLERANCE:
        missed.append(f"{row.problem}: better than enumeration by {-row.excess:.2e}, so one of them is wrong")
    if row.lower_bound is not None and row.lower_bound > row.optimum + BOUND_TOLERANCE * abs(row.optimum):
        missed.append(f"{row.problem}: the lower bound {row.lower_bound:.9g} is above the optimum {row.optimum:.9g}")
    return missed


def run_cases(
    cases: Iterable[Case], settings: Settings, *, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[CaseResult], bool]:
    """Run ``cases`` in turn; the results, and whether Ctrl-C ended it early (the last result is then incomplete).

    ``tell`` gets a line as each case starts. Raises :class:`~schedopt.errors.SchedOptError` if a problem cannot be read, before
    anything is measured.
    """
    work = [(case, load_problem(case.path)) for case in cases]
    results: list[CaseResult] = []
    for case, problem in work:
        tell(f"{case.name}: {case.stresses}")
        outcome = CaseResult(case, problem.digest)
        results.append(outcome)
        try:
            (_measure_oracle if case.question == "oracle" else _measure_main)(problem, settings, outcome)
        except (KeyboardInterrupt, _Interrupted):
            outcome.interrupted = True
            return results, True
        except SchedOptError as error:
            # one case that a solver cannot do must not cost the others
            outcome.missed.append(str(error))
    return results, False
