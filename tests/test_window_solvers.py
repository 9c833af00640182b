"""Solvers on problems whose participation is judged by windows: against brute force, other programs, and definitions written out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import cvxpy as cp
import numpy as np
import pytest
from tiny import tiny_problem, tiny_problem_dict

from schedopt.bounds.async_schedule import FACTOR, AsyncScheduleBound, aggregate, fixed_terms
from schedopt.bounds.windowed import C3_LIMIT, window_sums, window_terms
from schedopt.certify import Certifier
from schedopt.colgen.ratio_bound import RatioBound, fees_of
from schedopt.colgen.workers import PlanRequest, Workers
from schedopt.conditions import meet_conditions
from schedopt.constraints import validate_schedule
from schedopt.cuts import cut_prices, lagrangian_cut
from schedopt.errors import InputError
from schedopt.formulation.candidates import Candidates, Prices, build_candidates, price, steps_limit
from schedopt.formulation.tables import PlanTables
from schedopt.objective import evaluate_objective
from schedopt.participation import participation_groups
from schedopt.polish.estimate import Estimator, Ledger
from schedopt.problem import Problem
from schedopt.proof.multipliers import node_cut
from schedopt.proof.nodes import Limit, Node
from schedopt.proof.pricing import PriceTables
from schedopt.proof.program import Duals
from schedopt.proof.tree import ProofTree
from schedopt.registry import get_solver, solve, solver_names
from schedopt.repair import repair
from schedopt.sca.loop import RelaxedSolution, solve_relaxation
from schedopt.sca.master import MasterScale, solve_master
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings, judges_windows
from schedopt.solvers.heuristics import Context, fit, meet_limits, prepare
from schedopt.solvers.random_feasible import random_skeleton
from schedopt.solvers.window_room import WindowRoom
from schedopt.staleness import window_staleness
from schedopt.state import Merit, state_of

MODES = ("weighted", "min_energy", "min_bound")
REFUSING = [name for name in solver_names() if not judges_windows(get_solver(name))]


def windowed(seed: int, length: int, devices: int = 3, tasks: int = 2, slots: int = 5, **options: object) -> Problem:
    return tiny_problem(np.random.default_rng(seed), devices, tasks, slots, participation={"window": length}, **options)


def random_schedules(problem: Problem, rng: np.random.Generator, count: int) -> list[Schedule]:
    """Schedules that keep every constraint but the mode's targets, of all densities."""
    context, found = Context.of(problem), []
    for _ in range(count):
        skeleton = random_skeleton(context, rng, float(rng.uniform(0.2, 1.0)), float(rng.uniform(1.0, 3.0)))
        size = len(skeleton)
        steps, batch = rng.integers(1, 4, size).astype(float), rng.integers(5, 31, size).astype(float)
        found.append(meet_limits(context, fit(context, prepare(context, skeleton), steps, batch)))
    return [schedule for schedule in found if len(schedule)]


def feasible_objectives(problem: Problem, rng: np.random.Generator, count: int) -> list[float]:
    good = [s for s in random_schedules(problem, rng, count) if validate_schedule(problem, s).feasible]
    return [evaluate_objective(problem, s).objective for s in good]


