"""Pricing by tables against pricing all candidates: the same best plans, from below and from above."""

from __future__ import annotations

import numpy as np
import pytest

from schedopt.bounds.async_schedule import fixed_terms
from schedopt.formulation.candidates import Prices, best_paths, build_candidates, price
from schedopt.formulation.tables import PlanTables
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import Problem
from schedopt.sca.pool import first_prices

SHAPES = {
    "fading": {"devices": 7, "tasks": 3, "slots": 9},
    "certified": {"devices": 6, "tasks": 2, "slots": 8, "regime": "certified"},
    "no fading, few holders": {"devices": 9, "tasks": 4, "slots": 7, "fading_block_slots": 7, "holder_fraction": 0.5},
    "many steps": {"devices": 4, "tasks": 2, "slots": 6, "max_steps": 150, "max_staleness": 2},
    "one slot": {"devices": 5, "tasks": 2, "slots": 1},
    "prox": {"devices": 4, "tasks": 2, "slots": 6, "prox": 1.0},
}


def _prices(problem: Problem, level: float) -> Prices:
    a = problem.arrays
    most = a.learning_rate * a.server_rate * a.max_steps * a.slots
    return first_prices(problem, most * 4.0**-level, 0.5 * fixed_terms(a))


@pytest.mark.parametrize("level", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("name", SHAPES)
def test_plans_are_those_of_pricing_everything(name: str, level: float) -> None:
    problem = generate_problem(GenerateSettings(**SHAPES[name]), seed=3)
    prices = _prices(problem, level)
    candidates = build_candidates(problem)
    priced = price(candidates, prices, for_bound=True)
    plans = PlanTables(problem).plans(prices)
    np.testing.assert_allclose(plans.lower, best_paths(candidates, priced.lower).value, rtol=1e-8)
    np.testing.assert_allclose(plans.cost, best_paths(candidates, price(candidates, prices).cost).value, rtol=1e-8)
    assert np.all(plans.lower <= plans.cost + 1e-9 * np.abs(plans.cost))
    assert np.all(np.diff(plans.forward, axis=1) <= 0) and np.all(np.diff(plans.backward, axis=1) >= 0)
    np.testing.assert_allclose(plans.backward[:, 0], plans.lower, rtol=1e-8)


@pytest.mark.parametrize("name", ["fading", "many steps"])
def test_plans_of_one_task_pay_fees_per_slot(name: str) -> None:
    problem = generate_problem(GenerateSettings(**SHAPES[name]), seed=4)
    prices = _prices(problem, 3.0)
    candidates = build_candidates(problem)
    priced = price(candidates, prices, for_bound=True)
    value = -best_paths(candidates, priced.lower).value
    assert np.any(value > 0)
    fee = (
        np.random.default_rng(0).uniform(0.0, 1.0, (problem.arrays.num_devices, problem.arrays.slots)) * value.max() / problem.arrays.slots
    )
    due = np.concatenate([np.zeros((len(fee), 1)), np.cumsum(fee, axis=1)], axis=1)
    spans = due[candidates.device, candidates.end] - due[candidates.device, candidates.start]
    tables = PlanTables(problem)
    for task in [None, *range(problem.arrays.num_tasks)]:
        mine = np.ones(len(candidates), dtype=bool) if task is None else candidates.task == task
        cost = np.where(mine & (priced.lower < 0), priced.lower + spans, np.inf)
        plans = tables.plans(prices, fee=fee, task=task)
        np.testing.assert_allclose(plans.lower, best_paths(candidates, cost).value, rtol=1e-8, atol=1e-8 * value.max())
        assert task is None or np.all(plans.columns.task == task)


def test_potentials_are_feasible_duals_of_the_paths() -> None:
    """Differences of potentials price the slots such that no assignment is worth more than the slots that it uses."""
    problem = generate_problem(GenerateSettings(**SHAPES["fading"]), seed=5)
    prices = _prices(problem, 2.5)
    candidates = build_candidates(problem)
    priced = price(candidates, prices, for_bound=True)
    plans = PlanTables(problem).plans(prices)
    for fees in (plans.forward[:, :-1] - plans.forward[:, 1:], plans.backward[:, 1:] - plans.backward[:, :-1]):
        due = np.concatenate([np.zeros((len(fees), 1)), np.cumsum(fees, axis=1)], axis=1)
        spans = due[candidates.device, candidates.end] - due[candidates.device, candidates.start]
        assert np.all(np.where(priced.lower < 0, priced.lower, np.inf) + spans >= -1e-9 * np.abs(plans.lower).max())
        np.testing.assert_allclose(fees.sum(axis=1), -plans.lower)


def test_parts_of_the_devices_add_up() -> None:
    problem = generate_problem(GenerateSettings(devices=11, tasks=3, slots=6), seed=6)
    prices = _prices(problem, 3.0)
    whole = PlanTables(problem).plans(prices)
    parts = [PlanTables(problem, low, high).plans(prices) for low, high in ((0, 4), (4, 5), (5, 11))]
    np.testing.assert_array_equal(whole.lower, np.concatenate([part.lower for part in parts]))
    np.testing.assert_array_equal(whole.columns.device, np.concatenate([part.columns.device for part in parts]))
    np.testing.assert_array_equal(whole.columns.energy_j, np.concatenate([part.columns.energy_j for part in parts]))
