r"""Smooth programs in factorable form: linear objective, rows that are affine plus products, exponentials, quotients and rates.

    min  c·v   s.t.  lower ≤ v ≤ upper   and rows  f_r(v) = 0 or ≤ 0,

    f_r(v) = b_r + (A v)_r + Σ_k q_k v_{x_k} v_{y_k} + Σ_k w_k exp(s_k v_{x_k}),

and two kinds of convex rows, w v_x²/v_y − v_z ≤ 0 (v_y > 0) and v_z − rate(v_x, v_y) ≤ 0. Values, Jacobians and the error bounds that
make surrogates majorants are exact and need no modelling library. Tested in ``tests/test_nlp.py`` against finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from schedopt.problem import FloatArray, IntArray

__all__ = ["Program", "QuotientRows", "RateRows", "RowBuilder", "Rows"]


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

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """df/dv, sparse, shape (m, n)."""
        slope = self.exp_factor * self.exp_rate * np.exp(self.exp_rate * v[self.exp_x])
        data = np.concatenate([self.factor * v[self.y], self.factor * v[self.x], slope])
        rows = np.concatenate([self.row, self.row, self.exp_row])
        columns = np.concatenate([self.x, self.y, self.exp_x])
        return (self.linear + sp.coo_matrix((data, (rows, columns)), shape=self.linear.shape)).tocsr()

    def curvature(self, row_weight: FloatArray, upper: FloatArray, v: FloatArray) -> FloatArray:
        """Diagonal D ≥ 0 (shape (n,)) with Σ_r weight_r |f_r(v + d) − f_r(v) − ∇f_r(v) d| ≤ ½ Σ D d².

        |q dx dy| ≤ ½|q|(dx² + dy²); an exponential's remainder is bounded by its largest second derivative below ``upper``. Rows that
        are concave where only their excess counts (−z² of a relaxed binary) have no remainder above the tangent and are left out.
        """
        diagonal = np.zeros(self.linear.shape[1])
        concave = (self.x == self.y) & (self.factor < 0)
        size = np.abs(self.factor) * row_weight[self.row] * ~concave
        np.add.at(diagonal, self.x, size)
        np.add.at(diagonal, self.y, size)
        largest = np.exp(np.maximum(self.exp_rate * upper[self.exp_x], self.exp_rate * v[self.exp_x]))
        second = row_weight[self.exp_row] * np.abs(self.exp_factor) * self.exp_rate**2 * np.where(self.exp_rate > 0, largest, 1.0)
        np.add.at(diagonal, self.exp_x, second)
        return diagonal


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

    def top(self, v: FloatArray) -> FloatArray:
        """The numerators' roots, shape (m,)."""
        return np.where(self.x >= 0, v[np.maximum(self.x, 0)], 1.0)

    def values(self, v: FloatArray) -> FloatArray:
        """Row values, shape (m,)."""
        return self.factor * self.top(v) ** 2 / v[self.y] - v[self.z]

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """Sparse, shape (m, n)."""
        m, top, bottom = np.arange(len(self)), self.top(v), v[self.y]
        inside = self.x >= 0
        data = np.concatenate([(2.0 * self.factor * top / bottom)[inside], -self.factor * top**2 / bottom**2, -np.ones(len(m))])
        rows, columns = np.concatenate([m[inside], m, m]), np.concatenate([self.x[inside], self.y, self.z])
        return sp.coo_matrix((data, (rows, columns)), shape=(len(m), len(v))).tocsr()


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

    def jacobian(self, v: FloatArray) -> sp.csr_matrix:
        """Sparse, shape (m, n)."""
        _, by_w, by_p = self.rate(v[self.w], v[self.p])
        m = np.arange(len(self))
        data, columns = np.concatenate([np.ones(len(m)), -by_w, -by_p]), np.concatenate([self.z, self.w, self.p])
        return sp.coo_matrix((data, (np.tile(m, 3), columns)), shape=(len(m), len(v))).tocsr()


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

    def objective(self, v: FloatArray) -> float:
        """c·v."""
        return float(self.cost @ v)

    def violations(self, v: FloatArray) -> dict[str, float]:
        """Largest violation of each class at ``v``, bounds included."""

        def most(values: FloatArray) -> float:
            return float(values.max(initial=0.0))

        return {
            "bounds": max(most(self.lower - v), most(v - self.upper)),
            "convex equalities": most(np.abs(self.convex_equalities.values(v))),
            "convex inequalities": max(most(group.values(v)) for group in (self.affine, self.quotients, self.rates)),
            "non-convex equalities": most(np.abs(self.nonconvex_equalities.values(v))),
            "non-convex inequalities": most(self.nonconvex_inequalities.values(v)),
        }
