"""The discretised problem to proven optimality: Lagrangian fixing of columns, boxes of H and M, and a MILP where boxes are tight enough.

The linear relaxation's duals price all columns; a device that must use one pays its regret (a shortest path per device), and what costs
more than the incumbent can be in no better solution. What is left bounds H and M of every better solution by linear programs. In a box
the ratios' relaxation is off by little: a box is split while that is what keeps it open, else its MILP is solved. Best box first, so
that the least bound of what is open bounds the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, best_paths
from schedopt.milp.exact import Combination, best_mixture, learn_from
from schedopt.milp.highs import Outcome, Program, solve_program, sweep
from schedopt.milp.model import Box, Discretised, Wisdom, choice_keys
from schedopt.objective import needed_tasks
from schedopt.problem import FloatArray, IntArray, Problem

__all__ = ["LEAST_GAP", "CombinationSearch", "Proof", "best_combination"]

#: Rounding and tolerances of linear programs, relative to the objective.
SAFETY = 1e-7
#: Gaps below this cannot be proven at these tolerances.
LEAST_GAP = 1e-5
#: Rounds of pricing and box tightening, and of tangents in one relaxation.
_SHRINKS = 3
_PASSES = 12
#: What the ends of the box are good for, relative.
_LOOSE = 1e-6
#: A MILP is solved to this share of what the ratios' relaxation may be off by.
_SHARE = 0.25
#: Gap of the MILP that finds a first point.
_FIRST_GAP = 0.05
#: An incumbent better by this much (relative) is worth leaving out more.
_WORTH_SHRINKING = 5e-4
#: Relative width of the first pieces of C + N: the ratios' relaxation is off by its square over 16 at most.
_PIECE = 0.06


@dataclass(frozen=True)
class Proof:
    """Outcome of a search: the best combination (None if there is none), the proven least value of any, and whether the gap was reached."""

    best: Combination | None
    bound: float
    finished: bool

    @property
    def gap(self) -> float:
        """(value − bound)/|value| of the discretised problem; +inf without a combination."""
        if self.best is None:
            return np.inf
        return max(self.best.value - self.bound, 0.0) / max(abs(self.best.value), 1e-300)


class CombinationSearch:
    """A search under way; what it holds is valid whenever it stops.

    ``max_nodes``: of each MILP, which ends the search where it does not suffice. ``on_tick(bound)`` is called now and then with the proven
    bound and may raise to stop; ``on_better(combination)`` at improvements.
    """

    def __init__(
        self,
        problem: Problem,
        candidates: Candidates,
        columns: Columns,
        *,
        start: Columns | None = None,
        gap: float = 1e-4,
        max_nodes: int | None = None,
        on_tick: Callable[[float], None] | None = None,
        on_better: Callable[[Combination], None] | None = None,
    ) -> None:
        self.max_nodes = max_nodes
        self.gap, self.on_tick, self.on_better = gap, on_tick, on_better
        self.best: Combination | None = None
        #: proven bound over the unit (energies and errors are not negative), and by how much the last MILP was off (relative)
        self.proven, self.missing = 0.0, _FIRST_GAP
        self.milps = 0
        columns = _relevant(problem, candidates, columns if start is None else columns.concat(start))
        #: columns of the discretised problem
        self.size = len(columns)
        self.possible = bool(np.all(np.isin(np.flatnonzero(needed_tasks(problem)), candidates.task[columns.candidate])))
        if self.possible:
            self.model = _discretised(problem, candidates, columns)
            self.box = _first_box(self.model)
            if start is not None and len(start):
                self.best = best_mixture(self.model, np.unique(self.model.choices.of[-len(_relevant(problem, candidates, start)) :]))

    @property
    def value(self) -> float:
        """Value of the best combination over the unit."""
        return np.inf if self.best is None else self.best.value / self.model.unit

    @property
    def bound(self) -> float:
        """Proven least value of the discretised problem (its own unit); +inf: there is no combination."""
        if not self.possible:
            return np.inf
        return min(self.proven, self.value) * self.model.unit if self.proven > -np.inf else -np.inf

    def proof(self) -> Proof:
        """What is known now."""
        made = Proof(self.best, self.bound, False)
        return replace(made, finished=self.bound == np.inf or made.gap <= self.gap)

    def run(self) -> Proof:
        """Search to the end."""
        if not self.possible:
            return self.proof()
        reached = np.inf
        while True:
            if self.value < reached * (1.0 - _WORTH_SHRINKING):
                reached = self.value
                self._shrink()
            if self.proven >= self._enough() or not self._round():
                return self.proof()

    def _enough(self) -> float:
        return self.value * (1.0 - self.gap)

    def _raise(self, bound: float) -> None:
        """A bound from HiGHS, less its tolerances."""
        self.proven = max(self.proven, bound - SAFETY * abs(bound) if np.isfinite(bound) else bound)

    def _tick(self) -> None:
        if self.on_tick is not None:
            self.on_tick(self.bound)

    def _round(self) -> bool:
        """One MILP and what its best point teaches; whether another is worth it."""
        self._relax()
        self.milps += 1
        first, known = self.best is None, len(self.model.wisdom)
        points: list[np.ndarray] = []
        outcome = solve_program(
            self.model.program(self.box, integer=True, cutoff=self.value),
            relative_gap=_FIRST_GAP if first else _SHARE * self.missing,
            max_nodes=self.max_nodes,
            start=self._start(),
            on_tick=self._tick,
            on_bound=self._raise,
            on_point=lambda x: self._at(x, points),
        )
        x = outcome.x
        if x is None:
            return False
        self._at(x, points)
        if self.proven >= self._enough() or not outcome.finished:
            return False
        return self._teach(x, outcome.value) or len(self.model.wisdom) > known or (first and self.best is not None)

    def _teach(self, x: FloatArray, value: float) -> bool:
        """Add what the point of a MILP, worth ``value`` there, asks for; whether the next MILP can be better or more precise."""
        gained = self.model.learn(x, 0.01 * self.gap * abs(value))
        gained |= self._break_up(x, self.model.ratio_errors(x))
        exact = best_mixture(self.model, np.flatnonzero(x[self.model.layout.y] > 0.5))
        missing = self.missing if exact is None else (exact.value / self.model.unit - value) / abs(value)
        finer = max(missing, 2.0 * self.gap) < 0.9 * self.missing
        self.missing = max(min(missing, 0.5 * self.missing), 2.0 * self.gap)
        return gained or finer

    def _start(self) -> tuple[IntArray, FloatArray] | None:
        """The best combination as a start of a MILP, if it lies in the box."""
        if self.best is None:
            return None
        inside = (self.best.h >= self.box.h_low) & (self.best.h <= self.box.h_high)
        made = self._choices_of(self.best.columns)
        if made is None or not np.all(inside[self.model.ratios]):
            return None
        y = np.zeros(len(self.model.choices))
        y[made] = 1.0
        return np.arange(self.model.layout.y.start, self.model.layout.y.stop), y

    def _choices_of(self, columns: Columns) -> IntArray | None:
        """The choices of given columns; None if one of them has been left out."""
        c = self.model.choices
        index = {key: k for k, key in enumerate(zip(c.candidate.tolist(), c.steps.tolist(), c.work.tolist(), strict=True))}
        wanted = {tuple(key) for key in choice_keys(columns).T.tolist()}
        return np.array(sorted(index[key] for key in wanted)) if wanted <= index.keys() else None

    def _at(self, x: FloatArray, points: list[np.ndarray]) -> None:
        """Judge a point of a MILP by its exact value."""
        y = x[self.model.layout.y] > 0.5
        if not any(np.array_equal(y, other) for other in points):
            points.append(y)
            made = np.flatnonzero(y)
            self._take(made)
            learn_from(self.model, made, x[self.model.layout.x], 0.01 * self.gap * min(self.value, 1.0))

    def _take(self, made: IntArray) -> None:
        found = best_mixture(self.model, made)
        if found is not None and (self.best is None or found.value < self.best.value):
            self.best = found
            if self.on_better is not None:
                self.on_better(found)

    def _break_up(self, x: FloatArray, error: FloatArray) -> bool:
        """Pieces that meet where the point has N, and near it, for the tasks whose ratios are off; whether there are new ones."""
        before = len(self.model.wisdom)
        n, fixed, box = x[self.model.layout.n], self.model.fixed, self.box
        for j in np.flatnonzero(error > 0.1 * self.gap * self.value / len(error)):
            known = np.array([box.n_low[j], box.n_high[j], *(p for task, p in self.model.wisdom.breaks if task == j)])
            below, above = known[known <= n[j]].max(initial=box.n_low[j]), known[known >= n[j]].min(initial=box.n_high[j])
            for point in (n[j], n[j] - 0.3 * (n[j] - below), n[j] + 0.3 * (above - n[j])):
                if np.min(np.abs(known - point)) > SAFETY * (n[j] + fixed[j]):
                    self.model.wisdom.breaks.add((int(j), float(point)))
        return len(self.model.wisdom) > before

    # --- relaxations -------------------------------------------------------------------------------------------------------------------

    def _relax(self) -> Outcome:
        """The linear relaxation, with the tangents that its solution asks for."""
        for _ in range(_PASSES):
            outcome = self._solve_linear(self.model.program(self.box, integer=False))
            if outcome.x is None or not self.model.learn(outcome.x, 0.02 * self.gap * abs(outcome.value)):
                break
        self._raise(outcome.bound)
        return outcome

    def _solve_linear(self, program: Program) -> Outcome:
        return solve_program(program, on_tick=self._tick)

    def _shrink(self) -> None:
        """Leave out columns that no better combination can use, and tighten H, N and ratios to where better ones can be."""
        for _ in range(_SHRINKS):
            columns, width = len(self.model.columns), self._width()
            relaxed = self._relax()
            if relaxed.row_dual is None or self.proven >= self._enough():
                break
            self._leave_out(relaxed)
            self._tighten()
            if len(self.model.columns) > 0.95 * columns and self._width() > 0.9 * width:
                break
        if self.best is not None:
            self._first_pieces()

    def _first_pieces(self) -> None:
        """Pieces of N that meet at the incumbent's, about :data:`_PIECE` wide."""
        fixed, box = self.model.fixed, self.box
        assert self.best is not None
        for j in self.model.ratios:
            low, middle, high = (fixed[j] + end for end in (box.n_low[j], self.best.error[j], box.n_high[j]))
            for first, last in ((low, middle), (middle, high)):
                if 0.0 < first < last:
                    points = np.geomspace(first, last, int(np.ceil(np.log(last / first) / _PIECE)) + 1) - fixed[j]
                    self.model.wisdom.breaks |= {(int(j), float(point)) for point in points if box.n_low[j] < point < box.n_high[j]}

    def _width(self) -> float:
        """How wide the box is: the product of the widths of H and of C + N, relative."""
        box, ratios = self.box, self.model.ratios
        return float(np.prod(((box.h_high - box.h_low) / box.h_high * (box.n_high - box.n_low) / (self.model.fixed + box.n_high))[ratios]))

    def _leave_out(self, relaxed: Outcome) -> None:
        """Columns whose Lagrangian regret exceeds what separates the relaxation from the incumbent."""
        model, program = self.model, self.model.program(self.box, integer=False)
        assert relaxed.row_dual is not None
        links, packing = len(model.choices), model.packing
        dual = relaxed.row_dual.copy()
        if len(dual) != program.rows.shape[0]:
            # tangents were learnt at the last point: they have no dual yet
            relaxed = self._solve_linear(program)
            if relaxed.row_dual is None:
                return
            dual = relaxed.row_dual.copy()
        slots = float(dual[packing].sum())
        dual[:links] = 0.0
        dual[packing] = 0.0
        reduced = program.cost - program.rows.T @ dual
        cost = reduced[model.layout.x] + reduced[model.layout.y][model.choices.of]
        least = np.full(len(model.candidates), np.inf)
        np.minimum.at(least, model.columns.candidate, cost)
        paths = best_paths(model.candidates, least)
        floor = relaxed.value - slots + float(paths.value.sum())
        regret = paths.regret[model.columns.candidate] + cost - least[model.columns.candidate]
        keep = floor + regret <= self.value + SAFETY * abs(self.value)
        if not np.all(keep):
            self.model = model.restrict(keep)

    def _tighten(self) -> None:
        """The least and the most H, N and ratio of each task among the points of the relaxation that are not worse than the incumbent."""
        model, at, box = self.model, self.model.layout, self.box
        if len(model.ratios) == 0 or self.best is None:
            return
        rest = self.value * (1.0 + SAFETY) - box.r_low.sum() + box.r_low
        self.box = box = replace(box, r_high=np.minimum(box.r_high, np.where(model.weight > 0, rest, np.inf)))
        program = model.program(box, integer=False, cutoff=self.value * (1.0 + SAFETY))
        asked = [(side, end, int(j)) for j in model.ratios for side in "hrn" for end in ("low", "high")]
        costs = np.zeros((len(asked), program.rows.shape[1]))
        for row, (side, end, j) in zip(costs, asked, strict=True):
            sign = 1.0 if end == "low" else -1.0
            entries = {"h": [(at.h, 1.0)], "r": [(at.ratio, 1.0)], "n": [(at.n, 1.0)]}[side]
            for block, value in entries:
                row[block.start + j] = sign * value
        ends = {name: getattr(box, name).copy() for name in vars(box)}
        for (side, end, j), least in zip(asked, sweep(program, costs), strict=True):
            self._tick()
            if least is None:
                continue
            value = least
            margin = _LOOSE * max(abs(value), {"h": 1.0, "r": self.value, "n": model.fixed[j]}[side])
            old = ends[f"{side}_{end}"]
            old[j] = max(old[j], value - margin) if end == "low" else min(old[j], -value + margin)
        self.box = Box(**ends)


