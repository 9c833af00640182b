"""Rows of the convergence bound: progress, noise, staleness, local drift, participation, conditions, and Ψ itself."""

from __future__ import annotations

import numpy as np

from schedopt.bounds.async_schedule import C2_LIMIT, LOCAL_DRIFT_FACTOR, LOCAL_NOISE_FACTOR, STALE_FACTOR, fixed_terms
from schedopt.formulation.native.variables import Build
from schedopt.formulation.nlp import QuotientRows, RowBuilder
from schedopt.problem import IntArray

__all__ = ["bound_rows", "error_rows"]



def error_rows(build: Build, equalities: RowBuilder, hard: RowBuilder, soft: RowBuilder) -> None:
    """Progress A(e), noise, staleness and local drift of every upload."""
    b, shape, count = build.blocks, build.shape, int(np.prod(build.shape))
    limit = build.of_task(build.limit)
    if build.shrinking:
        _proximal_rows(build, hard)
    once, twice = (b["done1"], b["done2"]) if build.shrinking else (b["done"], b["done"])
    rows = soft.rows("noise", count).reshape(shape)
    soft.linear(rows, b["noise"], -1.0).product(rows, twice, b["inverse_batch"])
    if "missed" in b:
        unit = build.scale["missed"]
        rows = soft.rows("missed", count).reshape(shape)
        soft.linear(rows, b["missed"], -1.0).linear(rows, b["upload"], -1.0 / unit)
        soft.product(rows, b["upload"], b["elapsed"], build.longest / unit)
        rows = soft.rows("stale steps", count).reshape(shape)
        soft.linear(rows, b["stale_steps"], -1.0).product(rows, b["progress"] if build.shrinking else b["steps"], b["missed"])
    if "stale_steps2" in b:
        rows = soft.rows("stale steps squared", count).reshape(shape)
        soft.linear(rows, b["stale_steps2"], -1.0).product(rows, b["stale_steps"], b["missed"])
    if build.stale:
        _span_rows(build, equalities, soft, once, twice)
    if "done_steps" in b:
        for name, x, y, factor in (("done_steps", once, "steps", 1.0), ("done_steps2", b["done_steps"], "steps", 1.0),
                                   ("local_noise", b["done_steps"], "inverse_batch", 1.0)):  # fmt: skip
            rows = soft.rows(name.replace("_", " "), count).reshape(shape)
            soft.linear(rows, b[name], -1.0).product(rows, x, b[y], factor * np.ones_like(limit))


def _proximal_rows(build: Build, hard: RowBuilder) -> None:
    """A(e) = (1 − (1−ηρ)^e)/(ηρ), A2(e) the same with (1−ηρ)², and both times U; equal to e without a proximal term."""
    b, a, shape, count = build.blocks, build.a, build.shape, int(np.prod(build.shape))
    limit = build.of_task(build.limit)
    shrink = build.of_task(a.shrink)
    for name, gated, factor in (("progress", "done1", shrink), ("progress2", "done2", shrink * (2.0 - shrink))):
        curved = np.broadcast_to(factor > 0, shape)
        safe = np.where(factor > 0, factor, 0.5)
        rows = hard.rows(name, count, np.where(curved, -1.0 / (safe * limit), 0.0).ravel()).reshape(shape)
        hard.linear(rows, b[name]).linear(rows, b["steps"], np.where(factor > 0, 0.0, -1.0))
        hard.exponential(rows, b["steps"], np.log1p(-safe) * limit, np.where(curved, 1.0 / (safe * limit), 0.0))
        rows = hard.rows(f"{name} done", count).reshape(shape)
        hard.linear(rows, b[gated]).product(rows, b["upload"], b[name], -1.0)


def _span_rows(build: Build, equalities: RowBuilder, soft: RowBuilder, once: IntArray, twice: IntArray) -> None:
    """h κ of the running assignment, handed back from its upload to its start, and its sum over what spans an instant."""
    b, a, shape, count = build.blocks, build.a, build.shape, int(np.prod(build.shape))
    rows = equalities.rows("held", count).reshape(shape)
    equalities.linear(rows, b["held"]).linear(rows, b["stale_steps"], -1.0).linear(rows, b["passed"], -1.0)
    rows = soft.rows("passed", count).reshape(shape)
    soft.linear(rows, b["passed"], -1.0)
    soft.product(rows[:, :-1], b["occupancy"][:, :-1], b["held"][:, 1:]).product(rows[:, :-1], b["upload"][:, :-1], b["held"][:, 1:], -1.0)
    per_noise = build.step_weight**2 * build.of_pair(a.gradient_variance)
    total = equalities.rows("noise of an instant", a.num_tasks * a.slots).reshape(a.num_tasks, a.slots)
    equalities.linear(total, b["noise_sum"])
    unit = build.noise_unit[build.task][:, None]
    equalities.linear(total[build.task], b["noise"], -per_noise * build.scale["noise"] / unit)
    equalities.linear(total[build.task], twice, per_noise * build.of_task(build.limit) / build.of_pair(a.samples) / unit)
    total = equalities.rows("span of an instant", a.num_tasks * a.slots).reshape(a.num_tasks, a.slots)
    equalities.linear(total, b["span"])
    equalities.linear(total[build.task], b["passed"], -build.step_weight * build.scale["passed"] / build.span_unit[build.task][:, None])
    if "h_instant" in b:
        _condition_rows(build, equalities, soft, once)


