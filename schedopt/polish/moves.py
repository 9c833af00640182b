"""A move: other plans for some devices in some of the slots, tried with resources allocated anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns
from schedopt.problem import Problem
from schedopt.schedule import Schedule
from schedopt.state import State, reallocate

__all__ = ["FEW_CANDIDATES", "NEAR_MISS", "Move", "apply_move", "rows_of"]

#: Up to this many candidates every one can be tried, at several sizes.
FEW_CANDIDATES = 400
#: Estimates leave out how the band is shared anew: where few candidates make it cheap, moves are tried that seem to lose this share.
NEAR_MISS = 0.02


@dataclass(frozen=True)
class Move:
    """Replace what some devices do in [start, end) by the given rows (possibly none); ``gain`` is the estimated improvement."""

    devices: tuple[int, ...]
    start: int
    end: int
    insert: Schedule
    gain: float


def rows_of(problem: Problem, candidates: Candidates, columns: Columns) -> Schedule:
    """Assignments of columns with whole batches; resources not yet set."""
    a, k = problem.arrays, columns.candidate
    i, j = candidates.device[k], candidates.task[k]
    batch = np.clip(np.round(columns.work / columns.steps), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(k))
    return Schedule(i, j, candidates.start[k], candidates.end[k], columns.steps, batch, zero, zero, zero)


def apply_move(problem: Problem, state: State, move: Move, seen: set[bytes]) -> State | None:
    """The schedule after ``move``, with the resources of the touched slots re-allocated; None if that is impossible or was seen."""
    s = state.schedule
    hit = np.isin(s.device, move.devices) & (s.start < move.end) & (s.end > move.start)
    touched = np.concatenate([s.end[hit], move.insert.end])
    merged = s.take(~hit).concat(move.insert)
    key = _skeleton(merged)
    if key in seen:
        return None
    seen.add(key)
    return reallocate(problem, merged, np.isin(merged.end, touched))


def _skeleton(s: Schedule) -> bytes:
    """What a schedule is apart from its resources."""
    rows = np.stack([s.device, s.task, s.start, s.end, s.steps.astype(np.int64), s.batch.astype(np.int64)], axis=1)
    return np.ascontiguousarray(rows[np.lexsort(rows.T)]).tobytes()
