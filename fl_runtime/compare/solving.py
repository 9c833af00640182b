"""Our schedules: that of the problem as it is, and a front of schedules of least bound at several energies.

A schedule is made for one energy, while a policy spends as it goes; the front is what makes them comparable at any energy. The schedules
of the front are those of the problem in mode min_bound, ``total_energy_j`` being each energy of a geometric grid.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_runtime.compare.settings import CompareSettings
from schedopt import __version__
from schedopt.constraints import validate_schedule
from schedopt.errors import InfeasibleError, InputError, SolverError
from schedopt.files import parse_problem
from schedopt.io import load_schedule, load_schedule_for, save_schedule
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import get_solver
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings

__all__ = ["OwnSchedule", "Workshop", "front_energies", "given_schedule", "prepare_folder"]

#: The front's energies are between these multiples of that of the schedule for the problem.
LEAST_SHARE, LARGEST_SHARE = 0.125, 2.0

#: Told while a schedule is solved for.
Show = Callable[[str], None]


@dataclass(frozen=True)
class OwnSchedule:
    """A schedule of ours: its name in tables, where it comes from in words, and its energy by the formulas, in J."""

    name: str
    origin: str
    schedule: Schedule
    energy_j: float


def front_energies(base_j: float, count: int, problem: Problem) -> list[float]:
    """A geometric grid of ``count`` energies in J around ``base_j``, up to what the devices' budgets allow."""
    if count == 0 or base_j <= 0:  # around a schedule that does nothing there is no front
        return []
    most = float(problem.arrays.energy_budget_j.sum())
    top = max(min(LARGEST_SHARE * base_j, most), LEAST_SHARE * base_j)
    return [float(e) for e in np.geomspace(LEAST_SHARE * base_j, top, count)] if count > 1 else [base_j]


def at_energy(problem: Problem, energy_j: float) -> Problem:
    """The same problem in mode min_bound with a total energy."""
    data = problem.to_dict()
    data["objective"] |= {"mode": "min_bound", "total_energy_j": energy_j}
    return parse_problem(data)


def given_schedule(path: str, problem: Problem) -> OwnSchedule:
    """The schedule of a file, for this problem: devices and tasks are found by name.

    Raises :class:`~schedopt.errors.InputError` if one is missing, :class:`~schedopt.errors.InfeasibleError` if it cannot be executed here.
    """
    schedule = load_schedule_for(problem, path)
    own = _own(problem, f"file {os.path.basename(path)}", f"given in {os.path.basename(path)}", schedule)
    for check in validate_schedule(problem, own.schedule).checks:
        if not check.ok and check.physical:
            raise InfeasibleError(f"{path}: cannot be executed on this problem: {check.name} is violated; 'schedopt validate' tells all")
    return own


def prepare_folder(path: str) -> Path:
    """The folder of ``--keep``, made if it is missing. Raises :class:`~schedopt.errors.InputError`."""
    if not path:
        raise InputError("--keep '': must be a folder")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--keep {path}: {getattr(error, 'strerror', None) or error}; must be a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--keep {path}: is write-protected")
    return folder


