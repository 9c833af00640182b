"""Proven lower bounds: Lagrangian cuts where they are needed, and branching on (H, N) over them.

In modes weighted and min_bound the only non-convex part of the relaxed problem is Σ γ_jΨ_j, a function of H_j and N_j alone; the rest is
bounded by cuts (:mod:`schedopt.cuts`). The search (:mod:`schedopt.ratio_search`) says at which (H, N) the cuts are too low; a master
there gives prices for the next cut, and a pricing of all candidates proves it. In mode min_energy one cut bounds the relaxed problem.
Where the relaxed problem has nothing left to give, the proof goes on by branching on numbers of assignments (:mod:`schedopt.proof`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, LOCAL_DRIFT_FACTOR, fixed_terms
from schedopt.cuts import ROUNDING, Cut, lagrangian_cut, participation_worth
from schedopt.formulation.candidates import Candidates, best_paths, make_columns
from schedopt.participation import over_groups, participation_groups
from schedopt.problem import FloatArray, Problem
from schedopt.proof import ProofTree
from schedopt.ratio_search import RatioSearch, Request
from schedopt.sca.loop import relaxed_objective
from schedopt.sca.master import MasterPoint, solve_point_master
from schedopt.sca.pool import ColumnPool, promising_columns

__all__ = ["METHOD", "METHOD_TREE", "Certifier", "first_order_gap"]

METHOD = "Lagrangian cuts by shortest paths, branching on H and N"
METHOD_TREE = METHOD + ", then on numbers of assignments"

#: Problems of more candidates are not branched on: their nodes take too long to gain anything.
_MOST_BRANCHED = 20_000


class Certifier:
    """A proof under way: cuts, boxes and columns; continues from where it stopped, also with a better schedule.

    ``points``, ``pool``: masters and columns of the relaxation (any will do; good ones save work). ``upper``: objective of a feasible
    schedule; schedules that are no better than it are none of the bound's business.
    """

    def __init__(
        self, problem: Problem, candidates: Candidates, points: Sequence[MasterPoint], pool: ColumnPool, upper: float, *, backend: str
    ) -> None:
        self.problem, self.candidates, self.pool, self.backend = problem, candidates, pool.copy(), backend
        self.cuts = 0
        #: the best relaxed point seen, by its exact ratios: where the relaxation should look next
        self.best_point: MasterPoint | None = None
        self._like = points[-1]
        self._known = list(points)
        self._floor = 0.0
        self._search: RatioSearch | None = None
        self._tree: ProofTree | None = None
        if problem.objective.mode != "min_energy":
            self._start_search(upper)
        for point in points:
            self._add_cut(point)

    def _start_search(self, upper: float) -> None:
        a = self.problem.arrays
        self.active = a.weight > 0
        least = least_error(self.problem, self.candidates)
        h_low, h_high, n_high = (side[self.active] for side in _first_box(self.problem, self.candidates, upper, least))
        self._search = RatioSearch(FACTOR * a.weight[self.active], fixed_terms(a)[self.active], least[self.active], (h_low, h_high, n_high))
        # V is a sum of energies, or nothing: never negative
        self._search.add(Cut(np.zeros(a.num_tasks), np.zeros(a.num_tasks), 0.0), self.active)

    @property
    def proven(self) -> float:
        """Lower bound on the objective of every feasible schedule, as far as it is below ``upper``."""
        known = self._floor if self._search is None else self._search.proven
        return known if self._tree is None else max(known, self._tree.proven)

    @property
    def points(self) -> Sequence[MasterPoint]:
        """Masters solved so far, at many (H, N), and relaxed points of the tree: to make schedules of."""
        return self._known

    @property
    def method(self) -> str:
        """How the bound was found."""
        return METHOD if self._tree is None else METHOD_TREE

    def _add_cut(self, point: MasterPoint) -> None:
        cut, priced = lagrangian_cut(self.problem, self.candidates, point)
        self.cuts += 1
        if not np.isfinite([*cut.h_price, *cut.error_price, cut.level]).all():
            # numbers beyond 64-bit arithmetic prove nothing
            return
        if self._search is None:
            # C + N ≤ (3/8) ε H: V ≥ ρ((3/8) ε H − N) + K ≥ ρC + K
            fixed = fixed_terms(self.problem.arrays)
            self._floor = max(self._floor, float(cut.error_price @ fixed) * (1.0 - ROUNDING) + cut.level)
        else:
            self._search.add(cut, self.active)
        if point.columns is self.pool.columns:
            self.pool.forget(point.weights)
        self.pool.add(promising_columns(self.candidates, priced.columns, best_paths(self.candidates, priced.cost)))

    @property
    def relaxed(self) -> bool:
        """Whether the relaxed problem has no more to give: only branching on assignments can raise the bound."""
        return self._tree is not None or self._search is None or self._search.stalled or not self._search.heap

    def run(
        self,
        upper: float,
        *,
        target_gap: float,
        max_cuts: int = 1_000,
        branch: bool = False,
        on_cut: Callable[[int, float], None] | None = None,
    ) -> float:
        """Raise the bound to ``upper``·(1 − target_gap), or until ``max_cuts`` more cuts; returns min(bound, upper).

        ``branch``: go on with branching on numbers of assignments where the relaxed problem has no more to give. ``on_cut(count, bound)``
        is called at every box with the number of cuts and the bound proven so far, and may raise to stop.
        """
        cutoff = upper - target_gap * abs(upper)
        limit = self.cuts + max_cuts
        search = self._search
        while search is not None and not self.relaxed and self._open(cutoff, limit):
            request = search.step(cutoff)
            if on_cut is not None:
                on_cut(self.cuts, min(search.proven, upper))
            if request is None:
                continue
            point = self._point_at(request, abs(upper))
            if point is None:
                break
            self._add_cut(point)
        if branch and self._open(cutoff, limit) and len(self.candidates) <= _MOST_BRANCHED:
            self._branch(upper, cutoff, limit, on_cut)
        return min(self.proven, upper)

    def _open(self, cutoff: float, limit: int) -> bool:
        return self.proven < cutoff and self.cuts < limit

    def _branch(self, upper: float, cutoff: float, limit: int, on_cut: Callable[[int, float], None] | None) -> None:
        """Continue the proof on numbers of assignments."""

        def tick() -> None:
            self.cuts += 1
            if on_cut is not None:
                on_cut(self.cuts, min(self.proven, upper))

        if self._tree is None:
            self._tree = ProofTree(
                self.problem,
                self.candidates,
                self.pool.columns,
                self._search,
                floor=self._floor,
                unit=max(abs(upper), 1e-300),
                point=self._like,
                least=least_error(self.problem, self.candidates),
            )
        while self._tree.heap and self._open(cutoff, limit):
            solution = self._tree.step(cutoff, tick)
            if solution is not None:
                used = solution.weights > 0
                self._known.append(replace(self._like, columns=solution.columns.take(used), weights=solution.weights[used]))

    def _point_at(self, request: Request, scale: float) -> MasterPoint | None:
        """Prices for a cut between the point asked for and the relaxation's solution, where cuts are deeper, or exactly there.

        Every third comes from a master there; the others take the slopes of the ratios as prices of H and N, and the rest of the prices
        from the nearest master: they cost a pricing only.
        """
        h, error = self._like.h.copy(), np.maximum(self._like.error, 1e-9)
        inner = 0.0 if request.exact else 0.5
        h[self.active] = h[self.active] ** inner * request.h ** (1 - inner)
        error[self.active] = error[self.active] ** inner * np.maximum(request.n, 1e-9) ** (1 - inner)
        if self.cuts % 3 and not request.exact:
            return self._nearest_with_slopes(h, error)
        point = solve_point_master(self.problem, self.candidates, self.pool.columns, h, error, scale=scale, backend=self.backend)
        if point is not None and point.slack < 1e-6:
            self._known.append(point)
            best = self.best_point
            if best is None or relaxed_objective(self.problem, point) < relaxed_objective(self.problem, best):
                self.best_point = point
        return point

    def _nearest_with_slopes(self, h: FloatArray, error: FloatArray) -> MasterPoint:
        fixed = fixed_terms(self.problem.arrays)

        def distance(point: MasterPoint) -> float:
            off = np.abs(np.log(np.maximum(point.h, 1e-300) / h)) + np.abs(np.log((point.error + fixed) / (error + fixed)))
            return float(off[self.active].sum())

        return _with_slopes(self.problem, min(self._known, key=distance), h, error)


def first_order_gap(problem: Problem, candidates: Candidates, point: MasterPoint) -> float:
    """How much the linearised relaxed problem could still gain at a master's solution, relative to the objective.

    The ratios' slopes at the point price H and N; a cut at these prices bounds the rest of the objective from below. Zero exactly at a
    stationary point of the relaxed problem (Frank–Wolfe gap); computed from a pricing of all candidates, not from the conic solver.
    """
    energy_weight = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": 0.0}[problem.objective.mode]
    if problem.objective.mode != "min_energy":
        point = _with_slopes(problem, point, np.maximum(point.h, 1e-300), point.error)
    cut, _ = lagrangian_cut(problem, candidates, point)
    gap = energy_weight * point.energy_j - float(cut.h_price @ point.h - cut.error_price @ point.error) - cut.level
    return max(gap, 0.0) / max(abs(relaxed_objective(problem, point)), 1e-300)


def _with_slopes(problem: Problem, near: MasterPoint, h: FloatArray, error: FloatArray) -> MasterPoint:
    """A master's prices with those of H and N replaced by the ratios' slopes at (h, error)."""
    w, fixed = FACTOR * problem.arrays.weight, fixed_terms(problem.arrays)
    noise, value = w / h, w * (fixed + error) / h**2
    ratio = np.divide(noise, near.prices.noise, out=np.zeros_like(noise), where=near.prices.noise > 0)
    pull = near.task_value - near.prices.value
    pull, value = pull * over_groups(ratio, pull), participation_groups(problem).spread(value)
    moved = replace(near, task_value=value, prices=replace(near.prices, noise=noise, value=value - pull))
    worth = participation_worth(problem, moved)
    return replace(moved, task_value=value + worth, prices=replace(moved.prices, value=value + worth - pull))


def least_error(problem: Problem, candidates: Candidates) -> FloatArray:
    """ρ_j: least scaled error per unit of h of any candidate (one step, full batch), shape (J,)."""
    a, i, j = candidates.arrays, candidates.device, candidates.task
    local = candidates.scale["local"] * 2.0 * (a.smoothness * a.learning_rate)[j] ** 2 * LOCAL_DRIFT_FACTOR * a.dissimilarity[i, j] ** 2
    rho = np.full(a.num_tasks, np.inf)
    np.minimum.at(rho, j, candidates.linear_error + local)
    return np.where(np.isfinite(rho), rho * (1.0 - ROUNDING), 0.0)


def _first_box(problem: Problem, candidates: Candidates, upper: float, least: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Low and high H and high N of every schedule at least as good as ``upper``, shape (J,) each.

    Every task's Ψ costs at least w(C/H + ρ); a device aggregates at most once per slot, with at most the most steps.
    """
    a = problem.arrays
    last = candidates.steps.max(axis=1)[candidates.task].astype(float)
    one = np.ones(len(candidates))
    h = make_columns(candidates, np.arange(len(candidates)), last, last, 0.5 * candidates.available_s, one).h
    most = np.zeros((a.num_devices, a.num_tasks, a.slots))
    np.maximum.at(most, (candidates.device, candidates.task, candidates.end - 1), h)
    high = np.maximum(most.sum(axis=(0, 2)) * (1.0 + ROUNDING), 1e-300)
    w, fixed = FACTOR * a.weight, fixed_terms(a)
    cheapest = w * (fixed / high + least)
    others = cheapest.sum() - cheapest
    worst = upper * (1.0 + ROUNDING) - others
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(w > 0, w * fixed / (worst - w * least), high)
        most_error = np.where(w > 0, worst * high / w - fixed, 0.0)
    low = np.clip(np.where(np.isfinite(low) & (low > 0), low, 1e-9 * high), 1e-9 * high, high)
    return low * (1.0 - ROUNDING), high, np.maximum(most_error, least * high)
