"""Repair: every kind of violation by itself, and random schedules that break everything at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import cases, make_problem, make_schedule, plain_device, plain_problem, plain_task, random_problem, seeds
from hypothesis import given
from tiny import tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.formulation.resources import feasible_times, least_bandwidth_hz
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule
from schedopt.state import State


def violations(problem: Problem, state: State) -> list[str]:
    """All but targets and the total energy, which a state's merit prices."""
    report = validate_schedule(problem, state.schedule, tolerance=1e-9)
    return [f"{c.name}: {c.where} {c.amount:g}" for c in report.checks if not c.ok and c.name not in ("target", "total energy")]


def skeleton(*rows: tuple[int, ...]) -> Schedule:
    """Assignments (device, task, start, end, steps, batch) without resources."""
    return Schedule.from_records([(*row, 0, 0, 0) for row in rows])


def repaired(problem: Problem, schedule: Schedule) -> State:
    state = repair(problem, schedule)
    assert state is not None
    assert not violations(problem, state)
    check_only_shrunk(schedule, state.schedule)
    return state


def keys_of(schedule: Schedule) -> list[tuple[int, ...]]:
    columns = (schedule.device, schedule.task, schedule.start, schedule.end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def check_only_shrunk(before: Schedule, after: Schedule) -> None:
    """Assignments are a subset, each with no more steps and no larger a batch."""
    known = {key: k for k, key in enumerate(keys_of(before))}
    keys = keys_of(after)
    assert len(set(keys)) == len(keys)
    index = np.array([known[key] for key in keys])
    assert np.all(after.steps <= before.steps[index]) and np.all(after.batch <= before.batch[index])


def test_a_possible_schedule_is_left_alone() -> None:
    problem = make_problem(plain_problem([plain_device("d0"), plain_device("d1")]))
    schedule = skeleton((0, 0, 0, 1, 5, 20), (1, 0, 1, 3, 8, 30), (0, 0, 3, 5, 10, 10))
    state = repaired(problem, schedule)
    assert np.array_equal(state.schedule.steps, schedule.steps) and np.array_equal(state.schedule.batch, schedule.batch)


def test_work_that_misses_its_deadline_shrinks() -> None:
    """2 s hold about 1.9e9 cycles at 1 GHz, less the upload; asked for are 5e9."""
    pair = {"cycles_per_sample": 1.0e7, "samples": 100}
    problem = make_problem(plain_problem([plain_device(pair=pair)]))
    state = repaired(problem, skeleton((0, 0, 0, 1, 10, 50)))
    assert len(state.schedule) == 1
    cycles = float(state.schedule.steps[0] * state.schedule.batch[0]) * 1e7
    _, shortest, _ = feasible_times(problem.arrays, state.schedule)
    # not by more than needed: it would have fit one and a half times
    assert 1e9 * (1.9 - shortest[0]) / 2 < cycles < 1e9 * (1.9 - shortest[0])


def test_batches_shrink_before_steps_do() -> None:
    pair = {"cycles_per_sample": 1.0e7, "samples": 100}
    problem = make_problem(plain_problem([plain_device(pair=pair)], [plain_task(min_batch=10)]))
    mild, harsh = (repaired(problem, skeleton((0, 0, 0, 1, 8, batch))).schedule for batch in (40, 10))
    assert mild.steps[0] == 8 and mild.batch[0] < 40
    # at the least batch steps remain to give way: 8·10 samples fit, 10·10 with slower processors do not
    assert harsh.batch[0] == 10
    slower = make_problem(plain_problem([plain_device(pair=pair, freq_hz=[1e8, 4e8])], [plain_task(min_batch=10)]))
    less = repaired(slower, skeleton((0, 0, 0, 1, 8, 10))).schedule
    assert less.batch[0] == 10 and less.steps[0] < 8


def test_what_never_fits_is_dropped() -> None:
    """One device's channel is too poor for any upload, another's processor too slow for one sample."""
    devices = [plain_device("ok"), plain_device("deaf", gain=1e-9), plain_device("slow", freq_hz=[1e3, 1e4])]
    problem = make_problem(plain_problem(devices))
    state = repaired(problem, skeleton((0, 0, 0, 1, 5, 20), (1, 0, 0, 4, 1, 1), (2, 0, 0, 4, 1, 1)))
    assert state.schedule.device.tolist() == [0]
    assert repair(problem, skeleton((1, 0, 0, 4, 1, 1), (2, 0, 0, 4, 1, 1))) is None


@pytest.mark.parametrize("enforce", [True, False])
def test_steps_within_c1_and_max_steps(enforce: bool) -> None:
    task = plain_task(max_steps=12, learning_rate=0.05 / (4 * 0.5))  # C1 allows four
    problem = make_problem(plain_problem([plain_device()], [task], enforce_conditions=enforce))
    state = repaired(problem, skeleton((0, 0, 0, 2, 40, 10)))
    assert state.schedule.steps[0] == (4 if enforce else 12)


def test_nothing_is_left_when_c1_allows_no_step() -> None:
    problem = make_problem(plain_problem([plain_device()], [plain_task(learning_rate=0.2)]))
    assert repair(problem, skeleton((0, 0, 0, 2, 1, 10))) is None


@pytest.mark.parametrize("stale", [False, True])
def test_c2_is_met_by_fewer_steps(stale: bool) -> None:
    """Large server steps: β h_k of an instant, or the stale work that spans it, is too much."""
    devices = [plain_device(f"d{k}", pair={"cycles_per_sample": 1e5}) for k in range(4)]
    problem = make_problem(plain_problem(devices, [plain_task(server_rate=12.0)], slots=6))
    rows = [(k, 0, 0, 4, 10, 10) if stale and k % 2 else (k, 0, 2, 3, 10, 10) for k in range(4)]
    before = skeleton(*rows)
    checks = validate_schedule(problem, before.replace(freq_hz=before.steps, power_w=before.steps, bandwidth_hz=before.steps)).checks
    assert not next(check for check in checks if check.name == "C2").ok
    state = repaired(problem, before)
    assert len(state.schedule) > 0


def test_a_full_band_loses_its_most_demanding_uploads() -> None:
    """Six uploads, each of which cannot do without a third of the band: at most three stay, and not the poorest channels."""
    gains = [1e-5, 1e-5, 1e-5, 8e-6, 8e-6, 8e-6]
    data = plain_problem([plain_device(f"d{k}", gain=gain) for k, gain in enumerate(gains)])
    schedule = skeleton(*((k, 0, 1, 2, 2, 5) for k in range(6)), (0, 0, 3, 4, 2, 5))
    need = least_bandwidth_hz(make_problem(data).arrays, schedule)
    data["spectrum"]["bandwidth_hz"] = 3.05 * float(need[0])
    problem = make_problem(data)
    state = repaired(problem, schedule)
    crowded = state.schedule.take(state.schedule.end == 2)
    assert sorted(crowded.device.tolist()) == [0, 1, 2]
    # the other slot has room for all
    assert np.count_nonzero(state.schedule.end == 4) == 1


def test_work_shrinks_to_the_energy_budget() -> None:
    """One device is short of energy; the other's work stays as it was."""
    budget, pair = 0.05, {"cycles_per_sample": 5e6, "samples": 100}
    devices = [plain_device("poor", pair=pair, gain=1e-3, energy_budget_j=budget), plain_device("rich", pair=pair, gain=1e-3)]
    devices[0]["capacitance"] = devices[1]["capacitance"] = 2e-26
    problem = make_problem(plain_problem(devices))
    rows = [(i, 0, g, g + 2, 8, 40) for i in range(2) for g in (0, 4)]
    schedule = skeleton(*rows)
    spent = repaired(make_problem(plain_problem([d | {"energy_budget_j": None} for d in devices])), schedule).evaluation.device_energy_j
    assert spent[0] > 0.4
    state = repaired(problem, schedule)
    assert state.evaluation.device_energy_j[0] <= budget * (1 + 1e-9)
    assert np.any(state.schedule.device == 0)
    rich = state.schedule.take(state.schedule.device == 1)
    assert len(rich) == 2 and np.all(rich.steps * rich.batch == 320)


def test_a_budget_below_any_assignment_drops_the_device() -> None:
    problem = make_problem(plain_problem([plain_device("poor", energy_budget_j=1e-9), plain_device("rich")]))
    state = repaired(problem, skeleton((0, 0, 0, 2, 5, 20), (1, 0, 0, 2, 5, 20)))
    assert state.schedule.device.tolist() == [1]


def test_nothing_to_repair() -> None:
    assert repair(make_problem(plain_problem()), Schedule.empty()) is None


def random_skeleton(rng: np.random.Generator, data: dict[str, Any]) -> Schedule:
    """Disjoint intervals of every device within the staleness limits, with steps and batches beyond all others."""
    tasks = {task["name"]: task for task in data["tasks"]}
    rows = []
    for device in data["devices"]:
        start = 0
        while start < data["horizon"]["slots"] and device["tasks"]:
            name = str(rng.choice(list(device["tasks"])))
            pair, task = device["tasks"][name], tasks[name]
            end = min(start + int(rng.integers(1, task["max_staleness"] + 2)), data["horizon"]["slots"])
            batch = int(rng.integers(task.get("min_batch", 1), pair["samples"] + 1))
            numbers = {"steps": int(rng.integers(1, 3 * task["max_steps"] + 1)), "batch": batch}
            resources = {"freq_hz": 1.0, "power_w": 1.0, "bandwidth_hz": 1.0}
            rows.append({"device": device["name"], "task": name, "start": start, "end": end} | numbers | resources)
            start = end + int(rng.integers(0, 2))
    return make_schedule(data, rows)


@cases(30)
@given(seeds)
def test_random_schedules_become_valid(seed: int) -> None:
    """Deadlines, band, budgets, C1 and C2 broken together: what comes back is valid, or nothing."""
    rng = np.random.default_rng(seed)
    data = random_problem(rng, devices=4, slots=6)
    data["spectrum"]["bandwidth_hz"] *= float(rng.choice([1.0, 0.1]))
    for task in data["tasks"]:
        task["server_rate"] = float(rng.choice([1.0, 10.0]))
    problem = make_problem(data)
    schedule = random_skeleton(rng, data)
    state = repair(problem, schedule)
    if state is not None:
        assert not violations(problem, state)
        assert len(state.schedule) > 0
        check_only_shrunk(schedule, state.schedule)


@cases(20)
@given(seeds)
def test_something_is_kept_where_one_assignment_alone_is_possible(seed: int) -> None:
    """Without budgets a schedule of possible assignments is never given up."""
    rng = np.random.default_rng(seed)
    data = tiny_problem_dict(rng, 4, 2, 5)
    data["spectrum"]["bandwidth_hz"] *= 0.5
    problem = make_problem(data)
    rows = [(i, rng.integers(2), g, g + 2, 3, 20) for i in range(4) for g in (0, 2)]
    schedule = skeleton(*rows)
    _, shortest, longest = feasible_times(problem.arrays, schedule.replace(steps=np.ones(8), batch=4 * np.ones(8)))
    state = repair(problem, schedule)
    assert (state is not None) == bool(np.any(shortest <= longest))
    if state is not None:
        assert not violations(problem, state)
