"""The worst case of a box is worst: no member and no schedule contradict it, and what ``--robust`` hands out holds for all members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import cases, feasible_assignments, make, make_schedule, plain_problem, random_assignments, random_problem, seeds
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_problem

from schedopt.cli import main
from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.files import parse_problem
from schedopt.formulation.own_choice import choose_by_device
from schedopt.io import load_schedule, save_problem
from schedopt.objective import evaluate_objective
from schedopt.physics import evaluate_physics, transmit_power_w, uplink_rate_bps
from schedopt.problem import Problem
from schedopt.robust import Margins, delivered, worst_case
from schedopt.schedule import Schedule

#: Rounding of two evaluations of the same formula at different constants.
ROUNDING = 1e-12


def random_member(rng: np.random.Generator, problem: Problem, margins: Margins, *, corners: bool) -> Problem:
    """Every constant anywhere in its range for itself, or (``corners``) at either end."""
    data = problem.to_dict()

    def off(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [off(entry, name) for entry in value]
        exponent = rng.choice([-1.0, 1.0]) if corners else rng.uniform(-1.0, 1.0)
        return float(value * (1.0 + getattr(margins, name)) ** exponent)

    data["spectrum"]["noise_w_per_hz"] = off(data["spectrum"]["noise_w_per_hz"], "noise_w_per_hz")
    for task in data["tasks"]:
        for name in ("smoothness", "initial_gap", "loss_drift"):
            task[name] = off(task[name], name)
    for device in data["devices"]:
        device["gain"] = off(device["gain"], "gain")
        for pair in device["tasks"].values():
            for name in ("cycles_per_sample", "gradient_variance", "dissimilarity", "gradient_drift"):
                pair[name] = off(pair[name], name)
    return parse_problem(data)


def random_margins(rng: np.random.Generator) -> Margins:
    """About half of the constants have a margin."""
    return Margins(**{name: float(rng.choice([0.0, rng.uniform(0, 0.8)])) for name in Margins.names()})


def windowed(rng: np.random.Generator, problem: dict[str, Any]) -> dict[str, Any]:
    """Participation by windows, now and then."""
    if rng.random() < 0.3:
        problem["objective"]["participation"] = {"window": int(rng.integers(1, problem["horizon"]["slots"] + 1))}
    return problem


@cases(120)
@given(seed=seeds, corners=st.booleans())
def test_no_member_is_worse_than_the_worst_case(seed: int, corners: bool) -> None:
    """Of any schedule, feasible or not: the objective, every bound and term, every energy, and the amount of every constraint."""
    rng = np.random.default_rng(seed)
    data = windowed(rng, random_problem(rng))
    problem, schedule = make(data, random_assignments(rng, data, int(rng.integers(0, 12))))
    margins = random_margins(rng)
    worst = validate_schedule(worst_case(problem, margins), schedule)
    member = validate_schedule(random_member(rng, problem, margins, corners=corners), schedule)
    slack = 1.0 + ROUNDING
    assert member.evaluation.objective <= worst.evaluation.objective * slack
    assert np.all(member.evaluation.bound.total <= worst.evaluation.bound.total * slack)
    raw, most = member.evaluation.bound.raw_terms, worst.evaluation.bound.raw_terms
    # the staleness terms are differences of sums: rounding is relative to the largest
    assert np.all(raw <= most * slack + 1e-12 * np.abs(most).max(initial=0.0))
    assert np.all(member.evaluation.physics.energy_j <= worst.evaluation.physics.energy_j * slack)
    for check, other in zip(member.checks, worst.checks, strict=True):
        assert check.name == other.name
        assert check.amount <= other.amount + 1e-9 * max(1.0, abs(other.amount)) or not np.isfinite(other.amount)
        assert check.ok or not other.ok


@cases(60)
@given(seed=seeds, corners=st.booleans())
def test_feasible_in_the_worst_case_is_feasible_for_every_member(seed: int, corners: bool) -> None:
    rng = np.random.default_rng(seed)
    data = windowed(rng, random_problem(rng))
    problem, margins = parse_problem(data), random_margins(rng)
    corner = worst_case(problem, margins)
    schedule = make_schedule(data, feasible_assignments(rng, corner.to_dict()))
    member = random_member(rng, problem, margins, corners=corners)
    if validate_schedule(corner, schedule).feasible:
        assert validate_schedule(member, schedule).feasible
        assert validate_schedule(problem, schedule).feasible


def test_the_worst_case_is_a_member_and_every_margin_acts() -> None:
    """Each constant moves to the end that hurts, and to nothing else."""
    data = plain_problem(slots=3)
    data["tasks"][0]["loss_drift"] = 0.1
    data["devices"][0]["tasks"]["t0"]["gradient_drift"] = 0.1
    problem = parse_problem(data)
    for name in Margins.names():
        arrays, given_arrays = worst_case(problem, Margins(**{name: 0.25})).arrays, problem.arrays
        factor = 0.8 if name == "gain" else 1.25
        assert np.allclose(getattr(arrays, name), factor * getattr(given_arrays, name), rtol=1e-12), name
        others = set(vars(arrays)) - {name, "mean_gradient_drift", "windows"}
        assert all(np.array_equal(getattr(arrays, other), getattr(given_arrays, other)) for other in others), name
    assert worst_case(problem, Margins()).digest == problem.digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.2", Margins(**{**vars(Margins.everywhere(0.2)), "smoothness": 0.0})),
        ("physical=0.2", Margins(gain=0.2, noise_w_per_hz=0.2, cycles_per_sample=0.2)),
        ("all=0.1", Margins.everywhere(0.1)),
        ("limits=0.2", Margins(limits=0.2)),
        ("limits=0.2,smoothness=0.1", Margins(limits=0.2, smoothness=0.1)),
        ("gain=0.2,dissimilarity=0.3", Margins(gain=0.2, dissimilarity=0.3)),
        ("all=0.1, gain=0.5", Margins(**{**vars(Margins.everywhere(0.1)), "gain": 0.5})),
        ("physical=0.2,noise_w_per_hz=0", Margins(gain=0.2, cycles_per_sample=0.2)),
    ],
)
def test_margins_are_read(text: str, expected: Margins) -> None:
    assert Margins.parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", "gain=", "gain=-0.1", "gain=inf", "nan", "gains=0.2", "gain=0.2,", "=0.2", "limits=1e155"])
def test_margins_that_are_none_are_named(text: str) -> None:
    with pytest.raises(InputError, match="must be"):
        Margins.parse(text)


@cases(80)
@given(seed=seeds, corners=st.booleans())
def test_room_in_the_limits_is_enough_for_every_member(seed: int, corners: bool) -> None:
    """Every upload can be made by every member, by devices that choose for themselves, at (1+m)³ times the planned energy at most."""
    rng = np.random.default_rng(seed)
    data = random_problem(rng)
    for device in data["devices"]:
        if rng.random() < 0.3:  # a processor of one speed
            device["freq_hz"][0] = device["freq_hz"][1]
        if rng.random() < 0.5:
            device["energy_budget_j"] = float(np.exp(rng.uniform(-3, 3)))
    problem, margins = parse_problem(data), Margins(limits=float(rng.uniform(0.01, 0.8)))
    share, tight = margins.limits, worst_case(problem, margins)
    schedule = make_schedule(data, feasible_assignments(rng, tight.to_dict()))
    if not validate_schedule(tight, schedule).feasible:
        return
    own = delivered(problem, schedule, margins)
    assert validate_schedule(problem, own).feasible
    assert evaluate_objective(problem, own).energy_j <= evaluate_objective(tight, schedule).energy_j * (1 + 1e-9)
    member = random_member(rng, problem, Margins(gain=share, noise_w_per_hz=share, cycles_per_sample=share), corners=corners)
    there, possible = choose_by_device(member.arrays, schedule)
    assert np.all(possible)
    assert validate_schedule(member, there).feasible
    planned, spent = evaluate_physics(tight, schedule).energy_j, evaluate_physics(member, there).energy_j
    assert np.all(spent <= planned * (1 + share) ** 3 * (1 + 1e-9))


def test_room_is_enough_where_all_power_and_speed_are_needed() -> None:
    """In the worst corner an upload planned at the limits of frequency, power and time can just be made."""
    share = 0.3
    data = plain_problem()
    tight = worst_case(parse_problem(data), Margins(limits=share)).arrays
    width, slot_s = 1e6, tight.slot_s
    data["tasks"][0]["model_bits"] = float(
        uplink_rate_bps(np.array([width]), tight.max_power_w[:1], tight.gain[0, :1], tight.noise_w_per_hz)[0] * slot_s * (1 - 1e-9)
    )
    problem = parse_problem(data)
    corner = problem.to_dict()
    corner["spectrum"]["noise_w_per_hz"] *= 1 + share
    for device in corner["devices"]:
        gain = device["gain"]
        device["gain"] = [g / (1 + share) for g in gain] if isinstance(gain, list | tuple) else gain / (1 + share)
        for pair in device["tasks"].values():
            pair["cycles_per_sample"] *= 1 + share
    row = {"device": "d0", "task": "t0", "start": 0, "end": 2, "steps": 1, "batch": 1, "bandwidth_hz": width}
    schedule = make_schedule(data, [row | {"freq_hz": tight.freq_max_hz[0], "power_w": tight.max_power_w[0]}])
    there, possible = choose_by_device(parse_problem(corner).arrays, schedule)
    assert possible.all() and there.power_w[0] <= problem.arrays.max_power_w[0] and there.freq_hz[0] < problem.arrays.freq_max_hz[0]
    assert delivered(problem, schedule, Margins(limits=share)).power_w[0] < tight.max_power_w[0] * (1 + 1e-5)


def test_room_is_left_in_the_limits_alone() -> None:
    data = plain_problem()
    data["devices"][0] |= {"freq_hz": [1e8, 1e9], "energy_budget_j": 2.0}
    problem = parse_problem(data)
    tight = worst_case(problem, Margins(limits=0.25)).arrays
    given_arrays = problem.arrays
    np.testing.assert_allclose(tight.freq_max_hz, given_arrays.freq_max_hz / 1.25, rtol=1e-5)
    np.testing.assert_allclose(tight.max_power_w, given_arrays.max_power_w / 1.25**2, rtol=1e-5)
    np.testing.assert_allclose(tight.energy_budget_j, given_arrays.energy_budget_j / 1.25**3, rtol=1e-5)
    changed = {"freq_max_hz", "max_power_w", "energy_budget_j", "windows"}
    assert all(np.array_equal(getattr(tight, name), getattr(given_arrays, name)) for name in set(vars(tight)) - changed)


def test_margins_beyond_numbers_are_named() -> None:
    with pytest.raises(InputError, match="must be"):
        worst_case(parse_problem(plain_problem()), Margins(cycles_per_sample=1e307))


@cases(40)
@given(seed=seeds)
def test_devices_choose_the_least_energy(seed: int) -> None:
    """Against a search over upload times; and nobody spends more than the server's own choice."""
    rng = np.random.default_rng(seed)
    data = random_problem(rng)
    problem = parse_problem(data)
    schedule = make_schedule(data, feasible_assignments(rng, data))
    own, possible = choose_by_device(problem.arrays, schedule)
    assert np.all(possible)
    chosen, given_energy = (evaluate_physics(problem, s).energy_j for s in (own, schedule))
    assert np.all(chosen <= given_energy * (1 + 1e-9))
    assert np.all(chosen <= _least_on_a_grid(problem, schedule) * (1 + 1e-6))
    report = validate_schedule(problem, own)
    assert all(check.ok for check in report.checks if check.name[0] in "345")


