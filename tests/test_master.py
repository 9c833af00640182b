"""The restricted master against scipy, its duals as prices, its backends, and the loop of column generation around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from builders import make_problem
from scipy.optimize import minimize
from tiny import tiny_problem_dict

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.errors import InputError, SolverError
from schedopt.formulation.candidates import Candidates, Columns, best_paths, build_candidates, price, price_columns
from schedopt.problem import TERMS, Problem
from schedopt.registry import solve
from schedopt.sca import conic
from schedopt.sca.conic import check_backend, mosek_licence_problem, solve_conic
from schedopt.sca.loop import relaxed_objective, solve_relaxation
from schedopt.sca.master import MasterPoint, MasterScale, solve_master
from schedopt.sca.pool import ColumnPool, first_columns
from schedopt.sca.surrogates import RatioModel, majorant

#: Settings of the problems that the tests go through: every mode, both participations, budgets.
VARIANTS: dict[str, dict[str, Any]] = {
    "weighted": {"mode": "weighted"},
    "weighted horizon": {"mode": "weighted", "participation": "horizon"},
    "min_bound": {"mode": "min_bound", "total_energy_j": None},
    "min_bound limited": {"mode": "min_bound", "total_energy_j": 0.25},
    "min_energy": {"mode": "min_energy"},
    "min_energy horizon": {"mode": "min_energy", "participation": "horizon"},
}


def variant_problem(name: str, seed: int, devices: int = 3, slots: int = 4, *, budgets: bool = False) -> Problem:
    data = tiny_problem_dict(np.random.default_rng(seed), devices, 2, slots, **VARIANTS[name])
    if name.startswith("min_energy"):
        for task in data["tasks"]:
            task["target"] = 10.0
    if budgets:
        for device in data["devices"]:
            device["energy_budget_j"] = 0.05
    return make_problem(data)


@dataclass(frozen=True)
class Case:
    """A master over a handful of columns."""

    problem: Problem
    candidates: Candidates
    columns: Columns
    model: RatioModel | None
    scale: MasterScale

    def solve(self, backend: str = "clarabel", prox: float = 0.0) -> MasterPoint:
        point = solve_master(self.problem, self.candidates, self.columns, self.model, self.scale, backend=backend, prox=prox)
        assert point is not None
        return point

    def value(self, **changes: Any) -> float:
        """Optimal value with some columns' numbers (or the problem) exchanged."""
        case = replace(self, problem=changes.pop("problem", self.problem), columns=replace(self.columns, **changes))
        return case.solve().value


