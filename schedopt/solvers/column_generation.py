"""Column generation for many devices (``column_generation``): no list of assignments, pricing on several cores or machines.

Phases: prices of a sample of the devices, if there are many; a restricted master and tabulated pricing, stabilised
(:mod:`schedopt.colgen.loop`); diving to one plan per device; re-planning by exact marginal prices (:mod:`schedopt.colgen.rounding`); a
lower bound that separates by task (:mod:`schedopt.colgen.ratio_bound`); and, where the list of assignments is short, the local moves and,
with ``certify``, the proof of the default solver. A feasible schedule is held from the dive on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schedopt.bounds.async_schedule import fixed_terms
from schedopt.certify import Certifier
from schedopt.colgen.balance import balance_devices, balanced_plans
from schedopt.colgen.loop import PlanRelaxation, generate_plans
from schedopt.colgen.ratio_bound import RatioBound, fees_of
from schedopt.colgen.rounding import dive_plans, likely_plans, plan_schedule, replan
from schedopt.colgen.sampling import prices_for_all, sample_devices, sampled_problem
from schedopt.colgen.workers import PlanRequest, Workers, default_workers
from schedopt.cuts import ROUNDING, most_energy
from schedopt.errors import InfeasibleError
from schedopt.feasibility import unreachable_reason
from schedopt.formulation.candidates import Candidates, build_candidates, make_columns
from schedopt.formulation.tables import PlanColumns, Plans
from schedopt.participation import participation_groups
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.result import SolveResult, SolveStatus
from schedopt.sca.conic import check_backend
from schedopt.sca.master import MasterPoint
from schedopt.sca.pool import ColumnPool
from schedopt.schedule import Schedule
from schedopt.solvers.assignment_sca import AssignmentSwitches, SearchRun
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings
from schedopt.solvers.switches import read_switches

__all__ = ["ColumnGeneration", "GenerationSwitches"]

METHOD = "Lagrangian cuts by shortest paths, tasks separated by slot fees"
METHOD_TARGETS = "Lagrangian bound by shortest paths"

#: Masters at most, unless ``max_iterations`` says otherwise.
_MOST_MASTERS = 60
#: Masters at which a quick schedule is made where participation is judged by windows: there are many of them, and they take long.
_EARLY = (4, 12, 24)
#: Problems of at most this many pairs (device, task) x slots x lengths are polished by local moves on the list of all assignments.
_LISTED = 20_000
#: More devices than this start from the prices of a sample of so many.
_SAMPLED_ABOVE, _SAMPLE = 150, 60
#: Masters of the dive with so many devices: few of them mix plans then, and each matters little.
_FEW_ROUNDS = 2
#: Relative gap of prices and mixed plans found without masters up to which no master is solved.
_BALANCED = 0.02
#: Relative accuracy of the sample's prices, and of the bound's parts.
_SAMPLE_TOLERANCE, _BOUND_TOLERANCE = 1e-2, 5e-4
#: How many times the relaxation's prices missing a limit of the mode costs.
_PENALTY = 3.0


@dataclass(frozen=True)
class GenerationSwitches:
    """Switches of the solver, each with its default and meaning."""

    #: relative gap between the master and the best local bound at which generation ends
    tolerance: float = 2e-3
    #: weight of the best prices so far in those that are tried next, in [0, 1)
    smoothing: float = 0.5
    #: proximal weight of the masters, relative to the objective
    prox_weight: float = 1e-3
    #: masters of the dive, and rounds of re-planning, at most
    dive_rounds: int = 4
    replan_rounds: int = 8
    #: rounds of local moves, where all assignments can be listed
    polish_rounds: int = 30
    #: kicks of the local search at most, where all assignments can be listed and no schedule meets the mode's limits yet
    kicks: int = 20
    #: workers of the pricing; 0 = the cores of this machine, as far as there are devices enough
    workers: int = 0
    #: Ray cluster for the workers, as in ray.init ("auto", "ray://host:10001"; "local" = one on this machine); empty = processes
    ray: str = ""

    def __post_init__(self) -> None:
        for name in ("tolerance", "prox_weight", "dive_rounds", "replan_rounds", "polish_rounds", "kicks", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}; must be at least 0")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing = {self.smoothing}; must be in [0, 1)")
        if self.dive_rounds < 1:
            raise ValueError(f"dive_rounds = {self.dive_rounds}; must be at least 1")


class ColumnGeneration:
    """Restricted master, tabulated pricing of all devices at once, dive, separable bound (``column_generation``)."""

    name = "column_generation"
    switches = GenerationSwitches

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Best schedule found, with a proven lower bound; ``seed`` steers the kicks of the local search on small problems."""
        check_backend(settings.backend)
        held = Incumbent(problem, settings, progress)
        reason = unreachable_reason(problem)
        if reason is not None:
            return held.result(self.name, SolveStatus.INFEASIBLE, seed=seed, reason=reason)
        switches = read_switches(self.name, GenerationSwitches, settings.switches)
        run = _GenerationRun(problem, settings, switches, held, np.random.default_rng(seed))
        workers = switches.workers or default_workers(problem.arrays.num_devices)
        with Workers(problem, workers=workers, address=switches.ray) as pricing:
            run.pricing = pricing
            return run.result(self.name, seed)


