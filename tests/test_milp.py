"""The discretised problem: proven optima against brute force over all combinations of columns, judged by the exact evaluator."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.formulation.candidates import Candidates, Columns, build_candidates
from schedopt.milp import best_combination, grid_columns
from schedopt.milp.grid import whole_columns
from schedopt.milp.highs import Program, solve_program
from schedopt.objective import evaluate_objective
from schedopt.physics import transmit_power_w
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult, SolveStatus
from schedopt.sca.loop import solve_relaxation
from schedopt.schedule import Schedule
from schedopt.solvers import exact_milp
from schedopt.solvers.base import SolverSettings
from tests.tiny import tiny_problem_dict

MODES = ("weighted", "min_energy", "min_bound")
#: A result of the best combination is right to this, relative.
EXACT = 1e-5


def problem_of(seed: int, mode: str, participation: str, slots: int = 3, tasks: int = 1, **changes: Any) -> Problem:
    """Two devices; ``changes`` are those of every task, or of the objective if it has such a field."""
    objective = {key: changes.pop(key) for key in ("term_scale", "enforce_conditions", "total_energy_j") if key in changes}
    data = tiny_problem_dict(
        np.random.default_rng(seed), 2, tasks, slots, task=changes, mode=mode, participation=participation, **objective
    )
    for entry in data["tasks"] if mode == "min_energy" and "target" not in changes else ():
        entry["target"] *= 1.6
    return Problem.model_validate(data)


def few_columns(problem: Problem, candidates: Candidates, count: int, seed: int) -> Columns:
    """A random choice of columns, each of another candidate with steps: nothing to mix."""
    relaxed = solve_relaxation(problem, candidates, backend="clarabel", max_iterations=3)
    columns = grid_columns(candidates, relaxed.point.prices, relaxed.pool.columns, levels=2, reach=np.inf, most=10_000)
    order = np.random.default_rng(seed).permutation(len(columns))
    pairs = np.stack([columns.candidate[order], columns.steps[order].astype(np.int64)])
    single = order[np.unique(pairs, axis=1, return_index=True)[1]]
    return columns.take(np.sort(np.random.default_rng(seed).permutation(single)[:count]))


def schedule_of(candidates: Candidates, columns: Columns) -> Schedule:
    """The columns as they are: frequency and power that their times and bandwidths ask for."""
    a, c = candidates.arrays, candidates.take(columns.candidate)
    i, j = c.device, c.task
    freq = np.maximum(a.freq_min_hz[i], a.cycles_per_sample[i, j] * columns.work / (c.available_s - columns.upload_s))
    power = transmit_power_w(a.model_bits[j], columns.upload_s, columns.bandwidth_hz, a.gain[i, c.end - 1], a.noise_w_per_hz)
    return Schedule(i, j, c.start, c.end, columns.steps, np.round(columns.work / columns.steps), freq, power, columns.bandwidth_hz)


def brute_force(problem: Problem, candidates: Candidates, columns: Columns) -> float:
    """Least objective of all feasible sets of columns; +inf if there is none."""
    best = np.inf
    chosen = candidates.take(columns.candidate)

    def disjoint(part: tuple[int, ...]) -> bool:
        return all(chosen.end[k] <= chosen.start[m] or chosen.end[m] <= chosen.start[k] for k, m in itertools.combinations(part, 2))

    by_device = [np.flatnonzero(chosen.device == i) for i in range(len(problem.devices))]
    plans = [[part for n in range(5) for part in itertools.combinations(mine, n) if disjoint(part)] for mine in by_device]
    for parts in itertools.product(*plans):
        index = np.array([k for part in parts for k in part], dtype=np.int64)
        if not len(index):
            continue
        schedule = schedule_of(candidates, columns.take(index))
        evaluation = evaluate_objective(problem, schedule)
        if evaluation.objective < best and validate_schedule(problem, schedule, tolerance=1e-9, evaluation=evaluation).feasible:
            best = evaluation.objective
    return best


@pytest.mark.parametrize("participation", ["instant", "horizon"])
@pytest.mark.parametrize("mode", MODES)
def test_best_combination_is_the_brute_force_optimum(mode: str, participation: str) -> None:
    assert np.isfinite(check_against_brute_force(problem_of(0, mode, participation, slots=4), count=13, seed=0))


def check_against_brute_force(problem: Problem, count: int, seed: int) -> float:
    candidates = build_candidates(problem)
    columns = few_columns(problem, candidates, count, seed)
    expected = brute_force(problem, candidates, columns)
    proof = best_combination(problem, candidates, columns, gap=EXACT)
    if not np.isfinite(expected):
        assert proof.best is None and proof.bound == np.inf and proof.finished
        return expected
    assert proof.best is not None
    assert proof.best.value == pytest.approx(expected, rel=EXACT)
    assert proof.bound <= expected * (1 + EXACT)
    assert proof.finished and proof.bound >= expected * (1 - 2 * EXACT)
    # and each choice it names is one of the columns, once
    assert proof.best.weights == pytest.approx(np.ones(len(proof.best.weights)))
    chosen = schedule_of(candidates, proof.best.columns)
    assert evaluate_objective(problem, chosen).objective == pytest.approx(expected, rel=EXACT)
    return expected


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), participation=st.sampled_from(["instant", "horizon"]), tasks=st.integers(1, 2)
)
def test_best_combination_on_any_tiny_problem(seed: int, mode: str, participation: str, tasks: int) -> None:
    check_against_brute_force(problem_of(seed, mode, participation, tasks=tasks, slots=4), count=11, seed=seed)


@pytest.mark.parametrize(("mode", "seed"), [("weighted", 4), ("weighted", 5), ("min_energy", 5)])
def test_staleness_counts(mode: str, seed: int) -> None:
    """T_stale, weighed heavily, changes the optimum (or leaves none), and the proof follows it."""
    values = []
    for stale in (0.0, 3e6):
        problem = problem_of(seed, mode, "instant", slots=4, term_scale={"stale": stale, "noise": 10.0, "data": 0.0})
        values.append(check_against_brute_force(problem, count=11, seed=seed))
    assert values[1] > values[0] * (1 + 1e-4)


@pytest.mark.parametrize("seed", [1, 3, 7])
def test_condition_c2_is_kept(seed: int) -> None:
    """A server rate at which two updates at once, or one over another's, break C2."""
    free, kept = (
        check_against_brute_force(
            problem_of(seed, "weighted", "instant", slots=4, server_rate=40.0, enforce_conditions=on), count=11, seed=seed
        )
        for on in (False, True)
    )
    assert kept > free * (1 + 1e-4)


