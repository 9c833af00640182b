"""Four ways to pose and solve the same convex subproblem.

Each has ``build(instance)``, ``canonicalise_and_solve()``, which returns the optimal value, and ``setup_s``, the seconds that it needs
once. All call Clarabel. Rates are linearised as in the loop, so that all cones are linear and second-order.
"""

from __future__ import annotations

import time
import warnings
from typing import Protocol

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from benchmarks.iteration.linear import Linearised, Structure, linearised, row_values
from benchmarks.iteration.record import Instance
from schedopt.errors import SolverError
from schedopt.formulation.nlp import RateRows
from schedopt.problem import FloatArray, IntArray
from schedopt.sca.direct import solve_direct

__all__ = ["Direct", "Dpp", "OwnSettings", "ScalarLoop", "Vectorised", "Way"]


class Way(Protocol):
    """A way of modelling."""

    name: str
    setup_s: float
    #: whether Clarabel runs with cvxpy's settings instead of ours
    own_settings: bool

    def build(self, instance: Instance) -> None:
        """Everything up to the finished model of the subproblem."""

    def canonicalise_and_solve(self) -> float:
        """The optimal value of the model just built, without the constant c·v."""


class Direct:
    """Ours: conic data assembled from a fixed structure, handed to Clarabel as it is."""

    name = "direct conic data"
    own_settings = False

    def __init__(self, fixed: Structure) -> None:
        self.sub, self.setup_s = fixed.sub, 0.0

    def build(self, instance: Instance) -> None:
        self.data = self.sub.data(instance.v, instance.diagonal, instance.penalty, instance.half)

    def canonicalise_and_solve(self) -> float:
        found = solve_direct(self.data, "clarabel")
        if found is None:
            raise SolverError("Clarabel failed on the direct conic data")
        return float(self.data.cost @ found.x) + 0.5 * float(np.sum((self.data.root @ found.x) ** 2))


class _Cvxpy:
    """What the ways through cvxpy share."""

    setup_s = 0.0
    own_settings = False
    #: cvxpy's own choice
    canon_backend: str | None = None
    problem: cp.Problem

    def __init__(self, fixed: Structure) -> None:
        self.fixed = fixed

    def canonicalise_and_solve(self) -> float:
        with warnings.catch_warnings():
            # reduced accuracy is announced as a warning; whether it is good enough is judged on the value
            warnings.simplefilter("ignore")
            self.problem.solve(solver=cp.CLARABEL, canon_backend=self.canon_backend)
        if self.problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise SolverError(f"cvxpy: {self.problem.status}")
        return float(self.problem.value)


class Vectorised(_Cvxpy):
    """A vectorised cvxpy model with sparse matrices, built anew in every iteration."""

    name = "cvxpy, vectorised, rebuilt"

    def build(self, instance: Instance) -> None:
        fixed, now = self.fixed, linearised(self.fixed, instance)
        d, t = cp.Variable(len(fixed.free)), cp.Variable(np.count_nonzero(fixed.slack), nonneg=True)
        cost = fixed.cost @ d + now.penalty @ t + 0.5 * cp.sum_squares(now.root @ d)
        rows = now.jacobian @ d + now.values.penalised
        even, soft, hard = fixed.equality, ~fixed.equality & fixed.slack, ~fixed.equality & ~fixed.slack
        constraints = [
            now.equal @ d + now.values.equal == 0,
            now.affine @ d + now.values.affine <= 0,
            d[fixed.low] >= now.values.least,
            d[fixed.high] <= now.values.most,
            rows[np.flatnonzero(even)] <= t[fixed.slack_of[even]],
            -rows[np.flatnonzero(even)] <= t[fixed.slack_of[even]],
            rows[np.flatnonzero(soft)] <= t[fixed.slack_of[soft]],
            rows[np.flatnonzero(hard)] <= 0,
            *self._cones(d, now.v),
        ]
        self.problem = cp.Problem(cp.Minimize(cost), constraints)

    def _cones(self, d: cp.Variable, v: FloatArray | cp.Expression) -> list[cp.Constraint]:
        """Quotients as second-order cones, one constraint for all."""
        fixed = self.fixed

        def point(index: IntArray) -> cp.Expression:
            return fixed.selection(index) @ d + v[index]

        q = fixed.sub.program.quotients.take(fixed.quotients)
        if not len(q):
            return []
        inside, root = q.x >= 0, 2.0 * np.sqrt(q.factor)
        y, z = point(q.y), point(q.z)
        # where the numerator is the constant 1, its row of the selection is empty
        top = sp.diags(inside.astype(float)) @ fixed.selection(np.maximum(q.x, 0))
        numerator = cp.multiply(root, top @ d + _numerator(q.x, v))
        return [cp.SOC(y + z, cp.vstack([y - z, numerator]), axis=0)]


