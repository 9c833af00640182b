r"""A node's linear program over columns, whose duals are the prices of its bound.

    min  Σ_j w_j (C_j v_j + r_j) + ξ Σ_k E_k x_k
    s.t. rows of devices, band, budgets and the energy limit as in :mod:`schedopt.sca.master`,
         H_j = Σ h_k x_k,   v ≥ tangents of 1/H,   r ≥ N/H (McCormick, on the node's box),
         N_j ≥ Σ n_k x_k + 2c(2 z d_j − z² H_j) for some z,   d_j = Σ_i |h_ij − λ_ij H_j| δ_ij    (participation "horizon")
         N_j ≥ Σ n_k x_k + Σ_m p_jm,   p_jm ≥ 2c(2 z d_jm − z² H_jm) for some z,   d_jm = Σ_i |h_ijm − λ_ij c_jm| δ_ij    (by windows)
         (8/3)(C_j + N_j) ≤ ε_j H_j instead of ratios in mode min_energy,   limits on numbers of assignments.

Everything is scaled to order one. Rows that columns may not be able to meet have slack at a price far above what they are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
import scipy.sparse as sp

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.formulation.candidates import Candidates, Columns
from schedopt.objective import needed_tasks
from schedopt.participation import participation_groups
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.proof.nodes import Limit, Node
from schedopt.sca.master import MasterPoint

__all__ = ["Duals", "NodeProgram", "NodeSolution"]

#: Price of a unit of slack, in objectives.
_SLACK_PRICE = 20.0
#: Tangents of 1/H over a box, and of d²/H around the point where it was last seen.
_TANGENTS = 8
_SPREAD = (0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0)
#: How near the solution's d/H must be to a tangent's (relative) for d²/H to be hardly underestimated there.
_NEAR = 0.03
#: Tangents of a window's d²/H are at a z of at least this share of the largest δ.
_LEAST_Z = 0.02


@dataclass(frozen=True)
class Duals:
    """Duals in the problem's units; all but ``task_value`` are of inequalities and have the sign that makes them prices.

    ``bandwidth`` (G,), ``budget`` (I,) and ``limit`` per J; ``task_value`` (J,) per unit of H; ``noise`` (J, Z) of the rows of N at
    ``tangent`` z (J, Z); ``pull`` (I, J[, M]): price of h by participation; ``fees``: of the node's limits.
    """

    bandwidth: FloatArray
    budget: FloatArray
    limit: float
    task_value: FloatArray
    noise: FloatArray
    tangent: FloatArray
    pull: FloatArray
    fees: FloatArray


@dataclass(frozen=True)
class NodeSolution:
    """Optimum of a node's program over ``columns``, with their ``weights``: ``value``, duals, and over the active tasks H, N, v, r."""

    columns: Columns
    value: float
    h: FloatArray
    n: FloatArray
    v: FloatArray
    r: FloatArray
    weights: FloatArray
    duals: Duals


