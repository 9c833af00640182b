"""Marginal prices against differences of the exact objective; local moves never worsen the merit and leave a valid schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import cases, make_problem, seeds
from hypothesis import assume, given
from tiny import tiny_problem_dict

from schedopt.bounds.async_schedule import aggregate
from schedopt.constraints import validate_schedule
from schedopt.formulation.candidates import Candidates, Prices, build_candidates, make_columns, price_columns
from schedopt.formulation.resources import allocate
from schedopt.objective import evaluate_objective
from schedopt.polish import marginal_prices, polish
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule
from schedopt.state import Merit, State, reallocate, state_of

#: Rows that polish answers for: all but the limits of the modes, which the merit prices.
MODE_LIMITS = ("target", "total energy")


def variant(rng: np.random.Generator, **objective: Any) -> Problem:
    """Three devices and two tasks whose assignments are stale, noisy, drifting and uneven, so that every term counts."""
    rate = 0.02
    task = {"learning_rate": rate, "smoothness": 1.0, "max_steps": 4, "max_staleness": 4, "prox": float(rng.choice([0.0, 0.3])) / rate}
    scale = {"stale": 200.0, "noise": 5.0, "local": 20.0, "data": 2.0, "part": 1.5}
    data = tiny_problem_dict(rng, 3, 2, 6, task=task, **({"term_scale": scale, "enforce_conditions": False} | objective))
    for each in data["tasks"]:
        each["target"] = 0.5  # out of reach
    return make_problem(data)


def random_state(rng: np.random.Generator, problem: Problem) -> State:
    """A feasible state that trains every task: random disjoint assignments, repaired."""
    a = problem.arrays
    while True:
        rows = []
        for i in range(a.num_devices):
            start = int(rng.integers(0, 2))
            while start < a.slots:
                end = min(start + int(rng.integers(1, 5)), a.slots)
                rows.append((i, rng.integers(2), start, end, rng.integers(1, 5), rng.integers(4, 20), 0, 0, 0))
                start = end + int(rng.integers(0, 2))
        state = repair(problem, Schedule.from_records(rows))
        if state is not None and len(np.unique(state.schedule.task)) == 2:
            return state


def merit_of(problem: Problem, *, target_price: float = 50.0, energy_price: float = 30.0, factor: float = 1.0) -> Merit:
    return Merit(problem, np.full(problem.arrays.num_tasks, target_price), energy_price, factor)


VARIANTS: dict[str, dict[str, Any]] = {
    "weighted instant": {"mode": "weighted", "participation": "instant"},
    "weighted horizon": {"mode": "weighted", "participation": "horizon"},
    "min_bound instant": {"mode": "min_bound", "participation": "instant"},
    "min_bound horizon": {"mode": "min_bound", "participation": "horizon"},
    "min_energy instant": {"mode": "min_energy", "participation": "instant"},
    "min_energy horizon": {"mode": "min_energy", "participation": "horizon"},
    "plain terms": {"mode": "weighted", "participation": "instant", "term_scale": {}},
}


# --- marginal prices -----------------------------------------------------------------------------------------------------------------


def penalised(problem: Problem, merit: Merit, schedule: Schedule) -> float:
    """Exact objective of any schedule, whole or not, plus the penalties: what the prices are gradients of."""
    evaluation = evaluate_objective(problem, schedule)
    return evaluation.objective + merit.penalty(evaluation)


def without_resources(prices: Prices) -> Prices:
    """Only what h and errors cost (energy may not be free, so it is nearly so)."""
    return Prices(
        energy=np.full_like(prices.energy, 1e-300), bandwidth=np.zeros_like(prices.bandwidth), value=prices.value, noise=prices.noise,
        instant_h=prices.instant_h, span_h=prices.span_h, instant_noise=prices.instant_noise,
    )  # fmt: skip


def bound_cost(candidates: Candidates, index: np.ndarray, steps: np.ndarray, batch: np.ndarray, prices: Prices) -> np.ndarray:
    """What h and errors of assignments with these steps and batches cost at ``prices``; the resources do not matter."""
    chosen = candidates.take(index)
    time_s = 0.5 * chosen.available_s
    width = np.full(len(index), candidates.arrays.bandwidth_hz)
    return price_columns(candidates, make_columns(chosen, index, steps, steps * batch, time_s, width), without_resources(prices))


def frozen_energy(problem: Problem, schedule: Schedule, base: Schedule) -> Schedule:
    """``schedule`` with frequencies at which its compute energy is that of ``base``: only the bounds then change."""
    factor = np.sqrt(base.steps * base.batch / (schedule.steps * schedule.batch))
    return schedule.replace(freq_hz=base.freq_hz * factor)


@pytest.mark.parametrize("what", ["steps", "batch"])
@pytest.mark.parametrize("name", VARIANTS)
@cases(6)
@given(seed=seeds)
def test_prices_of_what_is_there_are_gradients(name: str, what: str, seed: int) -> None:
    """One relaxed number of one assignment at a time: the exact objective changes as the prices say."""
    rng = np.random.default_rng(seed)
    problem = variant(rng, **VARIANTS[name])
    state, merit = random_state(rng, problem), merit_of(problem)
    s, candidates = state.schedule, build_candidates(problem)
    prices = marginal_prices(problem, state, merit)
    index = candidates.find(s.device, s.task, s.start, s.end)
    size = abs(penalised(problem, merit, s))
    for k in range(len(s)):
        step = 1e-5 * getattr(s, what)[k]
        moved = [s.replace(**{what: getattr(s, what) + sign * step * (np.arange(len(s)) == k)}) for sign in (1, -1)]
        exact = [penalised(problem, merit, frozen_energy(problem, m, s)) for m in moved]
        priced = [bound_cost(candidates, index, m.steps, m.batch, prices)[k] for m in moved]
        slope, predicted = (exact[0] - exact[1]) / (2e-5), (priced[0] - priced[1]) / (2e-5)
        assert predicted == pytest.approx(slope, rel=1e-4, abs=1e-7 * size)


@pytest.mark.parametrize("name", VARIANTS)
@cases(4)
@given(seed=seeds)
def test_prices_of_what_could_be_added_are_gradients(name: str, seed: int) -> None:
    """A sliver of any candidate (a millionth of a step): stale terms at what it spans and where it ends included."""
    rng = np.random.default_rng(seed)
    problem = variant(rng, **VARIANTS[name])
    state, merit = random_state(rng, problem), merit_of(problem)
    sums = aggregate(problem.arrays, state.schedule)
    off = sums.h_device - problem.arrays.aggregation_weight * sums.h_total
    # where a device has exactly its share, the participation term has a kink and no gradient
    assume(problem.objective.participation == "instant" or bool(np.all(np.abs(off) > 1e-9 * sums.h_total)))
    candidates = build_candidates(problem)
    prices = marginal_prices(problem, state, merit)
    before = penalised(problem, merit, state.schedule)
    sliver = 1e-6
    sums = aggregate(problem.arrays, state.schedule)
    off = np.abs(sums.h_device - problem.arrays.aggregation_weight * sums.h_total) / sums.h_total
    # a device that has exactly its share is at a kink of the horizon's participation term
    smooth = (off > 1e-9).all(axis=0) | (problem.objective.participation == "instant")
    for k in rng.permutation(np.flatnonzero(smooth[candidates.task]))[:12]:
        row = (candidates.device[k], candidates.task[k], candidates.start[k], candidates.end[k])
        # neither computing nor sending costs anything here: energy is priced elsewhere
        added = Schedule.from_records([(*row, sliver, 7.0, 1e-3, 1e-30, 1.0)])
        evaluation = evaluate_objective(problem, state.schedule.concat(added))
        energy = evaluation.energy_j - state.evaluation.energy_j
        energy_price = float(prices.energy[0])
        if problem.objective.mode == "min_bound":
            energy_price = merit.energy_price if merit.energy_miss(state.evaluation) > 0 else 0.0
        slope = (evaluation.objective + merit.penalty(evaluation) - before - energy_price * energy) / sliver
        predicted = bound_cost(candidates, np.array([k]), np.array([sliver]), np.array([7.0]), prices)[0] / sliver
        assert predicted == pytest.approx(slope, rel=2e-3, abs=1e-4 * abs(before))


def test_the_variants_price_what_they_are_about() -> None:
    """Stale prices, uneven values in the horizon variant and missed targets are really there."""
    rng = np.random.default_rng(2)
    for name, options in VARIANTS.items():
        problem = variant(rng, **options)
        state, merit = random_state(rng, problem), merit_of(problem)
        prices = marginal_prices(problem, state, merit)
        assert prices.span_h is not None and prices.instant_noise is not None
        assert prices.span_h.max() > 0 and prices.instant_noise.max() > 0
        assert (np.ptp(prices.value, axis=0).max() > 0) == (problem.objective.participation == "horizon")
        if problem.objective.mode == "min_energy":
            assert np.all(merit.target_misses(state.evaluation) > 0), name


@pytest.mark.parametrize(("mode", "expected"), [("weighted", None), ("min_energy", 1.0), ("min_bound", 6.0)])
def test_energy_is_priced_as_the_mode_does(mode: str, expected: float | None) -> None:
    rng = np.random.default_rng(3)
    problem = variant(rng, mode=mode)
    prices = marginal_prices(problem, random_state(rng, problem), merit_of(problem, energy_price=18.0, factor=3.0))
    assert np.array_equal(prices.energy, np.full(3, problem.objective.energy_weight if expected is None else expected))


def test_bandwidth_is_priced_by_the_energy_that_it_saves() -> None:
    """Between the costs of a hertz less and a hertz more in each slot, re-allocated in full."""
    rng = np.random.default_rng(4)
    problem = variant(rng, mode="weighted")
    state = random_state(rng, problem)
    prices = marginal_prices(problem, state, merit_of(problem))
    used = np.bincount(state.schedule.end - 1, minlength=problem.arrays.slots) > 1
    assert used.any()
    for g in np.flatnonzero(used):
        mine = state.schedule.take(state.schedule.end - 1 == g)
        spent = []
        for factor in (0.999, 1.0, 1.001):
            data = problem.to_dict()
            data["spectrum"]["bandwidth_hz"] *= factor
            wider = make_problem(data)
            allocation = allocate(wider.arrays, mine)
            assert allocation is not None
            spent.append(problem.objective.energy_weight * evaluate_objective(wider, allocation.schedule).energy_j)
        slopes = [(spent[k] - spent[k + 1]) / (0.001 * problem.arrays.bandwidth_hz) for k in range(2)]
        assert slopes[1] * 0.98 <= prices.bandwidth[g] <= slopes[0] * 1.02


def test_a_reached_target_is_priced_at_the_relaxations_price() -> None:
    """The penalty is ``factor`` times the relaxation's price: at a target that is met only that price remains."""
    rng = np.random.default_rng(5)
    problem = variant(rng, mode="min_energy")
    state = random_state(rng, problem)
    data = problem.to_dict()
    data["tasks"][0]["target"] = 2.0 * float(state.evaluation.bound.total[0])
    eased = make_problem(data)
    state = State(state.schedule, evaluate_objective(eased, state.schedule))
    noise = marginal_prices(eased, state, Merit(eased, np.array([30.0, 60.0]), 1.0, 3.0)).noise
    np.testing.assert_allclose(noise, [10.0, 60.0])


