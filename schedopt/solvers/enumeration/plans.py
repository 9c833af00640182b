"""Plans: sets of disjoint rows of one device, grouped by their key (Σ h_s per task)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.enumeration.constants import ROUNDING
from schedopt.solvers.enumeration.rows import Rows
from schedopt.solvers.enumeration.terms import Terms

__all__ = ["Plans", "build_plans"]


@dataclass(frozen=True)
class Plans:
    """The plans of one device, P of them, grouped by key (K keys): plans of key k are first[k] … first[k] + count[k] − 1.

    ``rows`` (P, G): the row that uploads in each slot, R (a dummy) where there is none; ``h`` (K, J); ``fixed`` (P, J);
    ``h_instant`` and ``span`` (P, J, G+1): Σ h_s at aggregation instants, and Σ h_s κ_s inside assignments; ``least_energy`` (P,) J.
    """

    rows: IntArray
    fixed: FloatArray
    h_instant: FloatArray
    span: FloatArray
    least_energy: FloatArray
    h: FloatArray
    first: IntArray
    count: IntArray


def _row_sets(rows: Rows, device: int, slots: int) -> list[tuple[int, ...]]:
    """All sets of disjoint rows of a device, by start."""
    by_start: list[list[int]] = [[] for _ in range(slots)]
    for row in np.flatnonzero(rows.device == device):
        by_start[rows.start[row]].append(int(row))
    # sets[g]: those that use slots g, g + 1, … only
    sets: list[list[tuple[int, ...]]] = [[()] for _ in range(slots + 1)]
    for g in reversed(range(slots)):
        sets[g] = sets[g + 1] + [(row, *rest) for row in by_start[g] for rest in sets[rows.end[row]]]
    return sets[0]


def build_plans(terms: Terms, rows: Rows, device: int) -> Plans:
    """The plans of a device that its energy budget allows with the smallest batches."""
    a = terms.problem.arrays
    sets = _row_sets(rows, device, a.slots)
    table = np.full((len(sets), a.slots), len(rows))
    for p, members in enumerate(sets):
        for row in members:
            table[p, rows.end[row] - 1] = row
    energy = np.append(rows.alone.min(axis=1, initial=np.inf), 0.0)[table].sum(axis=1)
    affordable = energy <= a.energy_budget_j[device] * (1 + ROUNDING)
    table, energy = table[affordable], energy[affordable]
    h_instant, span, fixed = (share[table].sum(axis=1) for share in _row_shares(terms, rows))
    # sums of equal steps in another order differ in the last digits: they are one key
    keys = h_instant.sum(axis=2)
    scale = max(float(keys.max(initial=0.0)), 1e-300)
    _, inverse = np.unique(np.round(keys / scale, 12), axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    first = np.flatnonzero(np.diff(inverse.ravel()[order], prepend=-1))
    count = np.diff(np.append(first, len(order)))
    return Plans(table[order], fixed[order], h_instant[order], span[order], energy[order], keys[order][first], first, count)


def _row_shares(terms: Terms, rows: Rows) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per row and a dummy of zeros: ``h`` at its aggregation (R+1, J, G+1), h κ inside it (R+1, J, G+1), ``fixed`` (R+1, J)."""
    a = terms.problem.arrays
    shape = (len(rows) + 1, a.num_tasks, a.slots + 1)
    h, span, fixed = np.zeros(shape), np.zeros(shape), np.zeros(shape[:2])
    r = np.arange(len(rows))
    h[r, rows.task, rows.end] = rows.h
    fixed[r, rows.task] = rows.fixed
    inside = (np.arange(a.slots + 1) > rows.start[:, None]) & (np.arange(a.slots + 1) < rows.end[:, None])
    span[r, rows.task] = inside * (rows.h * (rows.end - 1 - rows.start))[:, None]
    return h, span, fixed