def _relevant(problem: Problem, candidates: Candidates, columns: Columns) -> Columns:
    """Columns of tasks that need training; the others only cost."""
    return columns.take(needed_tasks(problem)[candidates.task[columns.candidate]])


def _discretised(problem: Problem, candidates: Candidates, columns: Columns) -> Discretised:
    """Units: half of the most H, and about the objective there."""
    a, task = problem.arrays, candidates.task[columns.candidate]
    tasks = a.num_tasks
    h_unit = np.array([0.5 * max(_most(candidates, columns, columns.h * (task == j)), 2e-300) for j in range(tasks)])
    total = np.bincount(task, weights=columns.h, minlength=tasks)
    error = np.bincount(task, weights=columns.error, minlength=tasks) / np.where(total > 0, total, 1.0)
    plain = Discretised(problem, candidates, columns, Wisdom(), 1.0, h_unit)
    ratio = float((plain.weight * (plain.fixed + error))[plain.ratios].sum())
    energy = plain.energy_price * float(np.median(columns.energy_j)) * a.slots * a.num_devices / 4.0
    return Discretised(problem, candidates, columns, plain.wisdom, max(ratio + energy, 1e-300), h_unit)


def _most(candidates: Candidates, columns: Columns, values: FloatArray) -> float:
    """The most that disjoint columns of all devices can sum up to."""
    cost = np.full(len(candidates), np.inf)
    np.minimum.at(cost, columns.candidate, -values)
    return -float(best_paths(candidates, cost).value.sum())


