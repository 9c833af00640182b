"""Conic programs with a convex quadratic cost, given as data to a backend: Clarabel directly, the others through cvxpy.

    min ½ |F x|² + cost·x   s.t.  s = b − A x in a product of cones.

The quadratic is kept as its root F: Clarabel takes FᵀF, and backends without quadratic costs take a cone of F x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from schedopt.problem import FloatArray
from schedopt.sca.conic import solve_conic

__all__ = ["Cone", "ConicData", "ConicSolution", "solve_direct"]


@dataclass(frozen=True)
class Cone:
    """``count`` cones of ``size`` rows: zero and nonnegative (one of that size), second-order, exponential (y e^{x/y} ≤ z)."""

    kind: str
    size: int
    count: int = 1

    @property
    def rows(self) -> int:
        """Rows of all of them."""
        return self.size * self.count


@dataclass(frozen=True)
class ConicData:
    """``root``: F, sparse, shape (k, n); ``cost``: shape (n,); ``matrix``: sparse (m, n); ``b``: shape (m,); ``cones`` in row order."""

    root: sp.csr_matrix
    cost: FloatArray
    matrix: sp.csc_matrix
    b: FloatArray
    cones: tuple[Cone, ...]


@dataclass(frozen=True)
class ConicSolution:
    """``x``, ``dual`` of the rows (stationarity: FᵀF x + cost + Aᵀ dual = 0), and whether full accuracy was reached."""

    x: FloatArray
    dual: FloatArray
    accurate: bool


#: Residuals and relative gap at which an answer that fell short of full accuracy is used: it only has to lower the merit.
_USABLE_RESIDUAL, _USABLE_GAP = 1e-6, 1e-2
#: Relative gap that is asked for: beyond it, iterations of the interior-point method buy nothing that the next iterate would notice.
_GAP = 1e-7


def solve_direct(data: ConicData, backend: str) -> ConicSolution | None:
    """Solve with a backend of :mod:`schedopt.sca.conic`; None if it fails, says infeasible, or the data are beyond 64-bit numbers."""
    parts = (data.root.data, data.cost, data.matrix.data, data.b)
    if not all(np.all(np.isfinite(part)) for part in parts):
        return None
    return _clarabel(data) if backend == "clarabel" else _through_cvxpy(data, backend)


def _clarabel(data: ConicData) -> ConicSolution | None:
    found = _clarabel_once(data, refined=False)
    # refinement of every linear solve takes a quarter of the time and is seldom needed
    return _clarabel_once(data, refined=True) if found is None else found


def _clarabel_once(data: ConicData, *, refined: bool) -> ConicSolution | None:
    import clarabel

    makers = {
        "zero": clarabel.ZeroConeT,
        "nonnegative": clarabel.NonnegativeConeT,
        "second-order": clarabel.SecondOrderConeT,
        "exponential": lambda _: clarabel.ExponentialConeT(),
    }
    cones = [makers[cone.kind](cone.size) for cone in data.cones for _ in range(cone.count) if cone.size]
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.tol_gap_abs, settings.tol_gap_rel = False, _GAP, _GAP
    # our variables are of order one: scaling them again made a third of the solves on 10 devices end early, and all of them slower
    settings.equilibrate_enable, settings.iterative_refinement_enable = False, refined
    # one thread: the same sums in the same order, whatever the machine
    settings.direct_solve_method = "qdldl"
    quadratic = sp.triu(data.root.T @ data.root, format="csc")
    try:
        solution = clarabel.DefaultSolver(quadratic, data.cost, data.matrix, data.b, cones, settings).solve()
    except (ArithmeticError, RuntimeError, ValueError):
        return None
    status = str(solution.status)
    gap = abs(solution.obj_val - solution.obj_val_dual) / max(1.0, abs(solution.obj_val))
    residual = max(solution.r_prim, solution.r_dual)
    # near the optimum rounding may stop it: whoever uses the point checks it against exact formulas
    usable = status in ("InsufficientProgress", "NumericalError") and residual < _USABLE_RESIDUAL and gap < _USABLE_GAP
    almost = status == "AlmostSolved" and (refined or residual < _USABLE_RESIDUAL)
    if status != "Solved" and not almost and not usable:
        return None
    return ConicSolution(np.array(solution.x), np.array(solution.z), status == "Solved")


def _through_cvxpy(data: ConicData, backend: str) -> ConicSolution | None:
    import cvxpy as cp

    x = cp.Variable(len(data.cost))
    slack = data.b - data.matrix @ x
    constraints, at = [], 0
    for cone in data.cones:
        part = slack[at : at + cone.rows]
        at += cone.rows
        if cone.rows == 0:
            continue
        if cone.kind == "zero":
            constraints.append(part == 0)
        elif cone.kind == "nonnegative":
            constraints.append(part >= 0)
        else:
            first, *others = (part[k :: cone.size] for k in range(cone.size))
            constraints.append(cp.SOC(first, cp.vstack(others)) if cone.kind == "second-order" else cp.ExpCone(first, *others))
    program = cp.Problem(cp.Minimize(data.cost @ x + 0.5 * cp.sum_squares(data.root @ x)), constraints)
    if not solve_conic(program, backend) or x.value is None or not np.all(np.isfinite(x.value)):
        return None
    dual = np.concatenate([_dual(constraint) for constraint in constraints])
    return ConicSolution(x.value, dual, program.status == cp.OPTIMAL)


def _dual(constraint: object) -> FloatArray:
    """Duals of the rows of one constraint, in their order and with the sign of :class:`ConicSolution`."""
    value = constraint.dual_value  # type: ignore[attr-defined]
    name = type(constraint).__name__
    if name == "SOC":
        top, rest = np.atleast_1d(value[0]), np.asarray(value[1]).reshape(-1, len(np.atleast_1d(value[0])))
        return np.vstack([top, rest]).T.ravel()
    if name == "ExpCone":
        return np.vstack([np.atleast_1d(part) for part in value]).T.ravel()
    return -value if name == "Equality" else np.asarray(value)