# --- the merit -----------------------------------------------------------------------------------------------------------------------


def test_merit_is_the_objective_where_no_limit_is_missed() -> None:
    rng = np.random.default_rng(6)
    problem = variant(rng, mode="weighted")
    state = random_state(rng, problem)
    merit = merit_of(problem)
    assert merit(state) == state.evaluation.objective and merit.met(state.evaluation)


def test_merit_charges_targets_by_what_they_are_missed_by() -> None:
    """(C + N) − (3/8) ε H, from the bound itself: H (Ψ − ε) 3/8."""
    rng = np.random.default_rng(7)
    problem = variant(rng, mode="min_energy")
    state = random_state(rng, problem)
    h, bound = aggregate(problem.arrays, state.schedule).h_total, state.evaluation.bound.total
    merit = Merit(problem, np.array([3.0, 5.0]), 1.0)
    missed = 3.0 / 8.0 * h * (bound - problem.arrays.target)
    assert np.all(missed > 0) and not merit.met(state.evaluation)
    assert merit(state) == pytest.approx(state.evaluation.energy_j + 3.0 * missed[0] + 5.0 * missed[1], rel=1e-12)


def test_the_miss_of_an_untrained_task_is_the_limit_of_little_training() -> None:
    """With H → 0, C + N → C: all scaled terms that no schedule changes."""
    data = tiny_problem_dict(np.random.default_rng(8), 2, 1, 3, mode="min_energy", term_scale={"opt": 0.3, "loss": 2.0})
    data["tasks"][0] |= {"target": 5.0, "loss_drift": 0.4}
    problem = make_problem(data)
    merit = Merit(problem, np.ones(1), 1.0)
    untrained = merit.target_misses(evaluate_objective(problem, Schedule.empty()))
    sliver = Schedule.from_records([(0, 0, 0, 1, 1e-9, 10, 1e9, 0.1, 1e6)])
    assert untrained == pytest.approx(merit.target_misses(evaluate_objective(problem, sliver)), rel=1e-6)


