r"""KKT residual of a program at a point with given multipliers, from exact values and Jacobians, whoever found them.

    stationarity     ‖v − P_[lower, upper](v − ∇L)‖∞ / s_d,   ∇L = c + Σ multiplier · ∇row
    complementarity  max |min(multiplier, −row)| over inequalities / s_d,    feasibility  max violation

with s_d = max(1, mean |multiplier| / 100): the scaling that interior-point codes use (Wächter and Biegler 2006, equations 5 and 6), but at
most 10: where constraints are degenerate, multipliers grow without meaning, and would excuse any gradient.

Rows that vanish with a variable, x · g(v) ≤ 0 at x = 0, break the usual constraint qualifications: their multipliers are not unique, and
move x alone (Achtziger and Kanzow 2008, mathematical programs with vanishing constraints). :func:`least_multipliers` picks the least ones
that keep x stationary; any multipliers with a small residual prove the point as good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from schedopt.formulation.nlp import Program
from schedopt.problem import FloatArray
from schedopt.sca.native_step import Multipliers

__all__ = ["KktResidual", "binary_multipliers", "kkt_residual", "least_multipliers"]

#: Largest s_d.
_MOST_SCALE = 10.0
#: Entries of a vanishing row below this are zero, and variables this near to their lower bound are at it.
_VANISHED = 1e-6


@dataclass(frozen=True)
class KktResidual:
    """The three parts, scaled; ``total``: the largest."""

    stationarity: float
    complementarity: float
    feasibility: float

    @property
    def total(self) -> float:
        """The largest part."""
        largest = max(self.stationarity, self.complementarity, self.feasibility)
        # a point with numbers beyond 64 bits satisfies nothing
        return largest if all(map(np.isfinite, (self.stationarity, self.complementarity, self.feasibility))) else np.inf


def kkt_residual(program: Program, v: FloatArray, multipliers: Multipliers, *, ignore: np.ndarray | None = None) -> KktResidual:
    """Residual of ``program`` at ``v``, shape (n,). Negative multipliers of inequalities count as violations of complementarity.

    ``ignore``: mask of non-convex inequalities that are not part of the problem looked at (the binaries of its relaxation).
    """
    kept = np.ones(len(program.nonconvex_inequalities), dtype=bool) if ignore is None else ~ignore
    multipliers = replace(multipliers, nonconvex_inequalities=np.where(kept, multipliers.nonconvex_inequalities, 0.0))
    gradient = _gradient(program, v, multipliers)
    everything: list[FloatArray] = []
    complementarity = 0.0
    for name in multipliers.__dataclass_fields__:
        rows, multiplier = getattr(program, name), getattr(multipliers, name)
        everything.append(np.abs(multiplier[kept] if name == "nonconvex_inequalities" else multiplier))
        if not name.endswith("_equalities"):
            off = np.abs(np.minimum(multiplier, -rows.values(v)))
            complementarity = max(complementarity, float((off[kept] if name == "nonconvex_inequalities" else off).max(initial=0.0)))
    sizes = np.concatenate(everything)
    scale = min(max(1.0, float(sizes.sum()) / max(len(sizes), 1) / 100.0), _MOST_SCALE)
    projected = v - np.clip(v - gradient, program.lower, program.upper)
    feasibility = max(program.violations(v, kept).values())
    return KktResidual(float(np.abs(projected).max(initial=0.0)) / scale, complementarity / scale, feasibility)


def _gradient(program: Program, v: FloatArray, multipliers: Multipliers) -> FloatArray:
    """∇L, shape (n,)."""
    gradient = program.cost.astype(float).copy()
    for name in multipliers.__dataclass_fields__:
        gradient += getattr(program, name).pull(v, getattr(multipliers, name))
    return gradient


def least_multipliers(program: Program, v: FloatArray, multipliers: Multipliers) -> Multipliers:
    """The same multipliers, but those of vanishing rows as small as the stationarity of their one variable at ``v`` allows."""
    jacobian = program.nonconvex_inequalities.jacobian(v)
    entries = np.where(np.abs(jacobian.data) > _VANISHED, jacobian.data, 0.0)
    large = sp.csr_matrix((entries, jacobian.indices, jacobian.indptr), jacobian.shape)
    large.eliminate_zeros()
    rows = np.flatnonzero(large.getnnz(axis=1) == 1)
    column, slope = large.indices[large.indptr[rows]], large.data[large.indptr[rows]]
    free = program.upper > program.lower
    at_zero = (v[column] - program.lower[column] <= _VANISHED) & free[column]
    # one row per variable: with two, each would undo what the other did
    _, first = np.unique(column, return_index=True)
    single = np.zeros(len(rows), dtype=bool)
    single[first] = True
    # a row with slack needs no multiplier, wherever its variable is
    vanished = np.abs(program.nonconvex_inequalities.values(v)[rows]) <= _VANISHED * (1.0 + np.abs(slope))
    use = at_zero & vanished & single & (np.bincount(column, minlength=len(v))[column] == 1)
    rows, column, slope = rows[use], column[use], slope[use]
    gradient = _gradient(program, v, multipliers)[column]
    changed = multipliers.nonconvex_inequalities.copy()
    wanted = np.maximum(changed[rows] - gradient / slope, 0.0)
    # a row that pulls the variable up is needed only where the gradient is too low for the bound
    changed[rows] = np.where((slope > 0) | (gradient < 0), wanted, changed[rows])
    return replace(multipliers, nonconvex_inequalities=changed)


def binary_multipliers(program: Program, v: FloatArray, multipliers: Multipliers, binaries: np.ndarray) -> Multipliers:
    """The same multipliers with those of the rows z − z² ≤ 0 as large as whole ``binaries`` (in the rows' order) need to be stationary.

    At z = 0 the row's slope is +1, at z = 1 it is −1: whatever pulls z away, some multiplier holds it. A schedule with stationary resources
    is thus a KKT point of the program with its binaries.
    """
    rows = program.binary_rows
    without = replace(multipliers, nonconvex_inequalities=np.where(rows, 0.0, multipliers.nonconvex_inequalities))
    gradient = _gradient(program, v, without)[binaries]
    changed = without.nonconvex_inequalities.copy()
    changed[rows] = np.maximum(np.where(v[binaries] > 0.5, gradient, -gradient), 0.0)
    return replace(without, nonconvex_inequalities=changed)