def _least_on_a_grid(problem: Problem, schedule: Schedule) -> np.ndarray:
    """Least energy over 400 upload times of each assignment, shape (n,)."""
    a, i, j = problem.arrays, schedule.device, schedule.task
    cycles = a.cycles_per_sample[i, j] * schedule.steps * schedule.batch
    available = schedule.length * a.slot_s - a.model_bits[j] / a.downlink_bps[i]
    best = np.full(len(schedule), np.inf)
    for share in np.linspace(0.0025, 1.0, 400):
        time_s = share * np.minimum(a.slot_s, available)
        with np.errstate(divide="ignore", over="ignore"):
            power = transmit_power_w(a.model_bits[j], time_s, schedule.bandwidth_hz, a.gain[i, schedule.end - 1], a.noise_w_per_hz)
            freq = np.maximum(cycles / (available - time_s), a.freq_min_hz[i])
        usable = (power <= a.max_power_w[i]) & (freq <= a.freq_max_hz[i]) & (available > time_s)
        energy = 0.5 * a.capacitance[i] * cycles * freq**2 + power * time_s + a.receive_power_w[i] * a.model_bits[j] / a.downlink_bps[i]
        best = np.where(usable, np.minimum(best, energy), best)
    return best


def test_what_cannot_be_done_is_told() -> None:
    data = plain_problem()
    problem, schedule = make(data, [
        {"device": "d0", "task": "t0", "start": k, "end": k + 1, "steps": 5, "batch": batch, "freq_hz": 1e9, "power_w": 0.4,
         "bandwidth_hz": width} for k, (batch, width) in enumerate([(20, 1e6), (20, 1e4), (2000, 1e6)])
    ])  # fmt: skip
    own, possible = choose_by_device(problem.arrays, schedule)
    assert possible.tolist() == [True, False, False]
    assert np.all(own.power_w <= 0.4) and np.all(own.freq_hz <= 1e9)


