r"""The discretised problem: which assignments with which steps and batches, their other resources mixed from a finite list of columns.

A *choice* is a candidate with whole steps and batch; its columns differ in times and bandwidth. With x ≥ 0 per column and y binary per
choice,

    min  Σ_j w_j (C_j + N_j)/H_j + ξ Σ_k E_k x_k
    s.t. Σ_{k of c} x_k = y_c,   Σ_{c of i covering slot g} y_c ≤ 1,   Σ_{k uploading in g} W_k x_k ≤ band,   Σ_{k of i} E_k x_k ≤ budget_i,
         H_j = Σ h_c y_c,   N_j = Σ n_k x_k + 2c d_j²/H_j (participation "horizon") + c' Σ_g S_jg Σ_{k ending at g} ν_k x_k,

with S_jg = Σ h_c κ_c y_c of what spans instant g (the scaled T_stale). Given steps and batch an assignment's energy is convex in the
rest (formulation 4b), so a mixture stands for resources at least as good: a solution is a schedule whose objective is at most the value
here. Modes: targets C_j + N_j ≤ (3/8) ε_j H_j, or Σ E_k x_k ≤ total energy; conditions: C1 by the
choices' steps, C2: β h_g (1 + (17/4) β S_g) ≤ 1/2.

A *program* is a linear relaxation of it in a box of H, N and the ratios. With n = w (C + N) a ratio is n/H = q²/H with q = √n, where
q²/H ≥ 2zq − z²H for any z is convex, and √n is at least its chords over pieces of n, one of which is chosen by a binary: their error is
(width/n)²/16, and nothing where pieces meet. Besides, r ≥ r' + (n − r'H)/h' for (r', h') = (low r, high H) and (high r, low H).
d²/H ≥ 2zd − z²H likewise. S_g Σ ν x is linearised per device i that may span g:
at least b (Σ ν x − most·(1 − Σ y of what i lets span g with h κ ≥ b)), exact for binary y where b is the h κ chosen. C2: β h_g ≤ 1/2,
and covers where a binary point fails. Tangents, stale rows and covers are added where a point needs them (:meth:`Discretised.learn`).
Everything is scaled to order one. Tested in ``tests/test_milp.py`` against brute force.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from schedopt.bounds.async_schedule import C2_LIMIT, FACTOR, STALE_FACTOR, fixed_terms
from schedopt.formulation.candidates import Candidates, Columns
from schedopt.milp.highs import Program
from schedopt.objective import needed_tasks
from schedopt.participation import participation_groups
from schedopt.problem import TERMS, FloatArray, IntArray, Problem

__all__ = ["Box", "Choices", "Cover", "Discretised", "Layout", "StaleRow", "Wisdom", "choice_keys", "choices_of"]

#: Values of z whose tangents of the participation term every program has, as shares of the largest that makes sense.
_SLOPES = (0.01, 0.02, 0.03, 0.045, 0.065, 0.09, 0.12, 0.16, 0.22, 0.3, 0.45, 0.7)
#: Tangents of q²/H that every program has.
_CONE = 12


@dataclass(frozen=True)
class Box:
    """Intervals of H and of N over the scale, and of the weighted ratios w (C + N)/H over the unit; arrays of shape (J,)."""

    h_low: FloatArray
    h_high: FloatArray
    r_low: FloatArray
    r_high: FloatArray
    n_low: FloatArray
    n_high: FloatArray


@dataclass(frozen=True)
class Choices:
    """Candidates with steps and work e·B, arrays of shape (c,); ``of``: the choice of each column, shape (K,); ``stale``: h κ."""

    of: IntArray
    candidate: IntArray
    steps: IntArray
    work: IntArray
    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    h: FloatArray
    stale: FloatArray

    def __len__(self) -> int:
        return len(self.candidate)


def choices_of(candidates: Candidates, columns: Columns) -> Choices:
    """The choices that ``columns`` (whose steps and batches are whole) belong to, ordered by candidate, steps and work."""
    keys = choice_keys(columns)
    (candidate, steps, work), first, of = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    device, task, start, end = (getattr(candidates, name)[candidate] for name in ("device", "task", "start", "end"))
    h = columns.h[first]
    return Choices(of.ravel(), candidate, steps, work, device, task, start, end, h, h * (end - 1 - start))


def choice_keys(columns: Columns) -> IntArray:
    """What tells choices apart, shape (3, K): candidate, steps, work."""
    return np.stack([columns.candidate, np.round(columns.steps).astype(np.int64), np.round(columns.work).astype(np.int64)])


@dataclass(frozen=True)
class StaleRow:
    """What device ``device`` lets span ``instant`` of ``task`` with h κ ≥ ``least``."""

    device: int
    task: int
    instant: int
    least: float


@dataclass(frozen=True)
class Cover:
    """Devices that together break C2 of ``task`` at ``instant``: those that end there with h ≥, those that span it with h κ ≥."""

    task: int
    instant: int
    ending: tuple[tuple[int, float], ...]
    spanning: tuple[tuple[int, float], ...]


@dataclass
class Wisdom:
    """What has been learnt about one discretised problem, valid for every subset of its columns: tangents, stale rows, covers."""

    #: points of N (scaled) where pieces meet, and slopes z of the tangents of q²/H and of d²/H, by task
    cone: set[tuple[int, float]] = field(default_factory=set)
    breaks: set[tuple[int, float]] = field(default_factory=set)
    slope: set[tuple[int, float]] = field(default_factory=set)
    stale: set[StaleRow] = field(default_factory=set)
    covers: set[Cover] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.cone) + len(self.breaks) + len(self.slope) + len(self.stale) + len(self.covers)


@dataclass(frozen=True)
class Layout:
    """Where the variables of a program are: x, y, then blocks over tasks of H, N, participation, staleness, q and ratio."""

    x: slice
    y: slice
    h: slice
    n: slice
    part: slice
    stale: slice
    root: slice
    ratio: slice
    width: int


class Discretised:
    """Columns and the problem they stand for; makes programs. ``h_unit`` (J,), ``unit``: what H and the objective are measured in."""

    def __init__(self, problem: Problem, candidates: Candidates, columns: Columns, wisdom: Wisdom, unit: float, h_unit: FloatArray) -> None:
        self.problem, self.candidates, self.columns, self.wisdom = problem, candidates, columns, wisdom
        self.arrays, self.unit, self.h_unit = problem.arrays, unit, h_unit
        self.choices = choices_of(candidates, columns)
        a, mode = self.arrays, problem.objective.mode
        self.needed = np.flatnonzero(needed_tasks(problem))
        self.energy_price = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[mode]
        self.weight = np.zeros(a.num_tasks) if mode == "min_energy" else FACTOR * a.weight
        self.ratios = np.flatnonzero(self.weight > 0)
        self.fixed = fixed_terms(a) / h_unit
        self.horizon = participation_groups(problem).factor
        self.stale_weight = a.term_scale[TERMS.index("stale")] * STALE_FACTOR * a.smoothness**2
        self.layout = self._layout()

    def restrict(self, keep: np.ndarray) -> Discretised:
        """The same with the columns of the mask ``keep`` alone."""
        return Discretised(self.problem, self.candidates, self.columns.take(keep), self.wisdom, self.unit, self.h_unit)

    def _layout(self) -> Layout:
        columns, choices, tasks = len(self.columns), len(self.choices), self.arrays.num_tasks
        at = columns + choices
        blocks = [slice(at + k * tasks, at + (k + 1) * tasks) for k in range(6)]
        h, n, part, stale, root, ratio = blocks
        return Layout(slice(0, columns), slice(columns, at), h, n, part, stale, root, ratio, at + 6 * tasks)

    # --- programs ----------------------------------------------------------------------------------------------------------------------

    def program(self, box: Box, *, integer: bool, cutoff: float = np.inf) -> Program:
        """The relaxation in ``box``; with whole choices if ``integer``; what costs more than ``cutoff`` (scaled) may be left out."""
        rows = _Rows(self.layout.width)
        self._choice_rows(rows)
        self._resource_rows(rows)
        self._total_rows(rows)
        self._participation_rows(rows)
        self._stale_rows(rows)
        self._mode_rows(rows)
        self._condition_rows(rows)
        self._ratio_rows(rows, box, integer)
        cost, lower, upper, whole = self._variables(rows.width, box, integer)
        for index in rows.whole:
            whole[index], upper[index] = True, 1.0
        if np.isfinite(cutoff):
            used = np.flatnonzero(cost)
            rows.add([(used, cost[used])], -np.inf, cutoff)
        return rows.program(cost, lower, upper, whole)

    def _variables(self, width: int, box: Box, integer: bool) -> tuple[FloatArray, FloatArray, FloatArray, np.ndarray]:
        at = self.layout
        cost, lower, upper, whole = np.zeros(width), np.zeros(width), np.full(width, np.inf), np.zeros(width, dtype=bool)
        cost[at.x] = self.energy_price * self.columns.energy_j / self.unit
        cost[at.ratio][self.ratios] = 1.0
        whole[at.y] = integer
        if integer:
            upper[at.y] = 1.0
        lower[at.h], upper[at.h] = box.h_low, box.h_high
        lower[at.n], upper[at.n] = box.n_low, box.n_high
        lower[at.ratio], upper[at.ratio] = box.r_low, box.r_high
        if self.horizon == 0.0:
            upper[at.part] = 0.0
        return cost, lower, upper, whole

    def _choice_rows(self, rows: _Rows) -> None:
        c, k = self.choices, np.arange(len(self.columns))
        rows.block([(c.of, k, np.ones(len(k))), (np.arange(len(c)), self._y(np.arange(len(c))), -np.ones(len(c)))], 0.0, 0.0, len(c))
        span = c.end - c.start
        owner = np.repeat(np.arange(len(c)), span)
        slot = c.start[owner] + np.arange(span.sum()) - np.repeat(np.cumsum(span) - span, span)
        used, row = np.unique(c.device[owner] * self.arrays.slots + slot, return_inverse=True)
        self.packing = rows.block([(row, self._y(owner), np.ones(len(owner)))], -np.inf, 1.0, len(used))

    def _y(self, choice: IntArray) -> IntArray:
        return self.layout.y.start + choice

    def _resource_rows(self, rows: _Rows) -> None:
        a, c, columns = self.arrays, self.choices, self.columns
        k = np.arange(len(columns))
        used, row = np.unique(c.end[c.of] - 1, return_inverse=True)
        rows.block([(row, k, columns.bandwidth_hz / a.bandwidth_hz)], -np.inf, 1.0, len(used))
        limited = np.flatnonzero(np.isfinite(a.energy_budget_j)[c.device[c.of]])
        device = c.device[c.of[limited]]
        used, row = np.unique(device, return_inverse=True)
        rows.block([(row, limited, columns.energy_j[limited] / a.energy_budget_j[device])], -np.inf, 1.0, len(used))

    def _total_rows(self, rows: _Rows) -> None:
        """H = Σ h y;  N = Σ n x + participation + staleness."""
        c, at, unit = self.choices, self.layout, self.h_unit
        j = np.arange(self.arrays.num_tasks)
        one = np.ones(len(j))
        rows.block([(c.task, self._y(np.arange(len(c))), c.h / unit[c.task]), (j, at.h.start + j, -one)], 0.0, 0.0, len(j))
        task = c.task[c.of]
        parts = [(j, block.start + j, one) for block in (at.part, at.stale)]
        rows.block([(task, np.arange(len(task)), self.columns.error / unit[task]), *parts, (j, at.n.start + j, -one)], 0.0, 0.0, len(j))

    def _participation_rows(self, rows: _Rows) -> None:
        """d = Σ_i δ_i |h_i − λ_i H|, participation ≥ 2c (2zd − z²H) for the slopes z known."""
        if self.horizon == 0.0:
            return
        a, c, at = self.arrays, self.choices, self.layout
        for j in self.needed:
            devices = np.flatnonzero(a.has_data[:, j])
            delta, share = a.dissimilarity[devices, j], a.aggregation_weight[devices, j]
            away = rows.new(len(devices))
            mine = np.flatnonzero(c.task == j)
            row = np.searchsorted(devices, c.device[mine])
            own = delta[row] * c.h[mine] / self.h_unit[j]
            every = np.arange(len(devices))
            for sign in (1.0, -1.0):
                total = (every, np.full(len(every), at.h.start + j), sign * delta * share)
                rows.block([(row, self._y(mine), -sign * own), total, (every, away, np.ones(len(every)))], 0.0, np.inf, len(every))
            top = 2.0 * float(delta.max(initial=0.0))
            for z in sorted({z for task, z in self.wisdom.slope if task == j} | {top * share for share in _SLOPES}):
                tangent = [(away, np.full(len(away), -2.0 * self.horizon * z)), ([at.part.start + j], [1.0])]
                rows.add([*tangent, ([at.h.start + j], [self.horizon * z * z])], 0.0, np.inf)

    def _stale_rows(self, rows: _Rows) -> None:
        """Staleness of a task ≥ Σ over (device, instant) of the products that the rows known bound from below."""
        at = self.layout
        product: dict[tuple[int, int, int], int] = {}
        for row in sorted(self.wisdom.stale, key=lambda r: (r.task, r.instant, r.device, r.least)):
            key = (row.task, row.instant, row.device)
            if key not in product:
                product[key] = int(rows.new(1)[0])
            over = self._spanning(row.device, row.task, row.instant, row.least)
            ending, noise, most = self._noise_at(row.task, row.instant)
            b = self.stale_weight[row.task] * row.least / self.h_unit[row.task]
            rows.add([([product[key]], [1.0]), (ending, -b * noise), (self._y(over), np.full(len(over), -b * most))], -b * most, np.inf)
        for j in {task for task, _, _ in product}:
            mine = [column for (task, _, _), column in product.items() if task == j]
            rows.add([([at.stale.start + j], [1.0]), (mine, -np.ones(len(mine)))], 0.0, np.inf)

    def _spanning(self, device: int, task: int, instant: int, least: float) -> IntArray:
        """Choices of a device that span an instant with h κ of at least ``least``; at most one can be made."""
        c = self.choices
        return np.flatnonzero((c.device == device) & (c.task == task) & (c.start < instant) & (instant < c.end) & (c.stale >= least))

    def _noise_at(self, task: int, instant: int) -> tuple[IntArray, FloatArray, float]:
        """Columns that end at an instant, their noise, and the most that there can be of it."""
        c = self.choices
        ending = np.flatnonzero((c.task[c.of] == task) & (c.end[c.of] == instant))
        most = np.zeros(self.arrays.num_devices)
        np.maximum.at(most, c.device[c.of[ending]], self.columns.noise[ending])
        return ending, self.columns.noise[ending], float(most.sum())

    def _mode_rows(self, rows: _Rows) -> None:
        objective, at = self.problem.objective, self.layout
        if objective.mode == "min_energy":
            for j in self.needed:
                allowed = self.arrays.target[j] / FACTOR
                rows.add([([at.h.start + j], [allowed]), ([at.n.start + j], [-1.0])], self.fixed[j], np.inf)
        if objective.mode == "min_bound" and objective.total_energy_j is not None:
            rows.add([(np.arange(len(self.columns)), self.columns.energy_j / objective.total_energy_j)], -np.inf, 1.0)

    def _condition_rows(self, rows: _Rows) -> None:
        """β h_g ≤ 1/2 where that can be broken, and the covers known."""
        if not self.problem.objective.enforce_conditions:
            return
        a, c = self.arrays, self.choices
        key = c.task * (a.slots + 1) + c.end
        for at in np.unique(key):
            mine = np.flatnonzero(key == at)
            beta_h = a.smoothness[c.task[mine]] * c.h[mine] / C2_LIMIT
            most = np.zeros(a.num_devices)
            np.maximum.at(most, c.device[mine], beta_h)
            if most.sum() > 1.0:
                rows.add([(self._y(mine), beta_h)], -np.inf, 1.0)
        for cover in sorted(self.wisdom.covers, key=lambda o: (o.task, o.instant, o.ending, o.spanning)):
            ends = [np.flatnonzero(self._ending(i, cover.task, cover.instant) & (c.h >= h)) for i, h in cover.ending]
            spans = [self._spanning(i, cover.task, cover.instant, least) for i, least in cover.spanning]
            index = np.concatenate([*ends, *spans])
            rows.add([(self._y(index), np.ones(len(index)))], -np.inf, len(ends) + len(spans) - 1.0)

    def _ending(self, device: int, task: int, instant: int) -> np.ndarray:
        c = self.choices
        return (c.device == device) & (c.task == task) & (c.end == instant)

    def _ratio_rows(self, rows: _Rows, box: Box, integer: bool) -> None:
        at, w = self.layout, self.weight / self.unit
        for j in self.ratios:
            h, n, q, r = (block.start + j for block in (at.h, at.n, at.root, at.ratio))
            self._root_rows(rows, box, int(j), integer)
            ends = np.sqrt(w[j] * (self.fixed[j] + np.array([box.n_low[j], box.n_high[j]]))) / np.array([box.h_high[j], box.h_low[j]])
            slopes = np.geomspace(max(ends[0], 1e-9 * ends[1]), ends[1], _CONE)
            for z in [*slopes, *sorted(z for task, z in self.wisdom.cone if task == j)]:
                rows.add([([r, q, h], [1.0, -2.0 * z, z * z])], 0.0, np.inf)
            for ratio, end, side in ((box.r_low[j], box.h_high[j], 1.0), (box.r_high[j], box.h_low[j], -1.0)):
                if np.isfinite(ratio):
                    rows.add([([r, n, h], [1.0, -w[j] / end, ratio / end])], ratio + w[j] * self.fixed[j] / end, np.inf)
                    rows.add([([n, h], [side * w[j], -side * ratio])], -side * w[j] * self.fixed[j], np.inf)

    def _root_rows(self, rows: _Rows, box: Box, j: int, integer: bool) -> None:
        """q ≥ chords of √n over pieces of n = w (C + N): copies of N that are zero but in the piece chosen."""
        at, w, fixed = self.layout, self.weight[j] / self.unit, self.fixed[j]
        low, high = box.n_low[j], box.n_high[j]
        inner = {p for task, p in self.wisdom.breaks if task == j and low < p < high} if integer else set()
        ends = np.array([low, *sorted(inner), high])
        count = len(ends) - 1
        every, one = np.arange(count), np.ones(count)
        root = np.sqrt(w * np.maximum(fixed + ends, 0.0))
        width = np.diff(ends)
        slope = np.divide(np.diff(root), width, out=np.zeros(count), where=width > 0)
        chosen, copies = rows.new(count, whole=integer), rows.new(count)
        rows.add([(chosen, one)], 1.0, 1.0)
        # N = Σ (low end · chosen + copy), copies within the widths
        rows.add([(copies, one), (chosen, ends[:-1]), ([at.n.start + j], [-1.0])], 0.0, 0.0)
        rows.block([(every, copies, one), (every, chosen, -width)], -np.inf, 0.0, count)
        rows.add([([at.root.start + j], [1.0]), (chosen, -root[:-1]), (copies, -slope)], 0.0, np.inf)

    # --- reading points ----------------------------------------------------------------------------------------------------------------

    def ratio_errors(self, x: FloatArray) -> FloatArray:
        """How far the program's ratios are below the true ones at a point, scaled, shape (J,)."""
        at = self.layout
        h, n = np.maximum(x[at.h], 1e-300), x[at.n]
        true = self.weight / self.unit * (self.fixed + n) / h
        return np.where(self.weight > 0, true - x[at.ratio], 0.0)

    def learn(self, x: FloatArray, tolerance: float) -> bool:
        """Add tangents that a point of a program violates by more than ``tolerance`` (scaled); whether there were any."""
        at, before = self.layout, len(self.wisdom)
        h = np.maximum(x[at.h], 1e-300)
        for j in self.ratios:
            z = float(x[at.root][j] / h[j])
            if z * z * h[j] - x[at.ratio][j] > tolerance:
                self.wisdom.cone.add((int(j), z))
        if self.horizon > 0.0:
            for j in self.needed:
                d = self._distance(x, int(j))
                price = self.weight[j] / self.unit / h[j] if self.weight[j] > 0 else 1.0 / max(self.fixed[j], 1e-300)
                if price * (self.horizon * d * d / h[j] - x[at.part][j]) > tolerance:
                    self.wisdom.slope.add((int(j), float(d / h[j])))
        return len(self.wisdom) > before

    def _distance(self, x: FloatArray, j: int) -> float:
        """d of a task, scaled."""
        a, c = self.arrays, self.choices
        mine = c.task == j
        h = np.bincount(c.device[mine], weights=c.h[mine] * x[self.layout.y][mine], minlength=a.num_devices) / self.h_unit[j]
        return float(np.abs(h - a.aggregation_weight[:, j] * h.sum()) @ a.dissimilarity[:, j])


