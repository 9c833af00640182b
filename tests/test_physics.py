"""Times, powers and energies against scalar formulas, closed forms and hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import (
    cases,
    feasible_assignments,
    make,
    plain_assignment,
    plain_device,
    plain_problem,
    random_assignments,
    random_problem,
    seeds,
)
from hypothesis import given
from reference import evaluate, occupancy

from schedopt.physics import compute_energy_j, compute_time_s, evaluate_physics, transmit_power_w, uplink_rate_bps

VALUES = ("receive_s", "compute_s", "upload_s", "rate_bps", "receive_j", "compute_j", "upload_j", "total_s", "energy_j")


@cases(150)
@given(seeds)
def test_every_assignment_matches_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    assignments = random_assignments(rng, problem, int(rng.integers(0, 30)))
    physics = evaluate_physics(*make(problem, assignments))
    expected = evaluate(problem, assignments).physics
    for name in VALUES:
        assert getattr(physics, name) == pytest.approx([getattr(value, name) for value in expected], rel=1e-10), name


def test_one_assignment_by_hand() -> None:
    problem = plain_problem([plain_device(receive_power_w=0.25)])
    physics = evaluate_physics(*make(problem, [plain_assignment()]))
    # signal-to-noise ratio 0.3 · 1e-5 / (1e-12 · 1e6) = 3, so 2 bit/s/Hz over 1 MHz
    assert physics.rate_bps == pytest.approx([2.0e6], rel=1e-14)
    assert physics.receive_s == pytest.approx([0.1], rel=1e-14)
    assert physics.compute_s == pytest.approx([0.8], rel=1e-14)  # 1e6 · 5 · 20 cycles at 125 MHz
    assert physics.upload_s == pytest.approx([1.0], rel=1e-14)
    assert physics.total_s == pytest.approx([1.9], rel=1e-14)
    assert physics.compute_j == pytest.approx([0.5 * 2e-28 * 1e8 * 1.25e8**2], rel=1e-14)
    assert physics.upload_j == pytest.approx([0.3], rel=1e-14)
    assert physics.receive_j == pytest.approx([0.025], rel=1e-14)
    assert physics.energy_j == pytest.approx([1.5625e-4 + 0.3 + 0.025], rel=1e-14)


def test_the_upload_uses_the_gain_of_the_last_slot() -> None:
    problem = plain_problem([plain_device(gain=[1.0e-9, 1.0e-9, 1.0e-5] + [1.0e-9] * 5)])
    physics = evaluate_physics(*make(problem, [plain_assignment(start=0, end=3), plain_assignment(start=4, end=6)]))
    assert physics.rate_bps[0] == pytest.approx(2.0e6, rel=1e-14)
    assert physics.rate_bps[1] < 1e3


@cases(300)
@given(seeds)
def test_least_power_is_the_inverse_of_the_rate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, time_s, bandwidth, gain, noise = np.exp(rng.uniform(np.log([1e3, 1e-2, 1e4, 1e-13, 1e-21]), np.log([1e7, 1e2, 1e8, 1e-5, 1e-12])))
    if bits / (time_s * bandwidth) > 1000:  # 2^1000: no finite power would do
        time_s = bits / (1000 * bandwidth)
    power = transmit_power_w(bits, time_s, bandwidth, gain, noise)
    assert uplink_rate_bps(bandwidth, power, gain, noise) * time_s == pytest.approx(bits, rel=1e-10)


def test_rate_closed_forms() -> None:
    snr = np.array([1.0, 3.0, 7.0, 255.0])
    assert uplink_rate_bps(5.0, snr * 2.0, 10.0, 4.0) == pytest.approx(5.0 * np.log2(1 + snr), rel=1e-14)
    # wide-band limit: p·gain / (N0 ln 2), however small the signal is against the noise
    assert uplink_rate_bps(1e20, 1.0, 1e-3, 1e-3) == pytest.approx(1 / math.log(2), rel=1e-12)
    assert uplink_rate_bps(0.0, 1.0, 1.0, 1.0) == 0.0
    assert uplink_rate_bps(1.0, 0.0, 1.0, 1.0) == 0.0


def test_rate_tends_to_zero_with_the_bandwidth() -> None:
    """N0 W underflows long before W does; the ratio is then too large for a float, but its logarithm is not."""
    for bandwidth in (1e-290, 1e-300, 1e-305, 1e-310, 5e-324):
        log_ratio = math.log(0.3) + math.log(1e-11) - math.log(4e-21) - math.log(bandwidth)
        rate = float(uplink_rate_bps(bandwidth, 0.3, 1e-11, 4e-21))
        assert rate == pytest.approx(bandwidth * log_ratio / math.log(2), rel=1e-12, abs=5e-324)
    assert np.all(np.diff(uplink_rate_bps(np.geomspace(1e-307, 1e-280, 200), 0.3, 1e-11, 4e-21)) > 0)
    assert uplink_rate_bps(1e-310, 0.0, 1e-11, 4e-21) == 0.0


def test_extreme_numbers_do_not_touch_their_neighbours() -> None:
    bandwidth, power = np.array([1e6, 1e-310, 0.0]), np.array([0.3, 0.3, 0.3])
    assert uplink_rate_bps(bandwidth, power, 1e-11, 4e-21)[0] == uplink_rate_bps(1e6, 0.3, 1e-11, 4e-21)


def test_an_upload_over_next_to_no_bandwidth_takes_for_ever() -> None:
    physics = evaluate_physics(*make(plain_problem(), [plain_assignment(bandwidth_hz=1e-310)]))
    assert physics.upload_s == [np.inf]


def test_rate_grows_with_bandwidth_and_power() -> None:
    grid = np.geomspace(1e-3, 1e3, 50)
    assert np.all(np.diff(uplink_rate_bps(grid, 1.0, 1.0, 1.0)) > 0)
    assert np.all(np.diff(uplink_rate_bps(1.0, grid, 1.0, 1.0)) > 0)


def test_least_power_that_no_double_can_hold_is_infinite() -> None:
    assert transmit_power_w(1e9, 1e-3, 1e6, 1.0, 1.0) == np.inf


def test_an_upload_at_rate_zero_never_ends() -> None:
    physics = evaluate_physics(*make(plain_problem(), [plain_assignment(bandwidth_hz=0.0)]))
    assert physics.upload_s == [np.inf]
    assert physics.upload_j == [np.inf]


def test_compute_energy_is_work_at_the_chosen_speed() -> None:
    """½κ f² per cycle: at twice the speed half the time and four times the energy."""
    slow, fast = 2.0e8, 4.0e8
    assert compute_time_s(1e5, 7, 9, slow) == pytest.approx(2 * compute_time_s(1e5, 7, 9, fast), rel=1e-14)
    assert compute_energy_j(1e-28, 1e5, 7, 9, fast) == pytest.approx(4 * compute_energy_j(1e-28, 1e5, 7, 9, slow), rel=1e-14)
    assert compute_energy_j(1e-28, 1e5, 7, 9, slow) == pytest.approx(0.5 * 1e-28 * 63e5 * 4e16, rel=1e-14)


@cases(60)
@given(seeds)
def test_tensors_match_the_assignments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    assignments = feasible_assignments(rng, problem) if rng.random() < 0.5 else random_assignments(rng, problem, 12)
    instance, schedule = make(problem, assignments)
    tensors = schedule.tensors(instance)
    shape = (len(problem["devices"]), len(problem["tasks"]), problem["horizon"]["slots"] + 1)
    receive, upload = np.zeros(shape, int), np.zeros(shape, int)
    for i, j, a, b in zip(schedule.device, schedule.task, schedule.start, schedule.end, strict=True):
        receive[i, j, a] += 1
        upload[i, j, b] += 1
    assert np.array_equal(tensors.receive, receive)
    assert np.array_equal(tensors.upload, upload)
    assert np.array_equal(tensors.occupancy, np.array(occupancy(problem, assignments)).reshape(shape))
    assert not tensors.occupancy[:, :, -1].any()  # whatever is received is uploaded


@cases(40)
@given(seeds)
def test_tensors_of_a_feasible_schedule_are_binary_and_one_task_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, devices=4, tasks=3, slots=12)
    instance, schedule = make(problem, feasible_assignments(rng, problem))
    tensors = schedule.tensors(instance)
    for tensor in (tensors.receive, tensors.upload, tensors.occupancy):
        assert set(np.unique(tensor)) <= {0, 1}
    assert tensors.occupancy.sum(axis=1).max() <= 1