def _condition_rows(build: Build, equalities: RowBuilder, soft: RowBuilder, once: IntArray) -> None:
    """C2: β h_k + (17/4) β² h_k Σ h κ of what spans k ≤ ½ (C1 is a bound on e)."""
    b, a = build.blocks, build.a
    shape, count = (a.num_tasks, a.slots), a.num_tasks * a.slots
    rows = equalities.rows("h of an instant", count).reshape(shape)
    equalities.linear(rows, b["h_instant"])
    equalities.linear(rows[build.task], once, -build.step_weight * build.of_task(build.limit) / build.scale["h_instant"][build.task])
    beta = a.smoothness[:, None]
    rows = soft.rows("condition C2", count, -1.0).reshape(shape)
    unit = beta * build.scale["h_instant"] / C2_LIMIT
    soft.linear(rows, b["h_instant"], unit).product(rows, b["h_instant"], b["span"], STALE_FACTOR * beta * unit * build.span_unit[:, None])


def bound_rows(build: Build, equalities: RowBuilder, affine: RowBuilder, soft: RowBuilder) -> QuotientRows:
    """H, the error terms N, and Ψ H ≥ (8/3)(C + N)."""
    b, a, f, pairs = build.blocks, build.a, build.factors, build.task
    limit, weight = build.of_task(build.limit), build.step_weight
    once = b["done1"] if build.shrinking else b["done"]
    rows = equalities.rows("H", a.num_tasks)
    equalities.linear(rows, b["h_total"]).linear(rows[pairs][:, None], once, -weight * limit / build.h_unit[pairs][:, None])
    # T_stale makes the row of N a non-convex one
    group = soft if f["stale"] > 0 else affine
    rows = group.rows("error terms", a.num_tasks)
    group.linear(rows, b["errors"], -1.0)
    each, unit = rows[pairs][:, None], build.error_unit[pairs][:, None]
    beta, variance, samples = build.of_task(a.smoothness), build.of_pair(a.gradient_variance), build.of_pair(a.samples)
    delta2 = build.of_pair(a.dissimilarity) ** 2
    if build.problem.objective.participation == "instant":
        group.linear(each, once, f["part"] * 2.0 * delta2 * weight * limit / unit)
    elif "participation" in b:
        group.linear(rows, b["participation"], 2.0 * f["part"] * build.scale["participation"] / build.error_unit)
    if "stale_steps2" in b:
        group.linear(each, b["stale_steps2"], 2.0 * build.data * weight * build.scale["stale_steps2"] / unit)
    noise = f["noise"] * beta * weight**2 * variance
    twice = b["done2"] if build.shrinking else b["done"]
    group.linear(each, b["noise"], noise * build.scale["noise"] / unit).linear(each, twice, -noise * limit / samples / unit)
    if "done_steps" in b:
        local = f["local"] * 2.0 * (beta * build.of_task(a.learning_rate)) ** 2 * weight
        group.linear(each, b["local_noise"], local * LOCAL_NOISE_FACTOR * variance * build.scale["local_noise"] / unit)
        group.linear(each, b["done_steps"], -local * LOCAL_NOISE_FACTOR * variance / samples * limit**2 / unit)
        group.linear(each, b["done_steps2"], local * LOCAL_DRIFT_FACTOR * delta2 * limit**3 / unit)
    if f["stale"] > 0:
        factor = f["stale"] * STALE_FACTOR * a.smoothness**2 * build.noise_unit * build.span_unit / build.error_unit
        soft.product(rows[:, None], b["noise_sum"], b["span"], factor[:, None])
    need = build.needed
    rows = soft.rows("bound", len(need), fixed_terms(a)[need] / build.error_unit[need])
    soft.linear(rows, b["errors"][need]).product(rows, b["bound"][need], b["h_total"][need], -1.0)
    return _quotients(build, affine)


def _quotients(build: Build, affine: RowBuilder) -> QuotientRows:
    """M/r ≤ S and 1/B ≤ b of every upload, d²/H ≤ participation of every task that counts, and |h_i − λ_i H| ≤ off behind d."""
    b, a, pairs = build.blocks, build.a, build.task
    count = int(np.prod(build.shape))
    x, y, z = [np.full(count, -1)], [b["rate"].ravel()], [b["send"].ravel()]
    factor, names = [build.bits.ravel()], ["send time"] * count
    if not build.logs:
        x, y, z = [*x, np.full(count, -1)], [*y, b["batch"].ravel()], [*z, b["inverse_batch"].ravel()]
        factor, names = [*factor, np.ones(count)], [*names, *(["inverse batch"] * count)]
    if "off" in b:
        h_unit, share = build.h_unit[pairs], a.aggregation_weight[build.device, pairs]
        for sign in (1.0, -1.0):
            rows = affine.rows("participation of a device", len(pairs))
            affine.linear(rows, b["off"], -1.0).linear(rows, b["h_total"][pairs], -sign * share)
            once = b["done1"] if build.shrinking else b["done"]
            affine.linear(rows[:, None], once, sign * build.step_weight * build.of_task(build.limit) / h_unit[:, None])
        rows = affine.rows("distance", a.num_tasks)
        affine.linear(rows, b["distance"], -1.0)
        affine.linear(rows[pairs], b["off"], a.dissimilarity[build.device, pairs] / build.off_unit[pairs])
        absent = a.aggregation_weight * a.dissimilarity
        absent = absent.sum(axis=0) - np.bincount(pairs, weights=absent[build.device, pairs], minlength=a.num_tasks)
        affine.linear(rows, b["h_total"], absent / build.off_unit)
        # a task that nothing is asked of may stay untrained, and d²/H would be 0/0
        need = build.needed
        x, y, z = [*x, b["distance"][need]], [*y, b["h_total"][need]], [*z, b["participation"][need]]
        factor, names = [*factor, np.ones(len(need))], [*names, *(["participation"] * len(need))]
    return QuotientRows(np.concatenate(x), np.concatenate(y), np.concatenate(z), np.concatenate(factor), tuple(names))
