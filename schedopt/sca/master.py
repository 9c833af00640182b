r"""The restricted master: a small convex program over priced columns.

    min  Σ_j [a_j/H_j + b_j N_j + q_j N_j² + r_j/H_j²] + prox + ξ Σ_k E_k x_k
    s.t. Σ_{k of i covering slot g} x_k ≤ 1,   Σ_{k uploading in g} W_k x_k ≤ band,   Σ_{k of i} E_k x_k ≤ budget_i,
         H_j = Σ h_k x_k,   N_j ≥ Σ n_k x_k + 2c d_j²/H_j,   d_j = Σ_i |h_ij − λ_ij H_j| δ_ij  (participation "horizon"),   x ≥ 0.

Participation by windows has such a d²/H for every window m, with a free c_jm in place of H_j (:mod:`schedopt.participation`).

By convexity of an assignment's resources, columns of one candidate may be mixed. The duals are the prices at which
:mod:`schedopt.formulation.candidates` looks for better columns. Everything is scaled to order one before a solver sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.formulation.candidates import Candidates, Columns, Prices
from schedopt.formulation.tables import PlanColumns
from schedopt.participation import participation_groups
from schedopt.problem import FloatArray, Problem
from schedopt.sca.conic import solve_conic
from schedopt.sca.surrogates import RatioModel

__all__ = ["MasterPoint", "MasterScale", "cover_rows", "solve_master", "solve_columns_master", "solve_point_master"]

#: What a unit of slack in a target or energy row costs, relative to the objective's scale.
_SLACK_PRICE = 1e3
#: Prices of missing a point (H, N), as a multiple of the ratios' slopes: bounds the duals without binding near an optimum.
_MISS_FACTOR = 3.0
#: Columns of a list of candidates, or such as know their assignments.
ColumnsT = TypeVar("ColumnsT", Columns, PlanColumns)


@dataclass(frozen=True)
class MasterScale:
    """Sizes that make the program's numbers of order one: the objective, and H per task (shape (J,))."""

    objective: float
    h: FloatArray


@dataclass(frozen=True)
class MasterPoint(Generic[ColumnsT]):
    """Solution of a master.

    ``columns`` that it was solved over and their ``weights`` x; ``h_device`` (I, J[, M]): Σ h by window where participation is judged
    so; ``h``, ``error`` (J,): H and N with the participation part; ``energy_j``: total;
    ``slack``: how far targets or the energy limit are missed (relative); ``prices``: for pricing; ``task_value`` (J[, M]): price of H
    alone (``prices.value`` less what devices are paid or charged for being off their share of it).
    """

    columns: ColumnsT
    weights: FloatArray
    h_device: FloatArray
    h: FloatArray
    error: FloatArray
    energy_j: float
    slack: float
    prices: Prices
    task_value: FloatArray
    value: float
    #: worth of all device-slots at the optimum: −Σ of the best plans' values if no better column exists
    slot_value: float


def cover_rows(columns: PlanColumns, slots: int) -> sp.csr_matrix:
    """Columns that use each (device, slot) where some column of the device starts: a 0/1 matrix with a column per column.

    The columns that use any other slot all use the one where the last of them starts: its row says as much or more.
    """
    span = columns.end - columns.start
    owner = np.repeat(np.arange(len(span)), span)
    slot = columns.start[owner] + np.arange(span.sum()) - np.repeat(np.cumsum(span) - span, span)
    place = columns.device[owner] * slots + slot
    kept = np.isin(place, columns.device * slots + columns.start)
    owner, place = owner[kept], place[kept]
    rows, inverse = np.unique(place, return_inverse=True)
    return sp.csr_matrix((np.ones(len(owner)), (inverse, owner)), shape=(len(rows), len(columns)))


