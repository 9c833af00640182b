"""Solvers that end in every way a solver can, for tests of the command line, and the files they work on."""

from __future__ import annotations

import copy
import time
from typing import Any

from schedopt.errors import SolverError
from schedopt.problem import Problem
from schedopt.result import SolveResult, SolveStatus
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings

__all__ = ["FAKES", "problem_dict", "schedule_dict"]


def _task(name: str) -> dict[str, Any]:
    return {
        "name": name, "weight": 1.0, "model_bits": 3.0e6, "max_staleness": 5, "max_steps": 20, "min_batch": 8,
        "learning_rate": 0.005, "server_rate": 1.0, "prox": 0.0, "aggregation": "delta", "smoothness": 1.0,
        "initial_gap": 2.3, "loss_drift": 0.0, "target": None, "dataset": name, "model": "softmax",
    }  # fmt: skip


def _device(name: str) -> dict[str, Any]:
    pair = {"samples": 600, "cycles_per_sample": 4.0e5, "gradient_variance": 2.0, "dissimilarity": 0.5, "gradient_drift": 0.01}
    return {
        "name": name, "freq_hz": [2.0e8, 1.5e9], "capacitance": 2.0e-28, "max_power_w": 0.2, "receive_power_w": 0.0,
        "downlink_bps": 2.0e7, "energy_budget_j": 5.0, "gain": 1.0e-11, "tasks": {"svhn": pair, "mnist": copy.deepcopy(pair)},
    }  # fmt: skip


def problem_dict() -> dict[str, Any]:
    """Two devices, two tasks, six slots: the example of the format, extended."""
    terms = ("opt", "loss", "part", "data", "local", "noise", "stale")
    return {
        "schema": "schedopt.problem/1",
        "name": "2dev_2task",
        "horizon": {"slots": 6, "slot_s": 1.0},
        "spectrum": {"bandwidth_hz": 5.0e6, "noise_w_per_hz": 4.0e-21},
        "tasks": [_task("svhn"), _task("mnist")],
        "devices": [_device("dev00"), _device("dev01")],
        "objective": {
            "mode": "weighted", "energy_weight": 0.05, "total_energy_j": None, "participation": "instant",
            "term_scale": dict.fromkeys(terms, 1), "enforce_conditions": True,
        },
    }  # fmt: skip


def schedule_dict() -> dict[str, Any]:
    """A feasible schedule of :func:`problem_dict`, as an outsider writes it: without a result."""
    resources = {"steps": 8, "batch": 64, "freq_hz": 4.1e8, "power_w": 0.05, "bandwidth_hz": 5.0e5}
    return {
        "schema": "schedopt.schedule/1",
        "problem": problem_dict(),
        "assignments": [
            {"device": "dev00", "task": "svhn", "start": 0, "end": 2, **resources},
            {"device": "dev01", "task": "mnist", "start": 1, "end": 3, **resources},
        ],
    }


def best_schedule() -> Schedule:
    """The assignments of :func:`schedule_dict`."""
    return Schedule.from_records([(0, 0, 0, 2, 8, 64, 4.1e8, 0.05, 5e5), (1, 1, 1, 3, 8, 64, 4.1e8, 0.05, 5e5)])


class _Fake:
    """Offers the schedule and reports one iteration, then ends as ``finish`` says."""

    name = "fake"

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        incumbent = Incumbent(problem, settings, progress)
        incumbent.iteration = 3
        incumbent.raise_lower_bound(300.0)
        incumbent.offer(best_schedule())
        incumbent.record("polish")
        result = self.finish(incumbent, seed)
        return result.replace(backend=settings.backend, lower_bound_method="a guess", wall_s=1.5)

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        return incumbent.result(self.name, SolveStatus.SOLVED, seed=seed, kkt_residual=3e-6)


class Solved(_Fake):
    pass


class Unbounded(_Fake):
    """Proves nothing."""

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        incumbent.lower_bound = float("-inf")
        return super().finish(incumbent, seed)


class UnboundedDefault(Unbounded):
    """Proves nothing under the name of the default solver."""

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        return super().finish(incumbent, seed).replace(solver="sca")


class Slow(_Fake):
    """Works until it is interrupted; a line on stdout tells that it has begun."""

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        try:
            print("working", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            return incumbent.result(self.name, SolveStatus.INTERRUPTED, seed=seed)
        raise AssertionError("never interrupted")


class TimeLimited(_Fake):
    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        return incumbent.result(self.name, SolveStatus.TIME_LIMIT, seed=seed)


class _Empty(_Fake):
    """Ends without a schedule."""

    status = SolveStatus.INFEASIBLE

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        incumbent.schedule, incumbent.objective = None, float("inf")
        return incumbent.result(self.name, self.status, seed=seed, reason="no device can ever reach task svhn")


class Infeasible(_Empty):
    pass


class OutOfTime(_Empty):
    status = SolveStatus.TIME_LIMIT


class InterruptedEarly(_Empty):
    status = SolveStatus.INTERRUPTED


class Failing(_Fake):
    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        raise SolverError("backend scs failed: numerical trouble")


class KeyboardInterrupted(_Fake):
    """Lets the interruption through."""

    def finish(self, incumbent: Incumbent, seed: int) -> SolveResult:
        raise KeyboardInterrupt


#: What the tests add to the registry of solvers.
FAKES = {
    "solved": "cli_fakes:Solved",
    "unbounded": "cli_fakes:Unbounded",
    "unbounded_default": "cli_fakes:UnboundedDefault",
    "slow": "cli_fakes:Slow",
    "time_limited": "cli_fakes:TimeLimited",
    "infeasible": "cli_fakes:Infeasible",
    "out_of_time": "cli_fakes:OutOfTime",
    "interrupted_early": "cli_fakes:InterruptedEarly",
    "failing": "cli_fakes:Failing",
    "keyboard_interrupted": "cli_fakes:KeyboardInterrupted",
}
