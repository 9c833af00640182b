"""Where to split a node: at a number of assignments that its program's solution has a fraction of, chosen by trying some.

Numbers of uploads of a task, of a device, of a device for a task, and of a slot, then of a device in a slot, and single candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from schedopt.formulation.candidates import Candidates
from schedopt.problem import IntArray
from schedopt.proof.nodes import Limit
from schedopt.proof.program import NodeProgram, NodeSolution

__all__ = ["choose_limits"]

#: Numbers of assignments that are tried per kind, and what counts as a fraction.
_TRIED = 1
_FRACTION = 1e-4


def _kinds(c: Candidates) -> Iterator[IntArray]:
    """Group of each candidate, coarse kinds first, arrays of shape (n,)."""
    a = c.arrays
    yield c.task
    yield c.device
    yield c.device * a.num_tasks + c.task
    yield c.end
    yield c.device * (a.slots + 1) + c.end
    yield np.arange(len(c))


def choose_limits(program: NodeProgram, solution: NodeSolution, tick: Callable[[], None]) -> tuple[Limit, Limit] | None:
    """At most k or at least k + 1 of a group, of which the program solved last has a fraction; None if all numbers are whole."""
    c, columns = program.candidates, solution.columns
    best: tuple[float, tuple[Limit, Limit] | None] = (-np.inf, None)
    for kind, group in enumerate(_kinds(c)):
        if kind == 4 and best[1] is not None:
            break
        number = np.bincount(group[columns.candidate], weights=solution.weights)
        part = number - np.floor(number)
        far = np.minimum(part, 1.0 - part)
        tried = [g for g in np.argsort(-far, kind="stable")[:_TRIED] if far[g] > _FRACTION]
        for g in tried:
            members, count = group == g, int(np.floor(number[g]))
            pair = (Limit(members, 1, count), Limit(members, -1, count + 1))
            score = _score(program, pair)
            tick()
            if score > best[0]:
                best = (score, pair)
    return best[1]


def _score(program: NodeProgram, pair: tuple[Limit, Limit]) -> float:
    """How much both halves' programs rise: mostly what the lesser of them does."""
    rises = [min(program.rise(limit), program.unit) for limit in pair]
    return min(rises) + 0.1 * max(rises)
