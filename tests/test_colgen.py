"""Column generation for many devices: its relaxation, workers, sampling, rounding, and what it finds."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from schedopt import solve
from schedopt.colgen.loop import generate_plans
from schedopt.colgen.pool import SharedPool
from schedopt.colgen.rounding import dive_plans, plan_schedule, replan, supported_plans
from schedopt.colgen.sampling import prices_for_all, sample_devices, sampled_problem
from schedopt.colgen.workers import PlanRequest, ProcessEngine, SerialEngine, Workers, make_engine, map_parallel
from schedopt.constraints import validate_schedule
from schedopt.cuts import cut_prices
from schedopt.errors import InputError, SolverError
from schedopt.formulation.candidates import build_candidates
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.result import SolveStatus
from schedopt.sca.loop import solve_relaxation
from schedopt.solvers.base import SolverSettings
from schedopt.state import Merit

WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is an optional extra: pip install 'schedopt[ray]'")


def problem_of(**settings: object) -> Problem:
    return generate_problem(GenerateSettings(**({"devices": 12, "tasks": 3, "slots": 10} | settings)), seed=5)


def relaxation(problem: Problem, workers: Workers, **changes: object):  # noqa: ANN201
    settings = {"backend": "clarabel", "tolerance": 1e-3, "max_iterations": 60, "smoothing": 0.5, "prox": 1e-3, "start": None} | changes
    return generate_plans(problem, workers.plans, on_iteration=lambda point, merit: None, tick=lambda: None, **settings)


@pytest.mark.parametrize("mode", ["weighted", "min_bound", "min_energy"])
@pytest.mark.parametrize("participation", ["instant", "horizon"])
def test_relaxation_is_that_over_all_assignments(mode: str, participation: str) -> None:
    """The loop over listed candidates, another implementation, ends at the same objective."""
    problem = problem_of(participation=participation)
    if mode == "min_bound":
        problem = problem_of(participation=participation, mode=mode, total_energy_j=2.0)
    if mode == "min_energy":
        free = solve(problem, solver="greedy_energy")
        reached = evaluate_objective(problem, free.schedule).bound.total
        data = problem.to_dict()
        data["objective"]["mode"] = mode
        for task, value in zip(data["tasks"], reached, strict=True):
            task["target"] = 1.1 * float(value)
        problem = Problem.model_validate(data)
    with Workers(problem) as workers:
        found = relaxation(problem, workers)
    listed = solve_relaxation(problem, build_candidates(problem), backend="clarabel")
    assert found.merit[-1] == pytest.approx(listed.merit[-1], rel=5e-3)
    # proven at the ratios where the loop ended, which are those of the other loop to a few digits
    assert found.bound <= listed.merit[-1] * (1 + 1e-3)
    assert found.gap < 1e-3


def test_processes_answer_as_one() -> None:
    problem = problem_of(devices=9)
    with Workers(problem) as workers:
        found = relaxation(problem, workers)
        prices = cut_prices(problem, found.best).prices
        alone = workers.plans(PlanRequest(prices, near=5), PlanRequest(prices, task=1))
    with Workers(problem, workers=2) as workers:
        both = workers.plans(PlanRequest(prices, near=5), PlanRequest(prices, task=1))
    for one, two in zip(alone, both, strict=True):
        for name in ("lower", "cost", "forward", "backward"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        for name in ("device", "task", "start", "end", "steps", "energy_j"):
            np.testing.assert_array_equal(getattr(one.columns, name), getattr(two.columns, name))
            np.testing.assert_array_equal(getattr(one.near, name), getattr(two.near, name))


def test_solutions_do_not_depend_on_the_number_of_workers() -> None:
    problem = problem_of(devices=7, slots=6)
    settings = SolverSettings(switches={"workers": "1", "polish_rounds": "1"})
    one = solve(problem, solver="column_generation", settings=settings)
    two = solve(problem, solver="column_generation", settings=replace(settings, switches={"workers": "2", "polish_rounds": "1"}))
    assert one.objective == two.objective and one.lower_bound == two.lower_bound
    assert one.schedule.digest == two.schedule.digest


@WITH_RAY
@pytest.mark.filterwarnings("ignore")
def test_ray_workers_answer_as_processes_do() -> None:
    problem = problem_of(devices=7, slots=6)
    switches = {"workers": "2", "polish_rounds": "1"}
    here = solve(problem, solver="column_generation", settings=SolverSettings(switches=switches))
    # a cluster takes seconds to start: what follows finds this one, and leaves it as it is
    cluster = make_engine(2, "local")
    try:
        there = solve(problem, solver="column_generation", settings=SolverSettings(switches=switches | {"ray": "local"}))
        assert map_parallel(pow, [(2, 3), (3, 2)], workers=2, address="local") == [8, 9]
        assert importlib.import_module("ray").is_initialized()
    finally:
        cluster.close()
    assert not importlib.import_module("ray").is_initialized()
    assert here.objective == there.objective and here.lower_bound == there.lower_bound


@WITH_RAY
def test_no_ray_cluster_is_one_line() -> None:
    with pytest.raises(SolverError, match="no Ray cluster at '127.0.0.1:1'"):
        make_engine(2, "127.0.0.1:1")


def test_ray_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SolverError, match=r"pip install 'schedopt\[ray\]'"):
        make_engine(2, "local")


def test_engines() -> None:
    assert isinstance(make_engine(1), SerialEngine) and isinstance(make_engine(2), ProcessEngine)
    assert map_parallel(pow, [(2, 3), (3, 2)]) == map_parallel(pow, [(2, 3), (3, 2)], workers=2) == [8, 9]


@pytest.mark.parametrize("settings", [{"mode": "weighted"}, {"mode": "min_energy", "target": 60.0}], ids=lambda s: s["mode"])
def test_sample_stands_for_all(settings: dict[str, object]) -> None:
    problem = problem_of(devices=40, participation="instant", **settings)
    devices = sample_devices(problem, 10)
    assert len(devices) == 10 and len(set(devices)) == 10
    sample = sampled_problem(problem, devices)
    assert sample.arrays.bandwidth_hz == pytest.approx(problem.arrays.bandwidth_hz / 4)
    np.testing.assert_allclose(sample.arrays.aggregation_weight.sum(axis=0), 1.0)
    with Workers(sample) as workers:
        small = relaxation(sample, workers, tolerance=1e-2)
    with Workers(problem) as workers:
        start = prices_for_all(problem, devices, small.best)
        first = relaxation(problem, workers, start=start, max_iterations=2)
        whole = relaxation(problem, workers)
    # not a bound on anything, but prices in the right units: within a factor of two after two masters
    assert whole.merit[-1] * (1 - 1e-3) <= first.merit[-1]
    assert first.merit[-1] < 2 * whole.merit[-1] or first.best.slack > 0
    for name in ("value", "noise"):
        assert 0.5 < np.median(getattr(start.prices, name) / getattr(whole.best.prices, name)) < 2.0
    if problem.objective.mode == "weighted":
        assert 0.5 < np.median(start.prices.bandwidth / whole.best.prices.bandwidth) < 2.0


def test_sample_without_holders_is_none() -> None:
    data = problem_of(devices=6, tasks=2).to_dict()
    names = [task["name"] for task in data["tasks"]]
    for device in data["devices"][1:]:
        del device["tasks"][names[0]]
    assert sampled_problem(Problem.model_validate(data), np.array([1, 2, 3])) is None


def test_pool_keeps_no_duplicates_and_forgets() -> None:
    problem = problem_of()
    with Workers(problem) as workers:
        found = relaxation(problem, workers)
    columns = found.best.columns
    pool = SharedPool(columns)
    size = len(pool)
    assert size <= len(columns) and pool.add(columns) == 0 and len(pool) == size
    weights = np.zeros(size)
    weights[0] = 1.0
    for _ in range(4):
        pool.forget(weights[: len(pool)])
    assert len(pool) == 1


def test_rounding_keeps_one_plan_per_device() -> None:
    problem = problem_of()
    with Workers(problem) as workers:
        found = relaxation(problem, workers)
        mask, share = supported_plans(problem, found.best)
        assert np.all(share <= 1 + 1e-9) and np.all(share >= 0)
        columns, weights = dive_plans(problem, found.best, backend="clarabel", rounds=3, tick=lambda: None)
        schedule = plan_schedule(problem, columns, weights)
        for device in range(problem.arrays.num_devices):
            mine = schedule.take(schedule.device == device)
            order = np.argsort(mine.start)
            assert np.all(mine.end[order][:-1] <= mine.start[order][1:])
        state = repair(problem, schedule)
        merit = Merit(problem, np.full(3, 1e12), 1e12)
        improved: list[float] = []
        better = replan(
            problem, state, merit, workers.plans, rounds=4, on_improvement=lambda s: improved.append(merit(s)), tick=lambda: None
        )
    assert validate_schedule(problem, better.schedule).feasible
    assert merit(better) <= merit(state) and improved == sorted(improved, reverse=True)
    assert found.merit[-1] * 0.999 <= merit(better) <= 1.2 * found.merit[-1]


def test_dozens_of_devices_within_two_percent() -> None:
    """Without the local moves, which are another's."""
    problem = problem_of(devices=60, slots=12, participation="instant")
    result = solve(problem, solver="column_generation", settings=SolverSettings(switches={"workers": "1", "polish_rounds": "0"}))
    assert validate_schedule(problem, result.schedule).feasible
    assert result.lower_bound <= result.objective
    assert result.gap < 0.02


def test_targets_out_of_reach_are_proven_so() -> None:
    data = problem_of(devices=3, tasks=2, slots=5, mode="min_energy", target=1e6).to_dict()
    data["tasks"][1]["target"] = 1e-3
    result = solve(Problem.model_validate(data), solver="column_generation")
    assert result.status is SolveStatus.INFEASIBLE and data["tasks"][1]["name"] in result.reason


def test_time_limit_and_bad_switches() -> None:
    problem = problem_of()
    result = solve(problem, solver="column_generation", settings=SolverSettings(time_limit_s=1e-3))
    assert result.status in (SolveStatus.TIME_LIMIT, SolveStatus.INFEASIBLE)
    for key, value in (("smoothing", "1"), ("workers", "-1"), ("dive_rounds", "0"), ("tolerance", "-1")):
        with pytest.raises(InputError, match=key):
            solve(problem, solver="column_generation", settings=SolverSettings(switches={key: value}))
