"""One suite for every registered solver: over 50 random problems of all modes and kinds, infeasible ones among them.

The oracle is asked about the tiny ones only. Results are kept, so that every solver solves every problem once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import make_problem, plain_device, plain_problem, plain_task, random_problem
from tiny import tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.io import schedule_text
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import DEFAULT_SOLVER, get_solver, solve, solver_names
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.solvers.base import SolverSettings, judges_windows

ORACLE = "enumeration"
SOLVERS = [name for name in solver_names() if name != ORACLE]
MODES = ("weighted", "min_energy", "min_bound")
#: Random search is as long as it is told to be, and so is column generation. The time limit is far beyond what any of these problems
#: takes: it ends a solver that has lost its way, whose status then is not the one expected.
SETTINGS = SolverSettings(max_iterations=12, time_limit_s=120.0)
#: What the default solver does after its proof repeats what it did before, longer and from other starts.
SHORT = {"sca": {"kicks": "1", "long_rounds": "1", "restarts": "0"}}
SHORT |= dict.fromkeys(("native_sca", "native_sca_log"), {"relaxed_iterations": "6", "binary_iterations": "3", "samples": "1"})
SHORT |= {"exact_milp": {"kicks": "0", "polish_rounds": "1", "rounds": "1", "columns": "200", "gap": "0.01", "subsets": "1"}}
SHORT |= {"column_generation": {"tolerance": "0.01", "dive_rounds": "2", "replan_rounds": "2", "polish_rounds": "1", "kicks": "1"}}


def settings_of(solver: str) -> SolverSettings:
    """Short searches."""
    return replace(SETTINGS, switches=SHORT.get(solver, {}))


# --- 50 problems -----------------------------------------------------------------------------------------------------------------------


def random_sizes(rng: np.random.Generator) -> dict[str, int]:
    """2 to 4 devices, 1 to 3 tasks, 5 to 10 slots, but not all large at once, so that the whole suite is quick."""
    while True:
        sizes = {"devices": int(rng.integers(2, 6)), "tasks": int(rng.integers(1, 4)), "slots": int(rng.integers(5, 11))}
        work = sizes["devices"] * sizes["slots"]
        if work <= 20 and work * sizes["tasks"] <= 30:
            return sizes


def any_problem(number: int) -> Problem:
    """Every optional field now and then; constants over decades; devices without data, zero weights, budgets, fading."""
    rng = np.random.default_rng(1000 + number)
    data = random_problem(rng, **random_sizes(rng), mode=MODES[number % 3])
    for task in data["tasks"]:
        task["max_staleness"] = min(task["max_staleness"], 2)
    return make_problem(data)


def physical_problem(number: int) -> Problem:
    """A cell with fading channels: both regimes, both participations, with and without budgets, prox and conditions."""
    rng, mode = np.random.default_rng(2000 + number), MODES[number % 3]
    regime, participation = ("practical", "certified")[number // 3 % 2], ("horizon", "instant")[number // 2 % 2]
    options: dict[str, Any] = {"mode": mode, "regime": regime, "participation": participation}
    if mode == "min_energy":
        options["target"] = float(rng.uniform(25, 80) if regime == "practical" else rng.uniform(3000, 8000))
    if mode == "min_bound" and rng.random() < 0.7:
        options["total_energy_j"] = float(rng.uniform(0.5, 5.0))
    if number % 4 == 1:
        options["energy_budget_j"] = (0.3, 2.0)
    if number % 5 == 2:
        options["prox"] = 2.0
    if number % 7 == 3:
        options["enforce_conditions"] = regime == "practical"
    return generate_problem(GenerateSettings(**random_sizes(rng), max_staleness=2, holder_fraction=0.8, **options), seed=number)


def windowed_problem(number: int) -> Problem:
    """The same with participation judged by windows of one slot, some or all."""
    data = physical_problem(number).to_dict()
    data["objective"]["participation"] = {"window": (1, 3, 2, data["horizon"]["slots"])[number % 4]}
    return make_problem(data)


def tiny(number: int) -> Problem:
    """Small enough for the oracle."""
    rng, mode = np.random.default_rng(3000 + number), MODES[number % 3]
    options: dict[str, Any] = {"mode": mode, "participation": ("instant", "horizon")[number // 3]}
    if mode == "min_bound":
        options["total_energy_j"] = float(rng.uniform(0.1, 0.3))
    data = tiny_problem_dict(rng, 2, 1, 3, samples=(16, 20), **options)
    if mode == "min_energy":
        data["tasks"][0]["target"] = float(rng.uniform(6, 10))
    return make_problem(data)


IMPOSSIBLE: dict[str, Callable[[], dict[str, Any]]] = {
    "no upload fits a slot": lambda: plain_problem([plain_device("dev0", gain=1e-9), plain_device("dev1", gain=2e-9)]),
    "C1 forbids one step": lambda: plain_problem(tasks=[plain_task(learning_rate=0.2)]),
    "batches larger than any data set": lambda: plain_problem(tasks=[plain_task(min_batch=101)]),
    "too slow for a deadline": lambda: plain_problem([plain_device(pair={"cycles_per_sample": 1e11})]),
    "budgets below any assignment": lambda: plain_problem([plain_device(energy_budget_j=1e-6)]),
    "less energy than one assignment": lambda: plain_problem(mode="min_bound", total_energy_j=1e-6),
    "target out of reach": lambda: plain_problem(tasks=[plain_task(target=1e-3)], mode="min_energy"),
}

PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{f"any-{k}": lambda k=k: any_problem(k) for k in range(20)},
    **{f"physical-{k}": lambda k=k: physical_problem(k) for k in range(17)},
    **{f"windowed-{k}": lambda k=k: windowed_problem(k) for k in range(6)},
    **{f"tiny-{k}": lambda k=k: tiny(k) for k in range(6)},
    **{f"impossible: {name}": lambda name=name: make_problem(IMPOSSIBLE[name]()) for name in IMPOSSIBLE},
}
#: What the oracle is asked about: the rest has too many plans.
SMALL = [name for name in PROBLEMS if name.startswith("tiny")]
#: Who is asked about problems whose participation is judged by windows: the others refuse them.
BY_WINDOWS = [name for name in SOLVERS if judges_windows(get_solver(name))]


def solvers_of(name: str) -> list[str]:
    """Who is asked about the problem called ``name``."""
    return BY_WINDOWS if name.startswith("windowed") else [*SOLVERS, *([ORACLE] if name in SMALL else [])]


CASES = [(solver, name) for name in PROBLEMS for solver in solvers_of(name)]


@cache
def problem_of(name: str) -> Problem:
    return PROBLEMS[name]()


@cache
def outcome(solver: str, name: str) -> SolveResult:
    """The solver's result; the problem must be as it was."""
    problem = problem_of(name)
    before, arrays = problem.model_dump_json(), {key: np.copy(value) for key, value in vars(problem.arrays).items()}
    result = solve(problem, solver=solver, settings=settings_of(solver), seed=7)
    assert problem.model_dump_json() == before
    for key, value in arrays.items():
        assert np.array_equal(getattr(problem.arrays, key), value), key
    return result


