"""Bonmin (B-BB) through CasADi on the full model; on a non-convex model its optimum is a local one and it claims no bound.

Bonmin has no callback in CasADi and does not always keep its time limit, so it runs twice: until the first integer solution, which is
handed over, then for the rest of the time. What the second run finds is lost if it has to be killed. All else is Bonmin's default:
branching on the most fractional variable instead of strong branching crashed (segmentation fault) on tiny problems.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers import channel
from benchmarks.peers.casadi_model import CasadiModel
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["solve"]

#: Steps, batches and choices closer than this to whole numbers count as whole.
WHOLE = 1e-4


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """B-BB from the model's starting point (moved at random for a seed other than 0), with Bonmin's default settings."""
    began = time.monotonic()
    model = CasadiModel(problem)
    start = model.start if seed == 0 else model.random_start(np.random.default_rng(seed))
    best: Schedule | None = None
    for solutions in (1, None):
        left = time_limit_s - (time.monotonic() - began)
        if left <= 0:
            break
        options: dict[str, object] = {"bonmin.algorithm": "B-BB", "bonmin.time_limit": left, "bonmin.bb_log_level": 0}
        if solutions is not None:
            options["bonmin.solution_limit"] = solutions
        point, _, status = model.run(model.solver("bonmin", options, relaxed=False), start)
        off = np.abs(point - np.rint(point))[model.whole].max()
        channel.remark(f"{status} ({'first solution' if solutions else 'whole search'}), {len(model.written.chosen)} candidates")
        if off > WHOLE:
            continue  # the relaxed point of an unfinished search
        found = model.written.schedule(lambda variable, point=point: float(model.values([variable], point)[0]))
        if found is not None:
            best = found
            channel.offer(found)
    return best
