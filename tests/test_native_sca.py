"""The native solvers end to end: feasible schedules, never below the enumerated optimum, warm starts, limits, switches and refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import clarabel
import cvxpy as cp
import numpy as np
import pytest
from builders import make_problem, plain_device, plain_problem, plain_task
from cvxpy.reductions.solvers.solving_chain import SolvingChain
from tiny import tiny_problem, tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.errors import InputError, SolverError
from schedopt.formulation.native import build_native
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.sca import native_step
from schedopt.sca.conic import mosek_licence_problem, solve_conic
from schedopt.sca.direct import solve_direct
from schedopt.sca.native_loop import NativeLoop
from schedopt.solvers.base import SolverSettings
from schedopt.solvers.greedy_energy import GreedyEnergy
from schedopt.solvers.native_sca import NativeSwitches
from schedopt.solvers.switches import list_switches, read_switches

SOLVERS = pytest.mark.parametrize("solver", ["native_sca", "native_sca_log"])
MODES: dict[str, dict[str, Any]] = {
    "weighted": {},
    "weighted horizon": {"participation": "horizon"},
    "min_bound": {"mode": "min_bound"},
    "min_energy": {"mode": "min_energy"},
}


def small_problem(mode: str, seed: int) -> Problem:
    """Two devices, one task, three slots: the enumeration takes no time."""
    data = tiny_problem_dict(np.random.default_rng(seed), 2, 1, 3, samples=(16, 20), **MODES[mode])
    if mode == "min_energy":
        data["tasks"][0]["target"] = 9.0
    return make_problem(data)


@cache
def optimum(mode: str, seed: int) -> float:
    return solve(small_problem(mode, seed), solver="enumeration").objective


def check(problem: Problem, result: SolveResult) -> None:
    """Feasible, with the exact objective, and what was measured recomputes."""
    assert result.schedule is not None
    assert validate_schedule(problem, result.schedule).feasible
    assert result.objective == pytest.approx(evaluate_objective(problem, result.schedule).objective, rel=1e-12)
    if result.kkt_residual is not None:
        assert result.iterate.residuals(problem)[0].total == pytest.approx(result.kkt_residual, rel=1e-9)
        if result.details.get("relaxed_end") == "KKT residual reached":
            assert result.kkt_residual <= 1e-4


# --- schedules ---------------------------------------------------------------------------------------------------------------------------


@SOLVERS
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_feasible_and_not_below_the_optimum(mode: str, seed: int, solver: str) -> None:
    problem = small_problem(mode, seed)
    result = solve(problem, solver=solver)
    check(problem, result)
    assert result.status is SolveStatus.SOLVED and result.solver == solver
    best = optimum(mode, seed)
    assert best * (1 - 1e-6) <= result.objective <= best * 1.1
    assert set(result.timings) >= {"build", "relaxation", "rounding", "resources"}


@SOLVERS
@pytest.mark.parametrize("start", ["heuristic", "spread", "random"])
def test_every_start_gives_a_schedule(start: str, solver: str) -> None:
    problem = tiny_problem(np.random.default_rng(5), 2, 2, 3)
    settings = SolverSettings(switches={"start": start, "starts": "2", "relaxed_iterations": "6", "fixed_iterations": "6", "samples": "2"})
    check(problem, solve(problem, solver=solver, settings=settings, seed=3))


@SOLVERS
def test_what_is_asked_for_is_left_out(solver: str) -> None:
    """No binary phase, no resources, no local moves: the phases and residuals say so."""
    problem = small_problem("weighted", 0)
    switches = {"binary_iterations": "0", "fixed_iterations": "0", "polish_rounds": "0", "samples": "0"}
    result = solve(problem, solver=solver, settings=SolverSettings(switches=switches))
    check(problem, result)
    assert {"binary phase", "resources", "polish"} & set(result.timings) == set()
    assert result.iterate.final is None and "final_residual" not in result.details
    full = solve(problem, solver=solver)
    assert full.details["final_residual"] < 1e-2 and "polish" in full.timings
    assert full.objective <= result.objective * (1 + 1e-9)


@SOLVERS
def test_warm_start_is_never_lost(solver: str) -> None:
    """The enumerated optimum goes in, and nothing worse comes out; so with one iteration and hardly any time."""
    problem = small_problem("weighted", 3)
    warm = solve(problem, solver="enumeration").schedule
    assert warm is not None
    value = evaluate_objective(problem, warm).objective
    for limits in ({}, {"max_iterations": 1}, {"time_limit_s": 1e-3}):
        result = solve(problem, solver=solver, settings=SolverSettings(warm_start=warm, **limits))
        check(problem, result)
        assert result.objective <= value * (1 + 1e-12)


@SOLVERS
def test_an_infeasible_warm_start_is_only_a_start(solver: str) -> None:
    problem = small_problem("weighted", 0)
    warm = solve(problem, solver="enumeration").schedule
    assert warm is not None
    broken = warm.replace(power_w=2.0 * problem.arrays.max_power_w[warm.device])
    assert not validate_schedule(problem, broken).feasible
    result = solve(problem, solver=solver, settings=SolverSettings(warm_start=broken))
    check(problem, result)


@SOLVERS
def test_equal_seeds_give_equal_results(solver: str) -> None:
    problem = tiny_problem(np.random.default_rng(8), 2, 2, 3)
    settings = SolverSettings(switches={"start": "random", "relaxed_iterations": "6", "polish_rounds": "0"})
    one, again, other = (solve(problem, solver=solver, settings=settings, seed=seed) for seed in (4, 4, 5))
    assert one.schedule is not None and again.schedule is not None
    assert one.schedule.digest == again.schedule.digest
    assert one.objective == again.objective and one.kkt_residual == again.kkt_residual
    np.testing.assert_array_equal(one.iterate.relaxed, again.iterate.relaxed)
    assert not np.array_equal(one.iterate.relaxed, other.iterate.relaxed)


# --- limits and interruptions ------------------------------------------------------------------------------------------------------------


@SOLVERS
def test_time_limit_returns_something_feasible(solver: str) -> None:
    """At any moment after the start there is a schedule to return: the limit is reached while the relaxation runs."""
    problem = tiny_problem(np.random.default_rng(2), 6, 2, 8)
    result = solve(problem, solver=solver, settings=SolverSettings(time_limit_s=0.5, switches={"tolerance": "1e-12"}))
    assert result.status is SolveStatus.TIME_LIMIT
    check(problem, result)


@SOLVERS
def test_interruption_keeps_the_schedule(solver: str) -> None:
    problem = tiny_problem(np.random.default_rng(2), 3, 2, 4)
    phases: list[str] = []

    def stop(record: IterationRecord) -> None:
        phases.append(record.phase)
        if record.phase == "relaxed" and phases.count("relaxed") == 3:
            raise KeyboardInterrupt

    result = solve(problem, solver=solver, progress=stop)
    assert result.status is SolveStatus.INTERRUPTED
    check(problem, result)
    assert len(result.details["history"]) == 3


@SOLVERS
def test_iteration_limit(solver: str) -> None:
    problem = tiny_problem(np.random.default_rng(2), 3, 2, 4)
    result = solve(problem, solver=solver, settings=SolverSettings(max_iterations=2))
    check(problem, result)
    assert [record.phase for record in result.details["history"]].count("relaxed") == 2
    assert "iteration limit, KKT residual" in result.reason


# --- failing backends --------------------------------------------------------------------------------------------------------------------


@SOLVERS
def test_a_failing_backend_is_reported(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem("weighted", 1)
    monkeypatch.setattr(native_step, "solve_direct", lambda data, backend: None if backend == "scs" else solve_direct(data, backend))
    switches = {"relaxed_iterations": "4", "fixed_iterations": "3"}
    result = solve(problem, solver=solver, settings=SolverSettings(backend="scs", switches=switches))
    check(problem, result)
    assert "backend scs failed now and then (iteration 0: scs failed, clarabel solved)" in result.reason
    assert result.details["fallbacks"][0] == "iteration 0: scs failed, clarabel solved"


@SOLVERS
def test_no_backend_at_all_is_an_error_with_a_remedy(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "solve_direct", lambda data, backend: None)
    with pytest.raises(SolverError, match=r"no backend could solve the first subproblem .*try another --backend"):
        solve(small_problem("weighted", 1), solver=solver)


@SOLVERS
def test_backends_that_fail_later_leave_a_schedule(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def tiring(data: Any, backend: str) -> Any:
        nonlocal calls
        calls += 1
        return solve_direct(data, backend) if calls <= 4 else None

    problem = small_problem("weighted", 1)
    monkeypatch.setattr(native_step, "solve_direct", tiring)
    result = solve(problem, solver=solver, settings=SolverSettings(switches={"tolerance": "1e-12"}))
    check(problem, result)
    assert "no backend could solve the subproblem" in result.reason


@SOLVERS
def test_mosek_without_a_licence_names_the_remedy(solver: str) -> None:
    pytest.importorskip("mosek")
    if mosek_licence_problem() is None:
        pytest.skip("a MOSEK licence is present")
    with pytest.raises(SolverError, match=r"no usable licence .*MOSEKLM_LICENSE_FILE.*--backend clarabel"):
        solve(small_problem("weighted", 0), solver=solver, settings=SolverSettings(backend="mosek"))


@SOLVERS
@pytest.mark.parametrize("backend", ["scs", "ecos"])
def test_other_backends_give_schedules(backend: str, solver: str) -> None:
    pytest.importorskip(backend)
    problem = small_problem("weighted", 0)
    switches = {"relaxed_iterations": "3", "binary_iterations": "1", "fixed_iterations": "1", "polish_rounds": "1"}
    result = solve(problem, solver=solver, settings=SolverSettings(backend=backend, switches=switches))
    check(problem, result)
    assert result.backend == backend
    assert result.objective >= optimum("weighted", 0) * (1 - 1e-6)


# --- switches ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"relaxed_iteration": "3"}, r"switch relaxed_iteration of solver 'native_sca': there is none of that name; relaxed_iterations\?"),
        ({"zzz": "3"}, r"switch zzz of solver 'native_sca': there is none of that name; must be one of .*step_rule"),
        ({"starts": "two"}, r"switch starts of solver 'native_sca' = 'two'; must be a whole number"),
        ({"starts": "1.5"}, r"switch starts of solver 'native_sca' = '1.5'; must be a whole number"),
        ({"starts": "0"}, r"switch of solver 'native_sca': starts = 0; must be at least 1"),
        ({"samples": "-1"}, r"switch of solver 'native_sca': samples = -1; must be at least 0"),
        ({"prox_weight": "inf"}, r"switch prox_weight of solver 'native_sca' = 'inf'; must be a finite number"),
        ({"prox_weight": "0"}, r"switch of solver 'native_sca': prox_weight = 0.0; must be positive"),
        ({"start": "cold"}, r"switch of solver 'native_sca': start = 'cold'; must be one of heuristic, spread, random"),
        ({"step_rule": "exact"}, r"switch of solver 'native_sca': step_rule = 'exact'; must be one of adaptive, diminishing"),
    ],
)
def test_bad_switches_are_one_clear_error(switches: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        solve(small_problem("weighted", 0), solver="native_sca", settings=SolverSettings(switches=switches))
    assert "\n" not in str(caught.value)


def test_switches_are_read_in_the_types_of_their_defaults() -> None:
    read = read_switches("x", NativeSwitches, {"starts": "3", "prox_weight": "2e-3", "step_rule": "diminishing"})
    assert read == NativeSwitches(starts=3, prox_weight=2e-3, step_rule="diminishing")
    defaults = list_switches(NativeSwitches)
    assert defaults["starts"] == 1 and defaults["step_rule"] == "adaptive"
    again = read_switches("x", NativeSwitches, {name: str(value) for name, value in defaults.items()})
    assert again == NativeSwitches()


@SOLVERS
@pytest.mark.parametrize("switches", [{"step_rule": "diminishing"}, {"surrogate": "majorant"}], ids=["diminishing", "majorant"])
def test_switches_reach_the_loop(switches: dict[str, str], solver: str) -> None:
    """Other rules take other steps, and give a schedule all the same."""
    problem = small_problem("weighted", 1)
    less = {"relaxed_iterations": "6", "fixed_iterations": "4", "polish_rounds": "0"}
    usual, other = (solve(problem, solver=solver, settings=SolverSettings(switches=less | more)) for more in ({}, switches))
    check(problem, other)
    merits = [[record.merit_after for record in result.details["history"]] for result in (usual, other)]
    assert merits[0] != merits[1]


# --- what has no schedule ----------------------------------------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no upload fits": (plain_problem([plain_device(gain=1e-9)]), "upload"),
    "C1 forbids one step": (plain_problem(tasks=[plain_task(learning_rate=0.2)]), "C1"),
    "batches beyond the data": (plain_problem(tasks=[plain_task(min_batch=101)]), "samples|batch"),
    "budgets too small": (plain_problem([plain_device(energy_budget_j=1e-6)]), "energy"),
    "target out of reach": (plain_problem(tasks=[plain_task(target=1e-3)], mode="min_energy"), "."),
}


@SOLVERS
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_infeasible_problems_say_why(name: str, solver: str) -> None:
    data, reason = IMPOSSIBLE[name]
    result = solve(make_problem(data), solver=solver, settings=SolverSettings(switches={"relaxed_iterations": "5"}))
    assert result.status is SolveStatus.INFEASIBLE and result.schedule is None
    assert re.search(reason, result.reason) and "\n" not in result.reason


@SOLVERS
def test_nothing_to_do_costs_nothing(solver: str) -> None:
    """A task of weight zero: the empty schedule is optimal."""
    problem = make_problem(plain_problem(tasks=[plain_task(weight=0.0)]))
    result = solve(problem, solver=solver)
    assert result.objective == 0.0 and result.schedule is not None and len(result.schedule) == 0


# --- what must not be lost ---------------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_start_heuristic_ends_the_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heuristics end with what they hold when interrupted; the solver that called them must not go on."""
    problem, solving = small_problem("weighted", 0), GreedyEnergy.solve

    def interrupted(self: GreedyEnergy, *arguments: Any, **options: Any) -> SolveResult:
        return replace(solving(self, *arguments, **options), status=SolveStatus.INTERRUPTED)

    monkeypatch.setattr(GreedyEnergy, "solve", interrupted)
    result = solve(problem, solver="native_sca")
    assert result.status is SolveStatus.INTERRUPTED and result.schedule is not None