# --- groups ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("participation", ["horizon", {"window": 2}, {"window": 5}])
def test_multipliers_bound_participation_from_below(participation: object) -> None:
    """ρ 2c Σ d²/H ≥ Σ pull·h − Σ offset·H for any sums, at any pulls and prices."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        problem = tiny_problem(np.random.default_rng(seed), 4, 2, 5, participation=participation)
        groups = participation_groups(problem)
        for _ in range(40):
            h, size = rng.exponential(1.0, groups.shape) * (rng.random(groups.shape) < 0.7), rng.uniform(0.01, 3.0)
            rho = rng.exponential(1.0, 2) * (rng.random(2) < 0.9)
            near = rng.exponential(1.0, groups.shape)
            pull, offset = groups.multipliers(rng.normal(0.0, size, groups.shape), rho, near, groups.per_task(near.sum(axis=0)))
            worth = groups.per_task((pull * h).sum(axis=0) - offset * h.sum(axis=0))
            assert np.all(rho * groups.error(h) >= worth - 1e-9 * np.abs(pull * h).sum())


def test_pulls_that_fit_are_kept_and_tight() -> None:
    """The subgradient at given sums is a multiplier that needs no repair, and the bound that it proves is exact there."""
    rng = np.random.default_rng(1)
    groups = participation_groups(windowed(3, 2, devices=5))
    for _ in range(50):
        h, rho = rng.exponential(1.0, groups.shape), rng.uniform(0.1, 2.0, 2)
        z = groups.distance(h) / h.sum(axis=0)
        pull = rho[:, None] * groups.factor * (groups.slopes(h) + z**2)
        kept, offset = groups.multipliers(pull, rho, h, rho)
        np.testing.assert_allclose(kept, pull, rtol=1e-7, atol=1e-9 * np.abs(pull).max())
        worth = groups.per_task((kept * h).sum(axis=0) - offset * h.sum(axis=0))
        np.testing.assert_allclose(worth, rho * groups.error(h), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("participation", ["horizon", {"window": 2}])
def test_slopes_are_derivatives(participation: object) -> None:
    """One-sided differences lie on both sides of the slope at kinks, and agree with it elsewhere; an empty group is begun by one."""
    problem = tiny_problem(np.random.default_rng(5), 4, 2, 5, participation=participation)
    groups, rng = participation_groups(problem), np.random.default_rng(2)
    h = rng.exponential(1.0, groups.shape)
    h[..., -1] = 0.0
    slopes, tiny = groups.slopes(h), 1e-7
    for place in np.ndindex(*groups.shape):
        sides = []
        for sign in (1.0, -1.0):
            moved = h.copy()
            moved[place] += sign * tiny
            if moved[place] >= 0:
                sides.append(sign * (groups.error(moved) - groups.error(h)).sum() / tiny / groups.factor)
        assert min(sides) - 1e-4 <= slopes[place] <= max(sides) + 1e-4


def test_estimates_of_changes_are_exact_in_h_and_errors() -> None:
    """The estimated gain of arbitrary changes of two devices is that of the ratios with T_part computed anew."""
    problem = windowed(11, 2, term_scale={"stale": 0.0})
    rng = np.random.default_rng(3)
    state = next(s for s in (state_of(problem, x) for x in random_schedules(problem, rng, 20)) if s and np.isfinite(s.evaluation.objective))
    groups, s = participation_groups(problem), state.schedule
    sums = aggregate(problem.arrays, s)
    h_now = groups.sums(s.device, s.task, s.end, sums.h)
    n_now = state.evaluation.bound.total * sums.h_total / FACTOR - fixed_terms(problem.arrays)
    rows, w = 30, FACTOR * problem.arrays.weight
    changes = [(rng.integers(0, 3, rows), 0.3 * h_now.max() * rng.random((rows, *groups.shape[1:]))) for _ in range(2)]
    changes[1] = ((changes[0][0] + 1) % 3, changes[1][1])
    error = 0.1 * n_now * rng.random((rows, 2))
    merit = Merit(problem, np.ones(2), 1.0)
    zero = np.zeros(rows)
    gain = Estimator(problem, state, merit)(Ledger(zero, zero, sum(c for _, c in changes), error), changes)
    for k in range(rows):
        after = h_now.copy()
        for device, change in changes:
            after[device[k]] += change[k]
        n = n_now + error[k] + groups.error(after) - groups.error(h_now)
        h = groups.per_task(after.sum(axis=0))
        wanted = (w * (fixed_terms(problem.arrays) + n_now) / sums.h_total).sum() - (w * (fixed_terms(problem.arrays) + n) / h).sum()
        assert gain[k] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_staleness_to_first_order(length: int) -> None:
    """T_stale is a polynomial in the h and noise of an assignment: its derivative at none of it, by a small share of it."""
    rng, seen = np.random.default_rng(length), 0
    problem = windowed(12, length, slots=6, term_scale={"stale": 0.7})
    a, context = problem.arrays, Context.of(problem)
    assert a.windows is not None
    for _ in range(15):
        base = prepare(context, random_skeleton(context, rng, 0.9, 1.5)).base
        schedule = base.replace(steps=rng.integers(1, 4, len(base)).astype(float), batch=np.full(len(base), 7.0))
        others = schedule.take(np.arange(len(schedule) - 1))
        sums = aggregate(a, others)
        model = window_staleness(a, others, sums)
        last = schedule.take([len(schedule) - 1])
        i, j, start, end = last.device, last.task, last.start, last.end
        whole = aggregate(a, schedule)
        values = []
        for share in (0.0, 1e-6):
            weight = np.append(np.ones(len(others)), share)
            parts = window_sums(a, schedule, a.windows, whole.h * weight, whole.noise * weight)
            # the factor of Theorem 2 jumps where the first model moves
            parts = replace(parts, factor=sums.windows.factor)
            terms = window_terms(a, schedule, parts, whole.h * weight, whole.sigma2 * np.append(np.ones(len(others)), 0.0))
            values.append(0.7 * terms["stale"])
        slope = (values[1] - values[0]) / 1e-6
        predicted = whole.h[-1] * model.per_h(i, j, start, end)[0] + whole.noise[-1] * model.noise[j[0], end[0]]
        assert slope[j[0]] == pytest.approx(predicted, rel=1e-4, abs=1e-12)
        seen += predicted > 0
    assert seen > 2


# --- conditions ------------------------------------------------------------------------------------------------------------------------


def large_steps(seed: int, length: int) -> Problem:
    """C2 and C3 bind: few devices with much weight."""
    return windowed(seed, length, slots=6, task={"server_rate": 16.0 if length == 1 else 4.0})


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_schedules_are_made_to_meet_the_conditions(length: int) -> None:
    broken = 0
    for seed in range(4):
        problem, rng = large_steps(seed, length), np.random.default_rng(seed)
        context = Context.of(problem)
        for _ in range(10):
            skeleton = random_skeleton(context, rng, 0.9, 1.5)
            base = prepare(context, skeleton).base
            steps = np.full(len(base), float(steps_limit(problem)[0]))
            schedule = base.replace(steps=steps)
            held = [c.holds.all() for c in AsyncScheduleBound().evaluate(problem, schedule).conditions]
            broken += not all(held)
            met, kept = meet_conditions(problem.arrays, schedule)
            assert len(met) == len(kept) and np.all(met.steps <= steps[kept]) and np.array_equal(met.end, schedule.end[kept])
            assert all(c.holds.all() for c in AsyncScheduleBound().evaluate(problem, met).conditions)
            if all(held):
                assert len(met) == len(schedule) and np.array_equal(met.steps, schedule.steps)
            repaired = repair(problem, schedule)
            assert repaired is None or validate_schedule(problem, repaired.schedule).feasible
    assert broken > 5


@pytest.mark.parametrize("length", [1, 2, 4])
def test_room_is_safe_and_not_idle(length: int) -> None:
    """What the room allows meets C2 and C3 in the exact evaluation; what it forbids breaks one of them, C2 at its larger factor."""
    refused = 0
    for seed in range(4):
        problem, rng = large_steps(seed, length), np.random.default_rng(seed)
        a = problem.arrays
        assert a.windows is not None
        room, taken = WindowRoom(a, a.windows), Schedule.empty()
        order = [(i, j, g, g + n) for i, j, g, n in product(range(3), range(2), range(6), (1, 2, 3)) if g + n <= 6]
        for i, j, start, end in rng.permutation(order)[:60]:
            one = np.array([1.0])
            row = Schedule(np.array([i]), np.array([j]), np.array([start]), np.array([end]), 3 * one, 5 * one, one, one, one)
            tried = taken.concat(row)
            h = float(aggregate(a, row).h[0])
            conditions = AsyncScheduleBound().evaluate(problem, tried).conditions[1:]
            if room.allows(np.array([j]), np.array([start]), np.array([end]), np.array([h]))[0]:
                assert all(c.holds.all() for c in conditions)
                taken = tried
                room.add(int(j), int(start), int(end), h)
                movement = aggregate(a, taken).windows.movement
                assert room.moved.max() * a.smoothness.max() ** 2 >= movement.max() * (1 - 1e-9) - 1e-15
            else:
                refused += 1
                c2, c3 = conditions
                assert c3.value.max() > C3_LIMIT * (1 - 1e-9) or c2.value.max() > 0.5 * 17 / 36 * (1 - 1e-9)
    assert refused > 0


# --- prices and tables -----------------------------------------------------------------------------------------------------------------


@cache
def relaxed(seed: int, length: int, mode: str = "weighted", **options: object) -> tuple[Problem, Candidates, RelaxedSolution]:
    problem = windowed(seed, length, mode=mode, **options)
    candidates = build_candidates(problem)
    return problem, candidates, solve_relaxation(problem, candidates, backend="clarabel")


def prices_by_window(problem: Problem, at: Prices, rng: np.random.Generator) -> Prices:
    """The prices with a worth of h that depends on the window."""
    groups = participation_groups(problem)
    value = at.value if at.value.ndim == 3 else np.repeat(at.value[:, :, None], groups.shape[2], axis=2)
    return Prices(at.energy, at.bandwidth, value * rng.uniform(0.5, 1.5, groups.shape), at.noise)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_tables_agree_with_pricing_all_candidates(length: int) -> None:
    problem, candidates, found = relaxed(4, length)
    rng = np.random.default_rng(0)
    for _ in range(5):
        prices = prices_by_window(problem, found.point.prices, rng)
        exact = price(candidates, prices, for_bound=True)
        # each candidate alone, at the one worth of its own window
        for k in rng.choice(len(candidates), 10):
            one = candidates.take([k])
            i, j, m = one.device[0], one.task[0], participation_groups(problem).number(one.end)[0]
            flat = Prices(prices.energy, prices.bandwidth, np.full((3, 2), prices.value[i, j, m]), prices.noise)
            assert price(one, flat).cost[0] == pytest.approx(exact.cost[k], rel=1e-9)
        fee = rng.exponential(0.05 * -exact.lower.min(), (3, 5)) * (rng.random((3, 5)) < 0.5)
        for fees in (None, fee):
            plans = PlanTables(problem).plans(prices, fee=fees)
            assert plans.lower == pytest.approx(best_by_paths(problem, candidates, exact.lower, fees), rel=1e-6)
            assert np.all(plans.cost >= plans.lower * (1 + 1e-12) - 1e-12) and np.allclose(plans.cost, plans.lower, rtol=1e-3)
        table = PriceTables(candidates).price(prices)
        paying = exact.lower < 0
        assert np.all(table.lower[paying] <= exact.cost[paying] + 1e-9 * np.abs(exact.cost[paying]))
        assert np.all(table.lower[~paying] >= -1e-2 * np.abs(exact.lower).max())


def best_by_paths(problem: Problem, candidates: Candidates, cost: np.ndarray, fee: np.ndarray | None) -> np.ndarray:
    """Cheapest plan of every device by a plain recursion over instants."""
    a = problem.arrays
    best = np.zeros((a.num_devices, a.slots + 1))
    for i in range(a.num_devices):
        for g in range(1, a.slots + 1):
            best[i, g] = best[i, g - 1]
            for k in np.flatnonzero((candidates.device == i) & (candidates.end == g)):
                due = 0.0 if fee is None else fee[i, candidates.start[k] : g].sum()
                if cost[k] < 0:
                    best[i, g] = min(best[i, g], best[i, candidates.start[k]] + cost[k] + due)
    return best[:, -1]


# --- the relaxed problem ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5])
def test_master_agrees_with_the_program_written_out(length: int) -> None:
    """Mode min_energy over given columns: d by a minimum over c within cvxpy's own perspective, nothing scaled, no index tricks."""
    problem, candidates, found = relaxed(8, length, "min_energy", devices=3, tasks=2, slots=5)
    a, columns = problem.arrays, found.pool.columns
    scale = MasterScale(found.point.value, found.point.h)
    point = solve_master(problem, candidates, columns, None, scale, backend="clarabel")
    assert point is not None and point.slack < 1e-7
    x = cp.Variable(len(columns), nonneg=True)
    device, task, start, end = (getattr(candidates, name)[columns.candidate] for name in ("device", "task", "start", "end"))
    rows = [x @ ((device == i) & (start <= g) & (g < end)).astype(float) <= 1 for i in range(3) for g in range(5)]
    rows += [x @ ((end == g + 1) * columns.bandwidth_hz / a.bandwidth_hz) <= 1 for g in range(5)]
    for j in range(2):
        unit = found.point.h[j]
        n, h_all = x @ ((task == j) * columns.error / unit), x @ ((task == j) * columns.h / unit)
        for first in range(0, 5, length):
            inside = (task == j) & (end > first) & (end <= first + length)
            if not np.any(inside):
                continue
            h = [x @ (inside * (device == i) * columns.h / unit) for i in range(3)]
            c, d = cp.Variable(), cp.Variable()
            rows.append(sum(cp.abs(h[i] - a.aggregation_weight[i, j] * c) * a.dissimilarity[i, j] for i in range(3)) <= d)
            n = n + 2.0 * cp.quad_over_lin(d, sum(h))
        rows.append(fixed_terms(a)[j] / unit + n <= a.target[j] / FACTOR * h_all)
    least = cp.Problem(cp.Minimize(x @ columns.energy_j / scale.objective), rows).solve(solver=cp.CLARABEL)
    assert point.energy_j == pytest.approx(least * scale.objective, rel=1e-5)
    # its prices prove about its value
    cut, _ = lagrangian_cut(problem, candidates, point)
    proven = float(cut.error_price @ fixed_terms(a)) + cut.level
    assert 0.95 * point.energy_j <= proven <= point.energy_j * (1 + 1e-6)


