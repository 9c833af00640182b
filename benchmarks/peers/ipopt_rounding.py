"""Ipopt through CasADi on the continuous relaxation, from random starting points until the time ends, with rounding and our repair.

Rounding is the plain one: per device, assignments in falling order of x as long as they do not overlap, with steps e/x and batches
rounded. :func:`schedopt.repair.repair` then makes the schedule feasible and gives it least-energy resources: help that this peer would
not have by itself. The relaxation is non-convex, so that Ipopt's optimum bounds nothing.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers import channel
from benchmarks.peers.casadi_model import CasadiModel
from schedopt.problem import FloatArray, Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule
from schedopt.state import State

__all__ = ["solve"]

#: An assignment with less than this of x is rounded away; each threshold is tried.
THRESHOLDS = (0.5, 0.25, 0.1, 0.03)
MAX_STARTS = 10_000


def rounded(model: CasadiModel, point: FloatArray, threshold: float) -> Schedule | None:
    """The assignments with x above ``threshold``, largest first where they overlap; None if there are none."""
    written, s = model.written, model.written.sizes
    chosen, steps, batch = (model.values(variables, point) for variables in (written.chosen, written.steps, written.batch))
    busy, made = set(), []
    for k in np.argsort(-chosen, kind="stable"):
        slots = {(int(s.device[k]), g) for g in range(int(s.start[k]), int(s.end[k]))}
        if chosen[k] > threshold and not slots & busy:
            busy |= slots
            made.append(int(k))
    if not made:
        return None
    return s.schedule(made, steps[made] / chosen[made], batch[made], s.time_max[made], s.band_min[made])


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """The best repaired rounding of all starts; the first start is the model's own."""
    began = time.monotonic()
    model = CasadiModel(problem)
    rng = np.random.default_rng(seed)
    solver = model.solver("ipopt", {"ipopt.print_level": 0, "ipopt.sb": "yes", "ipopt.max_wall_time": time_limit_s}, relaxed=True)
    best: State | None = None
    least, starts, converged = np.inf, 0, 0
    while starts < MAX_STARTS and time.monotonic() - began < time_limit_s:
        point, value, status = model.run(solver, model.start if starts == 0 else model.random_start(rng))
        starts += 1
        if "Succeeded" in status or "Acceptable" in status:
            converged, least = converged + 1, min(least, value)
        for threshold in THRESHOLDS:
            candidate = rounded(model, point, threshold)
            state = None if candidate is None else repair(problem, candidate)
            if state is not None and (best is None or state.evaluation.objective < best.evaluation.objective):
                best = state
                channel.offer(state.schedule)
    channel.remark(f"{starts} starts, {converged} converged, best relaxed local optimum {least:.4g}")
    return None if best is None else best.schedule