class _Program:
    """Variables and rows of one master; built, solved once and thrown away (compiling costs less than parameters do)."""

    def __init__(self, problem: Problem, columns: PlanColumns, scale: MasterScale) -> None:
        self.problem, self.arrays, self.columns, self.scale = problem, problem.arrays, columns, scale
        self.groups = participation_groups(problem)
        self.device, self.task = columns.device, columns.task
        self.end = columns.end
        self.x = cp.Variable(len(columns), nonneg=True)
        self.energy = columns.energy_j @ self.x
        self.h = cp.Variable(self.arrays.num_tasks)
        self.error = cp.Variable(self.arrays.num_tasks)
        self.slack = cp.Variable(nonneg=True)
        self.rows: list[cp.Constraint] = []
        self._device_rows()
        self._aggregate_rows()

    def _matrix(self, rows: np.ndarray, values: FloatArray, count: int) -> sp.csr_matrix:
        return sp.csr_matrix((values, (rows, np.arange(len(rows)))), shape=(count, len(self.columns)))

    def _device_rows(self) -> None:
        a, columns = self.arrays, self.columns
        self.cover = cover_rows(columns, a.slots) @ self.x <= 1.0
        self.rows.append(self.cover)
        self.spectrum = self._matrix(self.end - 1, columns.bandwidth_hz / a.bandwidth_hz, a.slots) @ self.x <= 1.0
        self.rows.append(self.spectrum)
        self.limited = np.flatnonzero(np.isfinite(a.energy_budget_j))
        if len(self.limited):
            use = self._matrix(self.device, columns.energy_j / a.energy_budget_j[self.device], a.num_devices)
            self.budget = use[self.limited] @ self.x <= 1.0
            self.rows.append(self.budget)

    def _aggregate_rows(self) -> None:
        a, columns, scale = self.arrays, self.columns, self.scale.h
        errors = self._matrix(self.task, columns.error / scale[self.task], a.num_tasks) @ self.x
        if self.groups.factor == 0.0:
            total = self._matrix(self.task, columns.h / scale[self.task], a.num_tasks) @ self.x
            self.h_row = self.h == total
            self.error_row = self.error >= errors
            self.rows += [self.h_row, self.error_row]
            return
        if self.groups.free:
            self.rows.append(self.error >= errors + self.groups.factor * self._window_rows())
            self.error_row = self.rows[-1]
            return
        pair = self.device * a.num_tasks + self.task
        per_device = self._matrix(pair, columns.h / scale[self.task], a.num_devices * a.num_tasks) @ self.x
        self.h_device = cp.Variable(a.num_devices * a.num_tasks)
        self.pair_row = self.h_device == per_device
        fold = sp.csr_matrix(np.tile(np.eye(a.num_tasks), (1, a.num_devices)))
        self.h_row = self.h == fold @ self.h_device
        spread = sp.csr_matrix(np.tile(np.eye(a.num_tasks), (a.num_devices, 1)))
        delta = a.dissimilarity.ravel()
        off = cp.multiply(delta, self.h_device) - cp.multiply(delta * a.aggregation_weight.ravel(), spread @ self.h)
        distance = cp.Variable(a.num_devices * a.num_tasks)
        self.rows += [self.pair_row, self.h_row, distance >= off, distance >= -off]
        self.d = fold @ distance
        participation = cp.hstack([cp.quad_over_lin(self.d[j], self.h[j]) for j in range(a.num_tasks)])
        self.error_row = self.error >= errors + self.groups.factor * participation
        self.rows.append(self.error_row)

    def _window_rows(self) -> cp.Expression:
        """Rows of H by window; returns Σ_m d_jm²/H_jm of every task. Windows without columns are left out, as are pairs without data."""
        a, columns, tasks = self.arrays, self.columns, self.arrays.num_tasks
        number = self.task * self.groups.shape[2] + self.groups.number(self.end)
        self.cells = np.unique(number)
        owner = self.cells // self.groups.shape[2]
        cell, device = np.nonzero(a.has_data[:, owner].T)
        self.pair_device, self.pair_cell = device, cell
        # pairs are ordered by cell, then device
        first, rank = np.searchsorted(cell, np.searchsorted(self.cells, number)), np.cumsum(a.has_data, axis=0) - 1
        pair = first + rank[self.device, self.task]
        fold = sp.csr_matrix((np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(len(self.cells), len(cell)))
        per_task = sp.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(tasks, len(owner)))
        self.h_device, self.h_cell = cp.Variable(len(cell)), cp.Variable(len(owner))
        self.pair_row = self.h_device == self._matrix(pair, columns.h / self.scale.h[self.task], len(cell)) @ self.x
        self.cell_row = self.h_cell == fold @ self.h_device
        self.h_row = self.h == per_task @ self.h_cell
        delta, share = a.dissimilarity[device, owner[cell]], a.aggregation_weight[device, owner[cell]]
        fair, distance, square = cp.Variable(len(owner)), cp.Variable(len(cell)), cp.Variable(len(owner))
        off = cp.multiply(delta, self.h_device) - cp.multiply(delta * share, fold.T @ fair)
        self.rows += [self.pair_row, self.cell_row, self.h_row, distance >= off, distance >= -off]
        # d² ≤ s H
        self.rows.append(cp.SOC(square + self.h_cell, cp.vstack([2.0 * (fold @ distance), square - self.h_cell]), axis=0))
        return per_task @ square

    def objective(self, model: RatioModel, energy_price: float, prox: float) -> cp.Expression:
        """Objective over the scale; ``prox`` weighs ½‖H/H0 − 1‖² around the scale's H0, the last iterate."""
        unit, h0 = self.scale.objective, self.scale.h
        inverse = cp.inv_pos(self.h)
        total = (model.inverse / h0 / unit) @ inverse + (model.linear_error * h0 / unit) @ self.error
        if np.any(model.square_error > 0):
            total += (model.square_error * h0**2 / unit) @ cp.square(self.error)
            total += (model.inverse_square / h0**2 / unit) @ cp.power(self.h, -2)
        if prox > 0:
            total += 0.5 * prox * cp.sum_squares(self.h - 1.0)
        high, low = np.flatnonzero(np.isfinite(model.high)), np.flatnonzero(model.low > 0)
        if len(high):
            self.rows.append(self.h[high] <= model.high[high] / h0[high])
        if len(low):
            floor = model.low[low] / h0[low]
            self.rows.append(self.h[low] >= floor - floor * self.slack)
        return total + (energy_price / unit) * self.energy

    def prices(self, energy_price: float) -> tuple[Prices, FloatArray]:
        """Prices from the duals, and the price of H_j alone (shape (J,))."""
        a, unit = self.arrays, self.scale.objective
        # at a price of zero the closed forms of resources have no answer
        floor = 1e-9 * unit / max(float(self.columns.energy_j.max(initial=0.0)), 1e-300)
        energy = np.full(a.num_devices, max(energy_price, floor))
        if len(self.limited):
            energy[self.limited] += unit * np.maximum(self.budget.dual_value, 0.0) / a.energy_budget_j[self.limited]
        task_value = unit * np.asarray(self.h_row.dual_value) / self.scale.h
        if self.groups.factor == 0.0:
            value = np.broadcast_to(task_value, a.has_data.shape)
        elif self.groups.free:
            task_value, value = self._window_values(task_value)
        else:
            value = unit * np.asarray(self.pair_row.dual_value).reshape(a.has_data.shape) / self.scale.h
        bandwidth = unit * np.maximum(self.spectrum.dual_value, 0.0) / a.bandwidth_hz
        noise = unit * np.maximum(self.error_row.dual_value, 0.0) / self.scale.h
        return Prices(energy, bandwidth, value, noise), task_value

    def _window_values(self, task_value: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Prices of H by window, and of each device's part of it; where a window has no columns they are those of H over all windows."""
        windows = self.groups.shape[2]
        owner, window = self.cells // windows, self.cells % windows
        per_window = self.groups.spread(task_value)
        unit = self.scale.objective / self.scale.h[owner]
        per_window[owner, window] = unit * np.asarray(self.cell_row.dual_value)
        value = np.repeat(per_window[None], self.arrays.num_devices, axis=0)
        cell = self.pair_cell
        value[self.pair_device, owner[cell], window[cell]] = unit[cell] * np.asarray(self.pair_row.dual_value)
        return per_window, value


def solve_master(
    problem: Problem,
    candidates: Candidates,
    columns: Columns,
    model: RatioModel | None,
    scale: MasterScale,
    *,
    backend: str,
    prox: float = 0.0,
) -> MasterPoint | None:
    """Solve the restricted master over columns; None if the backend fails. See :func:`solve_columns_master` for ``model``."""
    point = solve_columns_master(problem, PlanColumns.of(candidates, columns), model, scale, backend=backend, prox=prox)
    return None if point is None else replace(point, columns=columns)


def solve_columns_master(
    problem: Problem, columns: PlanColumns, model: RatioModel | None, scale: MasterScale, *, backend: str, prox: float = 0.0
) -> MasterPoint | None:
    """Solve the restricted master over columns that know their assignments; None if the backend fails.

    ``model``: convex model of Σ γ_jΨ_j, or None in mode min_energy, where the targets are rows C + N ≤ (3/8) ε H (exact). Target and
    energy rows carry a priced slack, so that a master over few columns is never infeasible.
    """
    a, mode = problem.arrays, problem.objective.mode
    program = _Program(problem, columns, scale)
    energy_price = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[mode]
    rows = program.rows
    goal: cp.Expression = _SLACK_PRICE * program.slack
    limit = None
    if mode == "min_energy":
        goal += (energy_price / scale.objective) * program.energy
        use = np.flatnonzero(np.isfinite(a.target))
        left = fixed_terms(a)[use] / scale.h[use] + program.error[use]
        limit = left <= cp.multiply(a.target[use] / FACTOR, program.h[use]) + cp.multiply(a.target[use] / FACTOR, program.slack)
    else:
        assert model is not None
        goal += program.objective(model, energy_price, prox)
        if mode == "min_bound" and problem.objective.total_energy_j is not None:
            limit = program.energy / problem.objective.total_energy_j <= 1.0 + program.slack
    if limit is not None:
        rows.append(limit)
    task = cp.Problem(cp.Minimize(goal), rows)
    if not solve_conic(task, backend) or program.x.value is None:
        return None
    if mode == "min_bound" and limit is not None:
        assert problem.objective.total_energy_j is not None
        energy_price = scale.objective * max(float(limit.dual_value), 0.0) / problem.objective.total_energy_j
    prices, task_value = program.prices(energy_price)
    return _point(program, prices, task_value, float(task.value) * scale.objective)


def solve_point_master(
    problem: Problem, candidates: Candidates, columns: Columns, h: FloatArray, error: FloatArray, *, scale: float, backend: str
) -> MasterPoint | None:
    """Least energy at which H ≥ ``h`` and N ≤ ``error`` (shape (J,)), misses priced at a few times the ratios' slopes there.

    Its duals are the slopes of that energy in H and N: the best prices for a cut at (h, error). ``scale``: size of the objective.
    """
    a, mode = problem.arrays, problem.objective.mode
    program = _Program(problem, PlanColumns.of(candidates, columns), MasterScale(scale, h))
    w = FACTOR * a.weight
    active = np.flatnonzero(w > 0)
    short, over = cp.Variable(len(active), nonneg=True), cp.Variable(len(active), nonneg=True)
    program.rows += [program.h[active] >= 1.0 - short, program.error[active] <= error[active] / h[active] + over]
    ratio = (w * (fixed_terms(a) + error) / h)[active] / scale
    goal = _MISS_FACTOR * (ratio @ short + (w[active] / scale) @ over) + _SLACK_PRICE * program.slack
    energy_price = problem.objective.energy_weight if mode == "weighted" else 0.0
    goal += (energy_price / scale) * program.energy
    limit = None
    if mode == "min_bound" and problem.objective.total_energy_j is not None:
        limit = program.energy / problem.objective.total_energy_j <= 1.0 + program.slack
        program.rows.append(limit)
    task = cp.Problem(cp.Minimize(goal), program.rows)
    if not solve_conic(task, backend) or program.x.value is None:
        return None
    if limit is not None:
        assert problem.objective.total_energy_j is not None
        energy_price = scale * max(float(limit.dual_value), 0.0) / problem.objective.total_energy_j
    prices, task_value = program.prices(energy_price)
    return replace(_point(program, prices, task_value, float(task.value) * scale), columns=columns)


def _point(program: _Program, prices: Prices, task_value: FloatArray, value: float) -> MasterPoint:
    """Aggregates of the solution, recomputed from x so that they do not carry the solver's residuals."""
    a, columns = program.arrays, program.columns
    assert program.x.value is not None and program.slack.value is not None
    x = np.maximum(program.x.value, 0.0)
    h_device = program.groups.sums(program.device, program.task, program.end, columns.h * x)
    h = program.groups.per_task(h_device.sum(axis=0))
    error = np.bincount(program.task, weights=columns.error * x, minlength=a.num_tasks) + program.groups.error(h_device)
    slot_value = program.scale.objective * float(np.maximum(program.cover.dual_value, 0.0).sum())
    return MasterPoint(
        columns, x, h_device, h, error, float(columns.energy_j @ x), float(program.slack.value), prices, task_value, value, slot_value
    )