@pytest.mark.parametrize(("mode", "length"), [(mode, length) for k, mode in enumerate(MODES) for length in (1, 2, 3, 5)[k % 2 :: 2]])
def test_no_proof_is_above_any_schedule(mode: str, length: int) -> None:
    """Cuts at any prices, the separable bound, nodes of the tree and certificates, against random schedules and the solver's."""
    problem, candidates, found = relaxed(20 + length, length, mode)
    rng = np.random.default_rng(length)
    settings = SolverSettings(switches={"kicks": "1", "long_rounds": "2", "restarts": "0"})
    result = solve(problem, settings=settings)
    objectives = feasible_objectives(problem, rng, 40) + [result.objective]
    best = min(objectives)
    assert np.isfinite(best) and result.lower_bound is not None and result.lower_bound <= best * (1 + 1e-9)
    assert result.lower_bound >= 0.5 * result.objective
    schedules = random_schedules(problem, rng, 15)
    for _ in range(8):
        check_cut(problem, candidates, found, schedules, rng)
    prover = Certifier(problem, candidates, found.points, found.pool, best, backend="clarabel")
    assert prover.run(best, target_gap=1e-3, max_cuts=12, branch=True) <= best * (1 + 1e-9)
    if mode != "min_energy":
        with Workers(problem, workers=1) as pricing:
            at = cut_prices(problem, found.point)
            plans = pricing.plans(PlanRequest(at.prices))[0]
            separable = RatioBound(problem, at, fees_of(plans), best).run(pricing.plans, tolerance=1e-3 * best, rounds=5)
        assert separable <= best * (1 + 1e-9)