def test_mixing_columns_can_only_help() -> None:
    """Columns of one candidate with equal steps are mixed: never worse than the best single ones, and a start is never made worse."""
    problem = problem_of(5, "weighted", "horizon")
    candidates = build_candidates(problem)
    relaxed = solve_relaxation(problem, candidates, backend="clarabel")
    columns = grid_columns(candidates, relaxed.point.prices, relaxed.pool.columns, levels=3, reach=np.inf, most=10_000)
    single = few_columns(problem, candidates, 12, 0)
    alone = best_combination(problem, candidates, single, gap=EXACT)
    mixed = best_combination(problem, candidates, columns, start=single.take(_rows(single, alone.best.columns)), gap=1e-4)  # type: ignore[union-attr]
    assert mixed.best is not None and alone.best is not None
    assert mixed.best.value <= alone.best.value * (1 + 1e-9)
    assert mixed.finished and mixed.gap <= 1e-4
    averaged = mixed.best.mixed(candidates)
    assert len(averaged) == len(np.unique(mixed.best.columns.candidate))
    assert averaged.energy_j.sum() <= (mixed.best.columns.energy_j * mixed.best.weights).sum() * (1 + 1e-9)


def _rows(columns: Columns, wanted: Columns) -> np.ndarray:
    return np.flatnonzero(np.isin(columns.candidate, wanted.candidate) & np.isin(columns.steps, wanted.steps))


