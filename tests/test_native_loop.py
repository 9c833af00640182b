"""The loop of the native route: a merit that never rises, a KKT residual that is reached, backends that fail, settings that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from tiny import tiny_problem

from schedopt.formulation.native import NativeProblem, build_native
from schedopt.registry import solve
from schedopt.sca import native_step
from schedopt.sca.direct import ConicData, ConicSolution, solve_direct
from schedopt.sca.kkt import kkt_residual
from schedopt.sca.native_loop import NativeLoop
from schedopt.sca.native_settings import STEP_RULES, SURROGATES, NativeRecord, NativeSettings

LOGS = pytest.mark.parametrize("logs", [False, True], ids=["products", "logs"])


@pytest.fixture(autouse=True)
def _numbers_may_overflow() -> Iterator[None]:
    """Points far along a step may be none at all; the loop drops them, and the solver calls it with numpy's warnings off."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        yield


@cache
def case(seed: int, logs: bool, devices: int = 2, tasks: int = 1, slots: int = 3) -> tuple[NativeProblem, np.ndarray]:
    """A native problem and the point of a heuristic's schedule."""
    problem = tiny_problem(np.random.default_rng(seed), devices, tasks, slots)
    native = build_native(problem, logs=logs)
    schedule = solve(problem, solver="greedy_energy").schedule
    assert schedule is not None and len(schedule)
    return native, native.point(schedule)


@dataclass
class Watch:
    """Everything that the loop tells, and the merits recomputed from the program's own rows at the penalties of the moment."""

    native: NativeProblem
    loop: NativeLoop | None = None
    records: list[NativeRecord] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    merits: list[tuple[float, float]] = field(default_factory=list)
    penalties: list[np.ndarray] = field(default_factory=list)

    def merit(self, v: np.ndarray) -> float:
        assert self.loop is not None
        program, at, total = self.native.program, 0, float(self.native.program.cost @ v)
        for group in self.loop.sub.penalised:
            values = getattr(program, group.name).values(v)[group.index]
            missed = np.abs(values) if group.name.endswith("_equalities") else np.maximum(values, 0.0)
            total += float(self.loop.penalty[at : at + len(group.index)] @ missed)
            at += len(group.index)
        return total

    def __call__(self, record: NativeRecord, point: np.ndarray) -> None:
        assert self.loop is not None
        self.records.append(record)
        self.points.append(point.copy())
        self.merits.append((self.merit(self.loop.point), self.merit(point)))
        self.penalties.append(self.loop.penalty.copy())


def watched(native: NativeProblem, start: np.ndarray, settings: NativeSettings, *, restore: bool = True) -> tuple[NativeLoop, Watch]:
    watch = Watch(native)
    restoring = native.restored if restore else None
    loop = NativeLoop(native.program, start, native.binaries, settings, restore=restoring, on_iteration=watch)
    watch.loop = loop
    return loop, watch


# --- the merit ---------------------------------------------------------------------------------------------------------------------------


@LOGS
@pytest.mark.parametrize("fractional", [False, True], ids=["from a schedule", "from a fractional point"])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("step_rule", STEP_RULES)
def test_merit_never_rises(step_rule: str, surrogate: str, fractional: bool, logs: bool) -> None:
    """At the penalties of each step, by both records and own sums; and from step to step while penalties stay."""
    native, start = case(3, logs)
    start = native.spread() if fractional else start
    loop, watch = watched(native, start, NativeSettings(step_rule=step_rule, surrogate=surrogate))
    loop.phase("relaxed", 12)
    loop.phase("binary", 4)
    assert loop.history == watch.records and len(watch.records) >= 12
    taken = [k for k, record in enumerate(watch.records) if record.taken and record.residual > loop.settings.tolerance]
    assert len(taken) >= 4
    for k in taken:
        record, (before, after) = watch.records[k], watch.merits[k]
        assert record.merit_after < record.merit_before
        assert (record.merit_before, record.merit_after) == pytest.approx((before, after), rel=1e-9)
    for one, other in zip(watch.records, watch.records[1:], strict=False):
        k = other.iteration
        if np.array_equal(watch.penalties[k - 1], watch.penalties[k]):
            here = one.merit_after if one.taken else one.merit_before
            assert other.merit_before == pytest.approx(here, rel=1e-9)
    for record, point in zip(watch.records, watch.points, strict=True):
        assert native.program.violations(point)["bounds"] < 1e-5
        if record.taken:
            assert record.objective == pytest.approx(float(native.program.cost @ point), rel=1e-12)


