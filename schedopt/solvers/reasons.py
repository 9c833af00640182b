"""Why a search found no feasible schedule, in one line."""

from __future__ import annotations

import numpy as np

from schedopt.problem import Problem
from schedopt.state import Merit, State

__all__ = ["why_nothing"]


def why_nothing(problem: Problem, merit: Merit, best: State | None) -> str:
    """Which limit the best state that was found misses, and by how much; what could not be had at all where there is none."""
    names = ", ".join(repr(task.name) for task in problem.tasks[:5])
    if best is None:
        return f"no set of assignments for the tasks {names} could be given resources within every constraint"
    evaluation = best.evaluation
    missed = np.flatnonzero(merit.target_misses(evaluation) > 0)
    if len(missed):
        j = int(missed[0])
        reached, target = evaluation.bound.total[j], problem.arrays.target[j]
        name = problem.tasks[j].name
        return f"none found, which is no proof: task {name!r} comes to a bound of {reached:.6g} at best, above its target {target:.6g}"
    if merit.energy_miss(evaluation) > 0:
        limit = problem.objective.total_energy_j
        return f"training the tasks {names} took {evaluation.energy_j:.6g} J at least, above total_energy_j = {limit:.6g}"
    untrained = np.flatnonzero(~np.isfinite(evaluation.bound.total))
    name = problem.tasks[int(untrained[0])].name if len(untrained) else problem.tasks[0].name
    return f"task {name!r}: no schedule was found that trains it beside the others within every constraint"