def small_case(name: str, seed: int, count: int = 12, *, budgets: bool = False) -> Case:
    """``count`` random columns, of every task and device that has any; the iterate is about a third of what they can do."""
    problem = variant_problem(name, seed, budgets=budgets)
    rng, candidates = np.random.default_rng(seed), build_candidates(problem)
    pool = ColumnPool(first_columns(problem, candidates)).columns
    task = candidates.task[pool.candidate]
    chosen = np.concatenate([rng.permutation(np.flatnonzero(task == j))[: count // 2] for j in range(2)])
    columns = pool.take(np.sort(chosen))
    task = candidates.task[columns.candidate]
    h, error = (0.3 * np.bincount(task, weights=x, minlength=2) for x in (columns.h, columns.error))
    model = None if problem.objective.mode == "min_energy" else majorant(problem.arrays, h, np.maximum(error, 1e-6))
    unit = float(np.sum(FACTOR * problem.arrays.weight * (fixed_terms(problem.arrays) + error) / h))
    if problem.objective.mode == "min_energy":
        unit = float(columns.energy_j.sum())
    return Case(problem, candidates, columns, model, MasterScale(unit, h))


# --- against scipy -------------------------------------------------------------------------------------------------------------------


class Plain:
    """The master once more, for a general solver: variables x and the distances d_ij of participation, in units of the scale's H."""

    def __init__(self, case: Case, prox: float) -> None:
        self.case, self.prox, self.a = case, prox, case.problem.arrays
        k = case.columns.candidate
        self.device, self.task = case.candidates.device[k], case.candidates.task[k]
        self.start, self.end = case.candidates.start[k], case.candidates.end[k]
        self.n = len(case.columns)
        self.horizon = case.problem.objective.participation == "horizon"
        self.part = 2.0 * self.a.term_scale[TERMS.index("part")] if self.horizon else 0.0
        self.pairs = [(i, j) for i in range(self.a.num_devices) for j in range(2)] if self.horizon else []

    def h(self, v: np.ndarray) -> np.ndarray:
        return np.bincount(self.task, weights=self.case.columns.h * v[: self.n], minlength=2)

    def errors(self, v: np.ndarray) -> np.ndarray:
        error = np.bincount(self.task, weights=self.case.columns.error * v[: self.n], minlength=2)
        if not self.horizon:
            return error
        distance = np.zeros(2)
        for (_, j), d in zip(self.pairs, v[self.n :], strict=True):
            distance[j] += d * self.case.scale.h[j]
        return error + self.part * distance**2 / np.maximum(self.h(v), 1e-12)

    def energy(self, v: np.ndarray) -> float:
        return float(self.case.columns.energy_j @ v[: self.n])

    def objective(self, v: np.ndarray) -> float:
        objective, h = self.case.problem.objective, np.maximum(self.h(v), 1e-9)
        if self.case.model is None:
            return self.energy(v)
        total = float(self.case.model.value(h, self.errors(v)).sum())
        total += 0.5 * self.prox * self.case.scale.objective * float(np.sum((h / self.case.scale.h - 1.0) ** 2))
        return total + (objective.energy_weight * self.energy(v) if objective.mode == "weighted" else 0.0)

    def linear_rows(self) -> np.ndarray:
        """Rows A with A v ≤ 1: slots of devices, the band, budgets, the total energy."""
        rows, columns, a = [], self.case.columns, self.a
        for i in range(a.num_devices):
            for g in range(a.slots):
                rows.append(((self.device == i) & (self.start <= g) & (g < self.end)).astype(float))
            if np.isfinite(a.energy_budget_j[i]):
                rows.append((self.device == i) * columns.energy_j / a.energy_budget_j[i])
        for g in range(a.slots):
            rows.append((self.end - 1 == g) * columns.bandwidth_hz / a.bandwidth_hz)
        limit = self.case.problem.objective.total_energy_j
        if self.case.problem.objective.mode == "min_bound" and limit is not None:
            rows.append(columns.energy_j / limit)
        return np.pad(np.array(rows), ((0, 0), (0, len(self.pairs))))

    def distance_rows(self) -> np.ndarray:
        """Rows A with A v ≥ 0: d_ij ≥ ±δ_ij (h_ij − λ_ij H_j)."""
        rows = []
        for position, (i, j) in enumerate(self.pairs):
            share = (self.task == j) * ((self.device == i) - self.a.aggregation_weight[i, j]) * self.case.columns.h / self.case.scale.h[j]
            for sign in (1.0, -1.0):
                own = np.zeros(len(self.pairs))
                own[position] = 1.0
                rows.append(np.concatenate([sign * self.a.dissimilarity[i, j] * share, own]))
        return np.array(rows)

    def minimum(self) -> float:
        rows = self.linear_rows()
        constraints: list[dict[str, Any]] = [{"type": "ineq", "fun": lambda v: 1.0 - rows @ v, "jac": lambda v: -rows}]
        if self.horizon:
            distance = self.distance_rows()
            constraints.append({"type": "ineq", "fun": lambda v: distance @ v, "jac": lambda v: distance})
        if self.case.model is None:
            target = self.a.target
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda v: (target / FACTOR * self.h(v) - fixed_terms(self.a) - self.errors(v)) / fixed_terms(self.a),
                }
            )
        unit = abs(self.case.scale.objective)
        best = np.inf
        for level in (0.3, 0.1, 0.5):
            start = np.concatenate([np.full(self.n, level), np.ones(len(self.pairs))])
            found = minimize(
                lambda v: self.objective(v) / unit,
                start,
                method="SLSQP",
                bounds=[(0.0, 1.0)] * self.n + [(0.0, None)] * len(self.pairs),
                constraints=constraints,
                options={"ftol": 1e-14, "maxiter": 1000},
            )
            if min(float(np.min(row["fun"](found.x))) for row in constraints) > -1e-8:
                best = min(best, self.objective(found.x))
        return best


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_master_against_scipy(name: str, seed: int) -> None:
    case = small_case(name, seed, budgets=seed == 1)
    point = case.solve()
    assert point.slack < 1e-7
    plain = Plain(case, 0.0)
    assert point.value == pytest.approx(plain.minimum(), rel=2e-5)
    check_point(case, plain, point)


def check_point(case: Case, plain: Plain, point: MasterPoint) -> None:
    """What the point says of itself: rows kept, aggregates those of its weights."""
    assert np.all(point.weights >= 0)
    assert np.max(plain.linear_rows()[:, : plain.n] @ point.weights) <= 1 + 1e-6
    np.testing.assert_allclose(point.h, plain.h(point.weights), rtol=1e-12)
    np.testing.assert_allclose(point.h_device.sum(axis=0), point.h, rtol=1e-12)
    assert point.energy_j == pytest.approx(plain.energy(point.weights), rel=1e-12)
    off = np.abs(point.h_device - case.problem.arrays.aggregation_weight * point.h) * case.problem.arrays.dissimilarity
    error = np.bincount(plain.task, weights=case.columns.error * point.weights, minlength=2)
    np.testing.assert_allclose(point.error, error + plain.part * off.sum(axis=0) ** 2 / point.h, rtol=1e-10)


def test_prox_pulls_towards_the_last_iterate() -> None:
    case = small_case("weighted", 3)
    free, near = case.solve(), case.solve(prox=1.0)
    assert near.value == pytest.approx(Plain(case, 1.0).minimum(), rel=2e-5)
    assert np.sum((near.h / case.scale.h - 1) ** 2) < np.sum((free.h / case.scale.h - 1) ** 2)


def test_box_of_the_model_is_kept() -> None:
    """Limits on H of the model are rows; a floor that is out of reach shows as slack."""
    case = small_case("weighted", 4)
    assert case.model is not None
    free = case.solve()
    for low, high in ((0.0 * free.h, 0.7 * free.h), (1.05 * free.h, np.full(2, np.inf))):
        boxed = replace(case, model=replace(case.model, low=low, high=high)).solve()
        assert np.all(boxed.h >= low * (1 - 1e-6)) and np.all(boxed.h <= high * (1 + 1e-6))
        assert boxed.value >= free.value * (1 - 1e-9)
    out_of_reach = replace(case, model=replace(case.model, low=100.0 * free.h)).solve()
    assert out_of_reach.slack > 0.5


def test_a_target_out_of_reach_is_slack_not_failure() -> None:
    case = small_case("min_energy", 0)
    data = case.problem.to_dict()
    data["tasks"][0]["target"] = 1e-3
    point = replace(case, problem=make_problem(data)).solve()
    assert point.slack > 0.1


# --- duals as prices ---------------------------------------------------------------------------------------------------------------------


def slopes(values: list[float], step: float) -> tuple[float, float]:
    """Backward and forward difference of a convex function from its values at −step, 0, +step: they enclose its slope."""
    return (values[1] - values[0]) / step, (values[2] - values[1]) / step


def between(value: float, ends: tuple[float, float], scale: float) -> bool:
    return min(ends) - 2e-3 * scale <= value <= max(ends) + 2e-3 * scale


@pytest.mark.parametrize("name", VARIANTS)
def test_bandwidth_prices_are_slopes_of_the_optimal_value(name: str) -> None:
    """More band in one slot is as good as columns that need less there."""
    case, step = small_case(name, 5, count=16), 1e-3
    # uploads that need five times the band, so that it is scarce
    case = replace(case, columns=replace(case.columns, bandwidth_hz=5.0 * case.columns.bandwidth_hz))
    point, band = case.solve(), case.problem.arrays.bandwidth_hz
    end = case.candidates.end[case.columns.candidate]
    assert np.any(point.prices.bandwidth * band > 1e-2 * abs(point.value))
    for g in range(case.problem.arrays.slots):
        factors = [np.where(end - 1 == g, 1.0 / (1.0 + amount), 1.0) for amount in (-step, 0.0, step)]
        values = [case.value(bandwidth_hz=case.columns.bandwidth_hz * factor) for factor in factors]
        assert between(-point.prices.bandwidth[g] * band, slopes(values, step), abs(point.value))


def with_tight_budgets(case: Case) -> Problem:
    """The problem with nine tenths of what the two busiest devices spend without budgets."""
    point, data = case.solve(), case.problem.to_dict()
    spent = np.bincount(case.candidates.device[case.columns.candidate], weights=case.columns.energy_j * point.weights, minlength=3)
    for i in np.argsort(-spent)[:2] if case.problem.objective.mode != "min_energy" else [int(np.argmax(spent))]:
        data["devices"][i]["energy_budget_j"] = 0.9 * float(spent[i])
    return make_problem(data)


@pytest.mark.parametrize("name", ["weighted", "weighted horizon", "min_bound", "min_energy"])
def test_energy_prices_are_slopes_of_the_optimal_value(name: str) -> None:
    """The price above the objective's own is what a joule more of the budget is worth."""
    case, step = small_case(name, 0), 1e-3
    case = replace(case, problem=with_tight_budgets(case))
    point = case.solve()
    objective = case.problem.objective
    own = {"weighted": objective.energy_weight, "min_bound": 0.0, "min_energy": 1.0}[objective.mode]
    assert np.any(point.prices.energy > own * 1.01 + 1e-6) and point.slack < 1e-6
    for i in np.flatnonzero(np.isfinite(case.problem.arrays.energy_budget_j)):
        values = []
        for amount in (-step, 0.0, step):
            data = case.problem.to_dict()
            data["devices"][i]["energy_budget_j"] *= 1.0 + amount
            values.append(case.value(problem=make_problem(data)))
        worth = -(point.prices.energy[i] - own) * case.problem.arrays.energy_budget_j[i]
        assert between(worth, slopes(values, step), abs(point.value))


def test_energy_price_of_a_total_limit() -> None:
    case, step = small_case("min_bound limited", 2), 1e-3
    point = case.solve()
    limit = case.problem.objective.total_energy_j
    assert limit is not None and point.energy_j == pytest.approx(limit, rel=1e-5)
    values = []
    for amount in (-step, 0.0, step):
        data = case.problem.to_dict()
        data["objective"]["total_energy_j"] *= 1.0 + amount
        values.append(case.value(problem=make_problem(data)))
    assert np.ptp(point.prices.energy) == 0
    assert between(-float(point.prices.energy[0]) * limit, slopes(values, step), abs(point.value))


@pytest.mark.parametrize("name", VARIANTS)
def test_prices_of_h_and_errors_are_slopes_of_the_optimal_value(name: str) -> None:
    """By the envelope theorem: columns of a device and task with a little more h, or a task's with a little more error."""
    case, step = small_case(name, 6), 1e-4
    point = case.solve()
    k = case.columns.candidate
    device, task = case.candidates.device[k], case.candidates.task[k]
    for i in range(case.problem.arrays.num_devices):
        for j in range(2):
            mine = (device == i) & (task == j)
            up, down = (case.value(h=np.where(mine, case.columns.h * (1 + amount), case.columns.h)) for amount in (step, -step))
            worth = -point.prices.value[i, j] * point.h_device[i, j]
            assert worth == pytest.approx((up - down) / (2 * step), rel=2e-2, abs=2e-3 * abs(point.value))
    for j in range(2):
        up, down = (
            case.value(error=np.where(task == j, case.columns.error * (1 + amount), case.columns.error)) for amount in (step, -step)
        )
        cost = point.prices.noise[j] * float((case.columns.error * point.weights)[task == j].sum())
        assert cost == pytest.approx((up - down) / (2 * step), rel=2e-2, abs=2e-3 * abs(point.value))


@pytest.mark.parametrize("name", VARIANTS)
def test_columns_in_use_pay_for_their_slots_and_no_others_would(name: str) -> None:
    """Complementary slackness; and since intervals are totally unimodular, best plans of the columns are worth the slots' prices."""
    case = small_case(name, 7, budgets=name == "weighted")
    point = case.solve()
    cost = price_columns(case.candidates, case.columns, point.prices)
    scale = abs(point.value) + point.slot_value
    assert -float(cost @ point.weights) == pytest.approx(point.slot_value, abs=1e-5 * scale)
    by_candidate = np.full(len(case.candidates), np.inf)
    np.minimum.at(by_candidate, case.columns.candidate, cost)
    assert -float(best_paths(case.candidates, by_candidate).value.sum()) == pytest.approx(point.slot_value, abs=1e-5 * scale)


# --- backends ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["scs", "ecos"])
@pytest.mark.parametrize("name", VARIANTS)
def test_backends_agree(name: str, backend: str) -> None:
    pytest.importorskip(backend)
    case = small_case(name, 8)
    expected, point = case.solve(), case.solve(backend)
    assert point.value == pytest.approx(expected.value, rel=1e-4)
    np.testing.assert_allclose(point.h, expected.h, rtol=5e-3)


def test_unknown_and_missing_backends() -> None:
    with pytest.raises(InputError, match=r"backend = 'gurobi'; must be one of clarabel, ecos, scs, mosek"):
        check_backend("gurobi")
    check_backend("clarabel")


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conic, "find_spec", lambda name: None)
    with pytest.raises(SolverError, match=r"ecos is not installed; pip install 'schedopt\[ecos\]'"):
        check_backend("ecos")
    with pytest.raises(SolverError, match=r"scs is not installed; pip install scs"):
        check_backend("scs")