@pytest.fixture(scope="module")
def problem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny problem in a file."""
    path = tmp_path_factory.mktemp("robust") / "problem.json"
    save_problem(path, tiny_problem(np.random.default_rng(5), 2, 1, 3, max_steps=2))
    return path


def solve_cli(problem_file: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["solve", str(problem_file), *arguments])


def test_solve_delivers_for_the_problem_as_given(problem_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "schedule.json"
    done = solve_cli(problem_file, "--robust", "0.2,smoothness=0.1", "--certify", "--json", "-o", str(output))
    assert done.exit_code == 0, done.output
    stated, file = json.loads(done.stdout), load_schedule(output)
    corner = worst_case(file.problem, Margins.parse("0.2,smoothness=0.1"))
    # the file holds the user's own problem and its objective there, and no bound of another problem
    assert json.loads(problem_file.read_text())["spectrum"] == file.problem.to_dict()["spectrum"]
    objective = evaluate_objective(file.problem, file.schedule).objective
    assert stated["objective"] == pytest.approx(objective, rel=1e-12) == json.loads(output.read_text())["result"]["objective"]
    assert stated["lower_bound"] is None and json.loads(output.read_text())["result"]["lower_bound"] is None
    worst = stated["worst_case"]
    assert worst["objective"] == pytest.approx(evaluate_objective(corner, file.schedule).objective, rel=1e-9)
    assert objective < worst["objective"] and worst["lower_bound"] <= worst["objective"] * (1 + 1e-9)
    assert worst["margins"]["gain"] == 0.2 and worst["margins"]["smoothness"] == 0.1
    rng = np.random.default_rng(0)
    for _ in range(20):
        member = random_member(rng, file.problem, Margins.parse("0.2,smoothness=0.1"), corners=True)
        assert validate_schedule(member, file.schedule).feasible


def test_solve_leaves_room_in_the_limits(problem_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "schedule.json"
    done = solve_cli(problem_file, "--robust", "limits=0.2", "--json", "-o", str(output))
    assert done.exit_code == 0, done.output
    stated, file = json.loads(done.stdout), load_schedule(output)
    assert stated["objective"] == pytest.approx(evaluate_objective(file.problem, file.schedule).objective, rel=1e-12)
    assert stated["lower_bound"] is None and stated["worst_case"]["margins"]["limits"] == 0.2
    assert validate_schedule(file.problem, file.schedule).feasible
    physical = Margins(gain=0.2, noise_w_per_hz=0.2, cycles_per_sample=0.2)
    for seed in range(20):
        member = random_member(np.random.default_rng(seed), file.problem, physical, corners=True)
        there, possible = choose_by_device(member.arrays, file.schedule)
        assert np.all(possible) and validate_schedule(member, there).feasible
    shown = solve_cli(problem_file, "--robust", "limits=0.2", "--solver", "greedy_energy")
    assert "with room" in shown.output and "worst case" not in shown.output


def test_solve_shows_the_worst_case(problem_file: Path) -> None:
    done = solve_cli(problem_file, "--robust", "gain=0.3", "--solver", "greedy_energy")
    assert done.exit_code == 0
    assert "worst case" in done.output and "gain=0.3" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--robust", "gains=0.2"), 2, "--robust gains=0.2"),
        (("--robust", "gain=1e9"), 3, "in the worst case of gain=1e+09"),
        (("--robust", "0.2", "--solver", "native_sca", "--save-iterate", "x.npz"), 2, "must be without --robust"),
    ],
)
def test_what_is_wrong_is_one_line(problem_file: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = solve_cli(problem_file, *arguments)
    assert done.exit_code == code and said in str(done.exception) + done.output


def test_margin_of_zero_is_the_problem_itself(problem_file: Path) -> None:
    plain, robust = (json.loads(solve_cli(problem_file, *more, "--json").stdout) for more in ((), ("--robust", "0")))
    assert robust["objective"] == plain["objective"] == robust["worst_case"]["objective"]