def test_steps_keep_the_convex_rows() -> None:
    """A schedule's point meets them, and so does every iterate after it."""
    native, start = case(4, False)
    loop, watch = watched(native, start, NativeSettings())
    loop.phase("relaxed", 10)
    for record, point in zip(watch.records, watch.points, strict=True):
        if record.taken:
            assert native.program.violations(point)["convex equalities"] < 1e-7
            assert max(0.0, float(native.program.quotients.values(point).max())) < 1e-6


def test_diminishing_steps_shrink() -> None:
    native, start = case(5, False)
    loop, watch = watched(native, start, NativeSettings(step_rule="diminishing", diminish=0.2), restore=False)
    loop.phase("relaxed", 4)
    length = 1.0
    for _ in range(len(watch.records)):
        length *= 1.0 - 0.2 * length
    assert loop.step_length == pytest.approx(length)


# --- convergence -------------------------------------------------------------------------------------------------------------------------


@LOGS
def test_relaxations_reach_a_small_residual(logs: bool) -> None:
    """Twelve problems of three devices, two tasks and four slots: all of them by products and eleven by logarithms when measured."""
    reached = 0
    for seed in range(12):
        native, start = case(seed, logs, 3, 2, 4)
        loop, _ = watched(native, start, NativeSettings(tolerance=1e-4))
        ended = loop.phase("relaxed", 50)
        binary = np.array([name.startswith("binary") for name in native.program.nonconvex_inequalities.names], dtype=bool)
        assert loop.residual is not None and loop.multipliers is not None
        # what is reported belongs to the point and multipliers that are left behind
        again = kkt_residual(native.program, loop.point, loop.multipliers, ignore=binary)
        if ended == "KKT residual reached":
            assert again == loop.residual and again.total <= 1e-4
            reached += 1
        assert loop.program.objective(loop.point) < loop.program.objective(start)
    assert reached >= (10 if logs else 11)


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_both_forms_end_at_one_objective(seed: int) -> None:
    """They are one program: from the same schedule, to a smaller residual."""
    reached = []
    for logs in (False, True):
        native, start = case(seed, logs)
        loop, _ = watched(native, start, NativeSettings(tolerance=2e-5))
        assert loop.phase("relaxed", 80) == "KKT residual reached"
        reached.append(native.program.objective(loop.point) * native.cost_scale)
    assert reached[0] == pytest.approx(reached[1], rel=1e-4)


@LOGS
def test_fixed_plans_reach_a_residual_and_stay(logs: bool) -> None:
    """With the binaries fixed the resources end at a KKT point, better than they began."""
    native, start = case(2, logs)
    loop, _ = watched(native, start, NativeSettings())
    fixed = loop.fixed(start, native.idle(start))
    assert fixed.phase("fixed", 40) == "KKT residual reached"
    np.testing.assert_array_equal(fixed.point[native.binaries], np.round(start[native.binaries]))
    idle = native.idle(start)
    np.testing.assert_array_equal(fixed.point[idle], np.clip(start, native.program.lower, native.program.upper)[idle])
    assert native.program.objective(fixed.point) < native.program.objective(start)
    assert fixed.history is loop.history and fixed.history[-1].phase == "fixed"


def test_price_makes_binaries_whole() -> None:
    """The binary phase lowers what is left between 0 and 1."""
    native, start = case(7, False)
    loop, _ = watched(native, native.spread(), NativeSettings(binary_growth=2.0))
    loop.phase("relaxed", 30)
    before = loop.fractional()
    loop.phase("binary", 25)
    assert before > 1e-3 and loop.fractional() < 0.5 * before
    assert loop.price > loop.settings.binary_price
    assert [record.phase for record in loop.history][-1] == "binary"


# --- backends that fail ------------------------------------------------------------------------------------------------------------------


class Broken:
    """Stands for the conic solver: fails where told, otherwise passes on."""

    def __init__(self, fails: Any) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, data: ConicData, backend: str) -> ConicSolution | None:
        self.calls += 1
        return None if self.fails(backend, self.calls) else solve_direct(data, backend)