def test_mosek_without_a_licence_names_the_remedy() -> None:
    pytest.importorskip("mosek")
    if mosek_licence_problem() is None:
        pytest.skip("a MOSEK licence is present")
    with pytest.raises(SolverError, match=r"no usable licence .*MOSEKLM_LICENSE_FILE.*--backend clarabel"):
        check_backend("mosek")
    with pytest.raises(SolverError, match="MOSEKLM_LICENSE_FILE"):
        from schedopt.solvers.base import SolverSettings

        solve(variant_problem("weighted", 0), settings=SolverSettings(backend="mosek"))


def test_statuses_that_are_no_answers() -> None:
    x = cp.Variable()
    assert solve_conic(cp.Problem(cp.Minimize(x), [x >= 1]), "clarabel")
    assert x.value == pytest.approx(1.0, abs=1e-6)
    assert not solve_conic(cp.Problem(cp.Minimize(x), [x >= 1, x <= 0]), "clarabel")
    assert not solve_conic(cp.Problem(cp.Minimize(x)), "clarabel")


# --- the loop ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["weighted", "weighted horizon", "min_bound limited"])
def test_merit_never_rises_over_fixed_columns(name: str, seed: int) -> None:
    """Majorise and minimise, from a poor start: the exact ratios of the relaxed problem fall until they stand still."""
    case = small_case(name, seed, count=24)
    a = case.problem.arrays
    point = case.solve()
    merit = [relaxed_objective(case.problem, point)]
    for _ in range(12):
        model = majorant(a, point.h, np.maximum(point.error, 1e-9))
        scale = MasterScale(abs(merit[-1]), point.h)
        point = replace(case, model=model, scale=scale).solve(prox=1e-3)
        merit.append(relaxed_objective(case.problem, point))
        assert merit[-1] <= merit[-2] + 1e-6 * abs(merit[-2])
    assert merit[-1] < merit[0]
    assert merit[-2] - merit[-1] < 1e-2 * abs(merit[-1])


