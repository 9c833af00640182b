"""The discretised problem to proven optimality: good columns, then HiGHS (:mod:`schedopt.milp`), then resources allocated anew.

The default solver's schedule comes first. The columns are those of its relaxation and others at prices near it; the schedule's own are
among them, so that the discretised optimum is at most its objective. Every better combination becomes a schedule with least-energy
resources, which is at least as good, and then a start of local moves; new columns follow, and so on while that gains. Before that, the
plans of a few devices at a time are chosen anew beside those of the others: a MILP that is solved to its end far sooner. Where the default
solver rounds to nothing that meets the limits of the mode, its long search for that comes last: the columns may have it at once.

What is proven holds for the columns; it bounds nothing beyond them, and is told in the result's reason and details.
The lower bound is the default solver's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schedopt.errors import InfeasibleError, InputError
from schedopt.feasibility import unreachable_reason
from schedopt.formulation.candidates import Candidates, Columns, build_candidates
from schedopt.milp import LEAST_GAP, Combination, CombinationSearch, Proof, grid_columns, nearest_columns, share_columns
from schedopt.objective import needed_tasks
from schedopt.polish import polish
from schedopt.polish.estimate import current_columns
from schedopt.polish.moves import rows_of
from schedopt.problem import Problem
from schedopt.result import SolveResult, SolveStatus
from schedopt.sca.conic import check_backend
from schedopt.sca.loop import RelaxedSolution, relaxed_objective
from schedopt.sca.master import MasterPoint
from schedopt.sca.pool import ColumnPool
from schedopt.solvers.assignment_sca import AssignmentSwitches, SearchRun
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings, check_participation
from schedopt.solvers.reasons import why_nothing
from schedopt.solvers.switches import read_switches
from schedopt.state import Merit, State, state_of

__all__ = ["MAX_CANDIDATES", "ExactMilp", "ExactMilpSwitches"]

#: Problems with more candidate assignments are refused: their linear relaxations alone would take minutes.
MAX_CANDIDATES = 30_000
#: Columns are kept up to this share of the objective beyond what the relaxation leaves open.
_BEYOND = 2e-3
#: Penalty of missed limits, as a multiple of the relaxation's prices.
_PENALTY = 10.0


@dataclass(frozen=True)
class ExactMilpSwitches:
    """Switches of ``exact_milp``, each with its default and meaning."""

    #: relative gap of the discretised problem at which it counts as solved
    gap: float = 1e-4
    #: parts into which the band is cut at most: columns take 1, 1/2, ... 1/levels of it
    levels: int = 4
    #: columns at most; the best at the relaxation's prices are kept
    columns: int = 6_000
    #: regret up to which columns are kept, as a multiple of what lies between the schedule and the relaxation
    reach: float = 1.5
    #: times that columns are made and their problem is solved, at most
    rounds: int = 3
    #: subsets of devices whose plans are chosen anew beside the others' first, devices in each (half of all at most), and nodes of each
    #: MILP's tree at most
    subsets: int = 8
    subset_devices: int = 3
    subset_nodes: int = 100
    #: kicks of the default solver, whose schedule comes first (without any, it does not search on where it finds none), and rounds of
    #: local moves after each discretised problem
    kicks: int = 4
    polish_rounds: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} = {value}; must be at least 0")
        for name in ("levels", "columns", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; must be at least 1")
        if not LEAST_GAP <= self.gap < 1:
            raise ValueError(f"gap = {self.gap}; must be at least {LEAST_GAP:g} and below 1")


class ExactMilp:
    """Discretised problem, solved to proven optimality (``exact_milp``)."""

    name = "exact_milp"
    by_windows = False
    switches = ExactMilpSwitches

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Best schedule found; ``details["discretised"]`` tells what is proven about the columns.

        Raises :class:`~schedopt.errors.InputError` above :data:`MAX_CANDIDATES` candidate assignments.
        """
        check_participation(self, problem)
        check_backend(settings.backend)
        switches = read_switches(self.name, ExactMilpSwitches, settings.switches)
        held = Incumbent(problem, settings, progress)
        reason = unreachable_reason(problem)
        if reason is not None:
            return held.result(self.name, SolveStatus.INFEASIBLE, seed=seed, reason=reason)
        candidates = build_candidates(problem)
        if len(candidates) > MAX_CANDIDATES:
            raise InputError(
                f"solver exact_milp: {len(candidates):,} candidate assignments; the limit is {MAX_CANDIDATES:,}; "
                "use another solver, or a smaller problem (devices, tasks, slots, max_staleness)"
            )
        run = _Run(problem, candidates, settings, switches, held, seed)
        status = held.run(run.all_phases)
        return held.result(
            self.name,
            status,
            seed=seed,
            reason=run.nothing() if held.schedule is None else run.proven_text(),
            backend=settings.backend,
            lower_bound_method=run.method,
            kkt_residual=run.residual,
            details={"discretised": run.proven()},
        )