def _first_box(model: Discretised) -> Box:
    """Intervals of H, N and the ratios that hold every combination."""
    a, c, columns = model.arrays, model.choices, model.columns
    task = c.task[c.of]
    box = Box(*(np.full(a.num_tasks, end) for end in (0.0, np.inf, 0.0, np.inf, 0.0, np.inf)))
    for j in model.needed:
        mine, unit = task == j, model.h_unit[j]
        box.h_low[j] = float(c.h[c.task == j].min()) / unit * (1.0 - SAFETY)
        box.h_high[j] = h_high = _most(model.candidates, columns, columns.h * mine) / unit * (1.0 + SAFETY)
        part = model.horizon * 4.0 * float(a.dissimilarity[:, j].max()) ** 2 * h_high
        spans = np.zeros(a.num_devices)
        np.maximum.at(spans, c.device, np.where(c.task == j, c.stale, 0.0))
        stale = model.stale_weight[j] * spans.sum() * _most(model.candidates, columns, columns.noise * mine) / unit
        box.n_high[j] = (_most(model.candidates, columns, columns.error * mine) / unit + part + stale) * (1.0 + SAFETY)
        box.n_low[j] = float((columns.error[mine] / columns.h[mine]).min()) * box.h_low[j] * (1.0 - SAFETY)
        box.r_low[j] = model.weight[j] / model.unit * (model.fixed[j] + box.n_low[j]) / h_high
    return box


class _Late(Exception):
    """The time of a call is up."""


def best_combination(
    problem: Problem,
    candidates: Candidates,
    columns: Columns,
    *,
    start: Columns | None = None,
    gap: float = 1e-4,
    time_limit_s: float | None = None,
    on_tick: Callable[[float], None] | None = None,
    on_better: Callable[[Combination], None] | None = None,
) -> Proof:
    """The best combination of ``columns``, one per device and slot at most, within every constraint of ``problem``.

    Steps and batches of ``columns`` should be whole (:func:`~schedopt.milp.grid.whole_columns`): the combination then is a schedule,
    and :func:`~schedopt.state.state_of` gives it resources that are at least as good.

    ``start``: columns that together are feasible, whose value is to be beaten. ``gap``: relative, of the discretised problem. What
    ``on_tick`` and ``on_better`` raise passes through.
    """
    begun = time.monotonic()

    def tick(bound: float) -> None:
        if time_limit_s is not None and time.monotonic() - begun > time_limit_s:
            raise _Late
        if on_tick is not None:
            on_tick(bound)

    search = CombinationSearch(problem, candidates, columns, start=start, gap=gap, on_tick=tick, on_better=on_better)
    try:
        return search.run()
    except _Late:
        return search.proof()