@pytest.mark.parametrize("name", VARIANTS)
def test_relaxation_closes_the_gap_of_column_generation(name: str) -> None:
    problem = variant_problem(name, 9, devices=4, slots=5)
    candidates = build_candidates(problem)
    seen: list[float] = []
    relaxed = solve_relaxation(
        problem, candidates, backend="clarabel", tolerance=1e-4, on_iteration=lambda count, point, merit: seen.append(merit)
    )
    assert relaxed.gap < 1e-4
    assert tuple(seen) == relaxed.merit and relaxed.iterations == len(seen)
    assert relaxed.point.slack < 1e-6
    assert relaxed.merit[-1] <= min(relaxed.merit) * (1 + 1e-4)
    assert relaxed.merit[-1] == pytest.approx(relaxed_objective(problem, relaxed.point), rel=1e-12)
    # no candidate at the last prices is worth more than its slots: what is left over is the gap
    plans = best_paths(candidates, relaxed.priced.cost)
    assert np.array_equal(plans.value, relaxed.paths.value)


@pytest.mark.parametrize("name", ["min_energy", "min_energy horizon"])
def test_convex_relaxation_is_below_every_schedule(name: str) -> None:
    """With targets the relaxed problem is convex: what the loop reaches is below any feasible schedule's energy."""
    for seed in range(3):
        problem = variant_problem(name, 20 + seed)
        reached = solve(problem, solver="greedy_energy").objective
        relaxed = solve_relaxation(problem, build_candidates(problem), backend="clarabel")
        assert np.isfinite(reached)
        assert relaxed.merit[-1] <= reached * (1 + 1e-4)