def test_merit_charges_energy_above_the_limit() -> None:
    rng = np.random.default_rng(9)
    problem = variant(rng, mode="min_bound")
    state = random_state(rng, problem)
    data = problem.to_dict()
    data["objective"]["total_energy_j"] = 0.75 * state.evaluation.energy_j
    limited = make_problem(data)
    merit = merit_of(limited, energy_price=7.0)
    expected = state.evaluation.objective + 7.0 * 0.25 * state.evaluation.energy_j
    assert merit(state) == pytest.approx(expected, rel=1e-12)
    assert not merit.met(state.evaluation)


def test_merit_refuses_what_breaks_an_enforced_condition() -> None:
    rng = np.random.default_rng(10)
    problem = variant(rng, mode="weighted", enforce_conditions=True)
    state = random_state(rng, problem)
    assert np.isfinite(merit_of(problem)(state))
    broken = state.schedule.replace(steps=state.schedule.steps + 10)
    assert merit_of(problem)(State(broken, evaluate_objective(problem, broken))) == np.inf


# --- polish ----------------------------------------------------------------------------------------------------------------------------


def violations(problem: Problem, schedule: Schedule) -> list[str]:
    report = validate_schedule(problem, schedule, tolerance=1e-9)
    return [f"{c.name}: {c.where} {c.amount:g}" for c in report.checks if not c.ok and c.name not in MODE_LIMITS]


