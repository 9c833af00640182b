"""Numbers over many decades: no traceback, no warning, no bound above the objective, and the enumerated optimum where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import make_problem
from tiny import tiny_problem, tiny_problem_dict

from schedopt.constraints import validate_schedule
from schedopt.errors import SolverError
from schedopt.registry import get_solver
from schedopt.result import SolveStatus
from schedopt.solvers.base import SolverSettings

Change = Callable[[dict[str, Any]], Any]


def _pair(data: dict[str, Any]) -> dict[str, Any]:
    return data["devices"][0]["tasks"]["task0"]


def _changed(change: Change, **objective: Any) -> Any:
    data = tiny_problem_dict(np.random.default_rng(5), 2, 1, 3, **objective)
    change(data)
    return make_problem(data)


EXTREMES: dict[str, Change] = {
    "slots of years": lambda d: d["horizon"].update(slot_s=1e8),
    "free computing": lambda d: _pair(d).update(cycles_per_sample=1e-10),
    "hardly possible computing": lambda d: _pair(d).update(cycles_per_sample=1e30),
    "free CPU": lambda d: d["devices"][0].update(capacitance=1e-35),
    "dear CPU": lambda d: d["devices"][0].update(capacitance=1e30),
    "deafening noise": lambda d: d["spectrum"].update(noise_w_per_hz=1e30),
    "one bit": lambda d: d["tasks"][0].update(model_bits=1e-30),
    "perfect channel": lambda d: d["devices"][0].update(gain=1e30),
    "no channel": lambda d: d["devices"][0].update(gain=1e-30),
    "huge variance": lambda d: _pair(d).update(gradient_variance=1e30),
    "hardly a step": lambda d: d["tasks"][0].update(learning_rate=1e-30),
    "energy for nothing": lambda d: d["objective"].update(energy_weight=0.0),
}


@pytest.mark.parametrize("solver", ["sca", "column_generation", "greedy_energy"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_numbers_end_well(name: str, solver: str) -> None:
    problem = _changed(EXTREMES[name])
    result = get_solver(solver).solve(problem, settings=SolverSettings(time_limit_s=3.0))
    if result.schedule is None:
        assert result.status is SolveStatus.INFEASIBLE and result.reason
        return
    assert validate_schedule(problem, result.schedule).feasible
    assert result.lower_bound is None or result.lower_bound <= result.objective * (1 + 1e-7)


@pytest.mark.parametrize("name", ["slots of years", "free computing", "hardly possible computing", "perfect channel", "huge variance"])
def test_certificates_close_at_extreme_numbers(name: str) -> None:
    problem = _changed(EXTREMES[name])
    result = get_solver("sca").solve(problem, settings=SolverSettings(certify=True))
    assert result.gap is not None and -1e-7 <= result.gap <= 1e-6


@pytest.mark.parametrize("value", [1e-300, 1e50])
def test_numbers_beyond_arithmetic_are_refused_in_one_line(value: float) -> None:
    problem = _changed(lambda d: _pair(d).update(cycles_per_sample=value))
    for solver in ("sca", "greedy_energy", "enumeration"):
        with pytest.raises(SolverError, match="cycles_per_sample = .* must be between") as refused:
            get_solver(solver).solve(problem, settings=SolverSettings())
        assert "\n" not in str(refused.value)


def test_training_is_found_where_nothing_pays() -> None:
    """All terms of the bound are zero: a trained task costs energy and gains nothing, and yet must be trained."""
    problem = _changed(lambda d: None, term_scale=dict.fromkeys(("opt", "loss", "part", "data", "local", "noise", "stale"), 0.0))
    result = get_solver("sca").solve(problem, settings=SolverSettings(time_limit_s=10.0))
    best = get_solver("enumeration").solve(problem, settings=SolverSettings())
    assert result.objective == pytest.approx(best.objective, rel=0.05)


def test_tight_targets_are_met() -> None:
    """Targets 2 % above the least bound that any schedule reaches (over all energies)."""
    found = 0
    for seed in (1, 5):
        best = tiny_problem(np.random.default_rng(seed), devices=2, tasks=1, slots=5, mode="min_bound", total_energy_j=1e3)
        least = get_solver("enumeration").solve(best, settings=SolverSettings()).objective / best.tasks[0].weight
        problem = tiny_problem(np.random.default_rng(seed), devices=2, tasks=1, slots=5, mode="min_energy", task={"target": least * 1.02})
        result = get_solver("sca").solve(problem, settings=SolverSettings())
        assert result.schedule is None or validate_schedule(problem, result.schedule).feasible
        found += result.schedule is not None
    assert found == 2
