r"""Column generation for many devices, stabilised: the relaxed problem without a list of all assignments.

A master (:func:`schedopt.sca.master.solve_columns_master`) mixes the columns that are known; its duals, pulled towards the prices of the
best bound so far (Wentges smoothing), are those at which the best plan of every device, and what comes close to it, is sought next.
Ratios are linearised anew at every master, as in :mod:`schedopt.sca.loop`. The first columns come from the prices of a sample
(:mod:`schedopt.colgen.sampling`) or from :mod:`schedopt.colgen.first_plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.colgen.first_plans import NEAR, first_plans
from schedopt.colgen.pool import SharedPool
from schedopt.colgen.workers import PlanRequest
from schedopt.cuts import CutPrices, cut_prices, least_ratio
from schedopt.errors import SolverError
from schedopt.formulation.candidates import Prices
from schedopt.formulation.tables import PlanColumns, Plans
from schedopt.problem import FloatArray, Problem
from schedopt.sca.loop import first_scale, model_at, next_model, next_scale, relaxed_objective
from schedopt.sca.master import MasterPoint, MasterScale, solve_columns_master
from schedopt.sca.surrogates import RatioModel

__all__ = ["PlanRelaxation", "generate_plans", "local_bound"]

Ask = Callable[..., Sequence[Plans]]

#: Share of the best prices so far in those that are tried next: at first where prices are known, at most, and how it falls after a
#: better bound and grows (towards one) after a worse one.
_TRUST, _MOST_SHARE, _LESS, _MORE = 0.9, 0.95, 0.8, 0.7
#: Relative gap of the first master beyond which known prices are not near enough to be trusted.
_FAR = 0.15
#: Worse bounds in a row after which the prices last tried take the place of the best.
_PATIENCE = 3


@dataclass(frozen=True)
class PlanRelaxation:
    """Where column generation ended: the best master, and the prices of the best local bound.

    ``bound``: that bound (proven for schedules with the same ratios N_j/H_j only); ``plans``: best plans at its prices; ``at``: what they
    were priced with; ``merit``: objective of the best master after each.
    """

    best: MasterPoint
    plans: Plans
    at: CutPrices
    bound: float
    merit: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Relative distance of the last merit to the local bound."""
        return (self.merit[-1] - self.bound) / max(abs(self.merit[-1]), 1e-300)


def local_bound(problem: Problem, point: MasterPoint, at: CutPrices, plans: Plans) -> float:
    """Bound on schedules whose ratios N_j/H_j are the point's (on all schedules in mode min_energy), by the best plans at ``at``."""
    a, fixed = problem.arrays, fixed_terms(problem.arrays)
    level = at.multipliers.constant + float(plans.lower.sum())
    if problem.objective.mode == "min_energy":
        return level + float(at.error @ fixed)
    ratio = point.error / np.maximum(point.h, 1e-300)
    return level + float(np.sum(least_ratio(FACTOR * a.weight, fixed, ratio, at.h - at.error * ratio)[a.weight > 0]))


def _mixed(center: MasterPoint, new: MasterPoint, share: float) -> MasterPoint:
    """The new point with its prices pulled towards the centre's: ``share`` of the centre."""

    def mix(a: FloatArray, b: FloatArray) -> FloatArray:
        return share * a + (1.0 - share) * b

    c, n = center.prices, new.prices
    prices = Prices(mix(c.energy, n.energy), mix(c.bandwidth, n.bandwidth), mix(c.value, n.value), mix(c.noise, n.noise))
    return replace(new, prices=prices, task_value=mix(center.task_value, new.task_value))