@pytest.mark.parametrize(
    ("name", "enforced", "budgets"),
    [(name, number % 2 == 0, False) for number, name in enumerate(VARIANTS)] + [("weighted instant", False, True)],
)
def test_polish_never_worsens_the_merit(name: str, enforced: bool, budgets: bool) -> None:
    """Every improvement on the way is an improvement and valid."""
    for seed in range(1 if budgets else 2):
        rng = np.random.default_rng(100 + seed)
        problem = variant(rng, **VARIANTS[name], enforce_conditions=enforced)
        if budgets:
            data = problem.to_dict()
            for device in data["devices"]:
                device["energy_budget_j"] = 0.15
            problem = make_problem(data)
        state, merit = random_state(rng, problem), merit_of(problem)
        merits = [merit(state)]

        def note(better: State, merits: list[float] = merits, merit: Merit = merit, problem: Problem = problem) -> None:
            merits.append(merit(better))
            assert not violations(problem, better.schedule)
            assert better.evaluation.objective == pytest.approx(evaluate_objective(problem, better.schedule).objective, rel=1e-12)

        most = 4 if budgets else 16
        polished = polish(problem, build_candidates(problem), state, merit, max_rounds=3, moves_per_round=most, on_improvement=note)
        assert np.all(np.diff(merits) < 0)
        assert merit(polished) == merits[-1]
        assert not violations(problem, polished.schedule)


def test_polish_improves_a_poor_schedule_by_much() -> None:
    """One short assignment per task is far from the best."""
    problem = make_problem(tiny_problem_dict(np.random.default_rng(11), 3, 2, 5))
    zero = np.zeros(2)
    start = state_of(problem, Schedule([0, 1], [0, 1], zero, zero + 1, zero + 1, zero + 4, zero, zero, zero))
    assert start is not None
    polished = polish(problem, build_candidates(problem), start, merit_of(problem))
    assert polished.evaluation.objective < 0.6 * start.evaluation.objective


