r"""Smooth programs in factorable form: linear objective, rows that are affine plus products, exponentials, quotients and rates.

    min  c·v   s.t.  lower ≤ v ≤ upper   and rows  f_r(v) = 0 or ≤ 0,

    f_r(v) = b_r + (A v)_r + Σ_k q_k v_{x_k} v_{y_k} + Σ_k w_k exp(s_k v_{x_k}),

and two kinds of convex rows, w v_x²/v_y − v_z ≤ 0 (v_y > 0) and v_z − rate(v_x, v_y) ≤ 0. Values, Jacobians and the error bounds that
make surrogates majorants are exact and need no modelling library. Tested in ``tests/test_nlp.py`` against finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from schedopt.problem import FloatArray, IntArray

__all__ = ["Program", "QuotientRows", "RateRows", "RowBuilder", "Rows"]


@dataclass(frozen=True)
class _Pattern:
    """Entries that a Jacobian can have, by rows and columns, each once; and which of them the linear part's entries and the terms are."""

    row: IntArray
    column: IntArray
    linear: IntArray
    terms: IntArray


@dataclass(frozen=True)
class Rows:
    """m rows f(v) of affine, bilinear and exponential terms over n variables.

    ``linear``: sparse, shape (m, n); ``constant``: shape (m,). Products: ``row``, ``x``, ``y``, ``factor``, shape (k,). Exponentials:
    ``exp_row``, ``exp_x``, ``exp_rate`` s, ``exp_factor`` w, shape (l,). ``names``: what each row is, shape (m,).
    """

    linear: sp.csr_matrix
    constant: FloatArray
    row: IntArray
    x: IntArray
    y: IntArray
    factor: FloatArray
    exp_row: IntArray
    exp_x: IntArray
    exp_rate: FloatArray
    exp_factor: FloatArray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.constant)

    @property
    def is_affine(self) -> bool:
        """Whether there are neither products nor exponentials."""
        return len(self.row) == 0 and len(self.exp_row) == 0

    def values(self, v: FloatArray) -> FloatArray:
        """f(v), shape (m,)."""
        result = self.linear @ v + self.constant
        np.add.at(result, self.row, self.factor * v[self.x] * v[self.y])
        np.add.at(result, self.exp_row, self.exp_factor * np.exp(self.exp_rate * v[self.exp_x]))
        return result

    @cached_property
    def _pattern(self) -> _Pattern:
        """Where derivatives can be."""
        rows, columns = np.concatenate([self.row, self.row, self.exp_row]), np.concatenate([self.x, self.y, self.exp_x])
        width = self.linear.shape[1]
        linear_rows = np.repeat(np.arange(len(self)), np.diff(self.linear.indptr))
        codes = np.concatenate([linear_rows * width + self.linear.indices, rows * width + columns])
        places, where = np.unique(codes, return_inverse=True)
        row, column = np.divmod(places, width)
        return _Pattern(row, column, where[: len(linear_rows)], where[len(linear_rows) :])

    def _derivatives(self, v: FloatArray) -> FloatArray:
        """Entries of the Jacobian in the order of the pattern; some may be zero."""
        pattern = self._pattern
        slope = self.exp_factor * self.exp_rate * np.exp(self.exp_rate * v[self.exp_x])
        terms = np.concatenate([self.factor * v[self.y], self.factor * v[self.x], slope])
        # of nothing, whole numbers are counted
        entries = np.bincount(pattern.terms, weights=terms, minlength=len(pattern.row)).astype(float, copy=False)
        entries[pattern.linear] += self.linear.data
        return entries

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """df/dv, sparse, shape (m, n)."""
        entries, pattern = self._derivatives(v), self._pattern
        kept = np.flatnonzero(entries)
        ends = np.zeros(len(self) + 1, dtype=np.int32)
        np.cumsum(np.bincount(pattern.row[kept], minlength=len(self)), out=ends[1:])
        return sp.csr_matrix((entries[kept], pattern.column[kept].astype(np.int32), ends), shape=self.linear.shape)

    def pull(self, v: FloatArray, multiplier: FloatArray) -> FloatArray:
        """Σ_r multiplier_r ∇f_r(v), shape (n,)."""
        entries, pattern = self._derivatives(v), self._pattern
        sums: np.ndarray = np.bincount(pattern.column, weights=entries * multiplier[pattern.row], minlength=self.linear.shape[1])
        return sums

    def with_fixed(self, fixed: np.ndarray, values: FloatArray) -> Rows:
        """The same rows where variables in the mask ``fixed`` are known: their products become linear terms."""
        one, other = fixed[self.x], fixed[self.y]
        known = one | other
        # the free factor (either, where both are fixed: its column is then a fixed one) and the value of the known one
        free, value = np.where(one, self.y, self.x)[known], values[np.where(one, self.x, self.y)[known]]
        terms = sp.coo_matrix((self.factor[known] * value, (self.row[known], free)), shape=self.linear.shape)
        linear = (self.linear + terms).tocsr()
        linear.eliminate_zeros()
        left = ~known
        return replace(self, linear=linear, row=self.row[left], x=self.x[left], y=self.y[left], factor=self.factor[left])

    def moving(self, free: np.ndarray) -> np.ndarray:
        """Mask of the rows in which a variable of the mask ``free`` occurs, shape (m,)."""
        moves = self.linear[:, free].getnnz(axis=1) > 0
        moves[self.row[free[self.x] | free[self.y]]] = True
        moves[self.exp_row[free[self.exp_x]]] = True
        return moves

    def curvature(self, row_weight: FloatArray, lower: FloatArray, upper: FloatArray, size: FloatArray) -> FloatArray:
        """Diagonal D ≥ 0 (shape (n,)) with Σ_r weight_r |f_r(v + d) − f_r(v) − ∇f_r(v) d| ≤ ½ Σ D d².

        |q dx dy| ≤ ½|q|(α dx² + dy²/α) with α = size_y/size_x, the ratio of the steps that are expected (any positive numbers do); an
        exponential's remainder is bounded by its largest second derivative between ``lower`` and ``upper``. Rows that are concave where
        only their excess counts (−z² of a relaxed binary) have no remainder above the tangent and are left out.
        """
        diagonal = np.zeros(self.linear.shape[1])
        concave = (self.x == self.y) & (self.factor < 0)
        weight = np.abs(self.factor) * row_weight[self.row] * ~concave
        ratio = size[self.y] / size[self.x]
        np.add.at(diagonal, self.x, weight * ratio)
        np.add.at(diagonal, self.y, weight / ratio)
        largest = np.exp(self.exp_rate * np.where(self.exp_rate > 0, upper[self.exp_x], lower[self.exp_x]))
        second = row_weight[self.exp_row] * np.abs(self.exp_factor) * self.exp_rate**2 * largest
        np.add.at(diagonal, self.exp_x, second)
        return diagonal

    def convex_half(self, multiplier: FloatArray, v: FloatArray, size: FloatArray) -> sp.csr_matrix:
        """Root F (sparse, shape (k, n)) with ½|F d|² the convex half of Σ multiplier · f to second order in d at ``v``.

        w dx dy = ¼w(√α dx + dy/√α)² − ¼w(√α dx − dy/√α)² with α as in :meth:`curvature`, so the half is ¼|w|(√α dx ± dy/√α)² with the
        sign of w: a factor that stays where it is then does not hold the other. Squares and exponentials count where they are convex.
        """
        slope = 0.5 * self.exp_factor * self.exp_rate**2 * np.exp(self.exp_rate * v[self.exp_x])
        x, y = np.concatenate([self.x, self.exp_x]), np.concatenate([self.y, self.exp_x])
        weight = np.concatenate([multiplier[self.row] * self.factor, multiplier[self.exp_row] * slope])
        keep = np.where(x == y, weight > 0, weight != 0)
        x, y, weight = x[keep], y[keep], weight[keep]
        root, k = np.sqrt(0.5 * np.abs(weight)), np.arange(len(weight))
        balance = np.sqrt(size[y] / size[x])
        # where x = y both entries fall together: sqrt(2 w) dx
        data = np.concatenate([root * balance, root / balance * np.sign(weight)])
        return sp.coo_matrix((data, (np.tile(k, 2), np.concatenate([x, y]))), shape=(len(k), len(v))).tocsr()


