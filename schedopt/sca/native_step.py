r"""The convex subproblem of the native route, as direct conic data: built once, its moving rows replaced at each iterate.

At v_m, in the step d = v − v_m, with convex rows kept and the other rows f linearised with slacks t that the penalty μ pays,

    min  c·d + μ·t + ½ dᵀ(C + D) d  s.t.  |f(v_m) + ∇f(v_m) d| ≤ t (equalities),  f(v_m) + ∇f(v_m) d ≤ t (inequalities),  t ≥ 0.

C is the convex half of the rows' second-order terms, weighted by their multipliers (a product's is ¼|λ|(dx ± dy)²: the concave half of
xy = ¼(x + y)² − ¼(x − y)² is linearised). D is the proximal weight plus ω times a bound of the rows' curvature weighted by μ: with ω ≥ 1
the model lies above the merit c·v + μ·(violations) and touches it at v_m to first order, a majorant (without exponential cones: near
v_m, for the curvature of a rate has no bound over all widths). −z² of the binaries is concave and
needs none. Smaller ω takes longer steps, which the loop then checks on the merit.

Convex rows are affine rows, second-order cones (quotients) and exponential cones (rates, exponentials). For a backend that cannot mix the
last two, ``exponential=False`` linearises the last like the others. Tested in ``tests/test_native_step.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from schedopt.formulation.nlp import Program
from schedopt.problem import FloatArray
from schedopt.sca.direct import Cone, ConicData, solve_direct

__all__ = ["ROUNDING", "Multipliers", "Penalised", "Step", "Subproblem"]


#: Violations of convex rows up to this are rounding.
ROUNDING = 1e-7


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of the rows of a program, in the order of its classes (Lagrangian: cost + Σ multiplier · row)."""

    convex_equalities: FloatArray
    affine: FloatArray
    quotients: FloatArray
    rates: FloatArray
    nonconvex_equalities: FloatArray
    nonconvex_inequalities: FloatArray


@dataclass(frozen=True)
class Penalised:
    """Rows that are linearised and penalised: which class of the program they belong to, and how to evaluate them."""

    name: str
    equality: bool
    index: np.ndarray
    values: Callable[[FloatArray], FloatArray]
    jacobian: Callable[[FloatArray], sp.csr_matrix]
    curvature: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
    convex_half: Callable[[FloatArray, FloatArray, FloatArray], sp.csr_matrix]

    def __len__(self) -> int:
        return len(self.index)

    def violations(self, v: FloatArray) -> FloatArray:
        """By how much each row is missed, shape (m,)."""
        values = self.values(v)
        return np.abs(values) if self.equality else np.maximum(values, 0.0)


@dataclass(frozen=True)
class Step:
    """Solution of a subproblem: the point v_m + d, the model of the merit there without D, slacks t of the penalised rows, multipliers."""

    point: FloatArray
    model: float
    slack: FloatArray
    multipliers: Multipliers