def check_cut(
    problem: Problem, candidates: Candidates, found: RelaxedSolution, schedules: list[Schedule], rng: np.random.Generator
) -> None:
    """V ≥ π·H − ρ·N + K for every schedule, at distorted prices."""
    point = found.point

    def distorted(values: np.ndarray) -> np.ndarray:
        return values * np.exp(rng.normal(0.0, 0.5, values.shape))

    prices = replace(point.prices, value=distorted(point.prices.value), noise=distorted(point.prices.noise))
    cut, _ = lagrangian_cut(problem, candidates, replace(point, prices=prices, task_value=distorted(point.task_value)))
    a, objective = problem.arrays, problem.objective
    weight = {"weighted": objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[objective.mode]
    for schedule in schedules:
        evaluation = evaluate_objective(problem, schedule)
        sums = aggregate(a, schedule)
        trained = sums.h_total > 0
        n = np.where(trained, np.where(trained, evaluation.bound.total, 0.0) * sums.h_total / FACTOR - fixed_terms(a), 0.0)
        value = weight * evaluation.energy_j
        assert value >= float(cut.h_price @ sums.h_total - cut.error_price @ n) + cut.level - 1e-9 * abs(cut.level)


@pytest.mark.parametrize("mode", MODES)
def test_any_duals_of_a_node_give_a_valid_bound(mode: str) -> None:
    """As for the other participations: random limits that a good schedule meets, random duals."""
    problem, candidates, found = relaxed(31, 2, mode, devices=2, tasks=2, slots=4)
    best = solve(problem, settings=SolverSettings(switches={"kicks": "0", "long_rounds": "1", "restarts": "0"}))
    assert best.schedule is not None
    a, groups, rng = problem.arrays, participation_groups(problem), np.random.default_rng(3)
    s = best.schedule
    used = candidates.find(s.device, s.task, s.start, s.end)
    prover = Certifier(problem, candidates, found.points, found.pool, best.objective, backend="clarabel")
    tree = ProofTree(
        problem, candidates, found.pool.columns, prover._search, floor=0.0, unit=best.objective, point=found.point, least=np.zeros(2)
    )  # fmt: skip
    first = tree.heap[0]
    for _ in range(25):
        members = rng.random(len(candidates)) < 0.5
        limits = (Limit(members, int(sign := rng.choice([-1, 1])), max(int(members[used].sum()) + int(sign) * int(rng.integers(0, 2)), 0)),)
        size = rng.uniform(0.1, 10.0)
        duals = Duals(
            bandwidth=rng.exponential(size, a.slots) / a.bandwidth_hz,
            budget=np.zeros(a.num_devices),
            limit=float(rng.exponential(size)),
            task_value=rng.normal(0.0, 20.0 * size, 2),
            noise=rng.exponential(size, (2, 1)),
            tangent=np.zeros((2, 1)),
            pull=rng.normal(0.0, size, groups.shape),
            fees=rng.exponential(size, 1),
        )
        node = Node(-np.inf, 0, first.box, limits)
        cut = node_cut(problem, candidates, tree.tables, node, duals, best.objective).cut
        assert tree._value(node, cut) <= best.objective * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES[:2])