class RowBuilder:
    """Collects terms of rows block by block; :meth:`build` makes the :class:`Rows`."""

    def __init__(self, variables: int) -> None:
        self.variables = variables
        self.names: list[str] = []
        self.constants: list[FloatArray] = []
        self._linear: list[tuple[IntArray, IntArray, FloatArray]] = []
        self._products: list[tuple[IntArray, IntArray, IntArray, FloatArray]] = []
        self._exponentials: list[tuple[IntArray, IntArray, FloatArray, FloatArray]] = []
        self.count = 0

    def rows(self, name: str, count: int, constant: object = 0.0) -> IntArray:
        """``count`` new rows called ``name`` with a constant; their indices."""
        new = np.arange(self.count, self.count + count)
        self.names += [name] * count
        self.constants.append(np.broadcast_to(np.asarray(constant, float), (count,)))
        self.count += count
        return new

    def linear(self, rows: IntArray, columns: IntArray, factor: object = 1.0) -> RowBuilder:
        """Add factor · v[columns] to ``rows`` (broadcast together)."""
        r, c, f = np.broadcast_arrays(rows, columns, np.asarray(factor, float))
        self._linear.append((r.ravel(), c.ravel(), f.ravel()))
        return self

    def product(self, rows: IntArray, x: IntArray, y: IntArray, factor: object = 1.0) -> RowBuilder:
        """Add factor · v[x] · v[y] to ``rows``."""
        r, a, b, f = np.broadcast_arrays(rows, x, y, np.asarray(factor, float))
        self._products.append((r.ravel(), a.ravel(), b.ravel(), f.ravel()))
        return self

    def exponential(self, rows: IntArray, x: IntArray, rate: object, factor: object) -> RowBuilder:
        """Add factor · exp(rate · v[x]) to ``rows``."""
        r, a, s, f = np.broadcast_arrays(rows, x, np.asarray(rate, float), np.asarray(factor, float))
        self._exponentials.append((r.ravel(), a.ravel(), s.ravel(), f.ravel()))
        return self

    def build(self) -> Rows:
        """All rows so far; terms of factor zero are left out."""

        def joined(parts: Sequence[tuple[np.ndarray, ...]], width: int) -> list[np.ndarray]:
            if not parts:
                return [np.zeros(0, dtype=np.int64 if k < width - 1 else float) for k in range(width)]
            columns = [np.concatenate([part[k] for part in parts]) for k in range(width)]
            keep = columns[-1] != 0
            return [column[keep] for column in columns]

        r, c, f = joined(self._linear, 3)
        linear = sp.coo_matrix((f, (r.astype(int), c.astype(int))), shape=(self.count, self.variables)).tocsr()
        constant = np.concatenate(self.constants) if self.constants else np.zeros(0)
        row, x, y, factor = joined(self._products, 4)
        exp_row, exp_x, exp_rate, exp_factor = joined(self._exponentials, 4)
        return Rows(linear, constant, row, x, y, factor, exp_row, exp_x, exp_rate.astype(float), exp_factor, tuple(self.names))


