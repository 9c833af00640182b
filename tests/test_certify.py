"""Proven lower bounds: against enumeration on tiny problems, and every single cut against every schedule that can be thrown at it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from schedopt.bounds.async_schedule import fixed_terms
from schedopt.certify import Certifier, first_order_gap, least_error
from schedopt.cuts import Cut, lagrangian_cut
from schedopt.formulation.candidates import build_candidates
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.ratio_search import RatioSearch
from schedopt.registry import get_solver
from schedopt.sca.loop import solve_relaxation
from schedopt.solvers.base import Incumbent, SolverSettings
from schedopt.solvers.exhaust import exhaust, is_tiny
from tests.tiny import tiny_problem

FACTOR = 8.0 / 3.0


def _with_objective(problem: Problem, **changes: object) -> Problem:
    data = problem.to_dict()
    data["objective"].update(changes)
    for task in data["tasks"]:
        if changes.get("mode") == "min_energy":
            task["target"] = 4.0 * FACTOR * task["initial_gap"] / (task["learning_rate"] * task["max_steps"])
    return Problem.model_validate(data)


def _energy_part(problem: Problem, energy_j: float) -> float:
    """V of a schedule: what its objective adds to the ratios."""
    mode = problem.objective.mode
    return {"weighted": problem.objective.energy_weight * energy_j, "min_energy": energy_j, "min_bound": 0.0}[mode]


@pytest.mark.parametrize("participation", ["instant", "horizon"])
@pytest.mark.parametrize("seed", range(3))
def test_bound_and_solver_against_enumeration(seed: int, participation: str) -> None:
    """lower bound ≤ enumerated optimum ≤ solver's objective ≤ 1.005 optimum."""
    problem = _with_objective(tiny_problem(np.random.default_rng(seed), devices=2, tasks=1, slots=4), participation=participation)
    exact = get_solver("enumeration").solve(problem, settings=SolverSettings())
    ours = get_solver("sca").solve(problem, settings=SolverSettings())
    assert ours.lower_bound is not None
    assert ours.lower_bound <= exact.objective * (1 + 1e-9)
    assert exact.objective <= ours.objective * (1 + 1e-7)
    assert ours.objective <= exact.objective * 1.005


@pytest.mark.parametrize("mode", ["weighted", "min_energy", "min_bound"])
@pytest.mark.parametrize("participation", ["instant", "horizon"])
def test_certificates_of_tiny_problems_close(mode: str, participation: str) -> None:
    """The gap is at most 1e-6 and encloses the enumerated optimum."""
    problem = tiny_problem(np.random.default_rng(2), devices=2, tasks=1, slots=3, mode=mode, participation=participation)
    exact = get_solver("enumeration").solve(problem, settings=SolverSettings())
    ours = get_solver("sca").solve(problem, settings=SolverSettings(certify=True))
    assert ours.lower_bound is not None and ours.gap is not None
    assert exact.objective * (1 - 1e-6) <= ours.lower_bound <= exact.objective * (1 + 1e-9)
    assert exact.objective * (1 - 1e-9) <= ours.objective <= exact.objective * (1 + 1e-6)
    assert ours.lower_bound_method == "enumeration of all plans"


def test_an_enumeration_that_runs_out_of_time_keeps_its_bound() -> None:
    problem = tiny_problem(np.random.default_rng(4), devices=3, tasks=2, slots=3, mode="min_energy")
    held = Incumbent(problem, SolverSettings(time_limit_s=0.5))
    assert not exhaust(problem, held)
    assert held.lower_bound <= get_solver("greedy_energy").solve(problem, settings=SolverSettings()).objective


def test_larger_problems_are_not_enumerated() -> None:
    assert is_tiny(tiny_problem(np.random.default_rng(0), devices=2, tasks=1, slots=4))
    assert not is_tiny(tiny_problem(np.random.default_rng(0), devices=6, tasks=2, slots=6))


@pytest.mark.parametrize("mode", ["weighted", "min_energy", "min_bound"])
def test_every_cut_holds_for_every_schedule(mode: str) -> None:
    """V ≥ π·H − ρ·N + K for cuts at the relaxation's masters and many feasible schedules; and not by miles for the best of them."""
    problem = _with_objective(
        tiny_problem(np.random.default_rng(11), devices=3, tasks=2, slots=5), mode=mode, total_energy_j=5.0 if mode == "min_bound" else None
    )
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    cuts = [lagrangian_cut(problem, candidates, point)[0] for point in relaxed.points]
    checked = 0
    for solver in ("random_feasible", "round_robin", "greedy_energy", "synchronous"):
        for seed in range(3):
            found = get_solver(solver).solve(problem, settings=SolverSettings(max_iterations=20), seed=seed)
            if found.schedule is None:
                continue
            value = evaluate_objective(problem, found.schedule)
            h = value.bound.extra["h_total"]
            if np.any(h <= 0):
                continue
            error = value.bound.total * h / FACTOR - fixed_terms(problem.arrays)
            part = _energy_part(problem, value.energy_j)
            for cut in cuts:
                gap = part - float(cut.h_price @ h - cut.error_price @ error) - cut.level
                assert gap >= -1e-9 * (abs(cut.level) + part)
                checked += 1
    assert checked > 0


