"""Subproblems as they come in a real run of the loop, and what the loop does beside solving them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from schedopt.errors import InputError
from schedopt.formulation.native import NativeProblem, build_native
from schedopt.problem import FloatArray, Problem
from schedopt.sca.native_loop import NativeLoop
from schedopt.sca.native_settings import NativeSettings
from schedopt.sca.native_step import Step, Subproblem
from schedopt.solvers.base import SolverSettings
from schedopt.solvers.greedy_energy import GreedyEnergy

__all__ = ["Instance", "Recording", "record"]


@dataclass(frozen=True)
class Instance:
    """One subproblem: iterate v, diagonal D, penalties of the penalised rows, root of C (see :mod:`schedopt.sca.native_step`)."""

    v: FloatArray
    diagonal: FloatArray
    penalty: FloatArray
    half: sp.csr_matrix


@dataclass(frozen=True)
class Recording:
    """Subproblems of a run, and the loop's own seconds per iteration: curvature, residuals, merits, step length.

    ``working_s``: seconds of whole iterations of the same loop with working sets, which most of its steps then see alone.
    """

    subproblem: Subproblem
    instances: tuple[Instance, ...]
    loop_s: tuple[float, ...]
    working_s: tuple[float, ...]


def record(problem: Problem, count: int, iterations: int) -> Recording:
    """``count`` subproblems spread evenly over the first ``iterations`` of the relaxation, from the heuristic's schedule.

    The first subproblem of a run is left out: it has no multipliers yet, and hence no second-order terms.
    """
    native = build_native(problem)
    if len(native.program.affine.exp_row) or len(native.program.nonconvex_equalities.exp_row):
        raise InputError(f"problem {problem.name}: proximal terms; the models to compare with know products alone")
    heuristic = GreedyEnergy().solve(problem, settings=SolverSettings(max_iterations=50)).schedule
    start = native.spread() if heuristic is None or not len(heuristic) else native.point(heuristic)
    # a tolerance out of reach: the loop goes on as long as it is asked to
    loop = NativeLoop(native.program, start, native.binaries, NativeSettings(tolerance=1e-12), restore=native.restored)
    if loop.sub.exponential:
        raise InputError("exponential cones; the models to compare with know linear and second-order cones alone")
    seen, solve_s, ends = [], [], []
    solve = loop.sub.solve

    def recorded(v: FloatArray, diagonal: FloatArray, penalty: FloatArray, **options: object) -> Step | None:
        if options.get("half") is not None:
            seen.append(Instance(v.copy(), diagonal.copy(), penalty.copy(), options["half"]))  # type: ignore[arg-type]
        begin = time.perf_counter()
        step = solve(v, diagonal, penalty, **options)  # type: ignore[arg-type]
        solve_s.append(time.perf_counter() - begin)
        return step

    begin = time.perf_counter()
    loop.sub.solve = recorded  # type: ignore[method-assign]
    # more than one solve per iteration only where a backend fails; the last is then the one that counts
    loop.on_iteration = lambda record, point: ends.append((time.perf_counter(), sum(solve_s)))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        loop.phase("relaxed", iterations)
    # what is compared afterwards must not be recorded
    loop.sub.solve = solve  # type: ignore[method-assign]
    if len(seen) < count:
        raise InputError(f"problem {problem.name}: the loop ended after {len(seen)} iterations; at least {count} are needed")
    wall, inside = np.diff([begin, *(end for end, _ in ends)]), np.diff([0.0, *(total for _, total in ends)])
    chosen = np.linspace(0, len(seen) - 1, count).round().astype(int)
    working = _with_working_sets(native, start, iterations)
    return Recording(loop.sub, tuple(seen[k] for k in chosen), tuple((wall - inside).tolist()), working)


def _with_working_sets(native: NativeProblem, start: FloatArray, iterations: int) -> tuple[float, ...]:
    """Seconds of each iteration as ``native_sca`` runs them."""
    ends = [time.perf_counter()]
    loop = NativeLoop(
        native.program, start, native.binaries, NativeSettings(tolerance=1e-12), restore=native.restored, dormant=native.dormant,
        on_iteration=lambda record, point: ends.append(time.perf_counter()),
    )  # fmt: skip
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        loop.phase("relaxed", iterations)
    return tuple(np.diff(ends).tolist())