class Workshop:
    """Solves for our schedules, or takes them from ``keep``, where it leaves them.

    Raises ``KeyboardInterrupt`` when a solve is interrupted. ``notes``: what is odd, one line each.
    """

    def __init__(self, problem: Problem, settings: CompareSettings, *, keep: Path | None, show: Show) -> None:
        self.problem, self.settings, self.keep, self.show = problem, settings, keep, show
        self.notes: list[str] = []

    def all(self) -> list[OwnSchedule]:
        """The schedule for the problem, then those of the front by energy; none twice."""
        base = self._solve(self.problem, "ours", None)
        if isinstance(base, str):
            raise InfeasibleError(f"infeasible: {base}")
        energy = evaluate_objective(self.problem, base).energy_j
        mode = self.problem.objective.mode
        whole = _own(self.problem, "ours", f"solved for the problem (mode {mode})", base)
        wanted = sorted({*front_energies(energy, self.settings.front, self.problem), *self.settings.energies_j})
        made = [whole, *self._below(base, [e for e in wanted if e < energy]), *self._above(base, [e for e in wanted if e >= energy])]
        return self._distinct(made)

    def _below(self, base: Schedule, energies: Sequence[float]) -> list[OwnSchedule]:
        """Each begins with the one of the next larger energy, cut down by the solver."""
        return self._chain(base, list(reversed(energies)))[::-1]

    def _above(self, base: Schedule, energies: Sequence[float]) -> list[OwnSchedule]:
        """Each begins with the one of the next smaller energy, which is feasible."""
        return self._chain(base, energies)

    def _chain(self, start: Schedule, energies: Sequence[float]) -> list[OwnSchedule]:
        made = []
        for energy in energies:
            found = self._solve(at_energy(self.problem, energy), f"front_{energy:.4g}J", start)
            if isinstance(found, str):
                self.notes.append(f"no schedule of at most {energy:.4g} J: {found}")
                continue
            start = found
            made.append(_own(self.problem, "", f"solved for the least bound within {energy:.4g} J", found))
        return made

    def _distinct(self, made: Sequence[OwnSchedule]) -> list[OwnSchedule]:
        """Names, and none twice."""
        kept: dict[str, OwnSchedule] = {}
        for own in made:
            kept.setdefault(own.schedule.digest, own)
        names: set[str] = set()
        found = []
        for own in kept.values():
            name = own.name or _free_name(f"front {own.energy_j:.4g} J", names)
            names.add(name)
            found.append(OwnSchedule(name, own.origin, own.schedule, own.energy_j))
        if len(found) < len(made):
            self.notes.append(f"{len(made) - len(found)} schedules of the front are the same as others and left out")
        return [found[0], *sorted(found[1:], key=lambda own: own.energy_j)]

    def _solve(self, problem: Problem, name: str, start: Schedule | None) -> Schedule | str:
        """A schedule, or why there is none."""
        path = None if self.keep is None else self.keep / f"{name}_{self._key(problem)}.json"
        if path is not None and path.exists():
            file = load_schedule(path)
            if file.problem.digest == problem.digest:
                return file.schedule
            self.notes.append(f"{path}: is of another problem and was replaced")
        s = self.settings
        self.show(f"{name} ...")
        settings = SolverSettings(time_limit_s=s.time_limit_s, warm_start=start)

        def progress(record: IterationRecord) -> None:
            self.show(f"{name}: {record.elapsed_s:.0f} s, {record.phase}")

        result = get_solver(s.solver).solve(problem, settings=settings, seed=s.first_seed, progress=progress)
        if result.status is SolveStatus.INTERRUPTED:
            raise KeyboardInterrupt
        if result.schedule is None:
            return _reason(result, needed=start is None)
        if path is not None:
            save_schedule(path, problem, result.schedule.sorted(), result)
        return result.schedule.sorted()

    def _key(self, problem: Problem) -> str:
        """Tells a solve from all others whose outcome may differ."""
        s = self.settings
        parts = [problem.digest, s.solver, s.time_limit_s, s.first_seed, __version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _own(problem: Problem, name: str, origin: str, schedule: Schedule) -> OwnSchedule:
    found = schedule.sorted()
    return OwnSchedule(name, origin, found, float(evaluate_objective(problem, found).energy_j))


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else next(f"{name} ({k})" for k in range(2, len(taken) + 3) if f"{name} ({k})" not in taken)


def _reason(result: SolveResult, *, needed: bool) -> str:
    """Why there is no schedule. Without one that is ``needed`` there is nothing to compare; its time limit is the user's to change."""
    if result.status is SolveStatus.TIME_LIMIT:
        reason = f"no feasible schedule found within the time limit ({result.wall_s:.1f} s); allow more with --time-limit"
        if needed:
            raise SolverError(reason)
        return reason
    return result.reason or "no feasible schedule was found"
