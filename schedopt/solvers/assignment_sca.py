"""The default solver: column generation and SCA on the assignment form, diving, and local moves on the exact objective.

Phases (formulation 4b, 4c): a relaxation over all candidate assignments (:mod:`schedopt.sca.loop`), a Lagrangian lower bound
(:mod:`schedopt.certify`), diving over devices (:mod:`schedopt.rounding`), polish (:mod:`schedopt.polish`), and, if asked, branching on
the bound until the gap is proven, with schedules made of the relaxed points on the way. A feasible schedule is held from the first
master on; what is held is returned whenever it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedopt.certify import Certifier, first_order_gap
from schedopt.errors import InfeasibleError
from schedopt.feasibility import unreachable_reason
from schedopt.formulation.candidates import Candidates, build_candidates
from schedopt.objective import evaluate_objective
from schedopt.polish import kick, polish
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.result import SolveResult, SolveStatus
from schedopt.rounding import dive, round_columns, supported_plans
from schedopt.sca.conic import check_backend
from schedopt.sca.loop import RelaxedSolution, relaxed_objective, solve_relaxation
from schedopt.sca.master import MasterPoint
from schedopt.sca.pool import ColumnPool
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings
from schedopt.solvers.exhaust import EXHAUST_METHOD, exhaust, is_tiny
from schedopt.solvers.greedy_energy import GreedyEnergy
from schedopt.solvers.random_feasible import RandomFeasible
from schedopt.solvers.reasons import why_nothing
from schedopt.solvers.switches import read_switches
from schedopt.state import Merit, State, state_of

__all__ = ["AssignmentSca", "AssignmentSwitches", "SearchRun"]

#: Masters of one relaxation at most.
_MOST_MASTERS = 200
#: Masters of the relaxation at which a quick schedule is made of it.
_EARLY = (1, 3, 6, 12)
#: Cuts of a proof between restarts: with --certify, and without.
_CUTS_CERTIFIED = 40
_CUTS = 15
#: Cuts of a whole proof at most: beyond, branching gains little in a long time.
_MOST_CUTS = 3_000
#: The proof's points are worth a restart if their relaxed objective is better by this much (relative).
_WORTH_RESTART = 2e-3
#: Points of a proof that are rounded at a time, those of them that are polished, and by how much their merit may exceed the best one's.
_ROUNDED = 12
_SAMPLES = 4
_HOPEFUL = 0.03
#: Kicks of the iterated local search times the number of candidates, at most.
_KICK_WORK = 8_000
#: Penalties of missed limits, as multiples of the relaxation's prices, tried in turn until none is missed.
_PENALTY_FACTORS = (3.0, 10.0, 100.0, 1e4)


@dataclass(frozen=True)
class AssignmentSwitches:
    """Switches of the default solver, each with its default and meaning."""

    #: proximal weight of the masters, relative to the objective
    prox_weight: float = 1e-3
    #: relative gain of column generation, and relative progress, at which the relaxation ends
    tolerance: float = 1e-4
    #: rounds of local moves right after rounding, and after the proof
    short_rounds: int = 3
    long_rounds: int = 30
    #: kicks of the iterated local search at most, and kicks in vain after which it ends
    kicks: int = 20
    patience: int = 8
    #: restarts from better points that the proof comes across
    restarts: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} = {value}; must be at least 0")


class AssignmentSca:
    """Assignment-form SCA with column generation (``sca``)."""

    name = "sca"
    switches = AssignmentSwitches

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Best schedule found, with a proven lower bound; ``seed`` steers the kicks of the local search."""
        check_backend(settings.backend)
        held = Incumbent(problem, settings, progress)
        reason = unreachable_reason(problem)
        if reason is not None:
            return held.result(self.name, SolveStatus.INFEASIBLE, seed=seed, reason=reason)
        switches = read_switches(self.name, AssignmentSwitches, settings.switches)
        return SearchRun(problem, settings, switches, held, np.random.default_rng(seed)).result(self.name, seed)


