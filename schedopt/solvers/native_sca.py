"""The published route (formulation 4a): relaxation and proximal SCA on the scheduling tensors, then rounding.

Phases: the relaxation from one or several starts, to a KKT point; a growing price of fractional binaries; rounding to whole plans, by their
weights and by a dive; the same SCA on the resources with the binaries fixed, to a KKT point of the program with its binaries; whole steps
and batches, least-energy resources, and, if asked, local moves. A feasible schedule is held from the first start on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from schedopt.errors import SolverError
from schedopt.feasibility import unreachable_reason
from schedopt.formulation.candidates import build_candidates
from schedopt.formulation.native import build_native
from schedopt.polish import polish
from schedopt.problem import FloatArray, Problem
from schedopt.repair import repair
from schedopt.result import SolveResult, SolveStatus
from schedopt.sca.conic import check_backend
from schedopt.sca.iterate import NativeIterate
from schedopt.sca.kkt import binary_multipliers, kkt_residual
from schedopt.sca.native_loop import WHOLE, NativeLoop
from schedopt.sca.native_rounding import dive_native, round_native
from schedopt.sca.native_settings import NativeRecord, NativeSettings
from schedopt.sca.native_step import Multipliers
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings, check_participation
from schedopt.solvers.greedy_energy import GreedyEnergy
from schedopt.solvers.random_feasible import RandomFeasible
from schedopt.solvers.reasons import why_nothing
from schedopt.solvers.switches import read_switches
from schedopt.state import Merit, State, state_of

__all__ = ["NativeSca", "NativeScaLog", "NativeSwitches"]

#: More iterations than any phase is given.
_NO_CAP = 10**9
STARTS = ("heuristic", "spread", "random")
ROUNDINGS = ("dive", "weights")


@dataclass(frozen=True)
class NativeSwitches(NativeSettings):
    """Switches of the solver: those of the loop, and the phases."""

    #: first start: a heuristic's schedule (feasible), fractional assignments everywhere, or random ones (both infeasible)
    start: str = "heuristic"
    #: how many starts; those after the first are random
    starts: int = 1
    #: iterations of the relaxation, of the binary phase, and of the resources after rounding
    relaxed_iterations: int = 300
    binary_iterations: int = 8
    fixed_iterations: int = 40
    #: ``dive``: device after device gets a whole plan and the rest moves to fit; ``weights``: all at once, by their weights alone
    rounding: str = "dive"
    #: groups in which devices are fixed in a dive, and iterations after each
    dive_rounds: int = 5
    dive_iterations: int = 8
    #: random roundings by weights, beside the plan of most weight
    samples: int = 5
    #: rounds of local moves on the exact objective after rounding; 0: none
    polish_rounds: int = 3
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in (("start", STARTS), ("rounding", ROUNDINGS)):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} = {getattr(self, name)!r}; must be one of {', '.join(words)}")
        positive = ("starts", "relaxed_iterations", "dive_rounds", "dive_iterations")
        for name in (*positive, "binary_iterations", "fixed_iterations", "samples", "polish_rounds"):
            least = int(name in positive)
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}; must be at least {least}")


class NativeSca:
    """Relaxation and proximal SCA on the scheduling tensors (``native_sca``)."""

    name = "native_sca"
    by_windows = False
    #: whether monomials go through logarithms
    logs = False
    switches = NativeSwitches
    keeps_iterate = True

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Best schedule found; ``kkt_residual``: of the relaxation where the best start ended; ``iterate``: what to recompute it from."""
        check_participation(self, problem)
        check_backend(settings.backend)
        switches = replace(read_switches(self.name, NativeSwitches, settings.switches), backend=settings.backend)
        held = Incumbent(problem, settings, progress)
        reason = unreachable_reason(problem)
        if reason is not None:
            return held.result(self.name, SolveStatus.INFEASIBLE, seed=seed, reason=reason)
        run = _Run(problem, settings, switches, held, np.random.default_rng(seed), self.logs)
        status = held.run(run.all_phases)
        if held.schedule is None:
            run.notes.insert(0, run.why_nothing())
        return held.result(
            self.name, status, seed=seed, reason="; ".join(run.notes), backend=settings.backend,
            kkt_residual=run.residual, iterate=run.iterate, timings=dict(run.timings), details=run.details,
        )  # fmt: skip


class NativeScaLog(NativeSca):
    """The same with steps, batch and frequency through logarithms (``native_sca_log``)."""

    name = "native_sca_log"
    logs = True