def test_a_later_start_that_fails_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem("weighted", 0)
    plain = solve(problem, solver="native_sca")
    starts = NativeLoop.phase
    seen: list[str] = []

    def failing(self: NativeLoop, name: str, iterations: int) -> str:
        seen.append(name)
        return "no backend could solve the subproblem" if seen.count("relaxed") > 1 else starts(self, name, iterations)

    monkeypatch.setattr(NativeLoop, "phase", failing)
    result = solve(problem, solver="native_sca", settings=SolverSettings(switches={"starts": "3"}))
    assert seen.count("relaxed") == 2
    assert result.objective == plain.objective and "start 2: no backend" in result.reason


def test_resources_that_do_not_converge_are_told() -> None:
    result = solve(small_problem("weighted", 0), solver="native_sca", settings=SolverSettings(switches={"fixed_iterations": "1"}))
    assert re.search(r"resources: iteration limit, KKT residual \d", result.reason)


@SOLVERS
def test_warm_starts_are_brought_within_todays_limits(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule of the same problem from before its limits changed: as many steps and samples as are allowed now."""
    problem = small_problem("weighted", 0)
    schedule = solve(problem, solver="greedy_energy").schedule
    assert schedule is not None
    wild = replace(schedule, steps=schedule.steps * 0 + 10**6, batch=schedule.batch * 0 + 1)
    starts: list[np.ndarray] = []
    phase = NativeLoop.phase

    def watched(self: NativeLoop, name: str, iterations: int) -> str:
        starts.append(self.point.copy())
        return phase(self, name, iterations)

    monkeypatch.setattr(NativeLoop, "phase", watched)
    result = solve(problem, solver=solver, settings=SolverSettings(warm_start=wild))
    check(problem, result)
    native = build_native(problem, logs=solver.endswith("log"))
    used = starts[0][native.blocks["upload"]] > 0.5
    steps, batch = (native.tensor(starts[0], name)[used] for name in ("steps", "batch"))
    assert len(steps) == len(schedule) and np.all(steps <= problem.arrays.max_steps.max() * (1 + 1e-9))
    assert np.all(batch >= problem.arrays.min_batch.min() * (1 - 1e-9))


@pytest.mark.parametrize(("backend", "info"), [("scs", {"status": "Interrupted"}), ("ecos", {"exitFlag": -4})])
def test_an_interrupt_that_a_backend_caught_is_passed_on(monkeypatch: pytest.MonkeyPatch, backend: str, info: dict[str, Any]) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(SolvingChain, "solve_via_data", lambda *arguments, **options: {"info": info})
    x = cp.Variable()
    with pytest.raises(KeyboardInterrupt):
        solve_conic(cp.Problem(cp.Minimize(x), [x >= 1]), backend)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, ArithmeticError])
def test_exceptions_of_a_backend_are_failures(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Another backend takes over, and the result says so."""
    calls: list[int] = []
    make = clarabel.DefaultSolver

    def breaking(*data: Any) -> Any:
        calls.append(1)
        if len(calls) in (3, 4):
            raise error("deep down")
        return make(*data)

    monkeypatch.setattr(clarabel, "DefaultSolver", breaking)
    result = solve(small_problem("weighted", 0), solver="native_sca")
    assert result.schedule is not None and "clarabel failed now and then" in result.reason
