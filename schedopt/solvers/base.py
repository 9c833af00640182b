"""The protocol that optimisers and heuristics share: ``solve(problem, settings=…, seed=…, progress=…) -> SolveResult``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from schedopt.constraints import validate_schedule
from schedopt.errors import InputError, SolverError
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.schedule import Schedule

__all__ = [
    "Incumbent",
    "ProgressCallback",
    "Solver",
    "SolverSettings",
    "TimeLimitReached",
    "check_magnitudes",
    "check_participation",
    "judges_windows",
    "refusal",
]

ProgressCallback = Callable[[IterationRecord], None]


@dataclass(frozen=True)
class SolverSettings:
    """Settings of every solver, each with its default and meaning."""

    #: conic backend of the convex subproblems: clarabel, ecos, scs or mosek
    backend: str = "clarabel"
    #: wall-clock limit in seconds; None = the solver's own end
    time_limit_s: float | None = None
    #: whether to spend effort on a proven lower bound until ``target_gap``
    certify: bool = False
    #: relative gap at which a certified solve stops
    target_gap: float = 0.005
    #: cap on the iterations of the solver's main loop; None = the solver's own
    max_iterations: int | None = None
    #: a schedule to start from; solvers that cannot use one ignore it
    warm_start: Schedule | None = None
    #: further settings of the one solver, as texts
    switches: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise ValueError(f"time_limit_s = {self.time_limit_s}; must be positive")
        if not 0 <= self.target_gap < 1:
            raise ValueError(f"target_gap = {self.target_gap}; must be in [0, 1)")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ValueError(f"max_iterations = {self.max_iterations}; must be at least 1")


#: Numbers of a problem that solvers compute with: products of half a dozen of them stay within 64-bit floats.
SMALLEST, LARGEST = 1e-40, 1e40


def check_magnitudes(problem: Problem) -> None:
    """Raise :class:`~schedopt.errors.SolverError` for a positive number of ``problem`` outside [1e-40, 1e40], naming it."""
    numeric = {name: values for name, values in vars(problem.arrays).items() if isinstance(values, np.ndarray | float | int)}
    for name, values in {**numeric, "energy_weight": problem.objective.energy_weight}.items():
        numbers = np.atleast_1d(np.asarray(values, dtype=float))
        used = np.isfinite(numbers) & (numbers > 0)
        off = numbers[used & ((numbers < SMALLEST) | (numbers > LARGEST))]
        if len(off):
            allowed = f"must be between {SMALLEST:g} and {LARGEST:g}"
            raise SolverError(f"{name} = {off[0]:g} is beyond what solvers can compute with; {allowed}")


class Solver(Protocol):
    """A solver variant. One whose ``by_windows`` is False refuses problems whose participation is judged by windows."""

    name: str

    def solve(
        self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None
    ) -> SolveResult:
        """Return the best schedule found; infeasibility and interruption are values of the result."""
        ...


def judges_windows(solver: Solver) -> bool:
    """Whether a solver handles participation by windows and the conditions of stability."""
    return bool(getattr(solver, "by_windows", True))


def refusal(solver: Solver, problem: Problem) -> str | None:
    """Why ``solver`` does not handle the problem's participation or conditions, in one line; None if it does."""
    if judges_windows(solver):
        return None
    if problem.arrays.windows is not None:
        where = f'objective.participation = {{"window": {problem.arrays.windows.length}}}'
        return f'{where}: solver {solver.name} handles "instant" and "horizon"; use sca or column_generation'
    if problem.arrays.enforced == "stability":
        return f'objective.enforce_conditions = "stability": solver {solver.name} handles true and false; use sca or column_generation'
    return None


def check_participation(solver: Solver, problem: Problem) -> None:
    """Raise :class:`~schedopt.errors.InputError` if ``solver`` does not handle the problem's participation or conditions."""
    reason = refusal(solver, problem)
    if reason is not None:
        raise InputError(reason)


class TimeLimitReached(Exception):
    """Raised inside a solver when its time is up; the incumbent is what remains."""


#: Relative tolerance at which a schedule is accepted as incumbent: well inside what validators outside use.
INCUMBENT_TOLERANCE = 1e-9
#: A bound above the objective by more than this (relative) is no bound.
CROSSING = 1e-7


@dataclass
class Incumbent:
    """The best feasible schedule so far, the proven bound, the clock and the history of one solve.

    Only schedules that the exact validator accepts enter; so whatever interrupts a solver, what is held can be returned. Raises
    :class:`~schedopt.errors.SolverError` if a number of the problem is beyond what 64-bit arithmetic can carry.
    """

    problem: Problem
    settings: SolverSettings
    progress: ProgressCallback | None = None
    schedule: Schedule | None = None
    objective: float = np.inf
    lower_bound: float = -np.inf
    iteration: int = 0
    history: list[IterationRecord] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        check_magnitudes(self.problem)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the solve began."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float | None:
        """Seconds that are left of the time limit, a little at least, so that they can be a limit; None without one."""
        limit = self.settings.time_limit_s
        return None if limit is None else max(limit - self.elapsed_s, 1e-3)

    def check_time(self) -> None:
        """Raise :class:`TimeLimitReached` when the limit has passed."""
        if self.settings.time_limit_s is not None and self.elapsed_s > self.settings.time_limit_s:
            raise TimeLimitReached

    def offer(self, schedule: Schedule) -> bool:
        """Take ``schedule`` if it is feasible and better than what is held; tell whether it was taken."""
        evaluation = evaluate_objective(self.problem, schedule)
        if not evaluation.objective < self.objective:
            return False
        report = validate_schedule(self.problem, schedule, tolerance=INCUMBENT_TOLERANCE, evaluation=evaluation)
        if not report.feasible:
            return False
        self.schedule, self.objective = schedule.sorted(), evaluation.objective
        return True

    def raise_lower_bound(self, value: float) -> None:
        """Record a proven lower bound; what is not a number proves nothing."""
        if not np.isnan(value):
            self.lower_bound = max(self.lower_bound, value)

    def record(self, phase: str) -> None:
        """Append to the history and tell the progress callback."""
        entry = IterationRecord(self.iteration, self.elapsed_s, self.objective, self.lower_bound, phase)
        self.history.append(entry)
        if self.progress is not None:
            self.progress(entry)

    def run(self, phases: Callable[[], None]) -> SolveStatus:
        """How ``phases()`` ends: by itself, by the time limit or by Ctrl-C. Numbers that overflow are the exact evaluator's to judge."""
        try:
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                phases()
        except TimeLimitReached:
            return SolveStatus.TIME_LIMIT
        except KeyboardInterrupt:
            return SolveStatus.INTERRUPTED
        return SolveStatus.SOLVED

    def result(self, solver: str, status: SolveStatus, *, seed: int, reason: str = "", **extra: object) -> SolveResult:
        """The outcome: infeasible if nothing feasible is held, else ``status``."""
        if self.schedule is None and status is SolveStatus.SOLVED:
            status = SolveStatus.INFEASIBLE
        if self.lower_bound > self.objective + CROSSING * abs(self.objective):
            # the schedule is judged by the exact evaluator: what broke down is the proof, in numbers beyond 64-bit arithmetic
            self.lower_bound = -np.inf
            extra["lower_bound_method"] = None
        return SolveResult(
            status=status,
            schedule=self.schedule,
            objective=self.objective,
            solver=solver,
            lower_bound=self.lower_bound if np.isfinite(self.lower_bound) else None,
            iterations=self.iteration,
            wall_s=self.elapsed_s,
            seed=seed,
            reason=reason,
            history=tuple(self.history),
            **extra,  # type: ignore[arg-type]
        )
