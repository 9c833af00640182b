"""The relaxed program on the scheduling tensors: at whole binaries it is the problem itself, row by row and term by term."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import cases, feasible_assignments, make, make_problem, plain_device, plain_problem, plain_task, random_problem, seeds
from hypothesis import assume, given
from test_polish import VARIANTS, variant
from tiny import tiny_problem, tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.formulation.native import NativeProblem, build_native
from schedopt.formulation.nlp import Program
from schedopt.objective import Evaluation, evaluate_objective
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule
from schedopt.state import State

LOGS = pytest.mark.parametrize("logs", [False, True], ids=["products", "logs"])


def violation(native: NativeProblem, v: np.ndarray) -> float:
    return max(native.program.violations(v).values())


def broken(program: Program, v: np.ndarray, tolerance: float = 1e-7) -> set[str]:
    """Names of the rows that do not hold at ``v``, and "bounds"."""
    found = {"bounds"} if np.any(v < program.lower - tolerance) or np.any(v > program.upper + tolerance) else set()
    for name in ("convex_equalities", "nonconvex_equalities", "affine", "quotients", "rates", "nonconvex_inequalities"):
        rows = getattr(program, name)
        values = np.abs(rows.values(v)) if name.endswith("_equalities") else rows.values(v)
        found |= {rows.names[k] for k in np.flatnonzero(values > tolerance)}
    return found


def acceptable(problem: Problem, evaluation: Evaluation, feasible: bool) -> bool:
    """Feasible, and every task that the mode asks for is trained (its bound is finite)."""
    needed = problem.arrays.weight > 0 if problem.objective.mode != "min_energy" else np.isfinite(problem.arrays.target)
    return feasible and bool(np.all(np.isfinite(evaluation.bound.total) | ~needed))


def check_is_the_schedule(problem: Problem, schedule: Schedule, logs: bool) -> None:
    """All rows hold, and objective, bounds and energies are the exact ones."""
    native = build_native(problem, logs=logs)
    v, exact = native.point(schedule), evaluate_objective(problem, schedule)
    assert broken(native.program, v, 1e-9) == set()
    assert native.program.objective(v) * native.cost_scale == pytest.approx(exact.objective, rel=1e-9, abs=1e-300)
    trained = np.isfinite(exact.bound.total)
    np.testing.assert_allclose(native.tensor(v, "bound")[trained], exact.bound.total[trained], rtol=1e-9)
    for i in range(problem.arrays.num_devices):
        mine = native.tensor(v, "energy")[native.device == i].sum()
        assert mine == pytest.approx(exact.device_energy_j[i], rel=1e-9)


def repaired_state(problem: Problem, seed: int) -> State:
    """A feasible state that trains every task, from random disjoint assignments."""
    rng, a = np.random.default_rng(seed), problem.arrays
    for _ in range(200):
        rows = []
        for i in range(a.num_devices):
            start = int(rng.integers(0, 2))
            while start < a.slots:
                end = min(start + int(rng.integers(1, 4)), a.slots)
                rows.append((i, rng.integers(a.num_tasks), start, end, rng.integers(1, 4), rng.integers(5, 20), 0, 0, 0))
                start = end + int(rng.integers(0, 2))
        state = repair(problem, Schedule.from_records(rows))
        if state is None:
            continue
        report = validate_schedule(problem, state.schedule)
        if np.all(np.isfinite(report.evaluation.bound.total)):
            return state
    raise AssertionError("no random schedule could be repaired")


# --- a schedule's point ------------------------------------------------------------------------------------------------------------------


@LOGS
@cases(40)
@given(seed=seeds)
def test_point_of_a_feasible_schedule(logs: bool, seed: int) -> None:
    """Problems of every kind, feasible by the reference's judgement."""
    rng = np.random.default_rng(seed)
    data = random_problem(rng, devices=int(rng.integers(1, 4)), tasks=int(rng.integers(1, 3)), slots=int(rng.integers(1, 8)))
    assignments = feasible_assignments(rng, data)
    problem, schedule = make(data, assignments)
    assume(all(problem.arrays.aggregation_weight[schedule.device, schedule.task] > 0))
    report = validate_schedule(problem, schedule)
    assume(acceptable(problem, report.evaluation, report.feasible))
    check_is_the_schedule(problem, schedule, logs)


