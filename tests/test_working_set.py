"""Working sets: steps in which dormant variables stay, judged as steps of the whole program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tiny import tiny_problem

from schedopt.formulation.native import NativeProblem, build_native
from schedopt.registry import solve
from schedopt.sca.kkt import kkt_residual
from schedopt.sca.native_loop import REACHED, NativeLoop
from schedopt.sca.native_settings import NativeRecord, NativeSettings
from schedopt.sca.native_step import Multipliers, Step, Subproblem
from schedopt.sca.working_set import working_set

LOGS = pytest.mark.parametrize("logs", [False, True], ids=["products", "logs"])


@pytest.fixture(autouse=True)
def _numbers_may_overflow() -> Iterator[None]:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        yield


@cache
def case(logs: bool, seed: int = 3) -> tuple[NativeProblem, np.ndarray]:
    """A native problem, and the point of a schedule that leaves slots without uploads."""
    problem = tiny_problem(np.random.default_rng(seed), 3, 2, 4)
    native = build_native(problem, logs=logs)
    schedule = solve(problem, solver="greedy_energy").schedule
    assert schedule is not None and 0 < len(schedule) < native.blocks["upload"].size
    return native, native.point(schedule)


def first_step(native: NativeProblem, v: np.ndarray) -> tuple[Subproblem, np.ndarray, np.ndarray, Step]:
    """The whole subproblem at ``v``, diagonal and penalties, and its step."""
    sub = Subproblem(native.program, exponential=False)
    penalty = np.array([0.0 if name.startswith("binary") else 10.0 for name in sub.names])
    diagonal = 1e-2 + sub.curvature(v, 0.1 * penalty, np.ones(len(v)))
    step = sub.solve(v, diagonal, penalty)
    assert step is not None
    return sub, diagonal, penalty, step


def zeros(native: NativeProblem) -> Multipliers:
    return Multipliers(**{name: np.zeros(len(getattr(native.program, name))) for name in Multipliers.__dataclass_fields__})


@LOGS
def test_without_dormant_variables_it_is_the_whole_step(logs: bool) -> None:
    native, v = case(logs)
    sub, diagonal, penalty, whole = first_step(native, v)
    part = working_set(sub, v, np.zeros(0, dtype=np.int64))
    assert np.array_equal(part.rows, np.arange(sub.rows))
    step = part.sub.solve(v, diagonal, penalty)
    assert step is not None
    wide = part.widened(step, v, penalty, zeros(native))
    assert np.array_equal(wide.point, whole.point) and wide.model == pytest.approx(whole.model, rel=1e-12)
    for name in Multipliers.__dataclass_fields__:
        assert np.array_equal(getattr(wide.multipliers, name), getattr(whole.multipliers, name)), name


@LOGS
def test_dormant_variables_stay_and_the_rows_left_out_keep_what_they_miss(logs: bool) -> None:
    native, schedule = case(logs)
    rng = np.random.default_rng(0)
    # a point that misses rows, those of dormant variables too
    v = np.clip(schedule + 0.01 * rng.uniform(size=len(schedule)) * (native.program.upper > native.program.lower), native.program.lower,
                np.minimum(native.program.upper, 10.0))  # fmt: skip
    dormant = native.dormant(schedule)
    sub, diagonal, penalty, whole = first_step(native, v)
    part = working_set(sub, v, dormant)
    assert 0 < part.sub.rows < sub.rows and [sub.names[k] for k in part.rows] == part.sub.names
    step = part.sub.solve(v, diagonal, penalty[part.rows])
    assert step is not None
    old = Multipliers(**{name: np.full(len(getattr(native.program, name)), 7.0) for name in Multipliers.__dataclass_fields__})
    wide = part.widened(step, v, penalty, old)
    assert np.array_equal(wide.point[dormant], v[dormant]) and not np.array_equal(wide.point, v)
    left = np.setdiff1d(np.arange(sub.rows), part.rows)
    assert len(left) and np.array_equal(wide.slack[left], sub.violations(v)[left])
    assert np.array_equal(sub.violations(wide.point)[left], sub.violations(v)[left])
    assert wide.model == pytest.approx(native.program.objective(wide.point) + float(penalty @ wide.slack), rel=1e-9)
    for name, posed in part.sub.posed.items():
        kept = getattr(wide.multipliers, name)
        assert np.all(kept[~posed] == 7.0) and np.array_equal(kept[posed], getattr(step.multipliers, name)[posed]), name


@LOGS
def test_a_working_set_is_the_whole_with_more_bounds(logs: bool) -> None:
    """Its minimum is that over the steps that leave the dormant variables: not below the whole's, and equal if the whole leaves them."""
    native, v = case(logs)
    sub, diagonal, penalty, whole = first_step(native, v)

    def value(step: Step) -> float:
        return step.model + 0.5 * float(diagonal @ (step.point - v) ** 2)

    def narrow(index: np.ndarray) -> Step:
        part = working_set(sub, v, index)
        step = part.sub.solve(v, diagonal, penalty[part.rows])
        assert step is not None
        return part.widened(step, v, penalty, zeros(native))

    moved = np.abs(whole.point - v)
    assert value(narrow(np.argsort(-moved)[:20])) > value(whole) + 1e-6
    assert value(narrow(native.dormant(v))) > value(whole) - 1e-6
    still = np.flatnonzero(moved < 1e-9)
    assert value(narrow(still)) == pytest.approx(value(whole), abs=1e-6)