def test_another_backend_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    native, start = case(1, False)
    monkeypatch.setattr(native_step, "solve_direct", Broken(lambda backend, _: backend == "clarabel"))
    loop, watch = watched(native, start, NativeSettings())
    loop.phase("relaxed", 3)
    assert [record.backend for record in watch.records] == ["scs"] * 3
    assert loop.fallbacks == [f"iteration {k}: clarabel failed, scs solved" for k in range(3)]
    assert watch.records[0].taken


def test_stronger_convexity_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    native, start = case(1, False)
    monkeypatch.setattr(native_step, "solve_direct", Broken(lambda _, call: call == 2))
    loop, watch = watched(native, start, NativeSettings())
    loop.phase("relaxed", 3)
    assert loop.fallbacks == ["iteration 1: clarabel failed, clarabel with 10 times the curvature solved"]
    assert [record.backend for record in watch.records] == ["clarabel"] * 3


def test_clarabel_takes_over_from_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    native, start = case(1, False)
    monkeypatch.setattr(native_step, "solve_direct", Broken(lambda backend, _: backend == "ecos"))
    loop, watch = watched(native, start, NativeSettings(backend="ecos"))
    loop.phase("relaxed", 2)
    assert [record.backend for record in watch.records] == ["clarabel"] * 2
    assert loop.fallbacks[0] == "iteration 0: ecos failed, clarabel solved"


def test_no_backend_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase says so, and the point stays where it was."""
    native, start = case(1, False)
    broken = Broken(lambda _, call: True)
    monkeypatch.setattr(native_step, "solve_direct", broken)
    loop, watch = watched(native, start, NativeSettings())
    assert loop.phase("relaxed", 3) == "no backend could solve the subproblem"
    assert watch.records == [] and loop.fallbacks == [] and loop.multipliers is None
    assert broken.calls == 3  # clarabel, clarabel with more convexity, scs
    np.testing.assert_array_equal(loop.point, np.clip(start, native.program.lower, native.program.upper))


@pytest.mark.parametrize("backend", ["scs", "ecos"])
def test_other_backends_reach_a_residual(backend: str) -> None:
    """Whatever solves the subproblems, the end is measured by the same formulas, and is near the same."""
    pytest.importorskip(backend)
    native, start = case(1, False)
    values = []
    for name in ("clarabel", backend):
        loop, watch = watched(native, start, NativeSettings(backend=name, tolerance=1e-3))
        assert loop.phase("relaxed", 25) == "KKT residual reached"
        values.append(native.program.objective(loop.point))
        assert {record.backend for record in watch.records} == {name} or loop.fallbacks
    assert values[1] == pytest.approx(values[0], rel=5e-3)


def test_whoever_watches_may_stop() -> None:
    native, start = case(1, False)

    def stop(record: NativeRecord, _: np.ndarray) -> None:
        if record.iteration == 2:
            raise KeyboardInterrupt

    loop = NativeLoop(native.program, start, native.binaries, NativeSettings(), on_iteration=stop)
    with pytest.raises(KeyboardInterrupt):
        loop.phase("relaxed", 10)
    assert len(loop.history) == 3 and loop.multipliers is not None


# --- settings ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_rule": "exact"}, r"step_rule = 'exact'; must be one of adaptive, diminishing"),
        ({"surrogate": "taylor"}, r"surrogate = 'taylor'; must be one of halves, majorant"),
        ({"prox_weight": 0.0}, r"prox_weight = 0.0; must be positive"),
        ({"least_prox": -1.0}, r"least_prox = -1.0; must be positive"),
        ({"diminish": 0.0}, r"diminish = 0.0; must be positive"),
        ({"tolerance": float("nan")}, r"tolerance = nan; must be positive"),
        ({"penalty_floor": 0.0}, r"penalty_floor = 0.0; must be positive"),
        ({"penalty_factor": 1.0}, r"penalty_factor = 1.0; must be above 1"),
        ({"binary_price": 0.0}, r"binary_price = 0.0; must be positive"),
        ({"binary_most": 0.0}, r"binary_most = 0.0; must be positive"),
        ({"binary_growth": 0.9}, r"binary_growth = 0.9; must be above 1"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NativeSettings(**changes)
