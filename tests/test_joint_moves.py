"""Joint moves: tabulated energies against the allocator, estimated gains against the exact merit, and what single moves cannot find."""

from __future__ import annotations

import numpy as np
import pytest
from builders import cases, make_problem, seeds
from hypothesis import given
from test_polish import VARIANTS, merit_of, random_state, variant
from tiny import tiny_problem, tiny_problem_dict

from schedopt.formulation.candidates import build_candidates
from schedopt.formulation.resources import allocate, group_energy_j
from schedopt.physics import evaluate_physics
from schedopt.polish import polish
from schedopt.polish.joint import joint_moves
from schedopt.polish.moves import apply_move
from schedopt.problem import Problem
from schedopt.registry import get_solver
from schedopt.schedule import Schedule
from schedopt.solvers.base import SolverSettings
from schedopt.state import Merit, State, state_of


@cases(12)
@given(seed=seeds)
def test_group_energies_are_those_of_the_allocator(seed: int) -> None:
    """Many alternatives for one slot, priced at once, against one allocation each; impossible ones are infinite."""
    rng = np.random.default_rng(seed)
    problem = make_problem(tiny_problem_dict(rng, 3, 2, 4))
    a = problem.arrays
    rows, group, expected = Schedule.empty(), [], []
    for g in range(12):
        devices = rng.permutation(3)[: int(rng.integers(0, 4))]
        end = int(rng.integers(1, 5))
        start = rng.integers(0, end, len(devices))
        zero = np.zeros(len(devices))
        # with the whole data set some cannot be done in time
        batch = rng.integers(5, 90, len(devices))
        task, steps = rng.integers(0, 2, len(devices)), rng.integers(1, 4, len(devices))
        schedule = Schedule(devices, task, start, zero + end, steps, batch, zero, zero, zero)
        allocation = allocate(a, schedule)
        expected.append(np.inf if allocation is None else float(evaluate_physics(problem, allocation.schedule).energy_j.sum()))
        rows, group = rows.concat(schedule), [*group, *([g] * len(devices))]
    found = group_energy_j(a, rows, np.array(group, dtype=np.int64), 12)
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "min_bound" not in name])
def test_estimated_gains_are_exact(name: str) -> None:
    """Without budgets the gain of every proposed move is what trying it gives (energies of the coarse allocation agree to ~1e-8)."""
    rng = np.random.default_rng(3)
    tried = 0
    for _ in range(2):
        problem = variant(rng, **VARIANTS[name])
        state, merit = random_state(rng, problem), merit_of(problem)
        for move in joint_moves(problem, build_candidates(problem), state, merit, 12):
            new = apply_move(problem, state, move, set())
            assert new is not None
            tried += 1
            assert merit(state) - merit(new) == pytest.approx(move.gain, rel=1e-5, abs=1e-6 * merit(state))
    assert tried >= 6


def _stuck(problem: Problem) -> tuple[State, Merit]:
    """A local optimum of the moves of one device, from one short assignment per task."""
    zero = np.zeros(2)
    start = state_of(problem, Schedule([0, 1], [0, 1], zero, zero + 1, zero + 1, zero + 5, zero, zero, zero))
    assert start is not None
    merit = merit_of(problem)
    return polish(problem, build_candidates(problem), start, merit), merit


def test_two_devices_find_what_one_cannot() -> None:
    """Over a few problems: joint moves leave local optima of single ones, never for worse, and come nearer to the optimum."""
    excess = []
    for seed in (2, 7, 15):
        problem = tiny_problem(np.random.default_rng(seed), devices=3, tasks=2, slots=3)
        optimum = get_solver("enumeration").solve(problem, settings=SolverSettings()).objective
        single, merit = _stuck(problem)
        joint = polish(problem, build_candidates(problem), single, merit, joint=True)
        assert optimum * (1 - 1e-9) <= merit(joint) <= merit(single)
        excess.append((merit(single) / optimum - 1.0, merit(joint) / optimum - 1.0))
    single_excess, joint_excess = np.array(excess).T
    # seed 2 needs three devices at once: no worse is all that can be asked there
    assert np.all(joint_excess[1:] < 1e-6) and np.all(single_excess[1:] > 0.01)