def test_polish_trains_what_is_untrained() -> None:
    """A task that nothing trains makes the objective infinite; adding an assignment mends that."""
    problem = make_problem(tiny_problem_dict(np.random.default_rng(12), 3, 2, 5))
    one = np.ones(1)
    start = state_of(problem, Schedule(0 * one, 0 * one, 0 * one, one, one, 4 * one, 0 * one, 0 * one, 0 * one))
    assert start is not None and np.isinf(start.evaluation.objective)
    polished = polish(problem, build_candidates(problem), start, merit_of(problem))
    assert np.isfinite(polished.evaluation.objective)


def test_polish_drops_what_does_not_pay() -> None:
    """At a high price of energy a full schedule is thinned out."""
    rng = np.random.default_rng(13)
    data = tiny_problem_dict(rng, 3, 1, 6, max_steps=2)
    data["objective"]["energy_weight"] = 400.0
    problem = make_problem(data)
    devices, starts = (x.ravel() for x in np.indices((3, 6)))
    one = np.ones(18)
    full = repair(problem, Schedule(devices, np.zeros(18), starts, starts + 1, one, 4 * one, one, one, one))
    assert full is not None
    polished = polish(problem, build_candidates(problem), full, merit_of(problem))
    assert len(polished.schedule) < 0.7 * len(full.schedule)
    assert polished.evaluation.objective < full.evaluation.objective


def test_polish_stops_when_told() -> None:
    rng = np.random.default_rng(14)
    problem = variant(rng)
    state = random_state(rng, problem)
    rounds: list[int] = []

    def stop() -> None:
        rounds.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        polish(problem, build_candidates(problem), state, merit_of(problem), on_move=stop)
    assert len(rounds) == 1


def test_polish_is_deterministic_and_leaves_its_start_alone() -> None:
    rng = np.random.default_rng(15)
    problem = variant(rng)
    state = random_state(rng, problem)
    digest = state.schedule.digest
    first, second = (polish(problem, build_candidates(problem), state, merit_of(problem), max_rounds=2) for _ in range(2))
    assert first.schedule.digest == second.schedule.digest
    assert state.schedule.digest == digest


# --- re-allocation -----------------------------------------------------------------------------------------------------------------------


def test_reallocation_touches_only_the_slots_asked_for() -> None:
    rng = np.random.default_rng(16)
    problem = variant(rng)
    state = random_state(rng, problem)
    slot = int(state.schedule.end[0])
    again = state.schedule.end == slot
    new = reallocate(problem, state.schedule.replace(bandwidth_hz=0.3 * state.schedule.bandwidth_hz), again)
    assert new is not None
    rest, before = new.schedule.take(new.schedule.end != slot), state.schedule.take(~again)
    np.testing.assert_allclose(rest.bandwidth_hz, 0.3 * before.bandwidth_hz, rtol=1e-14)
    assert np.array_equal(rest.freq_hz, before.freq_hz)
    mine, old = new.schedule.take(new.schedule.end == slot), state.schedule.take(again)
    np.testing.assert_allclose(mine.bandwidth_hz, old.bandwidth_hz, rtol=1e-2)


def test_reallocation_respects_what_the_rest_leaves_of_a_budget() -> None:
    """A device that has spent its budget elsewhere cannot do anything more."""
    problem = make_problem(tiny_problem_dict(np.random.default_rng(17), 2, 1, 4))
    zero = np.zeros(2)
    schedule = Schedule([0, 0], zero, [0, 1], [1, 2], zero + 1, zero + 4, zero, zero, zero)
    state = state_of(problem, schedule)
    assert state is not None
    first, second = state.evaluation.physics.energy_j
    for share, possible in ((0.0, False), (0.5, False), (1.01, True)):
        data = problem.to_dict()
        data["devices"][0]["energy_budget_j"] = float(first + share * second)
        limited = make_problem(data)
        assert (reallocate(limited, state.schedule, np.array([False, True])) is not None) == possible