def test_the_tree_rises_to_the_schedules(mode: str) -> None:
    """With columns enough, nodes are about as good as their programs: the bound rises and ends below what is found."""
    problem, candidates, found = relaxed(22, 2, mode, devices=2, tasks=1, slots=4)
    best = solve(problem, settings=SolverSettings(switches={"kicks": "1", "long_rounds": "3", "restarts": "0"})).objective
    prover = Certifier(problem, candidates, found.points, found.pool, best, backend="clarabel")
    start = prover.run(best, target_gap=1e-4, max_cuts=15)
    reached = prover.run(best, target_gap=1e-4, max_cuts=60, branch=True)
    assert start <= reached <= best * (1 + 1e-9)
    assert reached > 0.9 * best


# --- optima ----------------------------------------------------------------------------------------------------------------------------


def all_plans(slots: int) -> list[list[tuple[int, int]]]:
    """Sets of disjoint intervals of one device."""
    if slots == 0:
        return [[]]
    plans = [list(plan) for plan in all_plans(slots - 1)]
    for start in range(slots):
        plans += [[*plan, (start, slots)] for plan in all_plans(start)]
    return plans


def brute_force(problem: Problem) -> float:
    """The optimum of one task and two devices by trying every plan with every number of steps and batch."""
    a = problem.arrays
    single: list[list[tuple[int, int, int, int, int]]] = [[], []]
    for i in range(2):
        choices = list(product(range(1, int(a.max_steps[0]) + 1), range(int(a.min_batch[0]), int(a.samples[i, 0]) + 1)))
        for plan in all_plans(a.slots):
            for sizes in product(choices, repeat=len(plan)):
                single[i].append([(i, *span, *size) for span, size in zip(plan, sizes, strict=True)])
    best = np.inf
    for first, second in product(*single):
        rows = [*first, *second]
        if not rows:
            continue
        device, start, end, steps, batch = np.array(rows).T
        zero, sizes = np.zeros(len(rows)), (steps.astype(float), batch.astype(float))
        state = state_of(problem, Schedule(device, np.zeros_like(device), start, end, *sizes, zero, zero, zero))
        if state is not None and state.evaluation.objective < best and validate_schedule(problem, state.schedule).feasible:
            best = state.evaluation.objective
    return best


