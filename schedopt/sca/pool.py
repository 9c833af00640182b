"""The columns that a master works on: first ones, new ones by pricing, and forgetting those that stay useless."""

from __future__ import annotations

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.errors import InfeasibleError
from schedopt.formulation.candidates import Candidates, Columns, Paths, Priced, Prices, best_paths, least_regret, price
from schedopt.formulation.uplink import LN2, price_shape
from schedopt.objective import needed_tasks
from schedopt.problem import FloatArray, Problem

__all__ = ["ColumnPool", "first_columns", "first_prices"]

_PER_DEVICE = 12
_MAX_AGE = 4
_MOST_LEVELS = 40


class ColumnPool:
    """Columns without duplicates, and for how many masters each has been idle."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns.take(slice(0, 0))
        self.idle = np.zeros(0, dtype=int)
        self._keys: set[bytes] = set()
        self.add(columns)

    def __len__(self) -> int:
        return len(self.columns)

    def add(self, columns: Columns) -> int:
        """Add what is new (to about five digits); returns how many were."""
        fresh = []
        for k, key in enumerate(_keys(columns)):
            if key not in self._keys:
                self._keys.add(key)
                fresh.append(k)
        self.columns = self.columns.concat(columns.take(np.array(fresh, dtype=int)))
        self.idle = np.concatenate([self.idle, np.zeros(len(fresh), dtype=int)])
        return len(fresh)

    def forget(self, weights: FloatArray) -> None:
        """Count idle masters of each column (x ≈ 0) and drop those idle for long."""
        self.idle = np.where(weights > 1e-7, 0, self.idle + 1)
        self._keep(self.idle <= _MAX_AGE)

    def _keep(self, keep: np.ndarray) -> None:
        self.columns, self.idle = self.columns.take(keep), self.idle[keep]
        self._keys = set(_keys(self.columns))

    def copy(self) -> ColumnPool:
        """A pool of the same columns."""
        return ColumnPool(self.columns)

    def restrict(self, allowed: np.ndarray) -> None:
        """Keep only columns of ``allowed`` candidates (mask of shape (n,))."""
        self._keep(allowed[self.columns.candidate])


def _keys(columns: Columns) -> list[bytes]:
    """What makes each column different, to about five digits."""
    values = np.stack([columns.work, columns.upload_s, columns.bandwidth_hz], axis=1)
    digits = np.round(np.log(np.maximum(values, 1e-300)) * 1e5).astype(np.int64)
    rows = np.concatenate([columns.candidate[:, None], columns.steps[:, None].astype(np.int64), digits], axis=1)
    return [row.tobytes() for row in np.ascontiguousarray(rows)]


def promising_columns(candidates: Candidates, columns: Columns, paths: Paths) -> Columns:
    """Columns of the best plans and, per device, of the candidates that come closest to being on one."""
    keep = np.isin(columns.candidate, paths.chosen)
    keep[least_regret(candidates, columns, paths, max(_PER_DEVICE, candidates.arrays.slots // 2))] = True
    return columns.take(keep)


def first_prices(problem: Problem, h: FloatArray, error: FloatArray) -> Prices:
    """Prices at guessed H and N (shape (J,)): marginal worth of both, energy, and a fair share of the band."""
    a, mode = problem.arrays, problem.objective.mode
    w = FACTOR * np.where(a.weight > 0, a.weight, 0.0)
    value, noise = w * (fixed_terms(a) + error) / h**2, w / h
    energy = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[mode]
    if energy == 0.0:
        energy = 1e-3 * float(np.max(value * h)) / max(_typical_energy(problem), 1e-30)
    if mode == "min_energy":
        # worth of H in joules: what a unit of the typical energy would have to buy
        value = np.where(np.isfinite(a.target), _typical_energy(problem) * a.slots * a.num_devices / h, 0.0)
        noise = value * FACTOR / np.where(np.isfinite(a.target), a.target, 1.0)
    share = max(1.0, 0.3 * a.num_devices)
    u = np.median(a.model_bits) * LN2 * share / (a.slot_s * a.bandwidth_hz)
    with np.errstate(over="ignore"):
        bandwidth = energy * a.noise_w_per_hz / np.median(a.gain, axis=0) * a.slot_s * price_shape(np.minimum(u, 50.0))
    return Prices(np.full(a.num_devices, energy), bandwidth, np.broadcast_to(value, a.has_data.shape), noise)


def _typical_energy(problem: Problem) -> float:
    """Energy of computing for one slot at the lowest frequency and sending at a tenth of the power, median device, J."""
    a = problem.arrays
    return float(np.median((0.5 * a.capacitance * a.freq_min_hz**3 + 0.1 * a.max_power_w) * a.slot_s))


def first_columns(problem: Problem, candidates: Candidates, levels: int = 7) -> Columns:
    """Columns at guessed prices over several decades of H: best plans, and the best candidates of every device in every task.

    Lower H means dearer h: levels go on (to ``_MOST_LEVELS``) until every task that needs training has a column.
    """
    a = problem.arrays
    most = a.learning_rate * a.server_rate * candidates.steps.max(axis=1) * a.slots
    needed = np.flatnonzero(needed_tasks(problem))
    columns: Columns | None = None
    for level in range(_MOST_LEVELS):
        if level >= levels and columns is not None and np.all(np.isin(needed, candidates.task[columns.candidate])):
            break
        priced = price(candidates, first_prices(problem, most * 4.0**-level, 0.1 * fixed_terms(a)))
        if len(priced.columns):
            paths = best_paths(candidates, priced.cost)
            new = promising_columns(candidates, priced.columns, paths).concat(_best_per_task(candidates, priced))
            columns = new if columns is None else columns.concat(new)
    found = np.zeros(0, dtype=int) if columns is None else candidates.task[columns.candidate]
    missing = np.setdiff1d(needed, found)
    if columns is None or len(missing):
        name = problem.tasks[int(missing[0])].name if len(missing) else problem.tasks[0].name
        if problem.objective.mode != "min_energy":
            raise InfeasibleError(f"task {name!r}: no assignment pays at any of the prices that were tried")
        raise InfeasibleError(f"task {name!r}: no assignment brings its bound nearer to the target at any energy; it is out of reach")
    return columns


def _best_per_task(candidates: Candidates, priced: Priced) -> Columns:
    """The cheapest candidate of every device and task per last slot's third of the horizon, so that no task lacks columns."""
    index = priced.columns.candidate
    third = 3 * (candidates.end[index] - 1) // candidates.arrays.slots
    group = (candidates.device[index] * candidates.arrays.num_tasks + candidates.task[index]) * 3 + third
    order = np.lexsort((priced.cost[index], group))
    return priced.columns.take(order[np.unique(group[order], return_index=True)[1]])