class _Rows:
    """Rows of a program under construction, and the variables added on the way."""

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self.whole: list[IntArray] = []
        self.parts: list[tuple[np.ndarray, np.ndarray, FloatArray]] = []
        self.lower: list[FloatArray] = []
        self.upper: list[FloatArray] = []

    def new(self, count: int, *, whole: bool = False) -> IntArray:
        """Indices of ``count`` more variables, binary if ``whole``."""
        self.width += count
        index = np.arange(self.width - count, self.width)
        if whole:
            self.whole.append(index)
        return index

    def block(self, parts: list[tuple[np.ndarray, np.ndarray, FloatArray]], lower: float, upper: float, count: int) -> slice:
        """``count`` rows with entries (row, column, value) and the same limits; returns where they are."""
        self.parts += [(row + self.count, column, value) for row, column, value in parts]
        self.lower.append(np.full(count, lower))
        self.upper.append(np.full(count, upper))
        self.count += count
        return slice(self.count - count, self.count)

    def add(self, parts: list[tuple[object, object]], lower: float, upper: float) -> None:
        """One row with entries (columns, values)."""
        entries = [(np.asarray(column, dtype=np.int64), np.asarray(value, dtype=float)) for column, value in parts]
        self.block([(np.zeros(len(column), dtype=np.int64), column, value) for column, value in entries], lower, upper, 1)

    def program(self, cost: FloatArray, lower: FloatArray, upper: FloatArray, whole: np.ndarray) -> Program:
        row, column, value = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        matrix = sp.csr_matrix((value, (row, column)), shape=(self.count, self.width))
        return Program(cost, lower, upper, matrix, np.concatenate(self.lower), np.concatenate(self.upper), whole)