@pytest.mark.parametrize(("mode", "length"), [("weighted", 1), ("min_energy", 2), ("min_bound", 2)])
def test_the_solvers_against_brute_force(mode: str, length: int) -> None:
    """No schedule is better than the optimum and no bound above it; the default solver finds it."""
    rng = np.random.default_rng(40 + length)
    data = tiny_problem_dict(rng, 2, 1, 2, max_steps=2, samples=(5, 6), mode=mode, participation={"window": length})
    problem = Problem.model_validate(data)
    best = brute_force(problem)
    assert np.isfinite(best)
    for name in ("sca", "column_generation", "greedy_energy", "synchronous", "round_robin", "random_feasible"):
        result = solve(problem, solver=name, settings=SolverSettings(certify=name == "sca", target_gap=0.2, max_iterations=30))
        assert result.schedule is not None and result.objective >= best * (1 - 1e-7), name
        assert result.lower_bound is None or result.lower_bound <= best * (1 + 1e-7)
        if name in ("sca", "column_generation"):
            assert result.objective <= best * (1 + 1e-3)
        if name == "sca":
            assert result.lower_bound is not None and result.lower_bound >= 0.7 * best


def test_windows_of_one_instant_charge_less_than_the_instant_bound() -> None:
    """Without drift every schedule's Ψ is at most Theorem 1's, and so is any proven bound at most any schedule's value there."""
    rng = np.random.default_rng(9)
    data = tiny_problem_dict(rng, 3, 2, 5)
    for device in data["devices"]:
        for entry in device["tasks"].values():
            entry["gradient_drift"] = 0.0
    instant = Problem.model_validate(data)
    data["objective"]["participation"] = {"window": 1}
    one = Problem.model_validate(data)
    schedules = random_schedules(instant, rng, 30)
    for schedule in schedules:
        a, b = (AsyncScheduleBound().evaluate(problem, schedule).total for problem in (one, instant))
        assert np.all(a <= b * (1 + 1e-12))
    settings = SolverSettings(switches={"kicks": "1", "long_rounds": "2", "restarts": "0"})
    bound, other = solve(one, settings=settings), solve(instant, settings=settings)
    assert bound.lower_bound is not None and bound.lower_bound <= other.objective
    assert evaluate_objective(one, other.schedule).objective <= other.objective * (1 + 1e-12)


