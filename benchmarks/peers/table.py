"""One problem, our solvers and all peers: the rows, the printed table and the JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.output import WIDTH, machine, versions
from benchmarks.peers.registry import PEERS
from benchmarks.peers.runner import PeerResult, run_peer
from schedopt.constraints import validate_schedule
from schedopt.errors import SchedOptError
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.solvers.base import SolverSettings

__all__ = ["OURS", "Comparison", "Settings", "compare", "print_comparison", "results_text"]

SCHEMA = "schedopt.peers/1"
#: Objectives that differ by less than this (relative) are equal: the rest is rounding.
SAME = 1e-9
#: Our solvers in the table; enumeration says by itself where a problem is too large for it.
OURS = ("sca", "enumeration")


@dataclass(frozen=True)
class Settings:
    """Seconds that every solver has per problem, the seed, and which peers run."""

    time_limit_s: float = 60.0
    seed: int = 0
    peers: tuple[str, ...] = tuple(PEERS)


@dataclass
class Comparison:
    """A problem and a row per solver, as they are made."""

    problem: str
    digest: str
    rows: list[PeerResult] = field(default_factory=list)
    interrupted: bool = False

    @property
    def best(self) -> float | None:
        """Least objective of all rows."""
        return min((row.objective for row in self.rows if row.objective is not None), default=None)

    def excess(self, row: PeerResult) -> float | None:
        """(objective − best)/|best|, zero where that is rounding."""
        if row.objective is None or self.best is None:
            return None
        difference = row.objective - self.best
        return 0.0 if difference <= SAME * abs(self.best) else difference / abs(self.best)


def _our_row(name: str, problem: Problem, settings: Settings) -> PeerResult:
    """One of our solvers, certified, in this process."""
    began = time.monotonic()
    try:
        limits = SolverSettings(time_limit_s=settings.time_limit_s, certify=True)
        result = solve(problem, solver=name, settings=limits, seed=settings.seed)
    except SchedOptError as error:
        return PeerResult(name, "no_schedule", wall_s=time.monotonic() - began, message=str(error))
    if result.interrupted:
        raise KeyboardInterrupt
    feasible = result.schedule is not None and validate_schedule(problem, result.schedule).feasible
    if not feasible or not np.isfinite(result.objective):
        return PeerResult(name, "no_schedule", None, result.lower_bound, result.wall_s, result.reason or result.status.value)
    return PeerResult(name, "ok", result.objective, result.lower_bound, result.wall_s, result.status.value)


def compare(
    problems: Iterable[Problem], settings: Settings, *, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Comparison], bool]:
    """Run our solvers and the peers on ``problems`` in turn; the rows, and whether Ctrl-C ended it early.

    ``tell`` gets a line as each solver starts.
    """
    results: list[Comparison] = []
    for problem in problems:
        comparison = Comparison(problem.name, problem.digest)
        results.append(comparison)
        try:
            for name in OURS:
                tell(f"{problem.name}: {name}")
                comparison.rows.append(_our_row(name, problem, settings))
            for name in settings.peers:
                tell(f"{problem.name}: {name}, {PEERS[name].what}")
                comparison.rows.append(run_peer(name, problem, time_limit_s=settings.time_limit_s, seed=settings.seed))
        except KeyboardInterrupt:
            comparison.interrupted = True
            return results, True
    return results, False


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def print_comparison(results: Sequence[Comparison], console: Console | None = None) -> None:
    """A table per problem on standard output."""
    console = console or Console()
    if not console.is_terminal:
        # in a log there is no width to keep to
        console.width = max(console.width, WIDTH + 40)
    for result in results:
        table = Table(title=result.problem + (" (interrupted)" if result.interrupted else ""), title_justify="left")
        for k, column in enumerate(("solver", "objective", "above the best", "own bound", "s", "status", "remark")):
            table.add_column(column, justify="right" if 1 <= k <= 4 else "left", overflow="fold")
        for row in result.rows:
            status = row.status + (", repaired" if row.repaired else "")
            numbers = (_number(row.objective), _percent(result.excess(row)), _number(row.own_bound), f"{row.wall_s:.1f}")
            table.add_row(row.peer, *numbers, status, row.message)
        console.print(table, markup=False, highlight=False)


def _versions() -> dict[str, str | None]:
    found = versions()
    for package in sorted({package for peer in PEERS.values() for package in peer.packages}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def results_text(results: Sequence[Comparison], settings: Settings, *, interrupted: bool) -> str:
    """The results as JSON text."""
    problems: list[dict[str, Any]] = []
    for result in results:
        rows = [asdict(row) | {"excess": result.excess(row)} for row in result.rows]
        problems.append({"problem": result.problem, "digest": result.digest, "interrupted": result.interrupted, "rows": rows})
    data = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "versions": _versions(),
        "machine": machine(),
        "interrupted": interrupted,
        "problems": problems,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