@LOGS
@pytest.mark.parametrize("conditions", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_point_where_every_term_counts(name: str, conditions: bool, logs: bool) -> None:
    """Stale, noisy, drifting, proximal and uneven; limits of the modes are made such that the schedule just meets them."""
    rng = np.random.default_rng(5)
    problem = variant(rng, **(VARIANTS[name] | {"enforce_conditions": conditions}))
    schedule = repaired_state(problem, 5).schedule
    data, exact = problem.to_dict(), evaluate_objective(problem, schedule)
    data["objective"]["total_energy_j"] = exact.energy_j * 1.0001
    for j, task in enumerate(data["tasks"]):
        task["target"] = float(exact.bound.total[j]) * 1.0001
    problem = make_problem(data)
    assert validate_schedule(problem, schedule).feasible
    check_is_the_schedule(problem, schedule, logs)
    # and a little less than the schedule needs breaks the row of the limit
    data["objective"]["total_energy_j"] = exact.energy_j * 0.9999
    data["tasks"][1]["target"] = float(exact.bound.total[1]) * 0.9999
    native = build_native(make_problem(data), logs=logs)
    limit = {"min_bound": {"total energy"}, "min_energy": {"bounds"}, "weighted": set()}[problem.objective.mode]
    assert broken(native.program, native.point(schedule)) == limit


@LOGS
def test_point_of_tiny_problems(logs: bool) -> None:
    for seed in range(5):
        problem = tiny_problem(np.random.default_rng(seed), 3, 2, 4)
        check_is_the_schedule(problem, repaired_state(problem, seed).schedule, logs)


def test_products_and_logs_are_one_program() -> None:
    """The same schedule, the same tensors."""
    problem = variant(np.random.default_rng(2), **VARIANTS["weighted horizon"])
    schedule = repaired_state(problem, 2).schedule
    plain, logs = build_native(problem), build_native(problem, logs=True)
    v, w = plain.point(schedule), logs.point(schedule)
    for name in ("receive", "upload", "steps", "batch", "freq", "power", "bandwidth", "energy", "elapsed", "compute", "noise"):
        np.testing.assert_allclose(plain.tensor(v, name), logs.tensor(w, name), rtol=1e-12, atol=1e-15)


def test_a_pair_that_cannot_train_has_no_point() -> None:
    problem = make_problem(plain_problem([plain_device(pair={"samples": 4})], [plain_task(min_batch=5)]))
    native = build_native(problem)
    assert len(native.device) == 0
    with pytest.raises(KeyError):
        native.point(Schedule.from_records([(0, 0, 0, 1, 1, 4, 1e9, 0.1, 1e6)]))


# --- what breaks a rule breaks a row -----------------------------------------------------------------------------------------------------


def plain(**changes: Any) -> Problem:
    """Two devices and two tasks of round numbers."""
    devices = [plain_device("d0", ("t0", "t1"), **changes), plain_device("d1", ("t0", "t1"))]
    return make_problem(plain_problem(devices, [plain_task(), plain_task(name="t1", max_staleness=2)], energy_weight=0.1))


#: device, task, start, end, steps, batch, frequency, power, bandwidth: feasible, and both tasks are trained
GOOD = [(0, 0, 0, 2, 2, 20, 1e9, 0.3, 9e5), (1, 1, 0, 3, 3, 10, 5e8, 0.3, 9e5), (0, 1, 3, 4, 1, 50, 1e9, 0.2, 9e5)]


def test_the_good_schedule_is_good() -> None:
    for logs in (False, True):
        assert validate_schedule(plain(), Schedule.from_records(GOOD)).feasible
        check_is_the_schedule(plain(), Schedule.from_records(GOOD), logs)


BROKEN: dict[str, tuple[list[tuple[float, ...]], set[str]]] = {
    "deadline": ([(0, 0, 4, 5, 10, 100, 1e9, 0.3, 9e5), (0, 1, 5, 6, 10, 100, 2e8, 0.3, 9e5)], {"deadline"}),
    "upload longer than a slot": ([(1, 1, 3, 6, 1, 1, 1e9, 0.3, 1.2e5)], {"bounds"}),
    "band": ([(0, 0, 4, 6, 2, 20, 1e9, 0.3, 1.1e6), (1, 1, 4, 6, 2, 20, 1e9, 0.3, 1.1e6)], {"band"}),
    "staleness": ([(1, 1, 3, 7, 2, 20, 1e9, 0.3, 9e5)], {"bounds"}),
    "two tasks at a time": ([(0, 1, 0, 1, 2, 20, 1e9, 0.3, 9e5)], {"one task"}),
    "the same task twice at a time": ([(0, 0, 1, 3, 2, 20, 1e9, 0.3, 9e5)], {"one task", "bounds"}),
    "more power than there is": ([(1, 1, 4, 6, 2, 20, 1e9, 0.5, 9e5)], {"bounds"}),
    "more steps than allowed": ([(1, 1, 4, 6, 11, 2, 1e9, 0.3, 9e5)], {"bounds"}),
    "a batch beyond the data": ([(1, 1, 4, 6, 1, 101, 1e9, 0.3, 9e5)], {"bounds"}),
    "a frequency out of range": ([(1, 1, 4, 6, 1, 10, 5e7, 0.3, 9e5)], {"bounds"}),
}


@LOGS
@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_breaks_its_row(name: str, logs: bool) -> None:
    more, rows = BROKEN[name]
    schedule = Schedule.from_records([*GOOD, *more])
    assert not validate_schedule(plain(), schedule).feasible
    native = build_native(plain(), logs=logs)
    found = broken(native.program, native.point(schedule))
    assert rows <= found
    # 1/B and the occupied slots show the same breach once more
    assert found - rows <= {"inverse batch", "log_compute sum", "upload while occupied", "received while occupied", "bounds"}


@LOGS
def test_an_energy_budget_is_a_row(logs: bool) -> None:
    schedule = Schedule.from_records(GOOD)
    spent = float(evaluate_objective(plain(), schedule).device_energy_j[0])
    for budget, rows in ((spent * 1.0001, set()), (spent * 0.9999, {"energy budget"})):
        native = build_native(plain(energy_budget_j=budget), logs=logs)
        assert broken(native.program, native.point(schedule)) == rows


@LOGS
@pytest.mark.parametrize(
    ("ends", "kept"),
    [(((0, 1), (1, 2)), True), (((0, 1), (0, 1)), False), (((0, 3), (1, 2)), False), (((0, 3), (3, 4)), True)],
    ids=["apart", "together", "one spans the other", "one after the other"],
)
def test_condition_c2_is_a_row(ends: tuple[tuple[int, int], ...], kept: bool, logs: bool) -> None:
    """β h = 0.4 of each: two at one instant are too much, and so is one that another with κ = 2 spans."""
    task = plain_task(learning_rate=0.2, server_rate=20.0, smoothness=0.2)
    problem = make_problem(plain_problem([plain_device(f"d{i}") for i in range(2)], [task], slots=4))
    schedule = Schedule.from_records([(i, 0, *ends[i], 1, 5, 1e9, 0.3, 9e5) for i in range(2)])
    report = validate_schedule(problem, schedule)
    assert {check.name for check in report.checks if not check.ok} == (set() if kept else {"C2"})
    native = build_native(problem, logs=logs)
    assert broken(native.program, native.point(schedule)) == (set() if kept else {"condition C2"})


@LOGS
@cases(60)
@given(seed=seeds)
def test_rows_hold_where_the_validator_says_feasible(logs: bool, seed: int) -> None:
    """One number of one assignment of a feasible schedule is changed at random, or one assignment is repeated elsewhere."""
    rng = np.random.default_rng(seed)
    data = random_problem(rng, devices=int(rng.integers(1, 4)), tasks=int(rng.integers(1, 3)), slots=int(rng.integers(2, 8)))
    assignments = feasible_assignments(rng, data)
    assume(assignments)
    changed = dict(assignments[rng.integers(len(assignments))])
    what = str(rng.choice(["start", "end", "steps", "batch", "freq_hz", "power_w", "bandwidth_hz"]))
    if what == "start":
        changed["start"] = int(rng.integers(0, changed["end"]))
    elif what == "end":
        changed["end"] = int(rng.integers(changed["start"] + 1, data["horizon"]["slots"] + 1))
    else:
        value = changed[what] * np.exp(rng.normal(0, 0.7))
        changed[what] = max(1, int(value)) if what in ("steps", "batch") else float(value)
    kept = [s for s in assignments if s["device"] != changed["device"] or s["end"] <= changed["start"] or s["start"] >= changed["end"]]
    problem, schedule = make(data, [*kept, changed] if rng.random() < 0.8 else [*assignments, changed])
    assume(all(problem.arrays.aggregation_weight[schedule.device, schedule.task] > 0))
    strict, lax = (validate_schedule(problem, schedule, tolerance=tolerance) for tolerance in (1e-9, 1e-5))
    assume(strict.feasible == lax.feasible)
    native = build_native(problem, logs=logs)
    assert (violation(native, native.point(schedule)) < 1e-7) == acceptable(problem, strict.evaluation, strict.feasible)


# --- all 0/1 tensors of a problem that small ---------------------------------------------------------------------------------------------


def interval_sets(slots: int, colours: int, longest: int) -> Iterator[list[tuple[int, int, int]]]:
    """All sets of disjoint intervals (colour, start, end) of at most ``longest`` slots."""

    def extend(start: int) -> Iterator[list[tuple[int, int, int]]]:
        yield []
        for first in range(start, slots):
            for end in range(first + 1, min(first + longest, slots) + 1):
                for colour in range(colours):
                    for rest in extend(end):
                        yield [(colour, first, end), *rest]

    return extend(0)


@LOGS
@pytest.mark.parametrize(("tasks", "slots", "max_staleness", "count"), [(1, 4, 3, 34), (1, 4, 1, None), (2, 3, 2, None)])
def test_binary_tensors_that_meet_all_rows_are_the_schedules(tasks: int, slots: int, max_staleness: int, count: int | None, logs: bool):
    """All R and U of one device; 34 = the ninth Fibonacci number is how many sets of disjoint intervals four slots have."""
    names = [f"t{j}" for j in range(tasks)]
    records = [plain_task(name=name, weight=0.0, max_staleness=max_staleness) for name in names]
    problem = make_problem(plain_problem([plain_device(tasks=tuple(names))], records, slots=slots, energy_weight=1.0))
    expected = set()
    for plan in interval_sets(slots, tasks, max_staleness + 1):
        receive, upload = np.zeros((2, tasks, slots), dtype=int)
        for j, start, end in plan:
            receive[j, start], upload[j, end - 1] = 1, 1
        expected.add((tuple(receive.ravel()), tuple(upload.ravel())))
    assert count is None or len(expected) == count
    native = build_native(problem, logs=logs)
    empty = native.point(Schedule.empty())
    values = {name: native.tensor(empty, name) for name in ("steps", "batch", "freq", "power", "bandwidth", "before")}
    values["freq"] = np.full((tasks, slots), 1e9)
    found = set()
    for bits in product((0, 1), repeat=2 * tasks * slots):
        receive, upload = np.array(bits, dtype=float).reshape(2, tasks, slots)
        v = native.complete({**values, "receive": receive, "upload": upload})
        if violation(native, v) < 1e-7:
            found.add((bits[: tasks * slots], bits[tasks * slots :]))
    assert found == expected


# --- other points ------------------------------------------------------------------------------------------------------------------------


@LOGS
@pytest.mark.parametrize("name", VARIANTS)
def test_restored_keeps_the_tensors_and_mends_the_rest(name: str, logs: bool) -> None:
    problem = variant(np.random.default_rng(1), **VARIANTS[name])
    native = build_native(problem, logs=logs)
    v, rng = native.point(repaired_state(problem, 1).schedule), np.random.default_rng(0)
    np.testing.assert_allclose(native.restored(v), v, rtol=1e-12, atol=1e-12)
    kept = np.zeros(len(v), dtype=bool)
    for block in ("receive", "upload", "steps", "batch", "freq", "power", "bandwidth", "before"):
        kept[native.blocks[f"log_{block}" if logs and block in ("batch", "freq") else block]] = True
    disturbed = np.where(kept, v, rng.uniform(0.5, 2.0, size=len(v)))
    np.testing.assert_allclose(native.restored(disturbed), v, rtol=1e-12, atol=1e-12)


@LOGS
@pytest.mark.parametrize("name", VARIANTS)
def test_spread_is_fractional_and_meets_the_rows_that_define(name: str, logs: bool) -> None:
    problem = variant(np.random.default_rng(3), **VARIANTS[name])
    native = build_native(problem, logs=logs)
    for rng in (None, np.random.default_rng(0)):
        v = native.spread(rng)
        z = v[native.binaries]
        assert np.all((z > 1e-4) & (z < 0.96))
        # targets are bounds of Ψ, and an upload may take longer than a slot
        assert broken(native.program, v, 1e-9) <= {"deadline", "condition C2", "binary receive", "binary upload", "bounds"}
        limited = np.concatenate([native.blocks["bound"], native.blocks["send"].ravel()])
        outside = np.flatnonzero((v < native.program.lower - 1e-9) | (v > native.program.upper + 1e-9))
        assert set(outside) <= set(limited)
        assert {"binary receive", "binary upload"} <= broken(native.program, v)
    again = native.spread(np.random.default_rng(0))
    np.testing.assert_array_equal(again, v)


@LOGS
def test_spread_keeps_within_band_and_energy(logs: bool) -> None:
    """Iterations keep these rows but would not mend them: where limits are tight there is less of everything, up to the limit."""
    data = tiny_problem_dict(np.random.default_rng(0), 4, 2, 3, mode="min_bound", total_energy_j=0.05)
    for rng in (None, np.random.default_rng(1)):
        native = build_native(make_problem(data), logs=logs)
        v = native.spread(rng)
        assert native.tensor(v, "energy").sum() == pytest.approx(0.05, rel=1e-6)
        assert not broken(native.program, v, 1e-12) & {"band", "energy budget", "total energy"}
    data["objective"]["total_energy_j"] = None
    data["devices"][0]["energy_budget_j"] = 0.004
    native = build_native(make_problem(data), logs=logs)
    assert native.tensor(native.spread(), "energy")[native.device == 0].sum() == pytest.approx(0.004, rel=1e-6)


@LOGS
def test_nothing_depends_on_idle_variables(logs: bool) -> None:
    """How an upload that is not made would be made changes neither objective nor any row of the problem."""
    problem = variant(np.random.default_rng(4), **VARIANTS["weighted instant"])
    native, rng = build_native(problem, logs=logs), np.random.default_rng(1)
    schedule = repaired_state(problem, 4).schedule
    v = native.point(schedule)
    idle = native.idle(v)
    used = len(native.blocks["upload"].ravel()) - len(schedule)
    assert len(idle) % used == 0 and len(idle) > 0
    for name in ("steps", "power", "compute"):
        assert len(np.intersect1d(idle, native.blocks[name])) == used
    values = {name: native.tensor(v, name) for name in ("receive", "upload", "before", "steps", "batch", "freq", "power", "bandwidth")}
    unused = np.round(values["upload"]) == 0
    for name in ("steps", "batch", "freq", "power", "bandwidth"):
        values[name] = np.where(unused, values[name] * rng.uniform(1.0, 1.05, unused.shape), values[name])
    other = native.complete(values)
    changed = np.flatnonzero(np.abs(other - v) > 1e-12)
    assert len(changed) > 10 and set(changed) <= set(idle)
    assert native.program.objective(other) == native.program.objective(v)


@LOGS
def test_program_of_a_task_that_nothing_is_asked_of(logs: bool) -> None:
    """Untrained tasks of weight zero: every number is finite, and the rows hold."""
    for participation in ("instant", "horizon"):
        tasks = [plain_task(), plain_task(name="t1", weight=0.0)]
        data = plain_problem([plain_device(tasks=("t0", "t1"))], tasks, slots=4, participation=participation, energy_weight=0.1)
        check_is_the_schedule(make_problem(data), Schedule.from_records([(0, 0, 0, 2, 2, 20, 1e9, 0.3, 9e5)]), logs)
