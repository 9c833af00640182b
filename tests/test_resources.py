"""Least-energy resources against independent solvers: scipy on the joint problem, Clarabel on the shares of the band, weak duality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from builders import (
    cases,
    feasible_assignments,
    make_problem,
    make_schedule,
    plain_device,
    plain_problem,
    plain_task,
    random_problem,
    seeds,
)
from hypothesis import given
from scipy.optimize import brentq, minimize, minimize_scalar

from schedopt.constraints import validate_schedule
from schedopt.formulation.resources import (
    COARSE,
    FINE,
    Allocation,
    allocate,
    compute_slope,
    feasible_times,
    least_bandwidth_hz,
    marginal_bandwidth_value,
    monotone_root,
)
from schedopt.physics import compute_energy_j, evaluate_physics, transmit_power_w, uplink_rate_bps
from schedopt.problem import Problem, ProblemArrays
from schedopt.schedule import Schedule

#: What the allocation has to meet; C1, C2, targets and the limits of the modes depend on choices that it does not make.
ALLOCATED = ("1 ", "2 ", "3 ", "4 freq", "4 power", "5 ", "6 ")


def violations(problem: Problem, schedule: Schedule, tolerance: float = 1e-9) -> list[str]:
    report = validate_schedule(problem, schedule, tolerance=tolerance)
    return [f"{c.name}: {c.where} {c.amount:g}" for c in report.checks if not c.ok and c.name.startswith(ALLOCATED)]


def energy_of(problem: Problem, allocation: Allocation) -> float:
    return float(evaluate_physics(problem, allocation.schedule).energy_j.sum())


# --- one slot, solved by scipy -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """Assignments whose uploads share one slot, as numbers for a general solver: everything over the band and the slot."""

    arrays: ProblemArrays
    schedule: Schedule

    def limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Time for compute and upload, cycles, N0/gain: straight from the formulation."""
        a, s = self.arrays, self.schedule
        available = s.length * a.slot_s - a.model_bits[s.task] / a.downlink_bps[s.device]
        cycles = a.cycles_per_sample[s.device, s.task] * s.steps * s.batch
        return available, cycles, a.noise_w_per_hz / a.gain[s.device, s.end - 1]

    def energies(self, upload_s: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
        """Compute plus upload energy of each assignment; as slow as the deadline allows, least power."""
        a, s = self.arrays, self.schedule
        available, cycles, noise_gain = self.limits()
        freq = np.maximum(a.freq_min_hz[s.device], cycles / (available - upload_s))
        upload = upload_s * transmit_power_w(a.model_bits[s.task], upload_s, bandwidth_hz, 1.0 / noise_gain, 1.0)
        return compute_energy_j(a.capacitance[s.device], cycles, 1.0, 1.0, freq) + upload

    def longest_s(self) -> np.ndarray:
        available, cycles, _ = self.limits()
        return np.minimum(self.arrays.slot_s, available - cycles / self.arrays.freq_max_hz[self.schedule.device])

    def shortest_s(self) -> np.ndarray:
        """Upload at full power over the whole band."""
        a, s = self.arrays, self.schedule
        rate = uplink_rate_bps(a.bandwidth_hz, a.max_power_w[s.device], a.gain[s.device, s.end - 1], a.noise_w_per_hz)
        return a.model_bits[s.task] / rate

    def scipy_minimum(self, weight: np.ndarray, budget: np.ndarray | None = None) -> float:
        """Least Σ weight·E by SLSQP in (T, log W), from the first of some starts that works; device energies stay within ``budget``."""
        a, s, n = self.arrays, self.schedule, len(self.schedule)
        low_t, high_t = self.shortest_s(), self.longest_s()
        power_limit = a.max_power_w[s.device]
        receive = a.receive_power_w[s.device] * a.model_bits[s.task] / a.downlink_bps[s.device]
        unit = float(self.energies(high_t, np.full(n, a.bandwidth_hz / n)).sum())

        def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return low_t + v[:n] * (high_t - low_t), np.exp(v[n:]) * a.bandwidth_hz

        def power_slack(v: np.ndarray) -> np.ndarray:
            t, w = split(v)
            rate = uplink_rate_bps(w, power_limit, a.gain[s.device, s.end - 1], a.noise_w_per_hz)
            return np.log(rate * t / a.model_bits[s.task])

        rows: list[dict[str, Any]] = [
            {"type": "ineq", "fun": lambda v: 1.0 - np.exp(v[n:]).sum()},
            {"type": "ineq", "fun": power_slack},
        ]
        if budget is not None:
            use = np.isfinite(budget)
            fold = np.eye(a.num_devices)[:, s.device][use]
            rows.append({"type": "ineq", "fun": lambda v: 1.0 - fold @ (self.energies(*split(v)) + receive) / budget[use]})
        for share in (0.9, 0.5, 0.98, 0.2):
            start = np.concatenate([np.full(n, share), np.full(n, math.log(1.0 / n))])
            found = minimize(
                lambda v: float(weight @ self.energies(*split(v))) / unit,
                start,
                method="SLSQP",
                bounds=[(0.0, 1.0)] * n + [(-20.0, 0.0)] * n,
                constraints=rows,
                options={"ftol": 1e-13, "maxiter": 500},
            )
            if found.success and all(np.min(row["fun"](found.x)) > -1e-8 for row in rows):
                return float(weight @ self.energies(*split(found.x)))
        raise AssertionError("scipy finds no minimum")

    def dual_value(self, weight: np.ndarray, price: float) -> float:
        """Σ min_{T,W} [weight·E + price·W] − price·band ≤ every feasible Σ weight·E: minimised upload by upload, by nested searches."""
        total = -price * self.arrays.bandwidth_hz
        low, high = self.shortest_s(), self.longest_s()
        for k in range(len(self.schedule)):
            one = Slot(self.arrays, self.schedule.take(np.array([k])))

            def cost(t: float, one: Slot = one, k: int = k) -> float:
                return one.best_share(t, float(weight[k]), price)

            found = minimize_scalar(cost, bounds=(low[k], high[k]), method="bounded", options={"xatol": 1e-10 * high[k], "maxiter": 200})
            total += min(found.fun, cost(low[k] * (1 + 1e-12)), cost(high[k]))
        return total

    def best_share(self, upload_s: float, weight: float, price: float) -> float:
        """Least weight·E + price·W of a single upload over W."""
        a, s = self.arrays, self.schedule
        t = np.array([upload_s])
        limit = a.max_power_w[s.device]

        def rate_excess(log_w: float) -> float:
            rate = uplink_rate_bps(math.exp(log_w), limit, a.gain[s.device, s.end - 1], a.noise_w_per_hz)
            return float(rate[0]) * upload_s / float(a.model_bits[s.task][0]) - 1.0

        top = math.log(a.bandwidth_hz)
        low = top if rate_excess(top) <= 0 else brentq(rate_excess, top - 30.0, top)

        def cost(log_w: float) -> float:
            w = math.exp(log_w)
            return float(weight * self.energies(t, np.array([w]))[0] + price * w)

        if top - low < 1e-12:
            return cost(top)
        found = minimize_scalar(cost, bounds=(low, top), method="bounded", options={"xatol": 1e-9})
        return min(float(found.fun), cost(low), cost(top))


def slot_case(seed: int, uploads: int, **changes: Any) -> tuple[Problem, Schedule]:
    """``uploads`` devices whose assignments end in one slot, of several lengths, so busy that time is worth energy."""
    rng = np.random.default_rng(seed)
    devices = [
        plain_device(
            f"d{k}",
            pair={"cycles_per_sample": float(rng.uniform(2e5, 2e6)), "samples": 100},
            freq_hz=[float(rng.uniform(2e7, 2e8)), 1.0e9],
            capacitance=float(np.exp(rng.uniform(np.log(1e-28), np.log(2e-26)))),
            gain=float(np.exp(rng.uniform(np.log(5e-6), np.log(2e-4)))),
            max_power_w=float(rng.uniform(0.3, 1.0)),
            receive_power_w=float(rng.uniform(0, 0.1)),
        )
        for k in range(uploads)
    ]
    problem = make_problem(plain_problem(devices, [plain_task(model_bits=float(rng.uniform(4e5, 1.2e6)), max_staleness=3)]) | changes)
    end = 4
    start = end - rng.integers(1, 4, uploads)
    zero = np.zeros(uploads)
    steps, batch = rng.integers(1, 11, uploads), rng.integers(1, 81, uploads)
    return problem, Schedule(np.arange(uploads), zero, start, zero + end, steps, batch, zero, zero, zero)


def possible_case(seed: int, uploads: int) -> tuple[Problem, Schedule]:
    """The first of the cases ``seed``, ``seed`` + 1000, ... whose times suffice and whose uploads fit the band."""
    for attempt in range(200):
        problem, schedule = slot_case(seed + 1000 * attempt, uploads)
        slot = Slot(problem.arrays, schedule)
        if np.all(slot.shortest_s() < 0.98 * slot.longest_s()):
            need = least_bandwidth_hz(problem.arrays, schedule)
            if need.sum() < 0.95 * problem.arrays.bandwidth_hz:
                return problem, schedule
    raise AssertionError("no possible case among 200")


@pytest.mark.parametrize("uploads", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_one_slot_against_scipy(seed: int, uploads: int) -> None:
    problem, schedule = possible_case(seed, uploads)
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    assert not violations(problem, allocation.schedule)
    expected = Slot(problem.arrays, schedule).scipy_minimum(np.ones(uploads))
    physics = evaluate_physics(problem, allocation.schedule)
    assert float((physics.compute_j + physics.upload_j).sum()) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("seed", range(12))
def test_no_allocation_can_be_better_by_weak_duality(seed: int) -> None:
    """The band's price of the result certifies it: a lower bound made of one-upload problems that a plain search solves."""
    problem, schedule = possible_case(100 + seed, 2 + seed % 3)
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    physics = evaluate_physics(problem, allocation.schedule)
    reached = float((physics.compute_j + physics.upload_j).sum())
    bound = Slot(problem.arrays, schedule).dual_value(np.ones(len(schedule)), float(allocation.bandwidth_price[3]))
    assert bound <= reached * (1 + 1e-9)
    assert bound == pytest.approx(reached, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_shares_of_the_band_against_clarabel(seed: int) -> None:
    """At the upload times of the result, power and bandwidth solve a conic problem: W log(1 + p/(n W)) is an exponential cone."""
    problem, schedule = possible_case(200 + seed, 2 + seed % 3)
    a = problem.arrays
    allocation = allocate(a, schedule)
    assert allocation is not None
    time_s = evaluate_physics(problem, allocation.schedule).upload_s
    _, _, noise_gain = Slot(a, schedule).limits()
    w, q = cp.Variable(len(schedule)), cp.Variable(len(schedule))  # W/band and p/(n·band)
    nats = a.model_bits[schedule.task] * math.log(2) / (time_s * a.bandwidth_hz)
    rows = [-cp.rel_entr(w, w + q) >= nats, cp.sum(w) <= 1, q <= a.max_power_w[schedule.device] / (noise_gain * a.bandwidth_hz)]
    energy = noise_gain * a.bandwidth_hz * time_s
    task = cp.Problem(cp.Minimize((energy / energy.sum()) @ q), rows)
    task.solve(solver="CLARABEL")
    assert task.status == cp.OPTIMAL
    assert float(evaluate_physics(problem, allocation.schedule).upload_j.sum()) == pytest.approx(float(energy @ q.value), rel=1e-6)
    np.testing.assert_allclose(allocation.schedule.bandwidth_hz / a.bandwidth_hz, w.value, atol=1e-4)


# --- regimes -----------------------------------------------------------------------------------------------------------------------


def single(**device: Any) -> tuple[Problem, Schedule]:
    """One assignment over two slots of 2 s: 0.1 s to receive, 1 Mbit·2 to send, 1e6 cycles a sample."""
    problem = make_problem(plain_problem([plain_device(**device)]))
    return problem, Schedule([0], [0], [1], [3], [5], [40], [0], [0], [0])


def test_frequency_rests_at_its_minimum_when_time_is_plenty() -> None:
    problem, schedule = single(freq_hz=[5.0e8, 1.0e9])  # 2e8 cycles in 0.4 s, and 3.9 s at hand
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    assert allocation.schedule.freq_hz[0] == 5.0e8
    # nothing competes for the time: the upload takes the whole slot over the whole band
    physics = evaluate_physics(problem, allocation.schedule)
    assert physics.upload_s[0] == pytest.approx(2.0, rel=1e-9)
    assert allocation.schedule.bandwidth_hz[0] == pytest.approx(2e6, rel=1e-9)


def test_frequency_at_its_maximum_when_time_is_short() -> None:
    """The whole time is used: the processor at full speed, and the upload in what is left."""
    problem, schedule = single(freq_hz=[1.0e7, 1.0e8], capacitance=1e-30, max_power_w=5.0)  # 2 s of 3.9 s at full speed
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    physics = evaluate_physics(problem, allocation.schedule)
    assert allocation.schedule.freq_hz[0] == pytest.approx(1.0e8, rel=1e-9)
    assert physics.upload_s[0] == pytest.approx(1.9, rel=1e-9)
    assert not violations(problem, allocation.schedule)


def test_power_limited_uploads_keep_full_power() -> None:
    """A dear and a cheap channel share the band: the dear one gets what full power leaves it no choice about."""
    devices = [plain_device("near", gain=1e-3), plain_device("far", gain=2.6e-6, max_power_w=0.4)]
    problem = make_problem(plain_problem(devices))
    zero = np.zeros(2)
    schedule = Schedule([0, 1], zero, zero, zero + 1, [1, 1], [1, 1], zero, zero, zero)
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    limit = least_bandwidth_hz(problem.arrays, schedule)
    alone = Slot(problem.arrays, schedule)
    assert allocation.schedule.bandwidth_hz.sum() == pytest.approx(2e6, rel=1e-9)
    assert np.all(allocation.schedule.bandwidth_hz >= limit * (1 - 1e-9))
    assert float(evaluate_physics(problem, allocation.schedule).energy_j.sum()) == pytest.approx(alone.scipy_minimum(np.ones(2)), rel=1e-6)


@pytest.mark.parametrize("shrink", [0.9, 0.99, 0.9999])
def test_nearly_too_short_times(shrink: float) -> None:
    """All but a hair of the time is needed at full speed, full power and the whole band."""
    problem, _ = single(capacitance=1e-27)
    shortest = float(Slot(problem.arrays, Schedule([0], [0], [1], [2], [1], [1], [0], [0], [0])).shortest_s()[0])
    work = (2.0 - 0.1 - shortest) * 1e9 * shrink
    pair = {"cycles_per_sample": work / 200, "samples": 100}
    problem = make_problem(plain_problem([plain_device(pair=pair, capacitance=1e-27)]))
    schedule = Schedule([0], [0], [1], [2], [5], [40], [0], [0], [0])
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None and not violations(problem, allocation.schedule)
    expected = Slot(problem.arrays, schedule).scipy_minimum(np.ones(1))
    assert energy_of(problem, allocation) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_coarse_is_close_to_fine(seed: int) -> None:
    """Times and prices to four digits cost about eight digits of energy."""
    problem, schedule = possible_case(300 + seed, 1 + seed % 4)
    fine = allocate(problem.arrays, schedule, accuracy=FINE)
    coarse = allocate(problem.arrays, schedule, accuracy=COARSE)
    assert fine is not None and coarse is not None
    assert not violations(problem, coarse.schedule)
    assert energy_of(problem, coarse) == pytest.approx(energy_of(problem, fine), rel=1e-6)
    assert energy_of(problem, coarse) >= energy_of(problem, fine) * (1 - 1e-9)


def test_slots_do_not_interact_without_budgets() -> None:
    """The uploads of every slot are those of the slot alone."""
    rng = np.random.default_rng(11)
    problem, schedule = make_problem(plain_problem()), Schedule.empty()
    while len(schedule) < 6:
        raw = random_problem(rng, devices=5, tasks=2, slots=6, enforce_conditions=False)
        for device in raw["devices"]:
            device.pop("energy_budget_j", None)
        problem, schedule = make_problem(raw), make_schedule(raw, feasible_assignments(rng, raw))
    whole = allocate(problem.arrays, schedule)
    assert whole is not None
    for g in np.unique(schedule.end):
        mine = schedule.end == g
        part = allocate(problem.arrays, schedule.take(mine))
        assert part is not None
        for field in ("bandwidth_hz", "power_w", "freq_hz"):
            np.testing.assert_allclose(getattr(whole.schedule, field)[mine], getattr(part.schedule, field), rtol=1e-6)


def test_empty_schedule() -> None:
    problem = make_problem(plain_problem())
    allocation = allocate(problem.arrays, Schedule.empty())
    assert allocation is not None and len(allocation.schedule) == 0
    assert np.array_equal(allocation.bandwidth_price, np.zeros(8))


# --- what is impossible ----------------------------------------------------------------------------------------------------------------


def test_none_when_the_deadline_is_too_short() -> None:
    problem, schedule = single(freq_hz=[1e7, 4e7])  # 2e8 cycles take 5 s of 3.9 s
    assert allocate(problem.arrays, schedule) is None


def test_none_when_the_upload_does_not_fit_a_slot() -> None:
    problem, schedule = single(gain=1e-7)
    assert Slot(problem.arrays, schedule).shortest_s()[0] > 2.0
    assert allocate(problem.arrays, schedule) is None


@pytest.mark.parametrize(("fill", "possible"), [(1.02, False), (0.98, True)])
def test_band_too_small_for_all_uploads(fill: float, possible: bool) -> None:
    """The bandwidth that the uploads cannot do without is ``fill`` of the band."""
    data = plain_problem([plain_device(f"d{k}") for k in range(3)])
    zero = np.zeros(3)
    schedule = Schedule(np.arange(3), zero, zero, zero + 1, zero + 1, zero + 1, zero, zero, zero)
    need = float(least_bandwidth_hz(make_problem(data).arrays, schedule).sum())
    data["spectrum"]["bandwidth_hz"] = need / fill
    problem = make_problem(data)
    allocation = allocate(problem.arrays, schedule)
    assert (allocation is not None) == possible
    if allocation is not None:
        assert not violations(problem, allocation.schedule)


def test_least_bandwidth_is_full_power_for_the_longest_time() -> None:
    problem, schedule = possible_case(400, 4)
    a = problem.arrays
    rate = uplink_rate_bps(
        least_bandwidth_hz(a, schedule), a.max_power_w[schedule.device], a.gain[schedule.device, schedule.end - 1], a.noise_w_per_hz
    )
    np.testing.assert_allclose(rate * Slot(a, schedule).longest_s(), a.model_bits[schedule.task], rtol=1e-9)


# --- energy budgets --------------------------------------------------------------------------------------------------------------------


def budget_case(seed: int, uploads: int, tightness: float) -> tuple[Problem, Schedule, np.ndarray]:
    """A case whose first device may spend ``tightness`` of the way from the least it can (the others at least bandwidth) to what it
    spends without a budget; the budgets, shape (I,)."""
    for attempt in range(100):
        problem, schedule = possible_case(seed + 50 * attempt, uploads)
        free = allocate(problem.arrays, schedule)
        assert free is not None
        spent = evaluate_physics(problem, free.schedule).energy_j
        least = least_energy_of_first(problem, schedule)
        if spent[0] > 1.02 * least:
            budget = np.full(problem.arrays.num_devices, np.inf)
            budget[0] = least + tightness * (spent[0] - least)
            return problem, schedule, budget
    raise AssertionError("no case in which bandwidth saves energy")


def least_energy_of_first(problem: Problem, schedule: Schedule) -> float:
    """Least energy of the first assignment when the others of its slot make do with the least bandwidth."""
    others = float(least_bandwidth_hz(problem.arrays, schedule)[1:].sum())
    data = problem.to_dict()
    data["spectrum"]["bandwidth_hz"] = (problem.arrays.bandwidth_hz - others) * (1 - 1e-9)
    alone = make_problem(data)
    allocation = allocate(alone.arrays, schedule.take(np.array([0])))
    assert allocation is not None
    return energy_of(alone, allocation)


@pytest.mark.parametrize("tightness", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("seed", [500, 503])
def test_binding_budget_against_scipy(seed: int, tightness: float) -> None:
    """Least total energy within the budget, not just any allocation within it."""
    problem, schedule, budget = budget_case(seed, 2 + seed % 2, tightness)
    allocation = allocate(problem.arrays, schedule, budget_j=budget)
    assert allocation is not None
    spent = np.bincount(schedule.device, weights=evaluate_physics(problem, allocation.schedule).energy_j)
    assert np.all(spent <= budget * (1 + 1e-9))
    assert not violations(problem, allocation.schedule)
    expected = Slot(problem.arrays, schedule).scipy_minimum(np.ones(len(schedule)), budget)
    physics = evaluate_physics(problem, allocation.schedule)
    assert float((physics.compute_j + physics.upload_j).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", [510, 511, 512])
def test_budget_price_is_what_a_joule_more_would_save(seed: int) -> None:
    """−dE*/d budget equals the multiplier: scipy's optimal value is convex in the budget, and its differences enclose the slope."""
    problem, schedule, budget = budget_case(seed, 2, 0.5)
    allocation = allocate(problem.arrays, schedule, budget_j=budget)
    assert allocation is not None
    slot, step = Slot(problem.arrays, schedule), 0.002
    less, here, more = (
        slot.scipy_minimum(np.ones(2), np.where(np.isfinite(budget), budget * (1 + amount), np.inf)) for amount in (-step, 0.0, step)
    )
    slopes = (here - more) / (step * budget[0]), (less - here) / (step * budget[0])
    assert 0.98 * slopes[0] - 1e-3 <= allocation.budget_price[0] <= 1.02 * slopes[1] + 1e-3
    assert allocation.budget_price[1] == 0.0


@pytest.mark.parametrize("tightness", [0.1, 0.02])
@pytest.mark.parametrize("seed", [520, 523])
def test_a_budget_that_can_just_be_met_is_met(seed: int, tightness: float) -> None:
    problem, schedule, budget = budget_case(seed, 3, tightness)
    allocation = allocate(problem.arrays, schedule, budget_j=budget)
    assert allocation is not None
    assert evaluate_physics(problem, allocation.schedule).energy_j[0] <= budget[0] * (1 + 1e-9)


@pytest.mark.parametrize("seed", [530, 532])
def test_none_when_a_budget_is_below_the_least_energy(seed: int) -> None:
    problem, schedule, budget = budget_case(seed, 2, 0.0)
    assert allocate(problem.arrays, schedule, budget_j=budget * 0.99) is None


def test_a_spent_budget_is_impossible_not_an_error() -> None:
    """What is left of a budget may be nothing at all."""
    problem, schedule = single()
    assert allocate(problem.arrays, schedule, budget_j=np.array([1e-300])) is None


def test_budgets_of_the_problem_are_the_default() -> None:
    problem, schedule, budget = budget_case(540, 2, 0.5)
    data = problem.to_dict()
    data["devices"][0]["energy_budget_j"] = float(budget[0])
    limited = make_problem(data)
    by_default, by_argument = allocate(limited.arrays, schedule), allocate(problem.arrays, schedule, budget_j=budget)
    assert by_default is not None and by_argument is not None
    assert np.array_equal(by_default.schedule.bandwidth_hz, by_argument.schedule.bandwidth_hz)
    assert not violations(limited, by_default.schedule)


# --- several budgets at once, against Clarabel -------------------------------------------------------------------------------------------


def several_slots(seed: int, devices: int = 3, slots: int = 2) -> tuple[Problem, Schedule]:
    """Every device uploads in every slot: budgets of all devices compete for the band of all slots."""
    for attempt in range(200):
        problem, _ = slot_case(seed + 1000 * attempt, devices)
        rng = np.random.default_rng(seed + 1000 * attempt)
        device, end = np.tile(np.arange(devices), slots), np.repeat(2 * np.arange(slots) + 2, devices)
        zero = np.zeros(len(device))
        steps, batch = rng.integers(1, 11, len(device)), rng.integers(1, 81, len(device))
        schedule = Schedule(device, zero, end - 2, end, steps, batch, zero, zero, zero)
        slot = Slot(problem.arrays, schedule)
        if np.all(slot.shortest_s() < 0.98 * slot.longest_s()):
            need = np.bincount(end, weights=least_bandwidth_hz(problem.arrays, schedule))
            if need.max() < 0.8 * problem.arrays.bandwidth_hz:
                return problem, schedule
    raise AssertionError("no possible case among 200")


def geometric_program(problem: Problem, schedule: Schedule, weight: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Energies of the devices at the least weighted energy within ``budget``: all slots at once, as a geometric program.

    With T, C, W for times and bandwidth, an upload's energy n T W (e^u − 1), u = a/(T W), is the posynomial n a Σ u^k / (k + 1)!.
    """
    a, n = problem.arrays, len(schedule)
    available, cycles, noise_gain = Slot(a, schedule).limits()
    nats = a.model_bits[schedule.task] * math.log(2) / a.bandwidth_hz
    upload_s, compute_s, share, joule = (cp.Variable(n, pos=True) for _ in range(4))
    rows: list[Any] = [cp.sum(share[np.flatnonzero(schedule.end == end)]) <= 1 for end in np.unique(schedule.end)]
    energies: list[list[Any]] = [[] for _ in range(a.num_devices)]
    for k, d in enumerate(schedule.device):
        u = nats[k] / (upload_s[k] * share[k])
        base, constant = noise_gain[k] * nats[k] * a.bandwidth_hz, 0.5 * a.capacitance[d] * cycles[k]
        upload_j = base * sum(u**m / math.factorial(m + 1) for m in range(30))
        receive = float(a.receive_power_w[d] * a.model_bits[schedule.task[k]] / a.downlink_bps[d])
        energies[d].append(upload_j + joule[k] + receive)
        rows += [
            upload_s[k] + compute_s[k] <= available[k],
            upload_s[k] <= a.slot_s,
            cycles[k] / compute_s[k] <= a.freq_max_hz[d],
            upload_j / upload_s[k] <= a.max_power_w[d],
            constant * a.freq_min_hz[d] ** 2 / joule[k] <= 1,
            constant * cycles[k] ** 2 / (compute_s[k] ** 2 * joule[k]) <= 1,
        ]
    device_j = [sum(parts[1:], parts[0]) for parts in energies]
    rows += [device_j[d] <= budget[d] for d in np.flatnonzero(np.isfinite(budget))]
    task = cp.Problem(cp.Minimize(sum(weight[d] * device_j[d] for d in range(a.num_devices))), rows)
    task.solve(solver="CLARABEL", gp=True)
    assert task.status == cp.OPTIMAL
    return np.array([float(part.value) for part in device_j])


def binding_case(seed: int) -> tuple[Problem, Schedule, np.ndarray]:
    """Energies (I,) of which none can fall unless another rises: the least weighted energy at random weights."""
    problem, schedule = several_slots(seed)
    weight = np.exp(np.random.default_rng(seed).uniform(0.0, 3.0, problem.arrays.num_devices))
    return problem, schedule, geometric_program(problem, schedule, weight, np.full(problem.arrays.num_devices, np.inf))


@pytest.mark.parametrize("limited", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_budgets_that_bind_against_clarabel(seed: int, limited: int) -> None:
    """The devices that gain most from their weight may spend no more than they do then: with all limited, hardly any choice is left."""
    problem, schedule, spent = binding_case(700 + seed)
    alone = allocate(problem.arrays, schedule)
    assert alone is not None
    free = np.bincount(schedule.device, weights=evaluate_physics(problem, alone.schedule).energy_j)
    budget = np.full(problem.arrays.num_devices, np.inf)
    some = np.argsort(spent / free)[:limited]
    budget[some] = spent[some] * (1 + 1e-5)
    allocation = allocate(problem.arrays, schedule, budget_j=budget)
    assert allocation is not None
    assert not violations(problem, allocation.schedule)
    energy = np.bincount(schedule.device, weights=evaluate_physics(problem, allocation.schedule).energy_j)
    assert np.all(energy <= budget * (1 + 1e-9))
    expected = geometric_program(problem, schedule, np.ones(len(budget)), budget)
    assert energy.sum() == pytest.approx(expected.sum(), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_none_when_every_budget_is_a_hair_below_what_can_be_reached(seed: int) -> None:
    problem, schedule, spent = binding_case(700 + seed)
    assert allocate(problem.arrays, schedule, budget_j=spent * (1 - 1e-5)) is None


@pytest.mark.parametrize("spare", [1e-2, 1e-4, 1e-6])
def test_a_budget_is_met_although_its_neighbour_has_little_to_spare(spare: float) -> None:
    """The second device has to be given band that the first, at a hair below its own budget, can hardly do without."""
    problem, schedule, spent = binding_case(710)
    budget = spent * np.array([1.0 + spare, 1.0, 1.0 + spare])
    budget[1] *= 1.0 + 1e-6
    allocation = allocate(problem.arrays, schedule, budget_j=budget)
    assert allocation is not None
    energy = np.bincount(schedule.device, weights=evaluate_physics(problem, allocation.schedule).energy_j)
    assert np.all(energy <= budget * (1 + 1e-9))


# --- any problem -----------------------------------------------------------------------------------------------------------------------


@cases(40)
@given(seeds)
def test_possible_schedules_stay_possible_and_never_cost_more(seed: int) -> None:
    """A feasible schedule's resources can be replaced: the result is feasible at 1e-9 and needs no more energy."""
    rng = np.random.default_rng(seed)
    raw = random_problem(rng)
    for device in raw["devices"]:
        device.pop("energy_budget_j", None)
    assignments = feasible_assignments(rng, raw)
    problem, schedule = make_problem(raw), make_schedule(raw, assignments)
    before = float(evaluate_physics(problem, schedule).energy_j.sum())
    for accuracy in (FINE, COARSE):
        allocation = allocate(problem.arrays, schedule, accuracy=accuracy)
        assert allocation is not None
        assert not violations(problem, allocation.schedule)
        assert energy_of(problem, allocation) <= before * (1 + 1e-9)


@cases(40)
@given(seeds)
def test_feasible_within_budgets_stays_feasible(seed: int) -> None:
    """With budgets too: they can be met, since the schedule at hand meets them."""
    rng = np.random.default_rng(seed)
    raw = random_problem(rng, devices=3, slots=6)
    problem, schedule = make_problem(raw), make_schedule(raw, feasible_assignments(rng, raw))
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    assert not violations(problem, allocation.schedule)


@cases(60)
@given(seeds)
def test_feasible_times_are_those_of_the_extremes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = random_problem(rng)
    problem, schedule = make_problem(raw), make_schedule(raw, feasible_assignments(rng, raw))
    available, shortest, longest = feasible_times(problem.arrays, schedule)
    slot = Slot(problem.arrays, schedule)
    np.testing.assert_allclose(available, slot.limits()[0], rtol=1e-9)
    np.testing.assert_allclose(shortest, slot.shortest_s(), rtol=1e-9)
    np.testing.assert_allclose(longest, slot.longest_s(), rtol=1e-9)


# --- pieces ------------------------------------------------------------------------------------------------------------------------------


@cases(40)
@given(seeds)
def test_compute_slope_is_the_derivative_of_the_compute_energy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacitance, cycles, freq_min = np.exp(rng.uniform(np.log([1e-28, 1e6, 1e7]), np.log([1e-26, 1e9, 1e9])))
    time_s = cycles / freq_min * rng.uniform(0.1, 2.0)

    def energy(t: float) -> float:
        return float(compute_energy_j(capacitance, cycles, 1.0, 1.0, max(freq_min, cycles / t)))

    step = 1e-6 * time_s
    if abs(cycles / time_s / freq_min - 1.0) < 1e-4:  # at the kink there is no derivative
        return
    slope = -(energy(time_s + step) - energy(time_s - step)) / (2 * step)
    assert compute_slope(np.array(capacitance), np.array(cycles), np.array(freq_min), np.array(time_s)) == pytest.approx(slope, rel=1e-4)


def test_marginal_bandwidth_value_is_the_energy_that_a_hertz_saves() -> None:
    """At the given upload times, by differences; of a slot's uploads the largest counts."""
    problem, schedule = possible_case(600, 3)
    allocation = allocate(problem.arrays, schedule)
    assert allocation is not None
    chosen = allocation.schedule
    time_s = evaluate_physics(problem, chosen).upload_s
    slot = Slot(problem.arrays, schedule)
    step = 1e-4 * chosen.bandwidth_hz
    saved = (slot.energies(time_s, chosen.bandwidth_hz - step) - slot.energies(time_s, chosen.bandwidth_hz + step)) / (2 * step)
    value = marginal_bandwidth_value(problem.arrays, chosen)
    assert value[3] == pytest.approx(saved.max(), rel=1e-5)
    assert np.array_equal(np.delete(value, 3), np.zeros(7))
    # where no upload is at its power limit all are worth the same: the band's price
    free = chosen.power_w < problem.arrays.max_power_w * 0.999
    np.testing.assert_allclose(saved[free], allocation.bandwidth_price[3], rtol=1e-4)


@cases(40)
@given(seeds)
def test_monotone_root_brackets_the_root(seed: int) -> None:
    rng = np.random.default_rng(seed)
    root, power = rng.uniform(0.01, 0.99, 50), rng.uniform(0.2, 6.0, 50)
    # the function itself is rounded, so that the last digit of the root is not known
    low, high = monotone_root(lambda x: x**power - root**power, np.zeros(50), np.ones(50), 1e-9)
    assert np.all(low <= root + 1e-15) and np.all(root <= high + 1e-15)
    assert np.all(high - low <= 1e-9)