def _pulled(data: FloatArray, rows: IntArray, columns: IntArray, multiplier: FloatArray, width: int) -> FloatArray:
    """Multipliers times a Jacobian of such entries, row after row, shape (width,)."""
    order = np.argsort(rows, kind="stable")
    rows, columns = rows[order], columns[order]
    sums: np.ndarray = np.bincount(columns, weights=data[order] * multiplier[rows], minlength=width)
    return sums


@dataclass(frozen=True)
class QuotientRows:
    """Convex rows factor · v_x²/v_y − v_z ≤ 0 with v_y > 0; x < 0 stands for the constant 1. Arrays of shape (m,)."""

    x: IntArray
    y: IntArray
    z: IntArray
    factor: FloatArray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def moving(self, free: np.ndarray) -> np.ndarray:
        """Mask of the rows in which a variable of the mask ``free`` occurs, shape (m,)."""
        return free[self.y] | free[self.z] | (free[self.x] & (self.x >= 0))

    def take(self, index: IntArray) -> QuotientRows:
        """The rows at ``index``."""
        return QuotientRows(self.x[index], self.y[index], self.z[index], self.factor[index], tuple(self.names[k] for k in index))

    def top(self, v: FloatArray) -> FloatArray:
        """The numerators' roots, shape (m,)."""
        return np.where(self.x >= 0, v[np.maximum(self.x, 0)], 1.0)

    def values(self, v: FloatArray) -> FloatArray:
        """Row values, shape (m,)."""
        return self.factor * self.top(v) ** 2 / v[self.y] - v[self.z]

    def _derivatives(self, v: FloatArray) -> tuple[FloatArray, IntArray, IntArray]:
        """Entries of the Jacobian, their rows and their columns."""
        m, top, bottom = np.arange(len(self)), self.top(v), v[self.y]
        inside = self.x >= 0
        data = np.concatenate([(2.0 * self.factor * top / bottom)[inside], -self.factor * top**2 / bottom**2, -np.ones(len(m))])
        return data, np.concatenate([m[inside], m, m]), np.concatenate([self.x[inside], self.y, self.z])

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """Sparse, shape (m, n)."""
        data, rows, columns = self._derivatives(v)
        return sp.coo_matrix((data, (rows, columns)), shape=(len(self), len(v))).tocsr()

    def pull(self, v: FloatArray, multiplier: FloatArray) -> FloatArray:
        """Σ_r multiplier_r ∇f_r(v), shape (n,)."""
        return _pulled(*self._derivatives(v), multiplier, len(v))


