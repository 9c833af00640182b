"""The bound that separates by task: below the enumerated optimum, near it, and as good as its pieces promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_problem

from schedopt import solve
from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.colgen.loop import PlanRelaxation, generate_plans
from schedopt.colgen.ratio_bound import RatioBound, _Task, fees_of
from schedopt.colgen.workers import PlanRequest, Workers
from schedopt.cuts import cut_prices
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import Problem


def relaxed(problem: Problem, workers: Workers, tolerance: float = 1e-3) -> PlanRelaxation:
    return generate_plans(
        problem,
        workers.plans,
        backend="clarabel",
        tolerance=tolerance,
        max_iterations=40,
        smoothing=0.3,
        prox=1e-3,
        on_iteration=lambda point, merit: None,
        tick=lambda: None,
    )


def bound_of(problem: Problem, upper: float, *, fee_scale: float = 1.0, price_scale: float = 1.0) -> tuple[float, float]:
    """The bound, and the objective of the relaxed problem."""
    with Workers(problem) as workers:
        found = relaxed(problem, workers)
        at = replace(found.at, h=price_scale * found.at.h)
        search = RatioBound(problem, at, fee_scale * fees_of(found.plans), upper)
        rising = []
        bound = search.run(workers.plans, tolerance=1e-4 * upper, on_round=lambda b: rising.append(b))
    assert rising == sorted(rising)
    return bound, found.merit[-1]


@pytest.mark.parametrize("mode", ["weighted", "min_bound"])
@pytest.mark.parametrize("participation", ["instant", "horizon"])
@pytest.mark.parametrize("seed", range(2))
def test_never_above_the_optimum(mode: str, participation: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [{"devices": 2, "tasks": 1, "slots": 4}, {"devices": 2, "tasks": 2, "slots": 3}][seed % 2]
    problem = tiny_problem(rng, **sizes, mode=mode, participation=participation)
    best = solve(problem, solver="enumeration")
    if best.schedule is None:
        pytest.skip("this random problem has no schedule")
    bound, _ = bound_of(problem, 1.5 * best.objective)
    assert bound <= best.objective * (1 + 1e-9)
    assert bound >= 0.5 * best.objective
    # whatever the fees and prices are, it is a bound
    for fee_scale, price_scale in ((0.0, 1.5), (2.0, 0.5)):
        assert bound_of(problem, 1.5 * best.objective, fee_scale=fee_scale, price_scale=price_scale)[0] <= best.objective * (1 + 1e-9)


@pytest.mark.parametrize("participation", ["instant", "horizon"])
def test_near_the_relaxed_optimum_with_many_tasks(participation: str) -> None:
    """Boxes of H and N prove less than half of it in a hundred cuts with so many tasks."""
    problem = generate_problem(GenerateSettings(devices=24, tasks=8, slots=8, participation=participation), seed=2)
    with Workers(problem) as workers:
        found = relaxed(problem, workers)
        upper = 1.02 * found.merit[-1]
        search = RatioBound(problem, found.at, fees_of(found.plans), upper)
        bound = search.run(workers.plans, tolerance=5e-4 * upper / 8)
    assert found.bound <= found.merit[-1] * (1 + 1e-9)
    assert 0.98 * found.merit[-1] <= bound <= found.merit[-1] * (1 + 1e-6)


def test_fees_lose_nothing_at_their_own_prices() -> None:
    problem = generate_problem(GenerateSettings(devices=9, tasks=3, slots=8), seed=3)
    with Workers(problem) as workers:
        found = relaxed(problem, workers)
        fees = fees_of(found.plans)
        prices = cut_prices(problem, found.best).prices
        whole = workers.plans(PlanRequest(prices))[0]
        fees = fees_of(whole)
        parts = workers.plans(*(PlanRequest(prices, fees, task) for task in range(3)))
    assert fees.min() >= 0
    np.testing.assert_allclose(sum(part.lower.sum() for part in parts) - fees.sum(), whole.lower.sum(), rtol=1e-6)


def test_least_over_h_is_the_closed_form() -> None:
    """g(ε) against a search over H, and its concavity."""
    task = _Task(0, 2.0, 3.0, 1.0, 0.4, np.array([0.0, 1.0]))
    ratio = np.linspace(0.0, 2.4, 25)
    h = np.geomspace(1e-3, 1e4, 200_001)[:, None]
    brute = np.min(2.0 * (3.0 / h + ratio) + (1.0 - 0.4 * ratio) * h, axis=0)
    found = task.least(ratio, 1.0, 0.4)
    np.testing.assert_allclose(found, brute, rtol=1e-6)
    assert np.all(np.diff(found, 2) <= 1e-12)
    assert task.least(np.array([2.6]), 1.0, 0.4)[0] == -np.inf


def test_intervals_reach_to_what_the_upper_bound_allows() -> None:
    problem = generate_problem(GenerateSettings(devices=4, tasks=2, slots=6), seed=1)
    a = problem.arrays
    with Workers(problem) as workers:
        found = relaxed(problem, workers)
    search = RatioBound(problem, found.at, fees_of(found.plans), 7.0)
    for task in search.tasks:
        assert task.ends[0] == 0.0 and np.all(np.diff(task.ends) > 0)
        assert task.ends[-1] == pytest.approx(7.0 / (FACTOR * a.weight[task.index]))
        assert task.fixed == fixed_terms(a)[task.index]
    assert search.bound == -np.inf