def test_there_are_over_fifty_problems_of_every_kind() -> None:
    problems = [problem_of(name) for name in PROBLEMS]
    assert len(problems) == 56
    kinds = {(p.objective.mode, str(p.objective.participation), p.objective.enforce_conditions) for p in problems}
    assert len(kinds) >= 10
    assert {len(p.devices) for p in problems} >= {2, 3, 4} and {len(p.tasks) for p in problems} == {1, 2, 3}
    assert {p.horizon.slots for p in problems} >= {5, 6, 7, 8, 9}
    assert sum(any(d.energy_budget_j is not None for d in p.devices) for p in problems) >= 10
    assert sum(any(isinstance(d.gain, tuple) for d in p.devices) for p in problems) >= 20
    assert sum(any(t.prox > 0 for t in p.tasks) for p in problems) >= 5


@pytest.fixture(scope="module", autouse=True)
def _short_searches() -> Iterator[None]:
    """The heuristics search more of the same grids: a little is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("schedopt.solvers.heuristics.REFINED", 2)
        yield


# --- what every result must be ---------------------------------------------------------------------------------------------------------


def check_schedule(problem: Problem, result: SolveResult) -> None:
    """Feasible by the validator, far inside its tolerance, and worth what the result says."""
    assert result.schedule is not None
    report = validate_schedule(problem, result.schedule, tolerance=1e-9)
    assert report.feasible, [f"{name}: {violation.where} {violation.amount:g}" for name, violation in report.violations]
    # the order of the assignments decides about the last digit
    assert result.objective == pytest.approx(evaluate_objective(problem, result.schedule).objective, rel=1e-13)
    assert np.isfinite(result.objective)


@pytest.mark.parametrize(("solver", "name"), CASES)
def test_result_is_what_it_says(solver: str, name: str) -> None:
    problem, result = problem_of(name), outcome(solver, name)
    assert result.solver == solver and result.seed == 7
    if result.schedule is None:
        assert result.status is SolveStatus.INFEASIBLE
        assert result.objective == np.inf
        names = [task.name for task in problem.tasks] + [device.name for device in problem.devices]
        assert any(each in result.reason for each in names), result.reason
        assert "\n" not in result.reason
    else:
        assert result.status is SolveStatus.SOLVED
        check_schedule(problem, result)
    if result.lower_bound is not None:
        assert np.isfinite(result.lower_bound)
        assert result.lower_bound <= result.objective
        assert result.gap is None or result.gap >= 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_lower_bound_is_above_any_schedule(name: str) -> None:
    """A bound of one solver holds for the schedules of all."""
    results = [outcome(solver, problem) for solver, problem in CASES if problem == name]
    best = min(result.objective for result in results)
    for result in results:
        if result.lower_bound is not None:
            assert result.lower_bound <= best * (1 + 1e-9), result.solver


@pytest.mark.parametrize("name", PROBLEMS)
def test_default_solver_finds_a_schedule_if_any_does(name: str) -> None:
    found = {solver: outcome(solver, name).schedule is not None for solver, problem in CASES if problem == name}
    assert found[DEFAULT_SOLVER] or not any(found.values()), found


@pytest.mark.parametrize("name", SMALL)
def test_nothing_beats_the_oracle(name: str) -> None:
    optimum = outcome(ORACLE, name).objective
    assert np.isfinite(optimum)
    for solver in SOLVERS:
        assert outcome(solver, name).objective >= optimum * (1 - 1e-8), solver


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name.startswith("impossible")])
def test_what_is_impossible_is_called_so(solver: str, name: str) -> None:
    result = outcome(solver, name)
    assert result.status is SolveStatus.INFEASIBLE
    assert result.schedule is None and result.lower_bound is None


# --- repeatable ------------------------------------------------------------------------------------------------------------------------


def text_without_times(problem: Problem, result: SolveResult) -> str:
    """The schedule file, wall-clock time aside."""
    assert result.schedule is not None
    data = json.loads(schedule_text(problem, result.schedule, result))
    assert data["result"]["solver"].pop("wall_s") >= 0
    return json.dumps(data)


@pytest.mark.parametrize("solver", [*SOLVERS, ORACLE])
def test_equal_seeds_give_equal_files(solver: str) -> None:
    names = SMALL[:2] if solver == ORACLE else ["physical-1", "physical-3", "any-2", "tiny-0"]
    for name in names:
        first = outcome(solver, name)
        problem = PROBLEMS[name]()  # not the object that has been solved before
        second = solve(problem, solver=solver, settings=settings_of(solver), seed=7)
        assert (first.schedule is None) == (second.schedule is None)
        if first.schedule is not None:
            assert text_without_times(problem, first) == text_without_times(problem, second)


def test_random_search_depends_on_its_seed() -> None:
    problem = problem_of("physical-3")
    digests = {solve(problem, solver="random_feasible", settings=SETTINGS, seed=seed).schedule.digest for seed in range(3)}  # type: ignore[union-attr]
    assert len(digests) > 1


# --- interruption and time limit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3, 8])
@pytest.mark.parametrize("solver", [*SOLVERS, ORACLE])
def test_interruption_returns_the_best_so_far(solver: str, after: int) -> None:
    problem = problem_of("tiny-0" if solver == ORACLE else "physical-3")
    seen: list[IterationRecord] = []

    def interrupt(record: IterationRecord) -> None:
        seen.append(record)
        if len(seen) == after:
            raise KeyboardInterrupt

    result = solve(problem, solver=solver, settings=settings_of(solver), seed=7, progress=interrupt)
    assert seen
    if len(seen) < after:  # it was done before
        assert result.status is SolveStatus.SOLVED
        return
    assert len(seen) == after
    assert result.status is SolveStatus.INTERRUPTED and result.interrupted
    assert result.objective <= min(record.objective for record in seen)
    if np.isfinite(result.objective):
        check_schedule(problem, result)
    else:
        assert result.schedule is None


@pytest.mark.parametrize("solver", [*SOLVERS, ORACLE])
def test_a_tiny_time_limit_is_a_status_not_an_error(solver: str) -> None:
    name = "tiny-1" if solver == ORACLE else "physical-0"
    for limit in (1e-9, 0.05):
        result = solve(problem_of(name), solver=solver, settings=SolverSettings(time_limit_s=limit), seed=7)
        assert result.status in (SolveStatus.TIME_LIMIT, SolveStatus.SOLVED)
        if result.schedule is not None:
            check_schedule(problem_of(name), result)


@pytest.mark.parametrize("solver", [*SOLVERS, ORACLE])
def test_history_is_what_progress_saw(solver: str) -> None:
    """Objectives never rise, lower bounds never fall, and times run forward."""
    seen: list[IterationRecord] = []
    result = solve(problem_of("tiny-0"), solver=solver, settings=settings_of(solver), seed=7, progress=seen.append)
    assert list(result.history) == seen and seen
    for field, sign in (("objective", -1), ("lower_bound", 1), ("elapsed_s", 1), ("iteration", 1)):
        values = [getattr(record, field) for record in seen]
        assert all(sign * later >= sign * earlier for earlier, later in zip(values, values[1:], strict=False)), field
    assert seen[-1].objective == result.objective