class SearchRun:
    """One solve: the phases and what they hand on."""

    def __init__(
        self, problem: Problem, settings: SolverSettings, switches: AssignmentSwitches, held: Incumbent, rng: np.random.Generator
    ) -> None:
        self.problem, self.settings, self.switches, self.held, self.rng = problem, settings, switches, held, rng
        self.reason = ""
        self.method: str | None = None
        #: first-order gap of the relaxed problem where the loop ended
        self.residual: float | None = None
        self.best: State | None = None
        #: points of the proof that schedules have been made of
        self.sampled = 0
        tasks = problem.arrays.num_tasks
        self.merit = Merit(problem, np.full(tasks, 1e12), 1e12)

    def result(self, solver: str, seed: int) -> SolveResult:
        """Run all phases to an end, whichever it is, and say what came of it."""
        try:
            status = self.held.run(self.all_phases)
        except InfeasibleError as error:
            status, self.reason = SolveStatus.INFEASIBLE, str(error)
        if self.held.schedule is None and not self.reason:
            self.reason = why_nothing(self.problem, self.merit, self.best)
        return self.held.result(
            solver,
            status,
            seed=seed,
            reason=self.reason,
            backend=self.settings.backend,
            lower_bound_method=self.method,
            kkt_residual=self.residual,
        )

    def all_phases(self) -> None:
        """Relax, dive, polish; prove; start again from a better relaxed point if the proof comes across one; search on; prove more."""
        candidates = build_candidates(self.problem)
        if self._trivial(candidates):
            return
        if self.settings.warm_start is not None:
            self._offer(repair(self.problem, self.settings.warm_start))
            self.held.offer(self.settings.warm_start)
        try:
            relaxed = self._relax(candidates)
        except InfeasibleError:
            if self.problem.objective.mode == "min_energy":
                raise
            # training must be had although nothing pays: all terms of a bound are zero, or its weight is next to nothing
            self._fall_back()
            return
        self._make_schedule(candidates, relaxed)
        if self.settings.certify and self._exhausted():
            return
        if self.held.schedule is None and self.best is not None:
            self._search_feasible(candidates, relaxed.point)
        if self.best is None or self.held.schedule is None:
            return
        prover = Certifier(self.problem, candidates, relaxed.points, relaxed.pool, self.held.objective, backend=self.settings.backend)
        for _ in range(self.switches.restarts + 1):
            self._prove(prover, _CUTS_CERTIFIED if self.settings.certify else _CUTS)
            better = prover.best_point
            reached = min(relaxed_objective(self.problem, relaxed.point), self.held.objective)
            if better is None or relaxed_objective(self.problem, better) > reached * (1.0 - _WORTH_RESTART):
                break
            relaxed = self._relax(candidates, start=better, pool=prover.pool)
            self._make_schedule(candidates, relaxed)
        # with windows the relaxed problem leaves out what models move inside them: its proof ends far below, however long it takes
        if self.settings.certify and self.problem.arrays.windows is None:
            self._prove_on(candidates, prover, relaxed.point, branch=False)
        if self._open_gap() > 0.0:
            self._polish(candidates, relaxed.point, self.switches.long_rounds, joint=True)
            self._kicks(candidates)
        if self.settings.certify:
            self._prove_on(candidates, prover, relaxed.point, branch=True)

    def _exhausted(self) -> bool:
        """Whether the problem is tiny and all of it was enumerated."""
        if not is_tiny(self.problem):
            return False
        known = self.held.lower_bound
        done = exhaust(self.problem, self.held)
        if self.held.lower_bound > known:
            self.method = EXHAUST_METHOD
        self._tick("enumerate")
        return done

    def _prove_on(self, candidates: Candidates, prover: Certifier, point: MasterPoint, *, branch: bool) -> None:
        """Prove until the gap is closed or nothing moves, and make schedules of what the proof comes across.

        Without ``branch``: until the relaxed problem has nothing left to give.
        """
        while self._open_gap() > 0.0 and prover.cuts < _MOST_CUTS and (branch or not prover.relaxed):
            before, held = prover.cuts, self.held.objective
            self._prove(prover, 2 * _CUTS_CERTIFIED, branch=branch)
            self._sample(candidates, prover, point)
            if branch and self.held.objective < held:
                self._polish(candidates, point, self.switches.long_rounds, joint=True)
            if prover.cuts == before:
                break

    def _sample(self, candidates: Candidates, prover: Certifier, point: MasterPoint) -> None:
        """Round the relaxed points that the proof has come across since the last time, and polish the best few."""
        # the later, the nearer to where good schedules are
        fresh = prover.points[max(self.sampled, len(prover.points) - _ROUNDED) :]
        self.sampled = len(prover.points)
        self._use_prices(point, _PENALTY_FACTORS[0])
        found: list[tuple[float, State]] = []
        for number, like in enumerate(fresh):
            plans, _ = supported_plans(candidates, like)
            state = repair(self.problem, round_columns(self.problem, candidates, plans, like))
            if state is not None and self.merit(state) < np.inf:
                found.append((self.merit(state), state))
            if number % 8 == 0:
                self._tick("sample")
        seen: set[bytes] = set()
        for merit, state in sorted(found, key=lambda pair: pair[0])[:_SAMPLES]:
            if self.best is not None and merit > self.merit(self.best) * (1.0 + _HOPEFUL):
                break
            better = polish(
                self.problem, candidates, state, self.merit, max_rounds=self.switches.short_rounds, seen=seen, on_move=self.held.check_time
            )
            self._offer(state_of(self.problem, better.schedule))
            self._tick("sample")

    def _open_gap(self) -> float:
        """What is left between the schedule held and the proven bound, beyond the gap asked for with certify."""
        asked = self.settings.target_gap if self.settings.certify else 0.0
        return self.held.objective * (1.0 - asked) - self.held.lower_bound

    def _make_schedule(self, candidates: Candidates, relaxed: RelaxedSolution) -> None:
        self._use_prices(relaxed.point, _PENALTY_FACTORS[0])
        self._dive(candidates, relaxed)
        if self.held.schedule is None:
            self._fall_back()
        self._polish(candidates, relaxed.point, self.switches.short_rounds)

    def _search_feasible(self, candidates: Candidates, point: MasterPoint) -> None:
        """No schedule meets the limits of the mode yet: search where missing them costs more and more."""
        # what polishing at all factors leaves as it is, it leaves so again
        settled: State | None = None
        for factor in _PENALTY_FACTORS:
            self._use_prices(point, factor)
            self._kicks(candidates, stop=lambda: self.held.schedule is not None)
            if self.best is settled:
                continue
            before = self.best
            self._polish(candidates, point, self.switches.long_rounds, joint=True)
            settled = before if self.best is before else None
            if self.held.schedule is not None:
                return

    def _fall_back(self) -> None:
        """Where rounding found nothing feasible, start the local moves from what the heuristics find."""
        for heuristic in (GreedyEnergy(), RandomFeasible()):
            self._tick("heuristics")
            found = heuristic.solve(self.problem, settings=SolverSettings(time_limit_s=self.held.left_s, max_iterations=50))
            if found.schedule is not None:
                self._offer(State(found.schedule, evaluate_objective(self.problem, found.schedule)))
            if found.interrupted:
                raise KeyboardInterrupt

    def _prove(self, prover: Certifier, cuts: int, *, branch: bool = False) -> None:
        upper = self.held.objective

        def on_cut(_: int, bound: float) -> None:
            self.held.raise_lower_bound(bound)
            self._tick("certify")

        try:
            bound = prover.run(upper, target_gap=self.settings.target_gap, max_cuts=cuts, branch=branch, on_cut=on_cut)
            self.held.raise_lower_bound(bound)
        finally:
            self.method = prover.method

    def _trivial(self, candidates: Candidates) -> bool:
        """The empty schedule is optimal if nothing needs training (all weights zero, no energy to gain)."""
        self.held.offer(Schedule.empty())
        if self.held.objective == 0.0:
            self.held.raise_lower_bound(0.0)
            self.method = "nothing needs training"
            return True
        return len(candidates) == 0

    def _tick(self, phase: str) -> None:
        self.held.record(phase)
        self.held.check_time()

    def _offer(self, state: State | None) -> None:
        """Keep the state if its merit is the best so far, and its schedule if it is feasible and better."""
        if state is None:
            return
        if self.best is None or self.merit(state) < self.merit(self.best):
            self.best = state
        self.held.offer(state.schedule)

    def _use_prices(self, point: MasterPoint, factor: float) -> None:
        """Penalise misses of the mode's limits at ``factor`` times the prices that the relaxation found."""
        noise = np.maximum(point.prices.noise, 1e-9 * float(point.prices.noise.max()))
        self.merit = Merit(self.problem, factor * noise, factor * float(point.prices.energy.min()), factor)

    def _relax(self, candidates: Candidates, start: MasterPoint | None = None, pool: ColumnPool | None = None) -> RelaxedSolution:
        def on_iteration(count: int, point: MasterPoint, merit: float) -> None:
            self.held.iteration += 1
            if count in _EARLY and start is None:
                plans, _ = supported_plans(candidates, point)
                self._offer(repair(self.problem, round_columns(self.problem, candidates, plans, point)))
            self._tick("relax")

        relaxed = solve_relaxation(
            self.problem,
            candidates,
            backend=self.settings.backend,
            max_iterations=self.settings.max_iterations or _MOST_MASTERS,
            tolerance=self.switches.tolerance,
            prox=self.switches.prox_weight,
            start=start,
            pool=pool,
            on_iteration=on_iteration,
        )
        self.residual = first_order_gap(self.problem, candidates, relaxed.point)
        return relaxed

    def _dive(self, candidates: Candidates, relaxed: RelaxedSolution) -> None:
        def on_round(_: int, point: MasterPoint) -> None:
            self._tick("dive")

        dived = dive(self.problem, candidates, relaxed, backend=self.settings.backend, on_round=on_round)
        if dived is not None:
            self._offer(repair(self.problem, round_columns(self.problem, candidates, *dived)))
        self._tick("round")

    def _polish(self, candidates: Candidates, point: MasterPoint, rounds: int, *, joint: bool = False) -> None:
        for factor in _PENALTY_FACTORS:
            if self.best is None:
                return
            self._use_prices(point, factor)
            state = polish(
                self.problem,
                candidates,
                self.best,
                self.merit,
                max_rounds=rounds,
                joint=joint,
                on_move=self.held.check_time,
                on_improvement=self._offer,
            )
            # the moves were judged at coarse resources
            self._offer(state_of(self.problem, state.schedule))
            self._tick("polish")
            if self.merit.met(state.evaluation):
                break

    def _kicks(self, candidates: Candidates, stop: Callable[[], bool] = lambda: False) -> None:
        """Iterated local search: the fewer candidates there are, the coarser the relaxation, and the more kicks can be afforded."""
        seen: set[bytes] = set()
        vain = 0
        for _ in range(min(self.switches.kicks, _KICK_WORK // len(candidates))):
            self._tick("kick")
            vain += 1
            if vain > self.switches.patience or stop():
                break
            assert self.best is not None
            moved = kick(self.problem, candidates, self.best, self.merit, self.rng)
            if moved is None or not np.isfinite(self.merit(moved)):
                continue
            state = polish(self.problem, candidates, moved, self.merit, max_rounds=6, joint=True, seen=seen, on_move=self.held.check_time)
            if self.merit(state) < self.merit(self.best) * (1.0 - 1e-9):
                vain = 0
                self._offer(state_of(self.problem, state.schedule))