def test_windows_let_devices_take_turns() -> None:
    """Two devices that never fit the band together: over a window of two instants both count, and the bound is lower."""
    data = tiny_problem_dict(np.random.default_rng(2), 2, 1, 4, term_scale={"part": 20.0}, fading=False)
    found = []
    for window in (1, 2):
        data["objective"]["participation"] = {"window": window}
        problem = Problem.model_validate(data)
        groups, a = participation_groups(problem), problem.arrays
        one = np.ones(4)
        device, end = np.array([0, 1, 0, 1]), np.arange(1, 5)
        turns = Schedule(device, np.zeros(4, dtype=np.int64), end - 1, end, 3 * one, 20 * one, one, one, one)
        found.append(groups.error(groups.sums(turns.device, turns.task, turns.end, aggregate(a, turns).h))[0])
    assert found[1] < 1e-9 * found[0] or found[1] < 0.5 * found[0]


@pytest.mark.parametrize("name", REFUSING)
def test_solvers_without_windows_say_so(name: str) -> None:
    wanted = 'objective.participation = {"window": 2}: solver NAME handles "instant" and "horizon"; use sca or column_generation'
    with pytest.raises(InputError) as error:
        solve(windowed(1, 2), solver=name)
    assert str(error.value) == wanted.replace("NAME", name)


def test_only_four_solvers_refuse() -> None:
    assert set(REFUSING) == {"native_sca", "native_sca_log", "exact_milp", "enumeration"}
