"""The shipped problems: valid, reproduced byte for byte by the commands of their README, and real decisions."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from schedopt.cli import main
from schedopt.constraints import validate_schedule
from schedopt.files import parse_problem
from schedopt.io import load_problem
from schedopt.objective import evaluate_objective
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult
from schedopt.solvers.base import SolverSettings

FOLDER = Path(__file__).resolve().parent.parent / "problems"
FILES = sorted(FOLDER.glob("*.json"))
README = (FOLDER / "README.md").read_text()


def commands() -> dict[str, list[str]]:
    """Arguments of each ``schedopt generate`` command in the README, by the problem's name."""
    found = {}
    for line in re.findall(r"^schedopt (generate .*)$", README, flags=re.MULTILINE):
        arguments = shlex.split(line)
        found[arguments[arguments.index("--name") + 1]] = arguments
    return found


COMMANDS = commands()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_problem_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_problem(path).name == path.stem
    outcome = CliRunner().invoke(main, ["validate", str(path)])
    assert outcome.exit_code == 0, outcome.output


def test_every_command_makes_a_shipped_problem_and_every_larger_problem_has_one() -> None:
    made_by_hand = {path.stem for path in FILES if path.stem.startswith("tiny_")}
    assert set(COMMANDS) == {path.stem for path in FILES} - made_by_hand


@pytest.mark.parametrize("name", COMMANDS)
def test_command_reproduces_the_file(name: str, tmp_path: Path) -> None:
    arguments = list(COMMANDS[name])
    target = arguments.index("-o") + 1
    assert arguments[target] == f"problems/{name}.json"
    arguments[target] = str(tmp_path / f"{name}.json")
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / f"{name}.json").read_bytes() == (FOLDER / f"{name}.json").read_bytes()


def main_problem(energy_weight: float | None = None) -> Problem:
    """The main problem, with another energy weight if one is given."""
    data = load_problem(FOLDER / "10dev_3task.json").to_dict()
    if energy_weight is not None:
        data["objective"]["energy_weight"] = energy_weight
    return parse_problem(data)


@cache
def short_solve(energy_weight: float | None) -> SolveResult:
    """The default solver's relaxation in a few masters, and what rounding makes of it: within a few percent of what hours find."""
    switches = dict.fromkeys(("short_rounds", "long_rounds", "kicks", "restarts"), "0")
    return solve(main_problem(energy_weight), settings=SolverSettings(max_iterations=6, switches=switches))


@pytest.mark.slow
def test_main_problem_is_a_real_decision() -> None:
    problem, schedule = main_problem(), short_solve(None).schedule
    assert schedule is not None
    assert validate_schedule(problem, schedule).feasible
    assert len(np.unique(schedule.length)) >= 2
    assert len(set(zip(schedule.steps.tolist(), schedule.batch.tolist(), strict=True))) >= 3
    arrays = problem.arrays
    assert schedule.length.sum() < arrays.num_devices * arrays.slots  # some device-slots are idle
    used = np.bincount(schedule.end, weights=schedule.bandwidth_hz)
    assert used.max() >= 0.999 * arrays.bandwidth_hz


@pytest.mark.slow
def test_energy_weight_moves_energy_and_bounds() -> None:
    evaluations = []
    for energy_weight in (0.05, 50.0):
        schedule = short_solve(energy_weight).schedule
        assert schedule is not None
        evaluations.append(evaluate_objective(main_problem(energy_weight), schedule))
    cheap, dear = evaluations
    assert cheap.energy_j >= 5 * dear.energy_j
    assert np.all(dear.bound.total > 1.05 * cheap.bound.total)