class OwnSettings(Vectorised):
    """The same model with the settings that cvxpy gives Clarabel: what a user gets who sets nothing."""

    name = "the same, cvxpy's settings"
    own_settings = True


def _numerator(x: IntArray, v: FloatArray | cp.Expression) -> FloatArray | cp.Expression:
    """v[x], or 1 where x < 0."""
    inside = (x >= 0).astype(float)
    return cp.multiply(inside, v[np.maximum(x, 0)]) + (1.0 - inside)


class Dpp(Vectorised):
    """The same model with cvxpy parameters (DPP): compiled once, then only numbers change.

    Parameters are the iterate, from which cvxpy derives the Jacobians of the products, and what is not affine in it.
    """

    name = "cvxpy, parameters (DPP)"
    # cvxpy's own choice for many parameters, COO, fails on products of parameters and sparse expressions (1.9.3)
    canon_backend = cp.CPP_CANON_BACKEND

    def __init__(self, fixed: Structure, instances: tuple[Instance, ...]) -> None:
        super().__init__(fixed)
        # which term each second-order term belongs to is looked up beforehand, and not timed
        self._places = {id(instance): _places(fixed, instance) for instance in instances}
        begin = time.perf_counter()
        self._declare()
        self.setup_s = time.perf_counter() - begin

    @property
    def parameter_scalars(self) -> int:
        """Numbers that are parameters."""
        return sum(parameter.size for parameter in self.problem.parameters())

    def _declare(self) -> None:
        fixed, p, n = self.fixed, self.fixed.sub.program, len(self.fixed.free)
        d, t = cp.Variable(n), cp.Variable(np.count_nonzero(fixed.slack), nonneg=True)
        self.v, self.prox, self.penalty = cp.Parameter(p.variables), cp.Parameter(n), cp.Parameter(t.size)
        x, y = _pairs(fixed)
        rates = len(p.rates)
        self.by_w, self.by_p = cp.Parameter(rates), cp.Parameter(rates)
        self.first, self.second = cp.Parameter(len(x)), cp.Parameter(len(x))
        self.value, self.affine = cp.Parameter(len(fixed.slack)), cp.Parameter(len(fixed.affine))
        self.equal, self.least, self.most = cp.Parameter(len(fixed.equal)), cp.Parameter(len(fixed.low)), cp.Parameter(len(fixed.high))
        halves = cp.multiply(self.first, fixed.selection(x) @ d) + cp.multiply(self.second, fixed.selection(y) @ d)
        quadratic = cp.sum_squares(cp.multiply(self.prox, d)) + cp.sum_squares(halves)
        rows = self._rows(d) + self.value
        even, soft, hard = fixed.equality, ~fixed.equality & fixed.slack, ~fixed.equality & ~fixed.slack
        constraints = [
            p.convex_equalities.linear[fixed.equal][:, fixed.free] @ d + self.equal == 0,
            p.affine.linear[fixed.affine][:, fixed.free] @ d + self.affine <= 0,
            d[fixed.low] >= self.least,
            d[fixed.high] <= self.most,
            rows[np.flatnonzero(even)] <= t[fixed.slack_of[even]],
            -rows[np.flatnonzero(even)] <= t[fixed.slack_of[even]],
            rows[np.flatnonzero(soft)] <= t[fixed.slack_of[soft]],
            rows[np.flatnonzero(hard)] <= 0,
            *self._cones(d, self.v),
        ]
        self.problem = cp.Problem(cp.Minimize(fixed.cost @ d + self.penalty @ t + 0.5 * quadratic), constraints)

    def _rows(self, d: cp.Variable) -> cp.Expression:
        """Jacobian of the penalised rows times d: what is linear, both halves of every product, and the slopes of the rates."""
        fixed, unit = self.fixed, sp.identity(self.fixed.sub.program.variables, format="csr")
        parts = []
        for group in fixed.sub.penalised:
            rows = getattr(fixed.sub.program, group.name)
            if isinstance(rows, RateRows):
                slopes = cp.multiply(self.by_w, fixed.selection(rows.w) @ d) + cp.multiply(self.by_p, fixed.selection(rows.p) @ d)
                parts.append((fixed.selection(rows.z) @ d - slopes)[group.index])
                continue
            spread = sp.coo_matrix((rows.factor, (rows.row, np.arange(len(rows.row)))), shape=(len(rows), len(rows.row))).tocsr()
            both = cp.multiply(unit[rows.y] @ self.v, fixed.selection(rows.x) @ d)
            both += cp.multiply(unit[rows.x] @ self.v, fixed.selection(rows.y) @ d)
            parts.append(rows.linear[group.index][:, fixed.free] @ d + spread[group.index] @ both)
        return cp.hstack([part for part in parts if part.size])

    def build(self, instance: Instance) -> None:
        fixed, v, r = self.fixed, instance.v, self.fixed.sub.program.rates
        values = row_values(fixed, v)
        self.v.value, self.prox.value, self.penalty.value = v, np.sqrt(instance.diagonal[fixed.free]), instance.penalty[fixed.slack]
        _, self.by_w.value, self.by_p.value = r.rate(v[r.w], v[r.p])
        places, first, second = self._places[id(instance)]
        one, two, data = np.zeros(self.first.size), np.zeros(self.second.size), instance.half.data
        one[places] = data[first]
        # a square has a single entry
        pair = second >= 0
        two[places[pair]] = data[second[pair]]
        self.first.value, self.second.value = one, two
        self.value.value, self.affine.value, self.equal.value = values.penalised, values.affine, values.equal
        self.least.value, self.most.value = values.least, values.most