def test_columns_are_possible_and_whole() -> None:
    problem = problem_of(7, "weighted", "instant", tasks=2)
    candidates, a = build_candidates(problem), problem.arrays
    relaxed = solve_relaxation(problem, candidates, backend="clarabel", max_iterations=4)
    columns = grid_columns(candidates, relaxed.point.prices, relaxed.pool.columns, levels=4, reach=np.inf, most=500)
    assert 0 < len(columns) <= 500
    batch = columns.work / columns.steps
    assert batch == pytest.approx(np.round(batch)) and np.array_equal(columns.steps, np.round(columns.steps))
    for k in range(len(columns)):
        schedule = schedule_of(candidates, columns.take([k]))
        violated = [name for name, _ in validate_schedule(problem, schedule, tolerance=1e-9).violations]
        assert not [name for name in violated if "target" not in name], violated
    shares = a.bandwidth_hz / columns.bandwidth_hz
    assert np.any(np.abs(shares - 2) < 1e-9)
    late = whole_columns(candidates, columns)
    assert np.array_equal(late.work, columns.work)


def test_a_time_limit_keeps_what_was_found() -> None:
    problem = problem_of(9, "weighted", "horizon", slots=5)
    candidates = build_candidates(problem)
    columns = few_columns(problem, candidates, 60, 0)
    found = best_combination(problem, candidates, columns, gap=1e-3)
    assert found.best is not None
    start = few_columns(problem, candidates, 60, 0).take(_rows(columns, found.best.columns)[:0])
    stopped = best_combination(problem, candidates, columns, start=start, gap=1e-9, time_limit_s=1e-9)
    assert not stopped.finished and stopped.bound <= found.best.value
    assert stopped.gap > 1e-9


def test_what_a_callback_raises_passes_through() -> None:
    """Out of HiGHS too, at once; the search keeps what it has."""
    rng = np.random.default_rng(0)
    program = Program(
        -rng.uniform(1, 2, 300), np.zeros(300), np.ones(300), sp.csr_matrix(rng.uniform(0, 1, (40, 300))), np.full(40, -np.inf),
        np.full(40, 20.0), np.ones(300, dtype=bool),
    )  # fmt: skip
    bounds: list[float] = []

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_program(program, on_tick=stop, on_bound=bounds.append)
    assert len(bounds) == 1
    with pytest.raises(ZeroDivisionError):
        solve_program(program, on_point=lambda x: 1 / 0)


# --- the solver ------------------------------------------------------------------------------------------------------------------------

QUICK = {"kicks": "0", "polish_rounds": "2", "rounds": "1", "columns": "400"}


def solved(problem: Problem, **changes: Any) -> SolveResult:
    return solve(problem, solver="exact_milp", settings=SolverSettings(switches=QUICK, **changes))


@pytest.mark.parametrize("mode", MODES)
def test_solver_against_enumeration(mode: str) -> None:
    problem = problem_of(1, mode, "instant")
    optimum = solve(problem, solver="enumeration").objective
    result = solved(problem)
    assert result.status is SolveStatus.SOLVED
    assert optimum * (1 - 1e-8) <= result.objective <= optimum * 1.002
    known = result.details["discretised"]
    assert known["finished"] and known["gap"] <= 1e-4
    assert known["bound"] <= known["value"]
    # resources allocated anew are at least as good
    assert result.objective <= known["value"] * (1 + 1e-7)
    assert f"{known['columns']:,} columns" in result.reason and "no bound on the problem itself" in result.reason
    assert result.lower_bound is None or result.lower_bound <= optimum * (1 + 1e-9)


def test_certify_gives_a_lower_bound() -> None:
    problem = problem_of(3, "weighted", "instant")
    optimum = solve(problem, solver="enumeration").objective
    result = solved(problem, certify=True)
    assert result.lower_bound is not None and result.lower_bound_method
    assert optimum * 0.98 <= result.lower_bound <= optimum * (1 + 1e-9)


def test_too_large_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_milp, "MAX_CANDIDATES", 5)
    with pytest.raises(InputError, match=r"exact_milp: \d+ candidate assignments; the limit is 5; use another solver"):
        solved(problem_of(0, "weighted", "instant"))


@pytest.mark.parametrize("switch", ["gap=0", "levels=0", "reach=-1", "band=2"])
def test_switches_are_checked(switch: str) -> None:
    key, _, value = switch.partition("=")
    with pytest.raises(InputError, match=key):
        solve(problem_of(0, "weighted", "instant"), solver="exact_milp", settings=SolverSettings(switches={key: value}))


def test_nothing_to_train() -> None:
    result = solved(problem_of(0, "weighted", "instant", weight=0.0))
    assert result.objective == 0.0 and result.schedule is not None and len(result.schedule) == 0