def test_a_cut_above_the_truth_is_noticed() -> None:
    """Raising the level of the tightest cut by its first-order gap and a little more makes it wrong for some schedule."""
    problem = tiny_problem(np.random.default_rng(3), devices=2, tasks=1, slots=4)
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    best = get_solver("enumeration").solve(problem, settings=SolverSettings())
    assert best.schedule is not None
    prover = Certifier(problem, candidates, relaxed.points, relaxed.pool, best.objective, backend="clarabel")
    honest = prover.run(best.objective, target_gap=1e-4, max_cuts=60)
    assert honest <= best.objective * (1 + 1e-9)
    lifted = Certifier(problem, candidates, relaxed.points, relaxed.pool, 2 * best.objective, backend="clarabel")
    assert lifted._search is not None
    lifted._search.level = lifted._search.level + 0.5 * best.objective
    assert lifted.run(2 * best.objective, target_gap=1e-3, max_cuts=0) >= lifted.proven
    wrong = min(lifted._search.model(np.array([x]), np.array([0.0])) for x in np.linspace(*_h_range(lifted._search), 200))
    assert wrong > best.objective


def _h_range(search: RatioSearch) -> tuple[float, float]:
    return float(search.heap[0].h_low[0]), float(search.heap[0].h_high[0])


def test_ratio_search_against_a_grid() -> None:
    """The bound of the ratios plus a few cuts never exceeds the function on a fine grid, and comes close to its minimum."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        w, fixed, least = rng.uniform(1, 3, 2), rng.uniform(1, 3, 2), rng.uniform(0, 0.05, 2)
        low, high = np.full(2, 0.2), np.full(2, 6.0)
        search = RatioSearch(w, fixed, least, (low, high, np.full(2, 8.0)))
        search.add(Cut(np.zeros(2), np.zeros(2), 0.0), np.ones(2, bool))
        for _ in range(6):
            search.add(Cut(rng.uniform(0, 3, 2), rng.uniform(0, 1, 2), float(rng.uniform(-4, 0))), np.ones(2, bool))
        grid_h, grid_n = np.linspace(0.2, 6.0, 30), np.linspace(0.0, 8.0, 25)
        h = np.stack(np.meshgrid(grid_h, grid_h, grid_n, grid_n, indexing="ij"), axis=-1).reshape(-1, 4)
        h = h[np.all(h[:, 2:] >= least * h[:, :2], axis=1)]
        cuts = np.max(h[:, :2] @ search.pi.T - h[:, 2:] @ search.rho.T + search.level, axis=1)
        value = (w * (fixed + h[:, 2:]) / h[:, :2]).sum(axis=1) + cuts
        reference = min(_descend(search, h[k]) for k in np.argsort(value)[:5])
        for _ in range(20_000):
            if search.proven >= 0.99 * reference or not search.heap:
                break
            search.step(0.99 * reference)
        assert search.proven <= reference * (1 + 1e-9)
        assert search.proven >= 0.99 * reference * (1 - 1e-9)


def _descend(search: RatioSearch, start: np.ndarray) -> float:
    """Local minimum of the model near a grid point, by a method that knows nothing of boxes."""

    def value(x: np.ndarray) -> float:
        h = np.clip(x[:2], 0.2, 6.0)
        return search.model(h, np.clip(x[2:], search.least * h, 8.0))

    return float(minimize(value, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000}).fun)


def test_first_order_gap_is_small_at_the_end_and_large_at_the_start() -> None:
    problem = tiny_problem(np.random.default_rng(5), devices=3, tasks=1, slots=6)
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    assert first_order_gap(problem, candidates, relaxed.point) < 1e-3
    early = solve_relaxation(problem, candidates, backend="clarabel", max_iterations=1)
    assert first_order_gap(problem, candidates, early.point) > first_order_gap(problem, candidates, relaxed.point)


def test_least_error_is_below_every_column() -> None:
    problem = tiny_problem(np.random.default_rng(6), devices=3, tasks=2, slots=5)
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    columns = relaxed.pool.columns
    rho = least_error(problem, candidates)[candidates.task[columns.candidate]]
    assert np.all(columns.error >= rho * columns.h * (1 - 1e-12))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_cut_off_is_worth_no_more_than_the_cutoff(seed: int) -> None:
    """Boxes shrink to where the objective can be below the cutoff; what is left of them may be dearer than what was cut off."""
    problem = tiny_problem(np.random.default_rng(seed), devices=2, tasks=1, slots=4, mode="min_bound", total_energy_j=100.0)
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    upper = 1.3 * relaxed.merit[-1]
    certifier = Certifier(problem, candidates, relaxed.points, relaxed.pool, upper, backend="clarabel")
    certifier.run(upper, target_gap=0.3)
    assert certifier.proven <= 0.7 * upper * (1 + 1e-12)
