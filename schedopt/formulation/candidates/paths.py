"""The cheapest plan of every device: weighted interval scheduling over the costs of its candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.formulation.candidates.columns import Columns
from schedopt.formulation.candidates.listing import Candidates
from schedopt.problem import FloatArray, IntArray

__all__ = ["Paths", "backward_values", "best_paths", "chosen_spans", "forward_values", "least_regret"]


@dataclass(frozen=True)
class Paths:
    """Best plan of every device: ``value`` ≤ 0, shape (I,); ``chosen``: candidate indices of all plans; ``regret``, shape (n,): how
    much more a device pays if it must use the candidate (0 on a best plan, +inf without a cost)."""

    value: FloatArray
    chosen: IntArray
    regret: FloatArray


def best_paths(candidates: Candidates, cost: FloatArray, first: int = 0, last: int | None = None) -> Paths:
    """Cheapest set of disjoint candidates of every device: weighted interval scheduling by dynamic programming over instants.

    ``cost``: shape (n,), +inf = not available. ``first``, ``last``: the candidates are of the devices first .. last − 1 alone, and so is
    the answer. Ties go to the idle slot, then to the shorter candidate.
    """
    count = (candidates.arrays.num_devices if last is None else last) - first
    row = candidates.device - first
    length = candidates.end - candidates.start
    longest = int(length.max(initial=1))
    best, pick = _cheapest_task(candidates, row, count, cost, longest)
    forward, take = forward_values(best)
    backward = backward_values(best)
    through = forward[row, candidates.start] + cost + backward[row, candidates.end]
    value = forward[:, -1]
    return Paths(value, np.sort(pick[chosen_spans(take)]), through - value[row])


def _cheapest_task(candidates: Candidates, row: IntArray, count: int, cost: FloatArray, longest: int) -> tuple[FloatArray, IntArray]:
    """Cheapest candidate per (device, last slot, length): cost and index, shape (I, G, L)."""
    shape = (count, candidates.arrays.slots, longest)
    flat = np.ravel_multi_index((row, candidates.end - 1, candidates.end - candidates.start - 1), shape)
    best, pick = np.full(int(np.prod(shape)), np.inf), np.full(int(np.prod(shape)), -1, dtype=np.int64)
    order = np.lexsort((candidates.task, cost, flat))
    first = order[np.unique(flat[order], return_index=True)[1]]
    best[flat[first]], pick[flat[first]] = cost[first], first
    return best.reshape(shape), pick.reshape(shape)


def forward_values(best: FloatArray) -> tuple[FloatArray, IntArray]:
    """Least cost of slots 0..g−1, shape (I, G+1), and the length of the candidate that ends there (0 = idle), shape (I, G)."""
    devices, slots, longest = best.shape
    value, take = np.zeros((devices, slots + 1)), np.zeros((devices, slots), dtype=np.int64)
    for g in range(1, slots + 1):
        spans = min(longest, g)
        options = np.concatenate([value[:, g - 1 : g], best[:, g - 1, :spans] + value[:, g - 1 - np.arange(spans)]], axis=1)
        take[:, g - 1] = np.argmin(options, axis=1)
        value[:, g] = options.min(axis=1)
    return value, take


def chosen_spans(take: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """The best plans that ``take`` of :func:`forward_values` tells of: row, last slot and length − 1 of everything on them."""
    count, slots = take.shape
    position, rows = np.full(count, slots), np.arange(count)
    found = [np.zeros((3, 0), dtype=np.int64)]
    while np.any(position > 0):
        slot = np.maximum(position - 1, 0)
        span = np.where(position > 0, take[rows, slot], 0)
        use = span > 0
        found.append(np.stack([rows[use], slot[use], span[use] - 1]))
        position = np.where(position > 0, position - np.maximum(span, 1), 0)
    row, slot, less = np.concatenate(found, axis=1)
    return row, slot, less


def backward_values(best: FloatArray) -> FloatArray:
    """Least cost of slots g..G−1, shape (I, G+1)."""
    devices, slots, longest = best.shape
    value = np.zeros((devices, slots + 1))
    for g in range(slots - 1, -1, -1):
        spans = np.arange(min(longest, slots - g))
        options = best[:, g + spans, spans] + value[:, g + spans + 1]
        value[:, g] = np.minimum(value[:, g + 1], options.min(axis=1, initial=np.inf))
    return value


def least_regret(candidates: Candidates, columns: Columns, paths: Paths, count: int) -> IntArray:
    """Indices of the ``count`` columns of every device (all, if it has no more) whose use costs least beside its best plan."""
    regret, device = paths.regret[columns.candidate], candidates.device[columns.candidate]
    order = np.lexsort((regret, device))
    rank = np.arange(len(order)) - np.searchsorted(device[order], device[order])
    return order[rank < count]
