"""The ways of modelling on the same subproblems, in turn, within one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np

from benchmarks.iteration.clock import SolverClock, solver_clock
from benchmarks.iteration.linear import Structure, structure
from benchmarks.iteration.record import Instance, Recording, record
from benchmarks.iteration.ways import Direct, Dpp, OwnSettings, ScalarLoop, Vectorised, Way
from schedopt.errors import SolverError
from schedopt.problem import Problem

__all__ = ["AGREEMENT", "WAYS", "Sample", "Settings", "Timing", "measure"]

#: Optimal values agree to this, relative to the merit (about one); Clarabel is asked for ten times less.
AGREEMENT = 1e-6
#: Where cvxpy's settings decide, its accuracy does; the loosest of its statuses allows this much.
OWN_AGREEMENT = 1e-4
#: Bytes that cvxpy needs to compile parameters, per variable of the conic program and parameter (2.6 GB on small_4dev_2task, cvxpy 1.9).
DPP_BYTES = 17
WAYS = ("direct", "vectorised", "own-settings", "dpp", "scalar")


@dataclass(frozen=True)
class Settings:
    """How many subproblems, from how many iterations of the loop; how many of them the scalar loop gets; memory for DPP in GB."""

    count: int = 5
    iterations: int = 12
    scalar_count: int = 1
    memory_gb: float = 4.0
    ways: tuple[str, ...] = WAYS


@dataclass(frozen=True)
class Sample:
    """One way on one subproblem: seconds, what was solved, and the optimal value."""

    way: str
    instance: int
    build_s: float
    canonicalise_s: float
    solve_s: float
    value: float
    solver_iterations: int

    @property
    def outside_s(self) -> float:
        """Seconds outside the conic solver."""
        return self.build_s + self.canonicalise_s


@dataclass
class Timing:
    """What was measured on one problem; ``skipped``: way -> why it was not measured."""

    problem: str
    digest: str
    variables: int
    rows: int
    loop_s: float
    #: mean of whole iterations with working sets
    working_s: float
    samples: list[Sample] = field(default_factory=list)
    setup_s: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    #: largest difference of an optimal value to that of the direct data, relative to the merit
    disagreement: dict[str, float] = field(default_factory=dict)

    def of(self, way: str) -> list[Sample]:
        """Samples of ``way``."""
        return [sample for sample in self.samples if sample.way == way]

    def median(self, way: str, part: Callable[[Sample], float]) -> float:
        """Median of ``part`` over the samples of ``way``."""
        return float(np.median([part(sample) for sample in self.of(way)]))

    def ratio(self, way: str, part: Callable[[Sample], float]) -> float | None:
        """Median of the ratios to the direct data, subproblem by subproblem; None if either was not measured."""
        base = {sample.instance: part(sample) for sample in self.of(Direct.name)}
        ratios = [part(sample) / base[sample.instance] for sample in self.of(way) if sample.instance in base]
        return float(np.median(ratios)) if ratios else None


def measure(problem: Problem, settings: Settings, *, tell: Callable[[str], None] = lambda line: None) -> Timing:
    """Time every way on subproblems of ``problem``. Raises :class:`~schedopt.errors.SolverError` if the optima do not agree."""
    tell(f"{problem.name}: {settings.iterations} iterations of the loop")
    recording = record(problem, settings.count, settings.iterations)
    fixed = structure(recording.subproblem)
    with solver_clock() as clock:
        _warm_up(fixed, recording.instances[0], clock)
        own = float(np.median(recording.loop_s)), float(np.mean(recording.working_s))
        timing = Timing(problem.name, problem.digest, clock.columns, clock.rows, *own)
        ways = _ways(fixed, recording, settings, timing)
        for number, instance in enumerate(recording.instances):
            for way in ways:
                if isinstance(way, ScalarLoop) and number >= settings.scalar_count or way.name in timing.skipped:
                    continue
                tell(f"{problem.name}: subproblem {number + 1} of {settings.count}, {way.name}")
                _one(way, instance, number, clock, timing)
            _compare(timing, number, recording.subproblem.program.objective(instance.v))
    return timing


def _warm_up(fixed: Structure, instance: Instance, clock: SolverClock) -> None:
    """What happens once per process is not timed; the first Clarabel call sets the settings for all, and shows the size."""
    direct = Direct(fixed)
    direct.build(instance)
    direct.canonicalise_and_solve()
    size = clock.rows, clock.columns
    x = cp.Variable(2)
    cp.Problem(cp.Minimize(cp.sum_squares(x - 1.0))).solve(solver=cp.CLARABEL)
    clock.rows, clock.columns = size


def _ways(fixed: Structure, recording: Recording, settings: Settings, timing: Timing) -> list[Way]:
    """The ways asked for, the direct data first."""
    makers: dict[str, Callable[[], Way]] = {
        "direct": lambda: Direct(fixed),
        "vectorised": lambda: Vectorised(fixed),
        "own-settings": lambda: OwnSettings(fixed),
        "dpp": lambda: Dpp(fixed, recording.instances),
        "scalar": lambda: ScalarLoop(fixed),
    }
    ways = [make() for name, make in makers.items() if name in settings.ways or name == "direct"]
    for way in ways:
        if isinstance(way, Dpp):
            # compiled with auxiliary variables: one for every row of the cost's root
            variables = timing.variables + recording.instances[0].half.shape[0] + len(fixed.free)
            needed = DPP_BYTES * variables * way.parameter_scalars / 1e9
            if needed > settings.memory_gb:
                timing.skipped[way.name] = f"{way.parameter_scalars} parameters: cvxpy would need about {needed:.0f} GB to compile them"
    return ways


def _one(way: Way, instance: Instance, number: int, clock: SolverClock, timing: Timing) -> None:
    """One subproblem; a first solve that compiles is timed by itself and repeated."""
    clock.reset()
    clock.shared = not way.own_settings
    try:
        if isinstance(way, Dpp) and way.name not in timing.setup_s:
            begin = time.perf_counter()
            way.build(instance)
            way.canonicalise_and_solve()
            timing.setup_s[way.name] = way.setup_s + time.perf_counter() - begin - clock.seconds
            clock.reset()
        begin = time.perf_counter()
        way.build(instance)
        built = time.perf_counter()
        value = way.canonicalise_and_solve()
        ended = time.perf_counter()
    except SolverError as error:
        timing.skipped[way.name] = f"subproblem {number + 1}: {error}"
        return
    sample = Sample(way.name, number, built - begin, ended - built - clock.seconds, clock.seconds, value, clock.iterations)
    timing.samples.append(sample)


def _compare(timing: Timing, number: int, merit: float) -> None:
    """The optima of all ways on one subproblem must agree."""
    values = {sample.way: sample.value for sample in timing.samples if sample.instance == number}
    for way, value in values.items():
        off = abs(value - values[Direct.name]) / max(abs(merit), abs(value))
        timing.disagreement[way] = max(off, timing.disagreement.get(way, 0.0))
        if off > (OWN_AGREEMENT if way == OwnSettings.name else AGREEMENT):
            raise SolverError(f"{timing.problem}, subproblem {number + 1}: {way} finds {value:.9g}, not {values[Direct.name]:.9g}")