class _Rows:
    """Rows of a sparse program, block by block."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, sp.spmatrix]] = []
        self.limits: list[FloatArray] = []
        self.place: dict[str, slice] = {}
        self.count = 0

    def add(self, name: str, limit: FloatArray, **parts: sp.spmatrix) -> None:
        self.blocks.append(parts)
        self.limits.append(limit)
        self.place[name] = slice(self.count, self.count + len(limit))
        self.count += len(limit)

    def matrix(self, widths: dict[str, int]) -> sp.csr_matrix:
        rows = [
            [part.get(name, sp.csr_matrix((len(limit), width))) for name, width in widths.items()]
            for part, limit in zip(self.blocks, self.limits, strict=True)
        ]
        return sp.vstack([sp.hstack(row, format="csr") for row in rows], format="csr")


class NodeProgram:
    """Builds and solves the programs of nodes. ``unit``: size of the objective; ``point``: relaxed, for scales; ``least``: N/H, (J,)."""

    def __init__(self, problem: Problem, candidates: Candidates, unit: float, point: MasterPoint, least: FloatArray) -> None:
        self.problem, self.candidates, self.unit, self.least = problem, candidates, unit, least
        self.h0 = np.maximum(point.h, 1e-12)
        a, mode = problem.arrays, problem.objective.mode
        self.fixed = fixed_terms(a)
        self.ratios = mode != "min_energy"
        self.tasks = np.flatnonzero(needed_tasks(problem))
        self.energy_weight = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[mode]
        self.limit_j = problem.objective.total_energy_j if mode == "min_bound" else None
        self.groups = participation_groups(problem)
        self.limited = np.flatnonzero(np.isfinite(a.energy_budget_j))
        #: whether the last program had no tangent of d²/H near its solution
        self.loose = False
        #: z where d²/H was last seen, shape (J[, M])
        total = np.maximum(point.h_device.sum(axis=0), 1e-300) if self.groups.free else self.h0
        self.z = self.groups.distance(point.h_device, point.h) / total

    def solve(self, node: Node, columns: Columns) -> NodeSolution | None:
        """Optimum over ``columns`` (those that the node allows); None if the solver fails."""
        self.columns, self.count = columns, len(self.tasks)
        self.device = self.candidates.device[columns.candidate]
        self.place = np.searchsorted(self.tasks, self.candidates.task[columns.candidate])
        self.windows = _Windows.of(self) if self.groups.free else None
        a, count = self.problem.arrays, self.count
        cells = 0 if self.windows is None else len(self.windows.cells)
        judged = cells or count * self.groups.over_horizon
        widths = {"x": len(columns), "h": count, "n": count, "v": count, "r": count, "d": a.num_devices * judged}
        widths |= {"fair": cells, "part": cells}
        widths |= {"more": count, "fewer": count, "miss": len(node.limits), "over": 1}
        rows, tangents = self._rows(node)
        cost = self._costs(widths)
        low, high = self._bounds(node, widths)
        balance = sp.hstack([self._balance().get(name, sp.csr_matrix((count, width))) for name, width in widths.items()], format="csr")
        matrix, limits = rows.matrix(widths), np.concatenate(rows.limits)
        if not (np.isfinite(matrix.data).all() and np.isfinite(balance.data).all() and np.isfinite(cost).all()):
            return None
        matrix, floor = sp.vstack([matrix, balance], format="csr"), np.concatenate([np.full(len(limits), -np.inf), np.zeros(count)])
        self.highs = _highs_of(cost, (low, high), matrix, floor, np.append(limits, np.zeros(count)))
        if not _solved(self.highs):
            return None
        self.value, self.basis = self.highs.getInfo().objective_function_value, self.highs.getBasis()
        return self._solution(rows, tangents, widths, node)

    def rise(self, limit: Limit) -> float:
        """How much one more limit would raise the value of the program solved last; +inf if its columns cannot meet it."""
        highs = self.highs
        index = np.flatnonzero(limit.members[self.columns.candidate]).astype(np.int32)
        ends = (-np.inf, limit.count) if limit.sign > 0 else (limit.count, np.inf)
        highs.addRow(*ends, len(index), index, np.ones(len(index)))  # type: ignore[call-arg]
        found = _solved(highs)
        after = highs.getInfo().objective_function_value if found else np.inf
        highs.deleteRows(1, np.array([highs.getNumRow() - 1], dtype=np.int32))
        highs.setBasis(self.basis)
        return self.unit * max(after - self.value, 0.0)

    def _matrix(self, rows: IntArray, values: FloatArray, count: int) -> sp.csr_matrix:
        return sp.csr_matrix((values, (rows, np.arange(len(rows)))), shape=(count, len(self.columns)))

    def _balance(self) -> dict[str, sp.spmatrix]:
        """H − Σ h x − more + fewer = 0."""
        eye = sp.identity(self.count, format="csr")
        total = self._matrix(self.place, -self.columns.h / self.h0[self.tasks][self.place], self.count)
        return {"x": total, "h": eye, "more": -eye, "fewer": eye}

    def _costs(self, widths: dict[str, int]) -> FloatArray:
        w = FACTOR * self.problem.arrays.weight[self.tasks] * float(self.ratios)
        slack = {name: np.full(widths[name], _SLACK_PRICE) for name in ("more", "fewer", "miss", "over")}
        costs = {
            "x": self.energy_weight * self.columns.energy_j / self.unit,
            "v": w * self.fixed[self.tasks] / self.h0[self.tasks] / self.unit,
            "r": w / self.unit,
            **slack,
        }
        return np.concatenate([costs.get(name, np.zeros(width)) for name, width in widths.items()])

    def _bounds(self, node: Node, widths: dict[str, int]) -> tuple[FloatArray, FloatArray]:
        low = {name: np.zeros(width) for name, width in widths.items()}
        high = {name: np.full(width, np.inf) for name, width in widths.items()}
        if node.box is not None:
            h0, box = self.h0[self.tasks], node.box
            low["h"], high["h"], low["n"], high["n"] = box.h_low / h0, box.h_high / h0, box.n_low / h0, box.n_high / h0
            low["v"], high["v"] = h0 / box.h_high, h0 / box.h_low
        return np.concatenate(list(low.values())), np.concatenate(list(high.values()))

    def _rows(self, node: Node) -> tuple[_Rows, FloatArray]:
        rows = _Rows()
        self._resource_rows(rows)
        tangents = self._error_rows(rows)
        if self.ratios:
            self._ratio_rows(rows, node)
        else:
            eye, share = sp.identity(self.count, format="csr"), self.problem.arrays.target[self.tasks] / FACTOR
            miss = sp.csr_matrix(-share[:, None])
            rows.add("targets", -self.fixed[self.tasks] / self.h0[self.tasks], n=eye, h=sp.diags(-share, format="csr"), over=miss)
        if node.limits:
            sign = np.array([limit.sign for limit in node.limits], dtype=float)
            members = np.stack([limit.members[self.columns.candidate] for limit in node.limits]) * sign[:, None]
            most = np.array([limit.sign * limit.count for limit in node.limits], dtype=float)
            rows.add("limits", most, x=sp.csr_matrix(members), miss=-sp.identity(len(most), format="csr"))
        return rows, tangents

    def _resource_rows(self, rows: _Rows) -> None:
        a, columns, c = self.problem.arrays, self.columns, self.candidates
        start, end = c.start[columns.candidate], c.end[columns.candidate]
        span = end - start
        owner = np.repeat(np.arange(len(span)), span)
        slot = start[owner] + np.arange(span.sum()) - np.repeat(np.cumsum(span) - span, span)
        used, inverse = np.unique(self.device[owner] * a.slots + slot, return_inverse=True)
        cover = sp.csr_matrix((np.ones(len(owner)), (inverse, owner)), shape=(len(used), len(columns)))
        rows.add("cover", np.ones(len(used)), x=cover)
        rows.add("band", np.ones(a.slots), x=self._matrix(end - 1, columns.bandwidth_hz / a.bandwidth_hz, a.slots))
        if len(self.limited):
            use = self._matrix(self.device, columns.energy_j / a.energy_budget_j[self.device], a.num_devices)
            rows.add("budget", np.ones(len(self.limited)), x=use[self.limited])
        if self.limit_j is not None:
            total = sp.csr_matrix(columns.energy_j[None, :] / self.limit_j)
            rows.add("energy", np.ones(1), x=total, over=sp.csr_matrix([[-1.0]]))

    def _error_rows(self, rows: _Rows) -> FloatArray:
        """Rows of N; returns the tangents' z, shape (count, Z)."""
        a, count, h0 = self.problem.arrays, self.count, self.h0[self.tasks]
        eye = sp.identity(count, format="csr")
        error = self._matrix(self.place, self.columns.error / h0[self.place], count)
        rows.add("least", np.zeros(count), h=sp.diags(self.least[self.tasks], format="csr"), n=-eye)
        if self.windows is not None:
            self._window_rows(rows, error, self.windows)
            return np.zeros((count, 1))
        if not self.groups.over_horizon:
            rows.add("error0", np.zeros(count), x=error, n=-eye)
            return np.zeros((count, 1))
        factor = self.groups.factor
        tangents = self.z[self.tasks][:, None] * np.array(_SPREAD)
        fold = sp.csr_matrix(np.tile(np.eye(count), (1, a.num_devices)))
        for k in range(tangents.shape[1]):
            z = tangents[:, k]
            distance = sp.diags(2.0 * factor * z, format="csr") @ fold
            rows.add(f"error{k}", np.zeros(count), x=error, n=-eye, d=distance, h=sp.diags(-factor * z**2, format="csr"))
        pairs = a.num_devices * count
        delta, share = a.dissimilarity[:, self.tasks].ravel(), a.aggregation_weight[:, self.tasks].ravel()
        pair = self.device * count + self.place
        own = self._matrix(pair, delta[pair] * self.columns.h / h0[self.place], pairs)
        fair = sp.csr_matrix((delta * share, (np.arange(pairs), np.tile(np.arange(count), a.num_devices))), shape=(pairs, count))
        apart = -sp.identity(pairs, format="csr")
        rows.add("above", np.zeros(pairs), x=own, h=-fair, d=apart)
        rows.add("below", np.zeros(pairs), x=-own, h=fair, d=apart)
        return tangents

    def _window_rows(self, rows: _Rows, error: sp.csr_matrix, windows: _Windows) -> None:
        """Rows of N, of d²/H by tangents, and of the distances, over the windows that have columns."""
        a, cells, task = self.problem.arrays, len(windows.cells), windows.task
        h = self.columns.h / self.h0[self.tasks][self.place]
        per_task = sp.csr_matrix((np.ones(cells), (np.searchsorted(self.tasks, task), np.arange(cells))), shape=(self.count, cells))
        rows.add("error0", np.zeros(self.count), x=error, n=-sp.identity(self.count, format="csr"), part=per_task)
        fold, total = sp.csr_matrix(np.tile(np.eye(cells), (1, a.num_devices))), self._matrix(windows.of_column, h, cells)
        for k in range(len(_SPREAD)):
            z = self.groups.factor * windows.tangents[:, k]
            square = sp.diags(-z * windows.tangents[:, k], format="csr") @ total
            distance = sp.diags(2.0 * z, format="csr") @ fold
            rows.add(f"window{k}", np.zeros(cells), x=square, d=distance, part=-sp.identity(cells, format="csr"))
        pairs = a.num_devices * cells
        delta, share = a.dissimilarity[:, task].ravel(), a.aggregation_weight[:, task].ravel()
        pair = self.device * cells + windows.of_column
        own = self._matrix(pair, delta[pair] * h, pairs)
        fair = sp.csr_matrix((delta * share, (np.arange(pairs), np.tile(np.arange(cells), a.num_devices))), shape=(pairs, cells))
        apart = -sp.identity(pairs, format="csr")
        rows.add("above", np.zeros(pairs), x=own, fair=-fair, d=apart)
        rows.add("below", np.zeros(pairs), x=-own, fair=fair, d=apart)

    def _window_pulls(self, price: FloatArray, rows: _Rows, part: dict[str, FloatArray], windows: _Windows) -> FloatArray:
        """Prices of h by participation, shape (I, J, M); remembers where d²/H was seen."""
        a, task, window = self.problem.arrays, windows.task, windows.window
        pull = np.zeros(self.groups.shape)
        found = (price[rows.place["above"]] - price[rows.place["below"]]).reshape(a.num_devices, -1)
        pull[:, task, window] = a.dissimilarity[:, task] * found / self.h0[task]
        h = np.bincount(windows.of_column, weights=part["x"] * self.columns.h, minlength=len(task)) / self.h0[task]
        d = part["d"].reshape(found.shape).sum(axis=0)
        seen = h > 1e-9
        self.z[task[seen], window[seen]] = d[seen] / h[seen]
        z = np.maximum(d[seen] / h[seen], windows.least[seen])
        self.loose = bool(np.any(np.abs(windows.tangents[seen] - z[:, None]).min(axis=1) > _NEAR * z))
        return pull

    def _ratio_rows(self, rows: _Rows, node: Node) -> None:
        assert node.box is not None
        h0, box = self.h0[self.tasks], node.box
        eye = sp.identity(self.count, format="csr")
        h_low, h_high, n_low, n_high = box.h_low / h0, box.h_high / h0, box.n_low / h0, box.n_high / h0
        for position in np.linspace(0.0, 1.0, _TANGENTS):
            at = h_low ** (1 - position) * h_high**position
            rows.add(f"tangent{position}", -2.0 / at, h=sp.diags(-1.0 / at**2, format="csr"), v=-eye)
        for name, v, n in (("low", 1.0 / h_high, n_low), ("high", 1.0 / h_low, n_high)):
            rows.add(name, n * v, n=sp.diags(v, format="csr"), v=sp.diags(n, format="csr"), r=-eye)

    def _solution(self, rows: _Rows, tangents: FloatArray, widths: dict[str, int], node: Node) -> NodeSolution:
        a, count, h0 = self.problem.arrays, self.count, self.h0[self.tasks]
        ends = np.cumsum([0, *widths.values()])
        found = self.highs.getSolution()
        x, dual = np.array(found.col_value), np.array(found.row_dual)
        part = {name: x[ends[k] : ends[k + 1]] for k, name in enumerate(widths)}
        price = self.unit * np.maximum(-dual[: rows.count], 0.0)

        def spread(values: FloatArray) -> FloatArray:
            """Over all tasks."""
            wide = np.zeros((*values.shape[:-1], a.num_tasks))
            wide[..., self.tasks] = values
            return wide

        noise = np.stack([price[rows.place[f"error{k}"]] for k in range(tangents.shape[1])]) / h0
        pull = np.zeros((a.num_devices, count))
        if self.groups.over_horizon:
            delta = a.dissimilarity[:, self.tasks]
            pull = delta * (price[rows.place["above"]] - price[rows.place["below"]]).reshape(pull.shape) / h0
            h, d = part["h"], part["d"].reshape(pull.shape).sum(axis=0)
            z = np.divide(d, h, out=np.zeros(count), where=h > 0)
            self.loose = bool(np.any(np.abs(tangents - z[:, None]).min(axis=1) > _NEAR * z))
            self.z[self.tasks] = z
        budget = np.zeros(a.num_devices)
        if len(self.limited):
            budget[self.limited] = price[rows.place["budget"]] / a.energy_budget_j[self.limited]
        duals = Duals(
            bandwidth=price[rows.place["band"]] / a.bandwidth_hz,
            budget=budget,
            limit=0.0 if self.limit_j is None else float(price[rows.place["energy"]][0]) / self.limit_j,
            task_value=spread(-self.unit * dual[rows.count :] / h0),
            noise=spread(noise).T,
            tangent=spread(tangents.T).T,
            pull=spread(pull) if self.windows is None else self._window_pulls(price, rows, part, self.windows),
            fees=price[rows.place["limits"]] if node.limits else np.zeros(0),
        )
        h, n = self.h0[self.tasks] * part["h"], h0 * part["n"]
        return NodeSolution(self.columns, self.unit * self.value, h, n, part["v"] / h0, part["r"], np.maximum(part["x"], 0.0), duals)


