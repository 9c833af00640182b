"""From fractional flows to whole plans: intervals of a flow, the plan of most weight, and the dive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from builders import cases, seeds
from hypothesis import given
from tiny import tiny_problem

from schedopt.formulation.candidates import Candidates, build_candidates
from schedopt.formulation.native import NativeProblem, build_native
from schedopt.registry import solve
from schedopt.repair import repair
from schedopt.sca.native_loop import NativeLoop
from schedopt.sca.native_rounding import dive_native, interval_weights, round_native
from schedopt.sca.native_settings import NativeRecord, NativeSettings


@pytest.fixture(autouse=True)
def _numbers_may_overflow() -> Iterator[None]:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        yield


@cases(50)
@given(seeds)
def test_a_mixture_of_disjoint_plans_is_taken_apart_into_as_much_weight(seed: int) -> None:
    """Receptions and uploads are matched first in, first out: every interval is a flow's, and the sums are kept."""
    rng = np.random.default_rng(seed)
    receive, upload = np.zeros((2, 6)), np.zeros((2, 6))
    weights = rng.dirichlet(np.ones(3))
    for pair in range(2):
        for weight in weights:
            at = 0
            while at < 6:
                length = int(rng.integers(1, 4))
                if at + length <= 6 and rng.random() < 0.6:
                    receive[pair, at] += weight
                    upload[pair, at + length - 1] += weight
                at += length
    pair, start, end, weight = interval_weights(receive, upload)
    assert np.all(start < end) and np.all(weight > 0)
    for sums, slot in ((receive, start), (upload, end - 1)):
        again = np.zeros_like(sums)
        np.add.at(again, (pair, slot), weight)
        assert np.allclose(again, sums, atol=1e-3)


@cache
def relaxed(seed: int) -> tuple[NativeProblem, Candidates, np.ndarray, NativeLoop, list[NativeRecord]]:
    """A problem, its candidates, the point of a heuristic's schedule, and a loop that has gone some way from there."""
    problem = tiny_problem(np.random.default_rng(seed), 3, 2, 4)
    native = build_native(problem)
    schedule = solve(problem, solver="greedy_energy").schedule
    assert schedule is not None and len(schedule)
    records: list[NativeRecord] = []
    start = native.point(schedule)
    loop = NativeLoop(
        native.program, start, native.binaries, NativeSettings(tolerance=1e-4), restore=native.restored, dormant=native.dormant,
        on_iteration=lambda record, point: records.append(record),
    )  # fmt: skip
    loop.phase("relaxed", 40)
    return native, build_candidates(problem), start, loop, records


def test_whole_points_round_to_their_own_schedule() -> None:
    native, candidates, start, _, _ = relaxed(3)
    schedule = solve(native.problem, solver="greedy_energy").schedule
    assert schedule is not None
    rounded = round_native(native, candidates, start).sorted()
    for name in ("device", "task", "start", "end", "steps", "batch"):
        assert np.array_equal(getattr(rounded, name), getattr(schedule.sorted(), name)), name


def test_random_weights_give_other_plans_of_the_same_flow() -> None:
    native, candidates, _, _, _ = relaxed(3)
    point = native.spread(np.random.default_rng(0))
    plans = {tuple(round_native(native, candidates, point, np.random.default_rng(k)).start.tolist()) for k in range(10)}
    assert len(plans) > 1


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_dive_ends_at_whole_plans_that_can_be_carried_out(seed: int) -> None:
    native, candidates, _, loop, records = relaxed(seed)
    before = len(records)
    point, multipliers = loop.point.copy(), loop.multipliers
    assert multipliers is not None
    dived = dive_native(native, candidates, loop, rounds=3, iterations=5)
    fresh = records[before:]
    assert {record.phase for record in fresh} <= {"dive", "mend"} and 0 < len(fresh) <= 15
    whole = dived[native.binaries]
    assert np.all(np.minimum(whole, 1.0 - whole) == 0.0)
    schedule = round_native(native, candidates, dived)
    # one assignment per reception, and a schedule that needs no other plans to be feasible
    assert len(schedule) == round(dived[native.blocks["receive"]].sum())
    state = repair(native.problem, schedule)
    assert state is not None and np.isfinite(state.evaluation.objective)
    loop.return_to(point, multipliers)
    assert np.array_equal(loop.point, point) and loop.multipliers is multipliers
    assert np.all(loop.penalty[loop.is_binary] == 0.0)


def test_frozen_variables_stay() -> None:
    native, _, _, loop, _ = relaxed(4)
    rng = np.random.default_rng(1)
    frozen = np.zeros(len(loop.point), dtype=bool)
    frozen[native.blocks["upload"]] = frozen[native.blocks["receive"]] = True
    steps = native.blocks["steps"].ravel()
    frozen[rng.choice(steps, len(steps) // 2, replace=False)] = True
    start = loop.point.copy()
    loop.go_on_with(start, frozen, 4)
    assert np.allclose(loop.point[frozen], start[frozen], rtol=1e-12, atol=1e-12)
