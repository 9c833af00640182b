"""From a relaxed point to a schedule: supported plans, diving, whole steps and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import make_problem
from tiny import tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.formulation.candidates import Candidates, build_candidates
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.rounding import dive, round_columns, supported_plans
from schedopt.sca.loop import RelaxedSolution, relaxed_objective, solve_relaxation
from schedopt.sca.master import MasterPoint
from schedopt.schedule import Schedule

VARIANTS: dict[str, dict[str, Any]] = {
    "weighted": {"mode": "weighted"},
    "horizon": {"mode": "weighted", "participation": "horizon", "enforce_conditions": False},
    "min_bound": {"mode": "min_bound", "total_energy_j": 0.6},
    "min_energy": {"mode": "min_energy"},
}


def relaxed_case(name: str, seed: int, devices: int = 4, slots: int = 5) -> tuple[Problem, Candidates, RelaxedSolution]:
    data = tiny_problem_dict(np.random.default_rng(seed), devices, 2, slots, **VARIANTS[name])
    for task in data["tasks"]:
        task["target"] = 8.0
    problem = make_problem(data)
    candidates = build_candidates(problem)
    return problem, candidates, solve_relaxation(problem, candidates, backend="clarabel")


def support_of(candidates: Candidates, point: MasterPoint) -> np.ndarray:
    return np.bincount(point.columns.candidate, weights=point.weights, minlength=len(candidates))


def check_disjoint(candidates: Candidates, chosen: np.ndarray) -> None:
    """At most one chosen candidate per device and slot."""
    used = np.zeros((candidates.arrays.num_devices, candidates.arrays.slots), dtype=int)
    for k in chosen:
        used[candidates.device[k], candidates.start[k] : candidates.end[k]] += 1
    assert used.max(initial=0) <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_supported_plans_explain_most_of_what_is_used(name: str) -> None:
    """Disjoint, made of columns in use, and no single used candidate beats a device's plan."""
    _, candidates, relaxed = relaxed_case(name, 1)
    chosen, decided = supported_plans(candidates, relaxed.point)
    support = support_of(candidates, relaxed.point)
    check_disjoint(candidates, chosen)
    assert np.all(support[chosen] > 1e-6)
    weight = support * (candidates.end - candidates.start)
    for i in range(candidates.arrays.num_devices):
        mine = candidates.device == i
        planned = weight[chosen[candidates.device[chosen] == i]].sum()
        used = weight[mine].sum()
        assert planned >= weight[mine].max() * (1 - 1e-9) - 1e-5
        assert 0.0 <= decided[i] <= 1 + 1e-9
        if used > 1e-6:
            assert decided[i] == pytest.approx(planned / used, rel=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_dive_ends_with_one_plan_per_device_and_a_valid_schedule(name: str) -> None:
    problem, candidates, relaxed = relaxed_case(name, 2)
    rounds: list[int] = []
    dived = dive(problem, candidates, relaxed, backend="clarabel", rounds=2, on_round=lambda count, point: rounds.append(count))
    assert dived is not None
    chosen, point = dived
    assert rounds == [1, 2]
    check_disjoint(candidates, chosen)
    # the last master may only use what was fixed
    assert set(np.flatnonzero(support_of(candidates, point) > 1e-6)) <= set(chosen.tolist())
    schedule = round_columns(problem, candidates, chosen, point)
    check_whole(problem, schedule)
    state = repair(problem, schedule)
    assert state is not None
    report = validate_schedule(problem, state.schedule, tolerance=1e-9)
    assert not [c.name for c in report.checks if not c.ok and c.name not in ("target", "total energy")]
    assert np.all(state.evaluation.task_assignments > 0)
    # rounding costs something, but not much
    if name in ("weighted", "horizon"):
        assert state.evaluation.objective <= 1.5 * relaxed_objective(problem, relaxed.point)


def check_whole(problem: Problem, schedule: Schedule) -> None:
    a = problem.arrays
    assert np.all(schedule.steps % 1 == 0) and np.all(schedule.batch % 1 == 0)
    assert np.all(schedule.steps >= 1) and np.all(schedule.steps <= a.max_steps[schedule.task])
    assert np.all(schedule.batch >= a.min_batch[schedule.task])
    assert np.all(schedule.batch <= a.samples[schedule.device, schedule.task])


def test_dive_leaves_the_relaxation_alone() -> None:
    problem, candidates, relaxed = relaxed_case("weighted", 3)
    before, weights = len(relaxed.pool), relaxed.point.weights.copy()
    assert dive(problem, candidates, relaxed, backend="clarabel") is not None
    assert len(relaxed.pool) == before and np.array_equal(relaxed.point.weights, weights)


def test_dive_is_deterministic() -> None:
    problem, candidates, relaxed = relaxed_case("horizon", 4)
    first, second = (dive(problem, candidates, relaxed, backend="clarabel") for _ in range(2))
    assert first is not None and second is not None
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1].weights, second[1].weights)


def test_dive_can_be_interrupted() -> None:
    problem, candidates, relaxed = relaxed_case("weighted", 5)

    def stop(count: int, point: MasterPoint) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dive(problem, candidates, relaxed, backend="clarabel", on_round=stop)


def test_dive_reports_a_backend_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, candidates, relaxed = relaxed_case("weighted", 6)
    monkeypatch.setattr("schedopt.rounding.solve_master", lambda *args, **options: None)
    assert dive(problem, candidates, relaxed, backend="clarabel") is None


@pytest.mark.parametrize("name", VARIANTS)
def test_rounded_columns_are_near_their_averages(name: str) -> None:
    """Steps within one half of the weighted mean, work within what a step and half a batch are worth."""
    problem, candidates, relaxed = relaxed_case(name, 7)
    chosen, _ = supported_plans(candidates, relaxed.point)
    schedule = round_columns(problem, candidates, chosen, relaxed.point)
    columns, weights = relaxed.point.columns, relaxed.point.weights
    check_whole(problem, schedule)
    a = problem.arrays
    for k, (i, j, start, end) in enumerate(zip(schedule.device, schedule.task, schedule.start, schedule.end, strict=True)):
        mine = columns.candidate == candidates.find(*(np.array([x]) for x in (i, j, start, end)))[0]
        share = weights[mine] / weights[mine].sum()
        assert weights[mine].sum() > 0.05
        assert abs(schedule.steps[k] - share @ columns.steps[mine]) <= 0.5 + 1e-9
        batch = share @ columns.work[mine] / schedule.steps[k]
        assert abs(schedule.batch[k] - np.clip(batch, a.min_batch[j], a.samples[i, j])) <= 0.5 + 1e-9
    dropped = set(chosen.tolist()) - set(candidates.find(schedule.device, schedule.task, schedule.start, schedule.end).tolist())
    support = support_of(candidates, relaxed.point)
    assert all(support[k] <= 0.05 for k in dropped)