class Subproblem:
    """Conic data of a program; :meth:`solve` gives the step from an iterate. Penalties are arrays over all :attr:`penalised` rows."""

    def __init__(self, program: Program, *, exponential: bool = True) -> None:
        self.program, self.exponential = program.presolved(), exponential
        program, free = self.program, program.free
        curved = np.zeros(len(program.affine), dtype=bool)
        curved[program.affine.exp_row] = True
        moves = program.affine.moving(free)
        self._flat, self._curved = np.flatnonzero(~curved & moves), np.flatnonzero(curved & moves)
        self._quotient_rows, self._rate_rows = np.flatnonzero(program.quotients.moving(free)), np.flatnonzero(program.rates.moving(free))
        self._quotients, self._rates = program.quotients.take(self._quotient_rows), program.rates.take(self._rate_rows)
        self.penalised = self._groups()
        self.rows = sum(len(group) for group in self.penalised)
        n = program.variables
        # an interior-point method needs an interior: fixed variables, and rows of nothing else, are left out
        self._low, self._high = (np.flatnonzero(free & np.isfinite(bound)) for bound in (program.lower, program.upper))
        missable = np.concatenate([np.zeros(0, dtype=bool), *(self._missable(group) for group in self.penalised)])
        self._columns = np.concatenate([np.flatnonzero(free), n + np.flatnonzero(missable)])
        self._equal = np.flatnonzero(program.convex_equalities.moving(free))
        unit = sp.identity(n, format="csr")
        fixed = [program.affine.linear[self._flat], -unit[self._low], unit[self._high]]
        self._fixed = [self._wide(part) for part in (program.convex_equalities.linear[self._equal], *fixed)]
        slack = sp.identity(self.rows, format="csr")
        self._slack = sp.hstack([sp.csr_matrix((self.rows, n)), slack], format="csr")
        self._one_sided = missable & np.concatenate([np.full(len(group), not group.equality) for group in self.penalised])

    def _missable(self, group: Penalised) -> np.ndarray:
        """Rows whose linearisation may have no solution. One that only bounds a variable from below, without an upper limit, always has."""
        if group.name != "nonconvex_inequalities":
            return np.ones(len(group), dtype=bool)
        p = self.program
        upward = np.where(np.isinf(p.upper), 1.0, 0.0)
        falls = (p.nonconvex_inequalities.linear < 0).astype(float) @ upward > 0
        return ~falls[group.index]

    def _groups(self) -> tuple[Penalised, ...]:
        """Non-convex rows and, without exponential cones, rates and exponentials; rows of nothing but fixed variables are left out."""
        p, free = self.program, self.program.free
        groups = [
            _rows_group("nonconvex_equalities", p, True, np.flatnonzero(p.nonconvex_equalities.moving(free))),
            _rows_group("nonconvex_inequalities", p, False, np.flatnonzero(p.nonconvex_inequalities.moving(free))),
        ]
        if not self.exponential:
            r, moving = p.rates, self._rate_rows
            groups.append(
                Penalised(
                    "rates", False, moving, lambda v: r.values(v)[moving], lambda v: r.jacobian(v)[moving],
                    lambda weight, v, _: r.curvature(weight, v), lambda multiplier, v, _: r.convex_half(multiplier, v),
                )
            )  # fmt: skip
            groups.append(_rows_group("affine", p, False, self._curved))
        return tuple(groups)

    @property
    def names(self) -> list[str]:
        """What each penalised row is."""
        return [getattr(self.program, group.name).names[k] for group in self.penalised for k in group.index]

    @property
    def posed(self) -> dict[str, np.ndarray]:
        """Which rows of each class the conic program has, masks."""
        index = {"convex_equalities": [self._equal], "affine": [self._flat], "quotients": [self._quotient_rows]}
        if self.exponential:
            index |= {"affine": [self._flat, self._curved], "rates": [self._rate_rows]}
        for group in self.penalised:
            index[group.name] = [*index.get(group.name, []), group.index]
        masks = {name: np.zeros(len(getattr(self.program, name)), dtype=bool) for name in Multipliers.__dataclass_fields__}
        for name, parts in index.items():
            masks[name][np.concatenate(parts)] = True
        return masks

    def violations(self, v: FloatArray) -> FloatArray:
        """By how much each penalised row is missed at ``v``, shape (rows,)."""
        return np.concatenate([group.violations(v) for group in self.penalised])

    def merit(self, v: FloatArray, penalty: FloatArray) -> float:
        """c·v + Σ penalty · violation."""
        return self.program.objective(v) + float(penalty @ self.violations(v))

    def curvature(self, v: FloatArray, weight: FloatArray, size: FloatArray) -> FloatArray:
        """Diagonal of the bound of Σ weight · |remainder of the row|, shape (n,); ``size``: expected steps of the variables."""
        at, total = 0, np.zeros(self.program.variables)
        for group in self.penalised:
            full = np.zeros(len(getattr(self.program, group.name)))
            full[group.index] = weight[at : at + len(group)]
            total += group.curvature(full, v, size)
            at += len(group)
        return total

    def multipliers_of_penalised(self, multipliers: Multipliers) -> FloatArray:
        """|multiplier| of each penalised row, shape (rows,)."""
        return np.concatenate([np.abs(getattr(multipliers, group.name)[group.index]) for group in self.penalised])

    def convex_half(self, v: FloatArray, multipliers: Multipliers, size: FloatArray) -> sp.csr_matrix:
        """Root of C: the convex halves of all penalised rows at their multipliers, sparse, n columns."""
        parts = []
        for group in self.penalised:
            mine = getattr(multipliers, group.name)
            only = np.zeros_like(mine)
            only[group.index] = mine[group.index]
            parts.append(group.convex_half(only, v, size))
        return sp.vstack(parts, format="csr")

    def solve(
        self, v: FloatArray, diagonal: FloatArray, penalty: FloatArray, *, half: sp.csr_matrix | None = None, backend: str = "clarabel"
    ) -> Step | None:
        """The step from ``v`` with D = ``diagonal`` (shape (n,)) and C = halfᵀhalf, or None if the backend fails."""
        found = solve_direct(self.data(v, diagonal, penalty, half), backend)
        if found is None:
            return None
        p, n = self.program, self.program.variables
        x = np.zeros(n + self.rows)
        x[self._columns] = found.x
        point, slack = np.clip(v + x[:n], p.lower, p.upper), np.maximum(x[n:], 0.0)
        model = p.objective(point) + float(penalty @ slack)
        if half is not None:
            model += 0.5 * float(np.sum((half @ (point - v)) ** 2))
        return Step(point, model, slack, self._multipliers(found.dual, v))

    def data(self, v: FloatArray, diagonal: FloatArray, penalty: FloatArray, half: sp.csr_matrix | None = None) -> ConicData:
        """The conic program at the iterate ``v``: variables are d and t."""
        p, at = self.program, 0
        # |f| <= t says t >= 0 by itself
        moving, moving_b = [-self._slack[self._one_sided]], [np.zeros(np.count_nonzero(self._one_sided))]
        for group in self.penalised:
            jacobian, value = self._wide(group.jacobian(v)), group.values(v)
            slack = self._slack[at : at + len(group)]
            moving, moving_b = [*moving, jacobian - slack], [*moving_b, -value]
            if group.equality:
                moving, moving_b = [*moving, -jacobian - slack], [*moving_b, value]
            at += len(group)
        affine = p.affine.linear[self._flat] @ v + p.affine.constant[self._flat]
        # an iterate may miss a convex row by rounding, and may then stay where it is; by more, and the step must mend it
        room = (-affine, v[self._low] - p.lower[self._low], p.upper[self._high] - v[self._high])
        kept = [np.where(part > -ROUNDING, np.maximum(part, 0.0), part) for part in room]
        wide = np.concatenate([v, np.zeros(self.rows)])
        (quotient, quotient_b), (curved, curved_b) = self._quotient_cones(v), self._exponential_cones(v)
        matrix = sp.vstack([*self._fixed, *moving, quotient, curved], format="csc")
        cones = (
            Cone("zero", len(self._equal)),
            Cone("nonnegative", sum(part.shape[0] for part in (*self._fixed[1:], *moving))),
            Cone("second-order", 3, len(self._quotients)),
            Cone("exponential", 3, len(curved_b) // 3),
        )
        equal_b = -p.convex_equalities.values(v)[self._equal]
        b = np.concatenate([equal_b, *kept, *moving_b, quotient_b - quotient @ wide, curved_b - curved @ wide])
        root = sp.diags(np.sqrt(diagonal), format="csr") if half is None else sp.vstack([sp.diags(np.sqrt(diagonal)), half], format="csr")
        cost = np.concatenate([p.cost, penalty])
        return ConicData(self._wide(root)[:, self._columns], cost[self._columns], matrix[:, self._columns], b, cones)

    def _wide(self, matrix: sp.spmatrix) -> sp.csr_matrix:
        """``matrix`` over v, with empty columns for the slacks."""
        return sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], self.program.variables + self.rows))

    def _quotient_cones(self, v: FloatArray) -> tuple[sp.csr_matrix, FloatArray]:
        """(α y + z/α, α y − z/α, 2 √factor x) in the second-order cone, three rows each; α balances both at the iterate."""
        q = self._quotients
        m, inside, root = np.arange(len(q)), q.x >= 0, 2.0 * np.sqrt(q.factor)
        alpha = self._balance(v)
        rows = np.concatenate([3 * m, 3 * m, 3 * m + 1, 3 * m + 1, (3 * m + 2)[inside]])
        columns = np.concatenate([q.y, q.z, q.y, q.z, q.x[inside]])
        data = np.concatenate([-alpha, -1.0 / alpha, -alpha, 1.0 / alpha, -root[inside]])
        constant = np.zeros(3 * len(m))
        constant[(3 * m + 2)[~inside]] = root[~inside]
        return sp.coo_matrix((data, (rows, columns)), shape=(3 * len(m), self._slack.shape[1])).tocsr(), constant

    def _balance(self, v: FloatArray) -> FloatArray:
        q = self._quotients
        return np.sqrt(np.maximum(v[q.z], 1e-6) / np.maximum(v[q.y], 1e-6))

    def _exponential_cones(self, v: FloatArray) -> tuple[sp.csr_matrix, FloatArray]:
        """Cones that are (0, 1, 1) at an iterate whose rows are active: rates (L r/w0 − σ w/w0, w/w0, (w + snr p) e^{−σ}/w0) with
        L = ln(1 + snr), σ = ln(1 + snr p0/w0); exponentials (s (x − x0), 1, −(A v + b) e^{−s x0}/factor)."""
        if not self.exponential:
            return self._slack[:0], np.zeros(0)
        r, width = self._rates, self._slack.shape[1]
        m, log, w0, sigma = np.arange(len(r)), np.log1p(r.snr), *self._rate_centre(v)
        rows = np.concatenate([3 * m, 3 * m, 3 * m + 1, 3 * m + 2, 3 * m + 2])
        columns = np.concatenate([r.z, r.w, r.w, r.w, r.p])
        shrink = np.exp(-sigma) / w0
        data = np.concatenate([-log / w0, sigma / w0, -1.0 / w0, -shrink, -r.snr * shrink])
        rates = sp.coo_matrix((data, (rows, columns)), shape=(3 * len(m), width))
        a, k = self.program.affine, np.arange(len(self._curved))
        x, rate, factor = self._exponential_terms()
        factor = factor * np.exp(rate * v[x])
        first = sp.coo_matrix((-rate, (3 * k, x)), shape=(3 * len(k), width))
        spread = sp.coo_matrix((1.0 / factor, (3 * k + 2, k)), shape=(3 * len(k), len(k)))
        constant = np.zeros(3 * len(k))
        constant[3 * k], constant[3 * k + 1], constant[3 * k + 2] = -rate * v[x], 1.0, -a.constant[self._curved] / factor
        both = sp.vstack([rates, first + spread @ self._wide(a.linear[self._curved])], format="csr")
        return both, np.concatenate([np.zeros(3 * len(m)), constant])

    def _rate_centre(self, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """w0 and σ of every rate."""
        r = self._rates
        w0 = np.maximum(v[r.w], 1e-4)
        return w0, np.log1p(r.snr * np.maximum(v[r.p], 1e-9) / w0)

    def _exponential_terms(self) -> tuple[np.ndarray, FloatArray, FloatArray]:
        """Variable, rate and factor of the one exponential of each curved affine row."""
        a = self.program.affine
        order = np.argsort(a.exp_row)
        order = order[np.isin(a.exp_row[order], self._curved)]
        return a.exp_x[order], a.exp_rate[order], a.exp_factor[order]

    def _multipliers(self, dual: FloatArray, v: FloatArray) -> Multipliers:
        """Multipliers of the program's rows from those of the cones."""
        p, at = self.program, 0

        def take(count: int) -> FloatArray:
            nonlocal at
            at += count
            return dual[at - count : at]

        found = {name: np.zeros(len(getattr(p, name))) for name in Multipliers.__dataclass_fields__}
        found["convex_equalities"][self._equal] = take(len(self._equal))
        found["affine"][self._flat] = take(len(self._flat))
        take(len(self._low) + len(self._high) + int(np.count_nonzero(self._one_sided)))
        for group in self.penalised:
            found[group.name][group.index] = take(len(group)) - (take(len(group)) if group.equality else 0.0)
        quotient = take(3 * len(self._quotients)).reshape(-1, 3)
        found["quotients"][self._quotient_rows] = (quotient[:, 0] - quotient[:, 1]) / self._balance(v)
        if self.exponential:
            x, rate, factor = self._exponential_terms()
            log = np.log1p(self._rates.snr) / self._rate_centre(v)[0]
            found["rates"][self._rate_rows] = -log * take(3 * len(self._rates)).reshape(-1, 3)[:, 0]
            last = take(3 * len(self._curved)).reshape(-1, 3)[:, 2]
            found["affine"][self._curved] = last / (factor * np.exp(rate * v[x]))
        return Multipliers(**found)


def _rows_group(name: str, program: Program, equality: bool, index: np.ndarray) -> Penalised:
    """Some rows of the class ``name``."""
    rows = getattr(program, name)
    return Penalised(
        name,
        equality,
        index,
        lambda v: rows.values(v)[index],
        lambda v: rows.jacobian(v)[index],
        lambda weight, _, size: rows.curvature(weight, program.lower, program.upper, size),
        rows.convex_half,
    )
