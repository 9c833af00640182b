"""The oracle against a dumber one: every set of assignments, every whole (steps, batch), resources by the allocator it does not use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from schedopt.bounds.async_schedule import C1_LIMIT
from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.formulation.resources import allocate
from schedopt.objective import evaluate_objective
from schedopt.physics import evaluate_physics
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.registry import get_solver
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings
from schedopt.solvers.enumeration.budgets import _Shares, split_for_budgets
from schedopt.solvers.enumeration.joint_plan import JointPlan
from schedopt.solvers.enumeration.rows import build_rows
from schedopt.solvers.enumeration.slots import Slot
from schedopt.solvers.enumeration.tables import Tables
from schedopt.solvers.enumeration.terms import read_terms
from tests.tiny import tiny_problem, tiny_problem_dict

Row = tuple[float, ...]


def _plans(problem: Problem, device: int) -> list[tuple[Row, ...]]:
    """All sets of disjoint assignments of a device, with every whole (steps, batch)."""
    a = problem.arrays
    single: list[Row] = []
    for j, start in itertools.product(range(a.num_tasks), range(a.slots)):
        for end in range(start + 1, min(a.slots, start + 1 + int(a.max_staleness[j])) + 1):
            for steps in range(1, int(a.max_steps[j]) + 1):
                for batch in range(int(a.min_batch[j]), int(a.samples[device, j]) + 1):
                    single.append((device, j, start, end, steps, batch, 0.0, 0.0, 0.0))

    def extend(chosen: tuple[Row, ...], free_from: int) -> Iterator[tuple[Row, ...]]:
        yield chosen
        for row in single:
            if row[2] >= free_from:
                yield from extend((*chosen, row), int(row[3]))

    return list(extend((), 0))


def _brute_force(problem: Problem) -> float:
    best = np.inf
    for plans in itertools.product(*(_plans(problem, i) for i in range(len(problem.devices)))):
        rows = [row for plan in plans for row in plan]
        allocation = allocate(problem.arrays, Schedule.from_records(rows)) if rows else None
        if allocation is None:
            continue
        evaluation = evaluate_objective(problem, allocation.schedule)
        report = validate_schedule(problem, allocation.schedule, tolerance=1e-9, evaluation=evaluation)
        if report.feasible and evaluation.objective < best:
            best = evaluation.objective
    return best


@pytest.mark.parametrize(("devices", "tasks", "slots"), [(1, 1, 2), (2, 1, 1), (1, 2, 1), (1, 1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_enumeration_finds_the_brute_force_optimum(devices: int, tasks: int, slots: int, seed: int) -> None:
    problem = tiny_problem(
        np.random.default_rng(seed), devices=devices, tasks=tasks, slots=slots, samples=(3, 4), task={"max_steps": 2, "min_batch": 2}
    )
    found = get_solver("enumeration").solve(problem, settings=SolverSettings())
    if tasks > devices * slots:
        # a task is left untrained in every schedule
        assert found.schedule is None and found.reason and not np.isfinite(_brute_force(problem))
        return
    assert found.objective == pytest.approx(_brute_force(problem), rel=1e-7)
    assert found.lower_bound is not None and found.lower_bound <= found.objective


def test_too_large_a_problem_is_refused_in_one_line() -> None:
    problem = tiny_problem(np.random.default_rng(0), devices=3, tasks=2, slots=12)
    with pytest.raises(InputError) as refused:
        get_solver("enumeration").solve(problem, settings=SolverSettings())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("mode", ["weighted", "min_energy", "min_bound"])
@pytest.mark.parametrize("seed", range(2))
def test_enumeration_within_budgets_is_valid_and_no_worse_than_heuristics(mode: str, seed: int) -> None:
    """Budgets of each device at 80% of what it spends without them; in mode min_bound with a limit on the energy of all as well."""
    data = tiny_problem_dict(np.random.default_rng(seed), devices=2, slots=2, max_steps=2, samples=(6, 9), mode=mode)
    for task in data["tasks"]:
        task["target"] = 20.0
    free = get_solver("enumeration").solve(Problem.model_validate(data), settings=SolverSettings()).schedule
    assert free is not None
    energy = np.bincount(free.device, evaluate_physics(Problem.model_validate(data), free).energy_j, minlength=2)
    for device, spent in zip(data["devices"], energy, strict=True):
        device["energy_budget_j"] = 0.8 * float(spent if spent > 0 else energy.max())
    problem = Problem.model_validate(data)
    found = get_solver("enumeration").solve(problem, settings=SolverSettings())
    others = [get_solver(name).solve(problem, settings=SolverSettings()).objective for name in ("greedy_energy", "random_feasible")]
    assert found.objective <= (1 + 1e-9) * min(others)
    assert found.schedule is None or validate_schedule(problem, found.schedule, tolerance=1e-9).feasible


# --- the band split within energy budgets ---


def _crowded(seed: int, devices: int, slots: int) -> dict[str, Any]:
    """Devices that can share a slot, with budgets beyond what they can spend."""
    data = tiny_problem_dict(np.random.default_rng(seed), devices=devices, slots=slots, samples=(6, 12))
    data["spectrum"]["bandwidth_hz"] *= 0.6 * devices
    for device in data["devices"]:
        device["energy_budget_j"] = 10.0
    return data


def _joint_plan(data: dict[str, Any]) -> tuple[JointPlan, IntArray, list[int]]:
    """All devices upload in every slot as far as they fit: one step of the smallest batch; and the slots that are shared."""
    problem = Problem.model_validate(data)
    terms = read_terms(problem)
    rows = build_rows(terms)
    tables = Tables(problem, rows)
    slots = []
    for g in range(problem.arrays.slots):
        chosen = np.flatnonzero((rows.start == g) & (rows.end == g + 1) & (rows.steps == 1))
        while (slot := Slot(problem, tables, tuple(int(r) for r in chosen))).pick.shape[1] == 0:
            chosen = chosen[:-1]
        slots.append(slot)
    for slot in slots:
        slot.refine(np.array([0]))
    plan = JointPlan(terms, tables, slots, np.zeros((1, problem.arrays.slots + 1)), np.ones((len(problem.devices), 1)))
    return plan, np.zeros(len(slots), dtype=np.int64), [k for k, slot in enumerate(slots) if len(slot.rows) > 1]


def _spent_at(data: dict[str, Any], price: FloatArray) -> FloatArray:
    """What the devices spend at prices of their energy."""
    return _Shares(*_joint_plan(data)).at(price[None])[1][0]


def _split(data: dict[str, Any]) -> FloatArray | None:
    """What the devices spend when the band is split for their budgets, None if that is impossible."""
    plan, picks, shared = _joint_plan(data)
    splits = split_for_budgets(plan, picks, shared, plan.objective(picks), np.inf, lambda: None)
    if splits is None:
        return None
    energy = _Shares(plan, picks, shared).alone.copy()
    for k, split in splits.items():
        np.add.at(energy, plan.devices[k], split.energy[0])
    return energy


def _least_energy(data: dict[str, Any]) -> float:
    """Least energy within the budgets by SLSQP over logarithms of upload times and bandwidths, from the formulas of the model alone."""
    plan, picks, _ = _joint_plan(data)
    a = plan.terms.problem.arrays
    where = [(k, d, r) for k, slot in enumerate(plan.slots) for d, r in zip(plan.devices[k], range(len(slot.rows)), strict=True)]
    slot, device, _ = np.array(where).T
    cycles = np.array([a.cycles_per_sample[d, 0] * plan.slots[k].batch(int(picks[k]))[r] for k, d, r in where])
    gain = np.array([a.gain[d, plan.slots[k].number] for k, d, _ in where])
    bits, down = a.model_bits[0], a.model_bits[0] / a.downlink_bps[device]

    def parts(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Transmit power, frequency and energy of the uploads."""
        time, band = a.slot_s * np.exp(x[: len(where)]), a.bandwidth_hz * np.exp(x[len(where) :])
        power = a.noise_w_per_hz * band / gain * np.expm1(np.log(2.0) * bits / (time * band))
        freq = np.maximum(cycles / (a.slot_s - down - time), a.freq_min_hz[device])
        return power, freq, 0.5 * a.capacitance[device] * cycles * freq**2 + power * time + a.receive_power_w[device] * down

    def slack(x: FloatArray) -> FloatArray:
        power, freq, energy = parts(x)
        rows = [np.bincount(slot, np.exp(x[len(where) :])), np.bincount(device, energy, len(a.gain)) / a.energy_budget_j]
        return -np.log(np.concatenate([*rows, power / a.max_power_w[device], freq / a.freq_max_hz[device]]))

    start = np.log(
        [*(plan.slots[k].time[r, 0] / a.slot_s for k, _, r in where), *(plan.slots[k].band[r, 0] / a.bandwidth_hz for k, _, r in where)]
    )
    latest = (a.slot_s - down - cycles / a.freq_max_hz[device]) / a.slot_s
    limits = [(-7.0, float(np.log(t))) for t in latest] + [(-7.0, 0.0)] * len(where)
    found = minimize(
        lambda x: float(np.log(parts(x)[2].sum())), start, method="SLSQP", bounds=limits,
        constraints={"type": "ineq", "fun": slack}, options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    assert slack(found.x).min() > -1e-7
    return float(np.exp(found.fun))


@pytest.mark.parametrize(("devices", "slots"), [(2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_band_split_within_budgets_is_the_least_energy(seed: int, devices: int, slots: int) -> None:
    rng = np.random.default_rng(seed)
    data = _crowded(seed, devices, slots)
    price = np.where(np.arange(devices) > 0, 10.0 ** rng.uniform(-2.0, 1.0, devices), 0.0)
    wanted = _spent_at(data, price)
    for device, p, spent in zip(data["devices"], price, wanted, strict=True):
        device["energy_budget_j"] = float(spent if p > 0 else rng.uniform(1.0, 1.2) * spent)
    energy = _split(data)
    assert energy is not None
    # the budgets are those that these prices exhaust, so the split at them is optimal
    assert energy.sum() == pytest.approx(wanted.sum(), rel=1e-8)
    assert energy.sum() == pytest.approx(_least_energy(data), rel=1e-5)
    assert np.all(energy <= (1 + 1e-10) * np.array([device["energy_budget_j"] for device in data["devices"]]))


@pytest.mark.parametrize("seed", range(6))
def test_dual_value_never_falls_from_wherever_prices_start(seed: int) -> None:
    """Also from prices far too high, which must come down."""
    rng = np.random.default_rng(seed)
    data = _crowded(seed, 3, 2)
    wanted = _spent_at(data, np.array([0.0, *10.0 ** rng.uniform(-2.0, 2.0, 2)]))
    for device, spent in zip(data["devices"], wanted, strict=True):
        device["energy_budget_j"] = float(spent)
    shares = _Shares(*_joint_plan(data))
    price = 10.0 ** rng.uniform(2.0, 5.0, 3)
    energy = shares.at(shares.trials(price))[1]
    duals = [shares.dual(price, energy[0])]
    while not shares.is_optimal(price, energy[0]):
        assert len(duals) < 60
        price = shares.uphill(price, shares.direction(price, energy), energy[0])
        energy = shares.at(shares.trials(price))[1]
        duals.append(shares.dual(price, energy[0]))
    assert np.all(np.diff(duals) >= -1e-10 * energy[0].sum())
    assert energy[0].sum() == pytest.approx(wanted.sum(), rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_budgets_that_no_split_meets_are_told_from_those_that_one_does(seed: int) -> None:
    """Each budget alone within reach, together not; and one below the energy with the most band that others can spare."""
    data = _crowded(seed, 2, 2)
    together = _spent_at(data, np.array([0.0, 3.0]))
    for device, spent in zip(data["devices"], together, strict=True):
        device["energy_budget_j"] = float(spent)
    assert _split(data) is not None
    data["devices"][1]["energy_budget_j"] *= 1 - 1e-5
    assert _split(data) is None
    data["devices"][0]["energy_budget_j"] = 10.0
    data["devices"][1]["energy_budget_j"] = 0.999 * float(_spent_at(data, np.array([0.0, 1e12]))[1])
    assert _split(data) is None


@pytest.mark.parametrize("seed", range(4))
def test_energies_of_shared_slots_are_bounded_by_the_band_that_others_need(seed: int) -> None:
    """The bound that excludes batches of tight budgets: below the energy in any split, above that with the whole band."""
    plan, _, shared = _joint_plan(_crowded(seed, 3, 2))
    for k in shared:
        slot = plan.slots[k]
        slot.refine(np.arange(slot.pick.shape[1]))
        assert np.all(slot.least_parts <= slot.parts) and np.all(slot.least_parts >= slot.alone * (1 - 1e-9))
        assert np.any(slot.least_parts > slot.alone * (1 + 1e-6))


def test_reason_names_the_limit_of_condition_c1() -> None:
    problem = tiny_problem(np.random.default_rng(0), devices=1, slots=2, task={"learning_rate": 0.2, "smoothness": 1.0})
    found = get_solver("enumeration").solve(problem, settings=SolverSettings())
    assert found.schedule is None
    assert f"<= {C1_LIMIT:g})" in found.reason