def test_more_columns_never_hurt() -> None:
    """The value over part of the columns is no better than over all."""
    case = small_case("weighted horizon", 10, count=24)
    part = replace(case, columns=case.columns.take(np.arange(0, len(case.columns), 2)))
    assert case.solve().value <= part.solve().value * (1 + 1e-6)


def test_interruption_passes_through_the_loop() -> None:
    problem = variant_problem("weighted", 0)

    def stop(count: int, point: MasterPoint, merit: float) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_relaxation(problem, build_candidates(problem), backend="clarabel", on_iteration=stop)


def test_pool_keeps_no_duplicates_and_forgets_what_stays_idle() -> None:
    problem = variant_problem("weighted", 0)
    candidates = build_candidates(problem)
    columns = first_columns(problem, candidates)
    pool = ColumnPool(columns)
    size = len(pool)
    assert 0 < size <= len(columns)
    assert pool.add(columns) == 0 and len(pool) == size
    weights = np.zeros(size)
    weights[:5] = 0.5
    for _ in range(30):
        pool.forget(weights[: len(pool)])
    assert len(pool) == 5
    assert pool.add(columns) == size - 5
    allowed = candidates.device == 0
    pool.restrict(allowed)
    assert len(pool) > 0 and np.all(allowed[pool.columns.candidate])


def test_first_columns_serve_every_task_and_device() -> None:
    for name in VARIANTS:
        problem = variant_problem(name, 11)
        candidates = build_candidates(problem)
        columns = first_columns(problem, candidates)
        pairs = set(zip(candidates.device[columns.candidate].tolist(), candidates.task[columns.candidate].tolist(), strict=True))
        assert {j for _, j in pairs} == {0, 1} and {i for i, _ in pairs} == {0, 1, 2}


def test_pricing_at_the_masters_prices_finds_its_own_columns_no_better() -> None:
    """Every column of the master costs at least what pricing finds for its candidate."""
    case = small_case("weighted", 12)
    point = case.solve()
    priced = price(case.candidates, point.prices)
    cost = price_columns(case.candidates, case.columns, point.prices)
    found = priced.cost[case.columns.candidate]
    assert np.all(np.minimum(found, 0.0) <= cost + 1e-9 * np.abs(cost).max())