def generate_plans(
    problem: Problem,
    ask: Ask,
    *,
    backend: str,
    tolerance: float,
    max_iterations: int,
    smoothing: float,
    prox: float,
    start: MasterPoint | None = None,
    on_iteration: Callable[[MasterPoint, float], None],
    tick: Callable[[], None],
) -> PlanRelaxation:
    """Stationary point of the relaxed problem, to a relative gap of ``tolerance`` at fixed ratios.

    ``ask(*requests)`` prices; ``start``: prices near the answer's, if known; ``smoothing`` in [0, 1): weight of the best prices so far in
    the next ones; ``on_iteration(point, merit)`` and ``tick()`` may raise to stop. Raises SolverError if the backend fails on the first
    master.
    """
    fixed = fixed_terms(problem.arrays)
    kept: PlanRelaxation | None = None
    center, merit = start, list[float]()
    if start is None:
        pool, h = first_plans(problem, ask, tick)
        error, share = 0.5 * fixed, smoothing
    else:
        h, error, share = np.maximum(start.h, 1e-300), np.maximum(start.error, 1e-6 * fixed), max(smoothing, _TRUST)
        kept, near_start = _priced(problem, start, start, ask, merit)
        pool = SharedPool(near_start)
        tick()
    best: MasterPoint | None = None
    vain = 0
    while True:
        if best is None:
            scale, model = first_scale(problem, h), model_at(problem, h, error, True)
        else:
            scale, model = next_scale(problem, best), next_model(problem, best)
        new = _master(problem, pool, model, scale, backend, 0.0 if best is None else prox, first=best is None)
        tick()
        if new is None:
            # what is known is a valid relaxed point, if not a stationary one: its gap says how far off
            if best is None or kept is None:
                raise SolverError(f"backend {backend} failed on a master of {len(pool)} columns; try another --backend")
            return kept
        if best is None or best.slack >= 1e-6 or relaxed_objective(problem, new) <= merit[-1]:
            best = new
        merit.append(relaxed_objective(problem, best))
        on_iteration(best, merit[-1])
        pool.forget(new.weights)
        if kept is not None:
            # the best prices are judged at the ratios of today
            bound = local_bound(problem, best, kept.at, kept.plans)
            kept = replace(kept, bound=bound, merit=tuple(merit))
            if len(merit) == 1 and kept.gap > _FAR:
                share = smoothing
        for pull in (share, 0.0) if share > 0 and center is not None else (0.0,):
            at = _mixed(center, new, pull) if pull > 0 and center is not None else new
            found, columns = _priced(problem, at, best, ask, merit)
            tick()
            fresh = pool.add(columns)
            better = kept is None or found.bound >= kept.bound
            if better:
                kept, center = found, at
            if fresh:
                break
        vain = 0 if better else vain + 1
        share = _LESS * share if better else min(1.0 - _MORE * (1.0 - max(share, smoothing)), _MOST_SHARE)
        if vain == _PATIENCE:
            # prices that nothing near them betters hold the masters back
            share, vain, center = smoothing, 0, at
        assert kept is not None
        kept = replace(kept, best=best, merit=tuple(merit))
        if not fresh or (kept.gap < tolerance and best.slack < 1e-6) or len(merit) >= max_iterations:
            return kept


def _priced(
    problem: Problem, at: MasterPoint, best: MasterPoint, ask: Ask, merit: Sequence[float]
) -> tuple[PlanRelaxation, PlanColumns]:
    """What the prices of ``at`` prove beside the point ``best``, and columns near the best plans."""
    cut = cut_prices(problem, at)
    plans = ask(PlanRequest(cut.prices, near=NEAR))[0]
    return PlanRelaxation(best, plans, cut, local_bound(problem, best, cut, plans), tuple(merit)), plans.near


def _master(
    problem: Problem, pool: SharedPool, model: RatioModel | None, scale: MasterScale, backend: str, prox: float, *, first: bool
) -> MasterPoint | None:
    new = solve_columns_master(problem, pool.columns, model, scale, backend=backend, prox=prox)
    if new is None and first:
        # a first guess far off may be badly scaled: the splitting method is slow but does not break down
        new = solve_columns_master(problem, pool.columns, model, scale, backend="scs", prox=prox)
    return new
