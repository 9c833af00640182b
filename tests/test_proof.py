"""Branching on numbers of assignments: tables below true costs, valid bounds whatever the duals, and nodes that leave nothing out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_problem

from schedopt.certify import Certifier, least_error
from schedopt.errors import SolverError
from schedopt.formulation.candidates import Candidates, best_paths, build_candidates, price, price_columns
from schedopt.problem import Problem
from schedopt.proof import ProofTree
from schedopt.proof.branching import choose_limits
from schedopt.proof.multipliers import node_cut
from schedopt.proof.nodes import Limit, Node
from schedopt.proof.pricing import PriceTables
from schedopt.proof.program import Duals
from schedopt.registry import get_solver
from schedopt.result import SolveResult
from schedopt.sca.loop import RelaxedSolution, solve_relaxation
from schedopt.solvers.base import SolverSettings

MODES = ["weighted", "min_energy", "min_bound"]


def _solved(problem: Problem) -> tuple[Candidates, RelaxedSolution, SolveResult]:
    candidates = build_candidates(problem)
    exact = get_solver("enumeration").solve(problem, settings=SolverSettings())
    return candidates, solve_relaxation(problem, candidates, backend="clarabel"), exact


def _tree(problem: Problem, candidates: Candidates, relaxed: RelaxedSolution, unit: float) -> ProofTree:
    prover = Certifier(problem, candidates, relaxed.points, relaxed.pool, 1.5 * unit, backend="clarabel")
    return ProofTree(
        problem,
        candidates,
        relaxed.pool.columns,
        prover._search,
        floor=prover._floor,
        unit=unit,
        point=relaxed.point,
        least=least_error(problem, candidates),
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_tables_are_below_the_costs_and_near_them(scale: float) -> None:
    problem = tiny_problem(np.random.default_rng(8), devices=3, tasks=2, slots=5)
    candidates = build_candidates(problem)
    prices = solve_relaxation(problem, candidates, backend="clarabel").point.prices
    prices = replace(prices, bandwidth=scale * prices.bandwidth, value=prices.value / scale)
    found, exact = PriceTables(candidates).price(prices), price(candidates, prices)
    known = np.isfinite(exact.cost)
    size = np.abs(exact.cost[known]).max(initial=1e-9)
    assert np.all(found.lower[known] <= exact.cost[known] + 1e-12 * size)
    assert np.all(found.lower[~known] >= -0.01 * size)
    assert np.all(found.lower[known] >= exact.cost[known] - 0.01 * size)


def test_columns_of_the_tables_cost_hardly_more_than_the_bound() -> None:
    problem = tiny_problem(np.random.default_rng(9), devices=2, tasks=2, slots=4)
    candidates = build_candidates(problem)
    prices = solve_relaxation(problem, candidates, backend="clarabel").point.prices
    tables = PriceTables(candidates)
    found = tables.price(prices)
    columns = tables.columns(found, np.arange(len(candidates)), prices)
    cost = price_columns(candidates, columns, prices)
    lower = found.lower[columns.candidate]
    assert np.all(cost >= lower) and np.all(cost <= lower + 0.05 * np.abs(cost).max())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("participation", ["instant", "horizon"])
def test_the_tree_stays_below_the_optimum_and_rises(mode: str, participation: str) -> None:
    problem = tiny_problem(np.random.default_rng(22), devices=2, tasks=1, slots=4, mode=mode, participation=participation)
    candidates, relaxed, exact = _solved(problem)
    tree = _tree(problem, candidates, relaxed, exact.objective)
    for _ in range(25):
        if not tree.heap:
            break
        before = tree.proven
        tree.step(1.2 * exact.objective, lambda: None)
        assert before <= tree.proven <= exact.objective * (1 + 1e-9)
    assert tree.proven > 0.8 * exact.objective


def _random_duals(problem: Problem, limits: int, rng: np.random.Generator) -> Duals:
    a = problem.arrays
    size = rng.uniform(0.1, 10.0)
    return Duals(
        bandwidth=rng.exponential(size, a.slots) / a.bandwidth_hz,
        budget=np.where(np.isfinite(a.energy_budget_j), rng.exponential(size, a.num_devices), 0.0),
        limit=float(rng.exponential(size)),
        task_value=rng.normal(0.0, 20.0 * size, a.num_tasks),
        noise=rng.exponential(size, (a.num_tasks, 2)),
        tangent=rng.exponential(0.3, (a.num_tasks, 2)),
        pull=rng.normal(0.0, size, a.has_data.shape),
        fees=rng.exponential(size, limits),
    )


@pytest.mark.parametrize("mode", MODES)
def test_any_duals_give_a_valid_bound(mode: str) -> None:
    """A node that holds the optimum, with random limits that the optimum meets and random duals, is never bounded above it."""
    rng = np.random.default_rng(3)
    problem = tiny_problem(rng, devices=2, tasks=2, slots=3, mode=mode, participation="horizon")
    candidates, relaxed, exact = _solved(problem)
    assert exact.schedule is not None
    used = candidates.find(exact.schedule.device, exact.schedule.task, exact.schedule.start, exact.schedule.end)
    tree = _tree(problem, candidates, relaxed, exact.objective)
    first = tree.heap[0]
    for _ in range(40):
        limits = []
        for _ in range(int(rng.integers(0, 3))):
            members = rng.random(len(candidates)) < 0.5
            count, sign = int(members[used].sum()), int(rng.choice([-1, 1]))
            limits.append(Limit(members, sign, max(count + sign * int(rng.integers(0, 2)), 0)))
        node = Node(-np.inf, 0, first.box, tuple(limits))
        duals = _random_duals(problem, len(limits), rng)
        cut = node_cut(problem, candidates, tree.tables, node, duals, exact.objective).cut
        assert tree._value(node, cut) <= exact.objective * (1 + 1e-9)


def test_both_halves_of_a_limit_cover_all() -> None:
    """At most k or at least k + 1: every schedule is in one of the nodes; and what a limit would cost is what it costs."""
    problem = tiny_problem(np.random.default_rng(4), devices=3, tasks=1, slots=4, mode="min_energy")
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    tree = _tree(problem, candidates, relaxed, relaxed.point.value)
    node = tree.heap[0]
    solution = tree.program.solve(node, relaxed.pool.columns)
    assert solution is not None
    limits = choose_limits(tree.program, solution, lambda: None)
    assert limits is not None
    low, high = limits
    assert np.array_equal(low.members, high.members) and (low.sign, high.sign) == (1, -1) and high.count == low.count + 1
    rise = tree.program.rise(low)
    again = tree.program.solve(replace(node, limits=(low,)), relaxed.pool.columns)
    assert again is not None
    assert again.value - solution.value == pytest.approx(rise, rel=1e-5, abs=1e-9 * solution.value)


def test_forbidden_candidates_are_on_no_plan() -> None:
    problem = tiny_problem(np.random.default_rng(1), devices=2, tasks=1, slots=4)
    candidates = build_candidates(problem)
    members = candidates.end == 4
    node = Node(0.0, 0, None, (Limit(members, 1, 0), Limit(~members, -1, 1)))
    assert node.forbidden is not None and np.array_equal(node.forbidden, members)
    cost = np.where(node.forbidden, np.inf, -1.0)
    assert not members[best_paths(candidates, cost).chosen].any()


def test_a_proof_branches_where_the_relaxed_problem_has_no_more_to_give() -> None:
    problem = tiny_problem(np.random.default_rng(22), devices=2, tasks=1, slots=4, mode="min_energy")
    candidates, relaxed, exact = _solved(problem)
    prover = Certifier(problem, candidates, relaxed.points, relaxed.pool, exact.objective, backend="clarabel")
    plain = prover.run(exact.objective, target_gap=1e-4)
    assert prover.relaxed and "numbers of assignments" not in prover.method
    branched = prover.run(exact.objective, target_gap=1e-4, max_cuts=40, branch=True)
    assert plain < branched <= exact.objective * (1 + 1e-9)
    assert "numbers of assignments" in prover.method


def test_what_is_proven_survives_an_interrupt() -> None:
    problem = tiny_problem(np.random.default_rng(22), devices=2, tasks=1, slots=4, mode="min_energy")
    candidates, relaxed, exact = _solved(problem)
    prover = Certifier(problem, candidates, relaxed.points, relaxed.pool, exact.objective, backend="clarabel")

    def stop(count: int, _: float) -> None:
        if count > 12:
            raise SolverError("stop")

    with pytest.raises(SolverError, match="stop"):
        prover.run(exact.objective, target_gap=1e-6, branch=True, on_cut=stop)
    interrupted = prover.proven
    assert 0.0 < interrupted <= exact.objective * (1 + 1e-9)
    assert prover.run(exact.objective, target_gap=1e-6, max_cuts=20, branch=True) >= interrupted
