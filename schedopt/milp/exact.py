"""The exact value of a set of choices: with these made, H, staleness and C2 are numbers, and the best mixture is a linear program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from schedopt.bounds.async_schedule import C2_LIMIT, FACTOR, STALE_FACTOR
from schedopt.formulation.candidates import Candidates, Columns, make_columns
from schedopt.milp.highs import Program, solve_program
from schedopt.milp.model import Cover, Discretised, StaleRow
from schedopt.problem import FloatArray, IntArray

__all__ = ["Combination", "best_mixture", "learn_from"]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Combination:
    """Columns (of no other choices than those made) and their weights, and the value of the discretised objective."""

    columns: Columns
    weights: FloatArray
    value: float
    #: H and N over the scale of the program, shape (J,)
    h: FloatArray
    error: FloatArray

    def mixed(self, candidates: Candidates) -> Columns:
        """One column for each choice made: the mixture, with energy and errors as they are there (not more than mixed)."""
        weight, columns = self.weights, self.columns
        index, of = np.unique(columns.candidate, return_inverse=True)

        def mean(values: FloatArray) -> FloatArray:
            return np.bincount(of, weights=weight * values) / np.bincount(of, weights=weight)

        steps, work, time_s, band = (mean(v) for v in (columns.steps, columns.work, columns.upload_s, columns.bandwidth_hz))
        return make_columns(candidates.take(index), index, np.round(steps), work, time_s, band)


@dataclass(frozen=True)
class _Sums:
    """What choices fix, by task: H (unscaled, (J,)), participation over H (J,), h_g and S_g, shape (J, G+1)."""

    h: FloatArray
    part: FloatArray
    h_instant: FloatArray
    span: FloatArray


def _sums(model: Discretised, made: IntArray) -> _Sums:
    a, c = model.arrays, model.choices
    shape = (a.num_tasks, a.slots + 1)
    h_instant, opened = np.zeros(shape), np.zeros(shape)
    np.add.at(h_instant, (c.task[made], c.end[made]), c.h[made])
    np.add.at(opened, (c.task[made], c.start[made] + 1), c.stale[made])
    np.add.at(opened, (c.task[made], c.end[made]), -c.stale[made])
    per_device = np.zeros((a.num_devices, a.num_tasks))
    np.add.at(per_device, (c.device[made], c.task[made]), c.h[made])
    h = per_device.sum(axis=0)
    d = (np.abs(per_device - a.aggregation_weight * h) * a.dissimilarity).sum(axis=0)
    part = model.horizon * np.divide(d**2, h, out=np.zeros_like(h), where=h > 0)
    return _Sums(h, part, h_instant, np.maximum(np.cumsum(opened, axis=1), 0.0))


def _c2(model: Discretised, sums: _Sums) -> FloatArray:
    """β h_g (1 + (17/4) β S_g) over its limit, shape (J, G+1)."""
    beta = model.arrays.smoothness[:, None]
    return beta * sums.h_instant * (1.0 + STALE_FACTOR * beta * sums.span) / C2_LIMIT


def best_mixture(model: Discretised, made: IntArray) -> Combination | None:
    """The best mixture of the columns of the choices ``made`` (indices), which must not overlap; None if none meets every limit."""
    c, sums = model.choices, _sums(model, made)
    if np.any(sums.h[model.needed] <= 0) or (model.problem.objective.enforce_conditions and np.any(_c2(model, sums) > 1.0 + _ROUNDING)):
        return None
    mine = np.flatnonzero(np.isin(c.of, made))
    columns, of = model.columns.take(mine), np.searchsorted(made, c.of[mine])
    task, end = c.task[made][of], c.end[made][of]
    error = columns.error + model.stale_weight[task] * sums.span[task, end] * columns.noise
    price = np.divide(model.weight, sums.h, out=np.zeros_like(sums.h), where=sums.h > 0)
    cost = (model.energy_price * columns.energy_j + price[task] * error) / model.unit
    rows, limits = _limits(model, columns, task, end, error, sums)
    count = len(made)
    link = sp.csr_matrix((np.ones(len(of)), (of, np.arange(len(of)))), shape=(count, len(of)))
    program = Program(
        cost,
        np.zeros(len(of)),
        np.full(len(of), np.inf),
        sp.csr_matrix(sp.vstack([link, sp.csr_matrix(rows)])),
        np.concatenate([np.ones(count), np.full(len(limits), -np.inf)]),
        np.concatenate([np.ones(count), limits]),
        np.zeros(len(of), dtype=bool),
    )
    x = solve_program(program).x
    if x is None:
        return None
    x = np.maximum(x, 0.0)
    total = np.bincount(task, weights=error * x, minlength=len(sums.h)) + sums.part
    ratios = (price * (model.fixed * model.h_unit + total)).sum()
    value = float(ratios + model.energy_price * (columns.energy_j @ x))
    used = x > _ROUNDING
    return Combination(columns.take(used), x[used], value, sums.h / model.h_unit, total / model.h_unit)


def _limits(
    model: Discretised, columns: Columns, task: IntArray, end: IntArray, error: FloatArray, sums: _Sums
) -> tuple[FloatArray, FloatArray]:
    """Rows (m, n) and limits (m,) of what the weights of the columns must keep to: band, budgets, targets, total energy."""
    a, objective = model.arrays, model.problem.objective
    device = model.candidates.device[columns.candidate]
    rows = [np.where(end == g, columns.bandwidth_hz / a.bandwidth_hz, 0.0) for g in np.unique(end)]
    limits = [1.0] * len(rows)
    for i in np.unique(device[np.isfinite(a.energy_budget_j[device])]):
        rows.append(np.where(device == i, columns.energy_j / a.energy_budget_j[i], 0.0))
        limits.append(1.0)
    if objective.mode == "min_energy":
        for j in model.needed:
            room = a.target[j] / FACTOR * sums.h[j]
            rows.append(np.where(task == j, error, 0.0) / room)
            limits.append((room - sums.part[j]) / room - model.fixed[j] * model.h_unit[j] / room)
    if objective.mode == "min_bound" and objective.total_energy_j is not None:
        rows.append(columns.energy_j / objective.total_energy_j)
        limits.append(1.0)
    return np.array(rows).reshape(len(rows), len(columns)), np.array(limits)


def learn_from(model: Discretised, made: IntArray, noise: FloatArray, tolerance: float) -> bool:
    """Add stale rows and covers for what the programs do not know yet about the choices ``made``; whether there were any.

    ``noise``: weights of all columns at the point, whose noise is what the stale rows are about; products worth less than
    ``tolerance`` (scaled) are left out.
    """
    c, sums, before = model.choices, _sums(model, made), len(model.wisdom)
    per_instant = np.zeros_like(sums.span)
    np.add.at(per_instant, (c.task[c.of], c.end[c.of]), noise * model.columns.noise)
    price = np.divide(model.weight / model.unit, sums.h, out=np.ones_like(sums.h), where=(sums.h > 0) & (model.weight > 0))
    for s in made[c.stale[made] > 0]:
        j = int(c.task[s])
        for instant in range(int(c.start[s]) + 1, int(c.end[s])):
            worth = price[j] * model.stale_weight[j] * c.stale[s] * per_instant[j, instant]
            if worth > tolerance:
                model.wisdom.stale.add(StaleRow(int(c.device[s]), j, instant, float(c.stale[s])))
    if model.problem.objective.enforce_conditions:
        over = _c2(model, sums)
        for j, instant in np.argwhere(over > 1.0 + _ROUNDING):
            model.wisdom.covers.add(_cover(model, made, int(j), int(instant)))
    return len(model.wisdom) > before


def _cover(model: Discretised, made: IntArray, j: int, instant: int) -> Cover:
    """A least set of devices whose choices break C2: what can be left out without mending it is left out, the smallest first."""
    c = model.choices
    mine = made[c.task[made] == j]
    ending = {int(s) for s in mine[c.end[mine] == instant]}
    spanning = {int(s) for s in mine[(c.start[mine] < instant) & (instant < c.end[mine]) & (c.stale[mine] > 0)]}
    for s in sorted(ending | spanning, key=lambda s: (c.h[s], s)):
        kept = np.array(sorted((ending | spanning) - {s}), dtype=np.int64)
        if len(kept) and _c2(model, _sums(model, kept))[j, instant] > 1.0 + _ROUNDING:
            ending.discard(s)
            spanning.discard(s)
    least = {
        kind: tuple(sorted((int(c.device[s]), float(values[s])) for s in part))
        for kind, part, values in (("ending", ending, c.h), ("spanning", spanning, c.stale))
    }
    return Cover(j, instant, **least)