@LOGS
def test_dormant_are_the_variables_of_uploads_that_are_not_made(logs: bool) -> None:
    native, v = case(logs)
    dormant = np.zeros(len(v), dtype=bool)
    dormant[native.dormant(v)] = True
    used = v[native.blocks["upload"]] > 0.5
    busy = v[native.blocks["occupancy"]].max(axis=1) > 0.5
    steps = dormant[native.blocks["steps"]]
    assert np.array_equal(steps, ~used) and np.array_equal(dormant[native.blocks["energy"]], ~used)
    assert not np.any(dormant[native.blocks["receive"]][busy]) and np.all(dormant[native.blocks["receive"]][~busy])
    for name in ("h_total", "errors", "bound"):
        assert not np.any(dormant[native.blocks[name]])


@LOGS
def test_the_loop_ends_at_a_kkt_point_of_the_whole_program(logs: bool) -> None:
    """Steps on working sets come between whole ones; the residual that ends the phase is that of all rows and variables."""
    native, start = case(logs)
    records: list[NativeRecord] = []
    loop = NativeLoop(
        native.program, start, native.binaries, NativeSettings(tolerance=1e-5), restore=native.restored, dormant=native.dormant,
        on_iteration=lambda record, point: records.append(record),
    )  # fmt: skip
    assert loop.phase("relaxed", 200) == REACHED
    sizes = {record.variables for record in records}
    assert max(sizes) == np.count_nonzero(native.program.free) and min(sizes) < 0.8 * max(sizes)
    assert loop.multipliers is not None
    residual = kkt_residual(native.program, loop.point, loop.multipliers, ignore=native.program.binary_rows)
    assert residual.total <= 1e-5 and residual == loop.residual
    for record in records:
        lowered = record.merit_after < record.merit_before
        assert lowered or not record.taken or record.phase == "mend" or record.residual <= 1e-5


def test_what_wakes_up_is_found_by_the_next_whole_step() -> None:
    """A point that uses nothing but one device: everything else is dormant, and the whole steps wake it."""
    native, _ = case(False)
    problem = native.problem
    schedule = solve(problem, solver="greedy_energy").schedule
    assert schedule is not None
    start = native.point(schedule.take(schedule.device == schedule.device[0]))
    loop = NativeLoop(
        native.program, start, native.binaries, replace(NativeSettings(), tolerance=1e-4), restore=native.restored, dormant=native.dormant
    )
    assert loop.phase("relaxed", 200) == REACHED
    awake = loop.point[native.blocks["upload"]].max(axis=1) > 1e-3
    assert len(set(native.device[awake])) > 1