@dataclass(frozen=True)
class _Windows:
    """Windows that have columns: ``cells`` task·M + m, their ``task`` and ``window``; ``of_column``: which one each column is in.

    ``tangents``: z of each, shape (cells, Z); ``least``: least z of each.
    """

    cells: IntArray
    task: IntArray
    window: IntArray
    of_column: IntArray
    tangents: FloatArray
    least: FloatArray

    @classmethod
    def of(cls, program: NodeProgram) -> _Windows:
        candidates, count = program.candidates, program.groups.shape[2]
        k = program.columns.candidate
        number = candidates.task[k] * count + program.groups.number(candidates.end[k])
        cells, of_column = np.unique(number, return_inverse=True)
        task, window = cells // count, cells % count
        least = _LEAST_Z * program.problem.arrays.dissimilarity.max(axis=0)[task]
        z = np.maximum(program.z[task, window], least)
        return cls(cells, task, window, of_column, z[:, None] * np.array(_SPREAD), least)


def _highs_of(
    cost: FloatArray, ends: tuple[FloatArray, FloatArray], rows: sp.csr_matrix, low: FloatArray, high: FloatArray
) -> highspy.Highs:
    """min cost·x over ends[0] ≤ x ≤ ends[1], low ≤ rows·x ≤ high; one thread, so that equal programs have equal answers."""
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = rows.shape
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, *ends
    lp.row_lower_, lp.row_upper_ = low, high
    matrix = lp.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.num_row_, matrix.num_col_ = rows.shape
    matrix.start_, matrix.index_, matrix.value_ = rows.indptr, rows.indices, rows.data
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.passModel(lp)
    return highs


def _solved(highs: highspy.Highs) -> bool:
    highs.run()
    return bool(highs.getModelStatus() == highspy.HighsModelStatus.kOptimal)
