"""Stored objectives of a short set, and whether a solver has become worse: ``python -m benchmarks.solvers --check`` and the tests ask.

The solvers run to their own end, without a time limit: what they find then does not depend on the machine's speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import PROBLEMS
from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.io import load_problem, write_text
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult

__all__ = [
    "ALLOWED",
    "FILE",
    "SAME",
    "SHORT_PROBLEMS",
    "SHORT_SOLVERS",
    "Reference",
    "complaint",
    "load_references",
    "refresh",
    "run_check",
]

FILE = Path(__file__).resolve().parent / "references.json"
SCHEMA = "schedopt.references/1"
SHORT_PROBLEMS = ("tiny_2dev_1task", "tiny_3dev_2task", "small_4dev_2task")
SHORT_SOLVERS = ("sca", "native_sca", "native_sca_log", "greedy_energy")
#: An objective may be worse than the stored one by this much, relative.
ALLOWED = 0.01
#: Objectives that differ by less than this (relative) are equal: the rest is rounding.
SAME = 1e-9


@dataclass(frozen=True)
class Reference:
    """What is stored of a problem: its digest, a proven lower bound, and the objective that each solver found."""

    problem: str
    digest: str
    lower_bound: float | None
    objectives: Mapping[str, float]


def load_references(path: Path = FILE) -> dict[str, Reference]:
    """Digest of the problem -> what is stored of it."""
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA:
        raise InputError(f"{path.name}: schema = {data.get('schema')!r}; must be {SCHEMA!r}")
    return {entry["digest"]: Reference(**entry) for entry in data["problems"]}


def complaint(problem: Problem, solver: str, result: SolveResult, reference: Reference | None) -> str | None:
    """What is wrong with ``result``, or None: infeasible, or worse than stored by more than what is allowed."""
    what = f"{problem.name}, {solver}"
    if result.schedule is None or not validate_schedule(problem, result.schedule).feasible:
        return f"{what}: no feasible schedule ({result.reason or result.status.value})"
    if reference is None or solver not in reference.objectives:
        return f"{what}: no reference stored for this problem as it is; store it with --refresh-references"
    stored = reference.objectives[solver]
    worse = (result.objective - stored) / abs(stored)
    return f"{what}: {result.objective:.6g} is {100 * worse:.2f} % worse than the stored {stored:.6g}" if worse > ALLOWED else None


def _run(tell: Callable[[str], None]) -> list[tuple[Problem, dict[str, SolveResult]]]:
    """The short set."""
    found = []
    for name in SHORT_PROBLEMS:
        problem = load_problem(PROBLEMS / f"{name}.json")
        results = {}
        for solver in SHORT_SOLVERS:
            tell(f"{name}: {solver}")
            results[solver] = solve(problem, solver=solver)
            if results[solver].interrupted:
                raise KeyboardInterrupt
        found.append((problem, results))
    return found


def run_check(tell: Callable[[str], None] = lambda line: None) -> list[str]:
    """Run the short set against the stored references; what is wrong."""
    references = load_references()
    complaints = []
    for problem, results in _run(tell):
        complaints += [complaint(problem, solver, result, references.get(problem.digest)) for solver, result in results.items()]
    return [line for line in complaints if line is not None]


def refresh(tell: Callable[[str], None] = lambda line: None, path: Path = FILE) -> None:
    """Run the short set and store what it finds. Nothing is stored if a solver finds no feasible schedule."""
    problems = []
    for problem, results in _run(tell):
        for solver, result in results.items():
            if result.schedule is None or not validate_schedule(problem, result.schedule).feasible:
                raise InputError(f"{problem.name}, {solver}: no feasible schedule, nothing stored")
        bounds = [result.lower_bound for result in results.values() if result.lower_bound is not None]
        problems.append(
            {
                "problem": problem.name,
                "digest": problem.digest,
                "lower_bound": max(bounds, default=None),
                "objectives": {solver: result.objective for solver, result in results.items()},
            }
        )
    write_text(path, json.dumps({"schema": SCHEMA, "problems": problems}, indent=1) + "\n")