def _pairs(fixed: Structure) -> tuple[IntArray, IntArray]:
    """Both variables of every second-order term of the penalised rows, in the order of their convex halves."""
    groups = [getattr(fixed.sub.program, group.name) for group in fixed.sub.penalised]
    both = [(rows.w, rows.p) if isinstance(rows, RateRows) else (rows.x, rows.y) for rows in groups]
    return np.concatenate([x for x, _ in both]), np.concatenate([y for _, y in both])


def _places(fixed: Structure, instance: Instance) -> tuple[IntArray, IntArray, IntArray]:
    """For every row of ``instance.half``: the term that it belongs to, and where its entries for x and y are in the data (-1: none).

    The rows are those of the terms with a multiplier, in order.
    """
    x, y = _pairs(fixed)
    half, places, at = instance.half, [], 0
    first, second = [], []
    for row in range(half.shape[0]):
        entries = range(half.indptr[row], half.indptr[row + 1])
        columns = {int(half.indices[entry]): entry for entry in entries}
        while {int(x[at]), int(y[at])} != set(columns):
            at += 1
        places.append(at)
        first.append(columns[int(x[at])])
        second.append(columns[int(y[at])] if x[at] != y[at] else -1)
        at += 1
    return np.array(places, dtype=int), np.array(first, dtype=int), np.array(second, dtype=int)


class ScalarLoop(_Cvxpy):
    """The model as scripts with papers write it: one Python-level constraint per row, built anew in every iteration.

    The cost and the bounds of variables stay vectors, which favours it.
    """

    name = "cvxpy, scalar loops, rebuilt"

    def build(self, instance: Instance) -> None:
        fixed, now = self.fixed, linearised(self.fixed, instance)
        d, t = cp.Variable(len(fixed.free)), cp.Variable(np.count_nonzero(fixed.slack), nonneg=True)
        cost = fixed.cost @ d + now.penalty @ t + 0.5 * cp.sum_squares(now.root @ d)
        constraints = [d[fixed.low] >= now.values.least, d[fixed.high] <= now.values.most]
        constraints += [row == 0 for row in _scalar_rows(now.equal, now.values.equal, d)]
        constraints += [row <= 0 for row in _scalar_rows(now.affine, now.values.affine, d)]
        for k, row in enumerate(_scalar_rows(now.jacobian, now.values.penalised, d)):
            allowed = t[int(fixed.slack_of[k])] if fixed.slack[k] else 0
            constraints.append((cp.abs(row) if fixed.equality[k] else row) <= allowed)
        self.problem = cp.Problem(cp.Minimize(cost), [*constraints, *self._cones(d, now)])

    def _cones(self, d: cp.Variable, now: Linearised) -> list[cp.Constraint]:
        """Each quotient by itself."""
        fixed, p = self.fixed, self.fixed.sub.program
        column = np.full(p.variables, -1)
        column[fixed.free] = np.arange(len(fixed.free))

        def point(index: int) -> cp.Expression | float:
            return now.v[index] + d[int(column[index])] if column[index] >= 0 else now.v[index]

        q, constraints = p.quotients.take(fixed.quotients), []
        for x, y, z, factor in zip(q.x, q.y, q.z, q.factor, strict=True):
            top = point(x) if x >= 0 else 1.0
            constraints.append(factor * cp.quad_over_lin(top, point(y)) <= point(z))
        return constraints


def _scalar_rows(matrix: sp.csr_matrix, value: FloatArray, d: cp.Variable) -> list[cp.Expression]:
    """matrix @ d + value, row by row and term by term."""
    rows = []
    for k in range(matrix.shape[0]):
        entries = range(matrix.indptr[k], matrix.indptr[k + 1])
        rows.append(sum(matrix.data[entry] * d[int(matrix.indices[entry])] for entry in entries) + value[k])
    return rows