@dataclass
class _Run:
    """One solve: the phases and what they hand on."""

    problem: Problem
    settings: SolverSettings
    switches: NativeSwitches
    held: Incumbent
    rng: np.random.Generator
    logs: bool
    notes: list[str] = field(default_factory=list)
    best: State | None = None
    residual: float | None = None
    iterate: NativeIterate | None = None
    timings: dict[str, float] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)
    #: point and multipliers with whole binaries
    final: tuple[FloatArray, Multipliers] | None = None

    def all_phases(self) -> None:
        """Every start through every phase; the best schedule stays."""
        self.held.offer(Schedule.empty())
        if self.held.objective == 0.0:
            return
        with self._timed("build"):
            self.candidates = build_candidates(self.problem)
            self.native = build_native(self.problem, logs=self.logs)
        if len(self.candidates) == 0:
            return
        merit_scale = 1e6 * max(1.0, self.native.cost_scale)
        self.merit = Merit(self.problem, np.full(self.problem.arrays.num_tasks, merit_scale), merit_scale)
        best = np.inf
        for number in range(self.switches.starts):
            self.final = None
            try:
                loop = self._relax(self._start(number))
            except SolverError as error:
                if number == 0:
                    raise
                # what earlier starts found stays
                self.notes.append(f"start {number + 1}: {error}")
                break
            reached = np.inf
            try:
                reached = self._round_and_finish(loop)
            finally:
                # whatever ends the run: points that were reached can be looked at
                self._describe(loop)
                if self.iterate is None or reached < best:
                    best = min(best, reached)
                    self._keep()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = self.timings.get(phase, 0.0) + time.monotonic() - begin

    # --- starts

    def _start(self, number: int) -> FloatArray:
        """The starting point: warm, heuristic, spread or random."""
        if number == 0 and self.settings.warm_start is not None:
            warm = self.settings.warm_start
            self.held.offer(warm)
            return self.native.point(self._within_limits(warm.take(self.native.usable(warm))))
        kind = self.switches.start if number == 0 else "random"
        if kind == "heuristic":
            schedule = self._heuristic()
            if schedule is not None and len(schedule):
                return self.native.point(schedule)
            kind = "spread"
        return self.native.spread(self.rng if kind == "random" else None)

    def _within_limits(self, schedule: Schedule) -> Schedule:
        """``schedule`` with as many steps and samples as the problem allows: it may be of a time when it allowed others."""
        a, limit = self.problem.arrays, self.native.scale["steps"][:, 0]
        row = self.native.rows_of(schedule.device, schedule.task)
        batch = np.clip(schedule.batch, a.min_batch[schedule.task], a.samples[schedule.device, schedule.task])
        return replace(schedule, steps=np.clip(schedule.steps, 1, limit[row]), batch=batch)

    def _heuristic(self) -> Schedule | None:
        with self._timed("heuristic"):
            for heuristic in (GreedyEnergy(), RandomFeasible()):
                self._tick("heuristic")
                found = heuristic.solve(self.problem, settings=SolverSettings(time_limit_s=self.held.left_s, max_iterations=50))
                if found.schedule is not None:
                    self.held.offer(found.schedule)
                if found.interrupted:
                    raise KeyboardInterrupt
                if found.schedule is not None:
                    return found.schedule
        return None

    def why_nothing(self) -> str:
        """What the roundings missed."""
        names = ", ".join(repr(task.name) for task in self.problem.tasks[:5])
        known = hasattr(self, "merit")
        return why_nothing(self.problem, self.merit, self.best) if known else f"no candidate assignment for the tasks {names}"

    def _tick(self, phase: str) -> None:
        self.held.record(phase)
        self.held.check_time()

    # --- relaxation

    def _relax(self, start: FloatArray) -> NativeLoop:
        """The relaxation and the binary phase from ``start``."""

        def on_iteration(record: NativeRecord, _: FloatArray) -> None:
            self.held.iteration += 1
            self._tick(record.phase)

        native, s = self.native, self.switches
        loop = NativeLoop(
            native.program, start, native.binaries, s, restore=native.restored, dormant=native.dormant, on_iteration=on_iteration
        )
        cap = self.settings.max_iterations or _NO_CAP
        try:
            with self._timed("relaxation"):
                self.relaxed_multipliers = self.relaxed_residual = None
                ended = loop.phase("relaxed", min(s.relaxed_iterations, cap))
        finally:
            self._describe(loop)
        if ended.startswith("no backend") and loop.multipliers is None:
            raise SolverError(f"no backend could solve the first subproblem (tried {s.backend} and its fallbacks); try another --backend")
        self.relaxed = loop.point.copy()
        self.relaxed_multipliers, self.relaxed_residual = loop.multipliers, loop.residual
        self.details |= {"relaxed_end": ended, "relaxed_objective": native.program.objective(loop.point) * native.cost_scale}
        self._note("relaxation", ended, loop)
        if s.binary_iterations and loop.fractional() > WHOLE:
            with self._timed("binary phase"):
                self.details["binary_end"] = loop.phase("binary", min(s.binary_iterations, cap))
        return loop

    def _note(self, phase: str, ended: str, loop: NativeLoop) -> None:
        """Say how a phase ended that did not converge."""
        if loop.residual is None or loop.residual.total > self.switches.tolerance:
            residual = "no KKT residual" if loop.residual is None else f"KKT residual {loop.residual.total:.1e}"
            self.notes.append(f"{phase}: {ended}, {residual}")

    def _describe(self, loop: NativeLoop) -> None:
        self.details["history"] = loop.history
        self.details["fallbacks"] = loop.fallbacks
        if loop.fallbacks and not any(note.startswith("backend") for note in self.notes):
            self.notes.append(f"backend {self.switches.backend} failed now and then ({loop.fallbacks[0]})")

    # --- rounding

    def _round_and_finish(self, loop: NativeLoop) -> float:
        """Whole plans from the fractional point, resources to a KKT point, whole steps and batches; the best merit reached."""
        with self._timed("rounding"):
            state = self._rounded(loop.point)
            if state is None and self.relaxed is not loop.point:
                state = self._rounded(self.relaxed)
        self._tick("round")
        if self.switches.rounding == "dive" and self.relaxed_multipliers is not None:
            state = self._dived(loop, state)
        if state is None:
            return np.inf
        self.details["rounded_objective"] = state.evaluation.objective
        if self.switches.fixed_iterations:
            state = self._resources(loop, state)
        if self.switches.polish_rounds:
            state = self._polished(state)
        return self.merit(state)

    def _rounded(self, point: FloatArray) -> State | None:
        """The best of several roundings, repaired and with least-energy resources."""
        best: State | None = None
        for number in range(self.switches.samples + 1):
            self.held.check_time()
            state = repair(self.problem, round_native(self.native, self.candidates, point, self.rng if number else None))
            best = self._better(best, state)
        return best

    def _dived(self, loop: NativeLoop, best: State | None) -> State | None:
        """``best`` or, if better, what a dive from the relaxed point ends at."""
        s = self.switches
        assert self.relaxed_multipliers is not None
        with self._timed("dive"):
            loop.return_to(self.relaxed, self.relaxed_multipliers)
            point = dive_native(self.native, self.candidates, loop, rounds=s.dive_rounds, iterations=s.dive_iterations)
        with self._timed("rounding"):
            return self._better(best, repair(self.problem, round_native(self.native, self.candidates, point)))

    def _better(self, best: State | None, state: State | None) -> State | None:
        if state is None:
            return best
        self.held.offer(state.schedule)
        if self.best is None or self.merit(state) < self.merit(self.best):
            self.best = state
        return state if best is None or self.merit(state) < self.merit(best) else best

    def _resources(self, loop: NativeLoop, state: State) -> State:
        """SCA on steps, batches and resources with the plans fixed; then whole steps and batches."""
        start = self.native.point(state.schedule)
        with self._timed("resources"):
            fixed = loop.fixed(start, self.native.idle(start))
            cap = self.settings.max_iterations or _NO_CAP
            ended = self.details["final_end"] = fixed.phase("fixed", min(self.switches.fixed_iterations, cap))
        self._note("resources", ended, fixed)
        if fixed.multipliers is not None:
            multipliers = binary_multipliers(self.native.program, fixed.point, fixed.multipliers, self.native.binaries)
            self.final = fixed.point, multipliers
            self.details["final_residual"] = kkt_residual(self.native.program, fixed.point, multipliers).total
            self.details["final_objective"] = self.native.program.objective(fixed.point) * self.native.cost_scale
        with self._timed("rounding"):
            continuous = round_native(self.native, self.candidates, fixed.point)
            return self._better(state, repair(self.problem, continuous)) or state

    def _polished(self, state: State) -> State:
        with self._timed("polish"):
            found = polish(
                self.problem, self.candidates, state, self.merit, max_rounds=self.switches.polish_rounds, on_move=self.held.check_time,
                on_improvement=lambda better: self.held.offer(better.schedule) and None,
            )  # fmt: skip
            return self._better(found, state_of(self.problem, found.schedule)) or found

    def _keep(self) -> None:
        """Remember this run's points for whoever wants to recompute residuals."""
        if self.relaxed_multipliers is None or self.relaxed_residual is None:
            return
        self.residual = self.relaxed_residual.total
        final, multipliers = self.final or (None, None)
        self.iterate = NativeIterate(self.problem.digest, self.logs, self.relaxed, self.relaxed_multipliers, final, multipliers)
