"""The convex subproblem in numbers, for modelling languages: matrices over the free variables, from the program's own rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from benchmarks.iteration.record import Instance
from schedopt.problem import FloatArray, IntArray
from schedopt.sca.native_step import Subproblem

__all__ = ["Linearised", "Structure", "Values", "linearised", "row_values", "structure"]


@dataclass(frozen=True)
class Structure:
    """What stays the same over the iterations: free variables, rows that move, and which penalised rows have a slack."""

    sub: Subproblem
    free: IntArray
    equal: IntArray
    affine: IntArray
    quotients: IntArray
    low: IntArray
    high: IntArray
    #: of the penalised rows: which are equalities, which have a slack, and its number
    equality: np.ndarray
    slack: np.ndarray
    slack_of: IntArray

    @property
    def cost(self) -> FloatArray:
        """Cost of the free variables."""
        return self.sub.program.cost[self.free]

    def selection(self, index: IntArray) -> sp.csr_matrix:
        """The variables ``index`` as rows over the free ones, shape (m, free)."""
        return sp.identity(self.sub.program.variables, format="csr")[index][:, self.free]


@dataclass(frozen=True)
class Values:
    """Values of the rows at an iterate, by class, and the least and the most step of the bounded variables."""

    equal: FloatArray
    affine: FloatArray
    penalised: FloatArray
    least: FloatArray
    most: FloatArray


@dataclass(frozen=True)
class Linearised:
    """The numbers at one iterate, over the step d of the free variables: rows ``matrix @ d + value`` are 0 or at most 0."""

    v: FloatArray
    #: ½|root d|² of the cost: proximal weight, curvature and second-order terms
    root: sp.csr_matrix
    penalty: FloatArray
    equal: sp.csr_matrix
    affine: sp.csr_matrix
    #: of the penalised rows
    jacobian: sp.csr_matrix
    values: Values


def structure(sub: Subproblem) -> Structure:
    """What stays the same over the iterations of ``sub``."""
    p, free = sub.program, sub.program.free
    # the one rule that has no public name; were another set meant, the optima would not agree
    slack = np.concatenate([sub._missable(group) for group in sub.penalised])
    return Structure(
        sub=sub,
        free=np.flatnonzero(free),
        equal=np.flatnonzero(p.convex_equalities.moving(free)),
        affine=np.flatnonzero(p.affine.moving(free)),
        quotients=np.flatnonzero(p.quotients.moving(free)),
        low=np.flatnonzero(np.isfinite(p.lower[free])),
        high=np.flatnonzero(np.isfinite(p.upper[free])),
        equality=np.concatenate([np.full(len(group), group.equality) for group in sub.penalised]),
        slack=slack,
        slack_of=np.cumsum(slack) - 1,
    )


def linearised(fixed: Structure, instance: Instance) -> Linearised:
    """The numbers of ``instance``."""
    p, v, free = fixed.sub.program, instance.v, fixed.free
    prox = sp.diags(np.sqrt(instance.diagonal[free]), format="csr")
    return Linearised(
        v=v,
        root=sp.vstack([prox, instance.half[:, free]], format="csr"),
        penalty=instance.penalty[fixed.slack],
        equal=p.convex_equalities.linear[fixed.equal][:, free],
        affine=p.affine.linear[fixed.affine][:, free],
        jacobian=sp.vstack([group.jacobian(v) for group in fixed.sub.penalised], format="csr")[:, free],
        values=row_values(fixed, v),
    )


def row_values(fixed: Structure, v: FloatArray) -> Values:
    """Values of all rows at ``v``. It may miss convex rows by rounding: it may then stay where it is, here as in the direct data."""
    p, at = fixed.sub.program, v[fixed.free]
    return Values(
        equal=p.convex_equalities.values(v)[fixed.equal],
        affine=np.minimum(p.affine.values(v)[fixed.affine], 0.0),
        penalised=np.concatenate([group.values(v) for group in fixed.sub.penalised]),
        least=np.minimum(p.lower[fixed.free] - at, 0.0)[fixed.low],
        most=np.maximum(p.upper[fixed.free] - at, 0.0)[fixed.high],
    )