class _DefaultRun(SearchRun):
    """The default solver's phases, under its name. Its first relaxation is kept, and its search for a schedule that meets the limits of the
    mode, where rounding finds none, is left for later."""

    relaxed: RelaxedSolution | None = None

    def _relax(self, candidates: Candidates, start: MasterPoint | None = None, pool: ColumnPool | None = None) -> RelaxedSolution:
        found = super()._relax(candidates, start, pool)
        if self.relaxed is None:
            self.relaxed = found
        return found

    def _search_feasible(self, candidates: Candidates, point: MasterPoint) -> None:
        """Not now."""

    def search_feasible(self, candidates: Candidates, point: MasterPoint) -> None:
        """The search that was left out."""
        super()._search_feasible(candidates, point)

    def _tick(self, phase: str) -> None:
        super()._tick(f"default: {phase}")


class _Run:
    """One solve: the phases and what they hand on."""

    def __init__(
        self,
        problem: Problem,
        candidates: Candidates,
        settings: SolverSettings,
        switches: ExactMilpSwitches,
        held: Incumbent,
        seed: int,
    ) -> None:
        self.problem, self.candidates, self.settings, self.switches = problem, candidates, settings, switches
        self.held, self.seed = held, seed
        self.reason = ""
        self.method: str | None = None
        self.residual: float | None = None
        #: the default solver's run that came first
        self.default: _DefaultRun | None = None
        self.search: CombinationSearch | None = None
        self.best: State | None = None

    def all_phases(self) -> None:
        """The default solver; plans of few devices at a time; then the best combination of all columns and local moves, while that gains;
        then a proof, if asked or none came of the default solver."""
        switches, relaxed = self.switches, self._first_relaxation()
        if relaxed is None or not np.any(needed_tasks(self.problem)):
            return
        self._subsets(relaxed)
        for _ in range(switches.rounds):
            before = self.held.objective
            self._combine(relaxed)
            self._improve(relaxed)
            if self.held.schedule is None:
                self._search_feasible(relaxed)
            if not self.held.objective < before * (1.0 - switches.gap):
                break
        if self.held.schedule is not None and (self.settings.certify or self.default is None or self.default.method is None):
            self._prove()

    def _first_relaxation(self) -> RelaxedSolution | None:
        """The default solver's schedule and lower bound; its relaxation, or None where there is no use in going on."""
        switches = AssignmentSwitches(kicks=self.switches.kicks, long_rounds=self.switches.polish_rounds)
        return self._default(switches, replace(self.settings, certify=False, warm_start=None)).relaxed

    def _default(self, switches: AssignmentSwitches, settings: SolverSettings) -> _DefaultRun:
        """Run the default solver's phases on what is held."""
        run = _DefaultRun(self.problem, settings, switches, self.held, np.random.default_rng(self.seed))
        known, self.default = self.held.lower_bound, self.default or run
        try:
            run.all_phases()
        except InfeasibleError as error:
            self.reason = str(error)
        finally:
            if self.held.lower_bound > known:
                self.method = run.method
            self.residual = run.residual if self.residual is None else self.residual
        self._tick("default")
        return run

    def _search_feasible(self, relaxed: RelaxedSolution) -> None:
        """What the default solver has left out, if it may kick."""
        run = self.default
        if run is not None and run.best is not None and self.switches.kicks > 0:
            run.search_feasible(self.candidates, relaxed.point)

    def nothing(self) -> str:
        """Why no schedule is held."""
        run = self.default
        return self.reason or ("" if run is None else why_nothing(self.problem, run.merit, run.best))

    def _tick(self, phase: str) -> None:
        self.held.record(phase)
        self.held.check_time()

    def _columns(self, relaxed: RelaxedSolution, most: int) -> tuple[Columns, Columns | None]:
        """Columns near the relaxation's prices, and the best schedule's own, if there is one."""
        value = relaxed_objective(self.problem, relaxed.point)
        start, apart, known = None, abs(value), relaxed.pool.columns
        if self.held.schedule is not None:
            self.best = state_of(self.problem, self.held.schedule)
        if self.best is not None:
            start = current_columns(self.candidates, self.best)
            known = known.concat(start)
            apart = max(self.held.objective - value, 0.0)
        reach = self.switches.reach * apart + _BEYOND * abs(value)
        levels, prices = self.switches.levels, relaxed.point.prices
        columns = grid_columns(self.candidates, prices, known, levels=levels, reach=reach, most=most)
        self._tick("columns")
        return columns, start

    def _solve(self, columns: Columns, start: Columns | None, max_nodes: int | None, phase: str) -> CombinationSearch:
        """Search the best combination of the columns, the schedule's own with them over any share of the band."""
        last = [self.held.elapsed_s]

        def on_tick(_: float) -> None:
            self.held.check_time()
            if self.held.elapsed_s > last[0] + 0.5:
                last[0] = self.held.elapsed_s
                self.held.record(phase)

        if start is not None:
            columns = columns.concat(share_columns(self.candidates, start, self.switches.levels))
        return CombinationSearch(
            self.problem,
            self.candidates,
            columns,
            start=start,
            gap=self.switches.gap,
            max_nodes=max_nodes,
            on_tick=on_tick,
            on_better=self._take,
        )

    def _subsets(self, relaxed: RelaxedSolution) -> None:
        """Plans of a few devices chosen anew beside those of the others: far smaller problems, in turn with local moves."""
        devices = self.problem.arrays.num_devices
        size = min(self.switches.subset_devices, devices // 2)
        if self.held.schedule is None or size == 0 or self.switches.subsets == 0:
            return
        rng = np.random.default_rng(self.seed)
        columns, _ = self._columns(relaxed, devices // size * self.switches.columns)
        order = np.concatenate([rng.permutation(devices) for _ in range(1 + self.switches.subsets * size // devices)])
        for k in range(self.switches.subsets):
            before = self.held.objective
            self.best = state_of(self.problem, self.held.schedule) or self.best
            start = None if self.best is None else current_columns(self.candidates, self.best)
            mine = columns.take(np.isin(self.candidates.device[columns.candidate], order[k * size : (k + 1) * size]))
            mine = nearest_columns(self.candidates, relaxed.point.prices, mine, self.switches.columns // 2)
            search = self._solve(mine, start, self.switches.subset_nodes, "subset")
            search.run()
            self.held.iteration += search.milps
            self._tick("subset")
            if self.held.objective < before:
                self._improve(relaxed)

    def _combine(self, relaxed: RelaxedSolution) -> None:
        """The best combination of all columns."""
        columns, start = self._columns(relaxed, self.switches.columns)
        self.search = self._solve(columns, start, None, "milp")
        self.search.run()
        self.held.iteration += self.search.milps
        self._tick("milp")

    def _take(self, combination: Combination) -> None:
        """A schedule of a combination, with resources of its own."""
        rows = rows_of(self.problem, self.candidates, combination.mixed(self.candidates))
        state = state_of(self.problem, rows)
        if state is not None:
            self.held.offer(state.schedule)
            self.best = state if self.best is None else self.best
            if self.held.schedule is not None and self.held.objective == state.evaluation.objective:
                self.best = state

    def _offer(self, state: State) -> None:
        self.held.offer(state.schedule)

    def _improve(self, relaxed: RelaxedSolution) -> None:
        """Local moves from the best schedule."""
        if self.best is None:
            return
        noise = np.maximum(relaxed.point.prices.noise, 1e-9 * float(relaxed.point.prices.noise.max()))
        merit = Merit(self.problem, _PENALTY * noise, _PENALTY * float(relaxed.point.prices.energy.min()), _PENALTY)
        state = polish(
            self.problem,
            self.candidates,
            self.best,
            merit,
            max_rounds=self.switches.polish_rounds,
            joint=True,
            on_move=self.held.check_time,
            on_improvement=self._offer,
        )
        final = state_of(self.problem, state.schedule)
        if final is not None:
            self.held.offer(final.schedule)
        self._tick("polish")

    def _prove(self) -> None:
        """The default solver's proof from this schedule: only it knows which of its bounds is the tightest."""
        self._default(AssignmentSwitches(kicks=0, long_rounds=0), replace(self.settings, warm_start=self.held.schedule))

    def proven(self) -> dict[str, Any]:
        """What is known about the last discretised problem; empty before there is one."""
        if self.search is None:
            return {}
        proof: Proof = self.search.proof()
        known = {"value": None if proof.best is None else proof.best.value, "bound": proof.bound, "gap": proof.gap}
        finite = {name: value if value is not None and np.isfinite(value) else None for name, value in known.items()}
        return {"columns": self.search.size, **finite, "finished": proof.finished}

    def proven_text(self) -> str:
        """The same in one sentence for people."""
        known = self.proven()
        if known.get("gap") is None:
            return ""
        return (
            f"discretised problem ({known['columns']:,} columns): best combination {known['value']:.6g}, "
            f"proven within {100 * float(known['gap']):.2g} % of its optimum; no bound on the problem itself"
        )