class _GenerationRun(SearchRun):
    """One solve: the phases and what they hand on."""

    pricing: Workers

    def __init__(
        self, problem: Problem, settings: SolverSettings, switches: GenerationSwitches, held: Incumbent, rng: np.random.Generator
    ) -> None:
        super().__init__(problem, settings, AssignmentSwitches(long_rounds=switches.polish_rounds, kicks=switches.kicks), held, rng)
        self.generation = switches

    def all_phases(self) -> None:
        """Relax, dive, bound, re-plan; then local moves and the default solver's proof where the list of assignments is short."""
        self.held.offer(Schedule.empty())
        if self.held.objective == 0.0:
            self.held.raise_lower_bound(0.0)
            self.method = "nothing needs training"
            return
        if self.settings.warm_start is not None:
            self._offer(repair(self.problem, self.settings.warm_start))
            self.held.offer(self.settings.warm_start)
        try:
            relaxed, planned = self._relaxed_plans()
        except InfeasibleError:
            if self.problem.objective.mode == "min_energy":
                raise
            # training must be had although nothing pays: all terms of a bound are zero, or its weight is next to nothing
            self._fall_back()
            return
        self.residual = max(relaxed.gap, 0.0)
        self._use_prices(relaxed.best, _PENALTY)
        self._offer(repair(self.problem, planned))
        self._tick("round")
        if self.best is None:
            self._fall_back()
        self._replan()
        self._bound(relaxed)
        self._search_on(relaxed.best)

    def _relaxed_plans(self) -> tuple[PlanRelaxation, Schedule]:
        """The relaxation, and one plan per device made of it, resources not yet set."""
        start = self._first_prices()
        if start is not None and participation_groups(self.problem).over_horizon:
            balanced = balance_devices(self.problem, start, self._ask, self._tick_balance)
            limited = self.problem.objective.mode == "min_energy" or self.problem.objective.total_energy_j is not None
            if balanced.gap <= _BALANCED and not limited:
                return balanced, plan_schedule(self.problem, balanced_plans(self.problem, balanced))
            start = balanced.best
        relaxed = self._generate(self.problem, self.pricing, self.generation.tolerance, start)
        rounds = self.generation.dive_rounds if start is None else min(self.generation.dive_rounds, _FEW_ROUNDS)
        backend, tick = self.settings.backend, lambda: self._tick("dive")
        return relaxed, plan_schedule(self.problem, *dive_plans(self.problem, relaxed.best, backend=backend, rounds=rounds, tick=tick))

    def _tick_balance(self, mixed: MasterPoint | None) -> None:
        """Hold a schedule as soon as a mixture of plans is worth one."""
        if mixed is not None and self.best is None:
            self._offer_likely(mixed)
        self._tick("balance")

    def _offer_likely(self, point: MasterPoint) -> None:
        self._use_prices(point, _PENALTY)
        self._offer(repair(self.problem, plan_schedule(self.problem, *likely_plans(self.problem, point))))

    def _ask(self, *requests: PlanRequest) -> Sequence[Plans]:
        return self.pricing.plans(*requests)

    def _generate(self, problem: Problem, pricing: Workers, tolerance: float, start: MasterPoint | None) -> PlanRelaxation:
        def on_iteration(point: MasterPoint, merit: float) -> None:
            self.held.iteration += 1
            if problem is self.problem and problem.arrays.windows is not None and self.held.iteration in _EARLY:
                self._offer_likely(point)
            self._tick("relax" if problem is self.problem else "sample")

        return generate_plans(
            problem,
            pricing.plans,
            backend=self.settings.backend,
            tolerance=tolerance,
            max_iterations=self.settings.max_iterations or _MOST_MASTERS,
            smoothing=self.generation.smoothing,
            prox=self.generation.prox_weight,
            start=start,
            on_iteration=on_iteration,
            tick=lambda: self._tick("price"),
        )

    def _first_prices(self) -> MasterPoint | None:
        """Prices of a sample of the devices, or None where all are few enough or the sample cannot be trained."""
        if self.problem.arrays.num_devices <= _SAMPLED_ABOVE:
            return None
        devices = sample_devices(self.problem, _SAMPLE)
        sample = sampled_problem(self.problem, devices)
        if sample is None:
            return None
        try:
            with Workers(sample) as pricing:
                relaxed = self._generate(sample, pricing, _SAMPLE_TOLERANCE, None)
        except InfeasibleError:
            return None
        return prices_for_all(self.problem, devices, relaxed.best)

    def _replan(self) -> None:
        # participation over a horizon has a kink where a device trains its share: marginal prices say nothing there
        if self.best is None or participation_groups(self.problem).over_horizon and self.problem.arrays.num_devices > _SAMPLED_ABOVE:
            return
        rounds = self.generation.replan_rounds
        replan(
            self.problem, self.best, self.merit, self._ask, rounds=rounds, on_improvement=self._offer, tick=lambda: self._tick("re-plan")
        )

    def _bound(self, relaxed: PlanRelaxation) -> None:
        """The bound that separates by task, or in mode min_energy the one cut that is the whole bound."""
        if self.problem.objective.mode == "min_energy":
            constant, error = relaxed.at.multipliers.constant, relaxed.at.error
            level = constant + float(relaxed.plans.lower.sum())
            targets = float(error @ fixed_terms(self.problem.arrays))
            size = abs(constant) + float(np.abs(relaxed.plans.lower).sum()) + targets
            bound, method = level + targets - ROUNDING * size, METHOD_TARGETS
            if self.held.schedule is None and bound > float(most_energy(self.problem).sum()):
                tightest = self.problem.tasks[int(np.argmax(error * fixed_terms(self.problem.arrays)))].name
                known = "by a proven bound the targets take more energy than the devices can spend"
                raise InfeasibleError(f"task {tightest!r}: its target is out of reach together with the others; {known}")
            self.method = method
            self.held.raise_lower_bound(max(bound, 0.0))
            return
        if not np.isfinite(self.held.objective):
            return
        upper = self.held.objective
        search = RatioBound(self.problem, relaxed.at, fees_of(relaxed.plans), upper)
        self.method = METHOD

        def on_round(bound: float) -> bool:
            self.held.raise_lower_bound(bound)
            self._tick("certify")
            return self.settings.certify and self._open_gap() <= 0.0

        search.run(self._ask, tolerance=_BOUND_TOLERANCE * upper / max(len(search.tasks), 1), on_round=on_round)
        self.held.raise_lower_bound(search.bound)

    def _search_on(self, point: MasterPoint) -> None:
        """Local moves, kicks and the default solver's proof, where all assignments can be listed."""
        a = self.problem.arrays
        longest = int(min(a.max_staleness.max() + 1, a.slots))
        if int(a.has_data.sum()) * a.slots * longest > _LISTED:
            return
        candidates = build_candidates(self.problem)
        if len(candidates) == 0:
            return
        listed = _listed(candidates, point)
        if self.settings.certify and self._exhausted():
            return
        if self.held.schedule is None and self.best is not None:
            self._search_feasible(candidates, listed)
        if self.best is None or self.held.schedule is None:
            return
        self._polish(candidates, listed, self.switches.long_rounds, joint=True)
        if not self.settings.certify:
            return
        backend, pool = self.settings.backend, ColumnPool(listed.columns)
        prover = Certifier(self.problem, candidates, [listed], pool, self.held.objective, backend=backend)
        self._prove_on(candidates, prover, listed, branch=True)


def _listed(candidates: Candidates, point: MasterPoint) -> MasterPoint:
    """The master's solution with columns that refer to the list of candidates."""
    c = point.columns
    assert isinstance(c, PlanColumns)
    k = candidates.find(c.device, c.task, c.start, c.end)
    columns = make_columns(candidates.take(k), k, c.steps, c.work, c.upload_s, c.bandwidth_hz)
    return replace(point, columns=columns)
