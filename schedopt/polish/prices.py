"""Marginal prices of a schedule: gradients of the exact objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, STALE_FACTOR, aggregate, fixed_terms
from schedopt.formulation.candidates import Prices
from schedopt.formulation.resources import marginal_bandwidth_value
from schedopt.participation import over_groups, participation_groups
from schedopt.problem import TERMS, Problem
from schedopt.staleness import window_staleness
from schedopt.state import Merit, State

__all__ = ["marginal_prices"]


def marginal_prices(problem: Problem, state: State, merit: Merit) -> Prices:
    """First-order prices of energy, bandwidth, h and errors at a schedule (gradients of the objective).

    Limits of the mode count at the relaxation's prices, and at the penalty's where a target is missed.
    """
    a, mode = problem.arrays, problem.objective.mode
    scale = dict(zip(TERMS, a.term_scale, strict=True))
    sums = aggregate(a, state.schedule)
    bound = state.evaluation.bound
    # a task that is never trained is priced as if it had a small share of the others' training
    trained = sums.h_total > 0
    h = np.where(trained, sums.h_total, 1e-3 * (float(sums.h_total.max(initial=0.0)) or 1.0))
    w = FACTOR * a.weight
    noise = w / h
    total_terms = np.where(trained, np.where(trained, bound.total, 0.0) * h / FACTOR, fixed_terms(a))
    value = noise * total_terms / h
    energy = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": merit.energy_price / merit.factor}[mode]
    if mode == "min_energy":
        missed = merit.target_misses(state.evaluation) > 0
        noise = np.where(np.isfinite(a.target), merit.target_price * np.where(missed, 1.0, 1.0 / merit.factor), 0.0)
        value = noise * np.where(np.isfinite(a.target), a.target, 0.0) / FACTOR
    worth = np.broadcast_to(value, a.has_data.shape)
    groups = participation_groups(problem)
    if groups.factor > 0.0:
        slope = groups.slopes(groups.sums(state.schedule.device, state.schedule.task, state.schedule.end, sums.h))
        worth = over_groups(value, slope) - over_groups(noise, slope) * groups.factor * slope
    bandwidth = energy * marginal_bandwidth_value(a, state.schedule)
    prices = Prices(energy=np.full(a.num_devices, max(energy, 1e-12)), bandwidth=bandwidth, value=worth, noise=noise)
    if a.windows is not None:
        staleness = window_staleness(a, state.schedule, sums)
        return replace(prices, staleness=staleness, instant_noise=noise[:, None] * staleness.noise)
    stale = (noise * scale["stale"] * STALE_FACTOR * a.smoothness**2)[:, None]
    return replace(prices, span_h=stale * sums.noise_instant, instant_noise=stale * sums.stale_span)