@dataclass(frozen=True)
class RateRows:
    """Convex rows v_z − rate(v_w, v_p) ≤ 0, rate = w ln(1 + snr·p/w) / ln(1 + snr): 1 at full band and power, 0 at w = 0.

    Arrays of shape (m,): ``z``, ``w``, ``p`` variables, ``snr`` ratio at full power over the whole band.
    """

    z: IntArray
    w: IntArray
    p: IntArray
    snr: FloatArray
    names: tuple[str, ...]

    #: below this share of the band the rate is continued by its tangent ray (it is positively homogeneous)
    floor: float = field(default=1e-9)

    def __len__(self) -> int:
        return len(self.z)

    def moving(self, free: np.ndarray) -> np.ndarray:
        """Mask of the rows in which a variable of the mask ``free`` occurs, shape (m,)."""
        return free[self.z] | free[self.w] | free[self.p]

    def take(self, index: IntArray) -> RateRows:
        """The rows at ``index``."""
        return RateRows(self.z[index], self.w[index], self.p[index], self.snr[index], tuple(self.names[k] for k in index), self.floor)

    def rate(self, w: FloatArray, p: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rate and its derivatives with respect to w and p, shape (m,)."""
        w = np.maximum(w, self.floor)
        ratio = self.snr * np.maximum(p, 0.0) / w
        scale = np.log1p(self.snr)
        log = np.log1p(ratio)
        return w * log / scale, (log - ratio / (1.0 + ratio)) / scale, self.snr / (1.0 + ratio) / scale

    def values(self, v: FloatArray) -> FloatArray:
        """Row values, shape (m,)."""
        return v[self.z] - self.rate(v[self.w], v[self.p])[0]

    def _derivatives(self, v: FloatArray) -> tuple[FloatArray, IntArray, IntArray]:
        """Entries of the Jacobian, their rows and their columns."""
        _, by_w, by_p = self.rate(v[self.w], v[self.p])
        m = np.arange(len(self))
        return np.concatenate([np.ones(len(m)), -by_w, -by_p]), np.tile(m, 3), np.concatenate([self.z, self.w, self.p])

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """Sparse, shape (m, n)."""
        data, rows, columns = self._derivatives(v)
        return sp.coo_matrix((data, (rows, columns)), shape=(len(self), len(v))).tocsr()

    def pull(self, v: FloatArray, multiplier: FloatArray) -> FloatArray:
        """Σ_r multiplier_r ∇f_r(v), shape (n,)."""
        return _pulled(*self._derivatives(v), multiplier, len(v))

    def _second(self, weight: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """k and r with Σ weight · (−rate) = const + linear + ½ Σ k (r dw − snr dp)² + ..., shape (m,)."""
        w = np.maximum(v[self.w], self.floor)
        ratio = self.snr * np.maximum(v[self.p], 0.0) / w
        return weight / (w * (1.0 + ratio) ** 2 * np.log1p(self.snr)), ratio

    def curvature(self, row_weight: FloatArray, v: FloatArray) -> FloatArray:
        """Diagonal that bounds Σ weight · (tangent − rate) near ``v``, shape (n,): twice the second derivatives there."""
        second, ratio = self._second(2.0 * row_weight, v)
        diagonal = np.zeros(len(v))
        np.add.at(diagonal, self.w, second * ratio**2)
        np.add.at(diagonal, self.p, second * self.snr**2)
        return diagonal

    def convex_half(self, multiplier: FloatArray, v: FloatArray) -> sp.csr_matrix:
        """Root F of the second-order part of Σ multiplier · row, sparse, shape (m, n); it is convex as it is."""
        second, ratio = self._second(np.maximum(multiplier, 0.0), v)
        root, m = np.sqrt(second), np.arange(len(self))
        data = np.concatenate([root * ratio, -root * self.snr])
        return sp.coo_matrix((data, (np.tile(m, 2), np.concatenate([self.w, self.p]))), shape=(len(m), len(v))).tocsr()


@dataclass(frozen=True)
class Program:
    """The whole program in its four classes of constraints; ``cost`` c, bounds, shape (n,).

    ``convex_equalities`` are affine; convex inequalities are ``affine`` rows, ``quotients`` and ``rates``.
    """

    cost: FloatArray
    lower: FloatArray
    upper: FloatArray
    convex_equalities: Rows
    affine: Rows
    quotients: QuotientRows
    rates: RateRows
    nonconvex_equalities: Rows
    nonconvex_inequalities: Rows

    @property
    def variables(self) -> int:
        """n."""
        return len(self.cost)

    @property
    def free(self) -> np.ndarray:
        """Mask of the variables that are not fixed by their bounds, shape (n,)."""
        return self.upper > self.lower

    @property
    def binary_rows(self) -> np.ndarray:
        """Mask of the non-convex inequalities that make variables whole (named "binary ..."), shape of these rows."""
        return np.array([name.startswith("binary") for name in self.nonconvex_inequalities.names], dtype=bool)

    def presolved(self) -> Program:
        """The same program with the products of fixed variables made linear: same rows and variables, less curvature."""
        fixed = ~self.free
        names = ("convex_equalities", "affine", "nonconvex_equalities", "nonconvex_inequalities")
        return replace(self, **{name: getattr(self, name).with_fixed(fixed, self.lower) for name in names})

    def holding(self, index: IntArray, v: FloatArray) -> Program:
        """The same program with the variables at ``index`` fixed as they are in ``v``, within their bounds."""
        lower, upper = self.lower.copy(), self.upper.copy()
        lower[index] = upper[index] = np.clip(v[index], lower[index], upper[index])
        return replace(self, lower=lower, upper=upper)

    def objective(self, v: FloatArray) -> float:
        """c·v."""
        return float(self.cost @ v)

    def violations(self, v: FloatArray, kept: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Largest violation of each class at ``v``, bounds included; ``kept``: the non-convex inequalities that are looked at."""

        def most(values: FloatArray) -> float:
            return float(values.max(initial=0.0))

        return {
            "bounds": max(most(self.lower - v), most(v - self.upper)),
            "convex equalities": most(np.abs(self.convex_equalities.values(v))),
            "convex inequalities": max(most(group.values(v)) for group in (self.affine, self.quotients, self.rates)),
            "non-convex equalities": most(np.abs(self.nonconvex_equalities.values(v))),
            "non-convex inequalities": most(self.nonconvex_inequalities.values(v)[kept]),
        }
