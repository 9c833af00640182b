r"""Theorem 1: the convergence bound of an asynchronous multi-model schedule under data drift.

Problem and assumptions (formulation section 3; one task): A1 every local loss is β-smooth; A2 a mini-batch gradient of device i has
variance σ_i²(B) = V_i (1/B − 1/D_i); A3 ‖∇L_i − ∇F‖ ≤ δ_i; A4 drift Δ_i per slot of the gradients and Φ per slot of the loss.

Metric ≤ value: (1/H) Σ_g h_g E‖∇F_{g−1}(w^{g−1})‖² ≤ Ψ = (8/3)/H · Σ_k c_k T_k with the seven terms of :func:`raw_terms`.

Algorithm: proximal local SGD, aggregation rule ``delta`` (formulation section 2).
Conditions: C1  ηβe ≤ 1/20 for every assignment;  C2  βh_k + (17/4)β²h_k Σ_{s: a<k<b} h_s κ_s ≤ 1/2 at every instant k.
The measured left side is compared with Ψ in ``tests/test_theorem1.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.base import BoundValue, Condition
from schedopt.bounds.stability import stability_conditions
from schedopt.bounds.windowed import DATA_FACTOR, WindowSums, window_conditions, window_sums, window_terms
from schedopt.problem import TERMS, FloatArray, IntArray, Problem, ProblemArrays
from schedopt.schedule import Schedule

__all__ = [
    "assignment_errors",
    "data_error",
    "C1_LIMIT",
    "C2_LIMIT",
    "Aggregates",
    "AsyncScheduleBound",
    "aggregate",
    "fixed_terms",
    "minibatch_variance",
    "prox_step_sum",
    "prox_step_square_sum",
    "raw_terms",
]

FACTOR = 8.0 / 3.0
STALE_FACTOR = 17.0 / 4.0
LOCAL_NOISE_FACTOR = 2.03
LOCAL_DRIFT_FACTOR = 8.1
C1_LIMIT = 1.0 / 20.0
C2_LIMIT = 0.5


def prox_step_sum(steps: FloatArray, shrink: FloatArray) -> FloatArray:
    """A(e) = Σ_{m<e} (1 − ηρ)^m for ``shrink`` = ηρ in [0, 1); equals e when ηρ = 0. Real e uses the closed form."""
    steps, shrink = np.broadcast_arrays(np.asarray(steps, float), np.asarray(shrink, float))
    safe = np.where(shrink > 0, shrink, 0.5)
    return np.where(shrink > 0, -np.expm1(steps * np.log1p(-safe)) / safe, steps)


def prox_step_square_sum(steps: FloatArray, shrink: FloatArray) -> FloatArray:
    """A2(e) = Σ_{m<e} (1 − ηρ)^{2m}: A(e) with 1 − (1 − ηρ)² in place of ηρ."""
    shrink = np.asarray(shrink, float)
    return prox_step_sum(steps, shrink * (2.0 - shrink))


def minibatch_variance(variance: FloatArray, batch: FloatArray, samples: FloatArray | IntArray) -> FloatArray:
    """σ²(B) = V (1/B − 1/D), mini-batches drawn without replacement; never negative."""
    return variance * np.maximum(1.0 / np.asarray(batch, float) - 1.0 / np.asarray(samples, float), 0.0)


@dataclass(frozen=True)
class Aggregates:
    """Sums of a schedule that Theorem 1 is made of.

    Per assignment, shape (n,): ``h``, ``noise`` (its share of N_g), ``sigma2`` (σ²(B)). Per task and instant, shape (J, G+1):
    ``h_instant``, ``noise_instant`` and ``stale_span`` Σ_{s: a_s<k<b_s} h_s κ_s. Per device and task, shape (I, J): ``h_device``.
    ``h_total`` = H, shape (J,). ``windows``: the same by windows where participation is judged so, else None.
    """

    h: FloatArray
    noise: FloatArray
    sigma2: FloatArray
    h_instant: FloatArray
    noise_instant: FloatArray
    stale_span: FloatArray
    h_device: FloatArray
    h_total: FloatArray
    windows: WindowSums | None


def fixed_terms(arrays: ProblemArrays) -> FloatArray:
    """C_j: scaled T_opt + T_loss, which no schedule changes, shape (J,)."""
    scale = dict(zip(TERMS, arrays.term_scale, strict=True))
    return scale["opt"] * arrays.initial_gap + scale["loss"] * (arrays.slots - 1) * arrays.loss_drift


def _sum_at(shape: tuple[int, int], rows: IntArray, columns: IntArray, values: FloatArray) -> FloatArray:
    # without any row NumPy counts in integers
    return np.bincount(rows * shape[1] + columns, weights=values, minlength=shape[0] * shape[1]).reshape(shape).astype(float)


def aggregate(arrays: ProblemArrays, schedule: Schedule) -> Aggregates:
    """h_s, N_g, H and the spans of stale work of a schedule (definitions of formulation section 3)."""
    i, j = schedule.device, schedule.task
    eta, theta = arrays.learning_rate[j], arrays.server_weight[i, j]
    shrink = arrays.shrink[j]
    sigma2 = minibatch_variance(arrays.gradient_variance[i, j], schedule.batch, arrays.samples[i, j])
    h = eta * theta * prox_step_sum(schedule.steps, shrink)
    noise = (eta * theta) ** 2 * prox_step_square_sum(schedule.steps, shrink) * sigma2
    shape = (arrays.num_tasks, arrays.slots + 1)
    weighted = h * schedule.staleness
    # a < k < b: the span opens at a + 1 and closes at b
    opened = _sum_at(shape, j, schedule.start + 1, weighted) - _sum_at(shape, j, schedule.end, weighted)
    h_device = _sum_at((arrays.num_devices, arrays.num_tasks), i, j, h)
    return Aggregates(
        h=h,
        noise=noise,
        sigma2=sigma2,
        h_instant=_sum_at(shape, j, schedule.end, h),
        noise_instant=_sum_at(shape, j, schedule.end, noise),
        stale_span=np.maximum(np.cumsum(opened, axis=1), 0.0),
        h_device=h_device,
        h_total=np.bincount(j, weights=h, minlength=arrays.num_tasks),  # type: ignore[arg-type]  # stubs know no weights
        windows=None if arrays.windows is None else window_sums(arrays, schedule, arrays.windows, h, noise),
    )


def raw_terms(problem: Problem, schedule: Schedule, sums: Aggregates) -> FloatArray:
    """The seven terms T_k before scaling, shape (J, 7), in the order of :data:`schedopt.problem.TERMS`.

    T_opt = F_0 − F*; T_loss = (G−1)Φ; T_part = Σ 2hδ² (``instant``) or 2(Σ_i|h_i − λ_i H|δ_i)²/H (``horizon``);
    T_data = Σ 2hκ²(Δ² + Δ̄²/16); T_local = Σ 2hβ²η²(2.03 e σ² + 8.1 e² δ²); T_noise = β Σ_g N_g;
    T_stale = (17/4) β² Σ_s h_s κ_s Σ_{a<k<b} N_k. With windows T_part, T_data and T_stale are those of Theorem 2.
    """
    a = problem.arrays
    i, j, steps = schedule.device, schedule.task, schedule.steps
    delta = a.dissimilarity[i, j]
    beta_eta = a.smoothness[j] * a.learning_rate[j]

    def per_task(values: FloatArray) -> FloatArray:
        total: np.ndarray = np.bincount(j, weights=values, minlength=a.num_tasks)
        return total

    local = LOCAL_NOISE_FACTOR * steps * sums.sigma2 + LOCAL_DRIFT_FACTOR * steps**2 * delta**2
    terms = {
        "opt": a.initial_gap,
        "loss": (a.slots - 1) * a.loss_drift,
        "local": per_task(2.0 * sums.h * beta_eta**2 * local),
        "noise": a.smoothness * sums.noise_instant.sum(axis=1),
    }
    if sums.windows is not None:
        terms |= window_terms(a, schedule, sums.windows, sums.h, sums.sigma2)
    else:
        terms["part"] = _participation(problem, sums, per_task(2.0 * sums.h * delta**2))
        terms["data"] = per_task(2.0 * sums.h * data_error(a, i, j, schedule.start, schedule.end))
        # summed by instant: Σ_s h_s κ_s Σ_{a<k<b} N_k = Σ_k N_k Σ_{s: a<k<b} h_s κ_s
        terms["stale"] = STALE_FACTOR * a.smoothness**2 * (sums.noise_instant * sums.stale_span).sum(axis=1)
    return np.stack([terms[name] for name in TERMS], axis=1)


def data_error(arrays: ProblemArrays, device: IntArray, task: IntArray, start: IntArray, end: IntArray) -> FloatArray:
    """What T_data charges per unit of 2h: κ²(Δ² + Δ̄²/16), or (17/16) n²Δ² with windows; the shape of ``start``."""
    drift = arrays.gradient_drift[device, task]
    if arrays.windows is not None:
        return 0.5 * DATA_FACTOR * (arrays.windows.distance(start, end) * drift) ** 2
    return (end - 1 - start) ** 2 * (drift**2 + arrays.mean_gradient_drift[task] ** 2 / 16.0)


def assignment_errors(problem: Problem, schedule: Schedule, sums: Aggregates) -> FloatArray:
    """Each assignment's share of the scaled error terms that are sums over assignments (not T_stale, not a horizon's T_part), (n,)."""
    a = problem.arrays
    i, j, steps = schedule.device, schedule.task, schedule.steps
    scale = dict(zip(TERMS, a.term_scale, strict=True))
    part = scale["part"] * a.dissimilarity[i, j] ** 2 if problem.objective.participation == "instant" else 0.0
    local = LOCAL_NOISE_FACTOR * steps * sums.sigma2 + LOCAL_DRIFT_FACTOR * steps**2 * a.dissimilarity[i, j] ** 2
    per_h = part + scale["data"] * data_error(a, i, j, schedule.start, schedule.end)
    per_h = per_h + scale["local"] * (a.smoothness[j] * a.learning_rate[j]) ** 2 * local
    return 2.0 * sums.h * per_h + scale["noise"] * a.smoothness[j] * sums.noise


def _participation(problem: Problem, sums: Aggregates, instant: FloatArray) -> FloatArray:
    if problem.objective.participation == "instant":
        return instant
    a = problem.arrays
    imbalance = (np.abs(sums.h_device - a.aggregation_weight * sums.h_total) * a.dissimilarity).sum(axis=0)
    return np.divide(2.0 * imbalance**2, sums.h_total, out=np.zeros(a.num_tasks), where=sums.h_total > 0)


def _sharp_participation(arrays: ProblemArrays, schedule: Schedule, sums: Aggregates) -> FloatArray:
    """Participation error with full synchronous uploads carrying none: Σ_g 2h_g min{(Σ_i|q_i − λ_i|δ_i)², Σ_i q_iδ_i²}, shape (J,)."""
    total = np.zeros(arrays.num_tasks)
    for j in range(arrays.num_tasks):
        mine = np.flatnonzero(schedule.task == j)
        shape = (arrays.slots + 1, arrays.num_devices)
        h = _sum_at(shape, schedule.end[mine], schedule.device[mine], sums.h[mine])
        h_instant = h.sum(axis=1)
        q = np.divide(h, h_instant[:, None], out=np.zeros_like(h), where=h_instant[:, None] > 0)
        delta = arrays.dissimilarity[:, j]
        imbalance = (np.abs(q - arrays.aggregation_weight[:, j]) * delta).sum(axis=1) ** 2
        total[j] = np.sum(2.0 * h_instant * np.minimum(imbalance, (q * delta**2).sum(axis=1)))
    return total


def _conditions(arrays: ProblemArrays, schedule: Schedule, sums: Aggregates) -> tuple[Condition, ...]:
    beta = arrays.smoothness
    c1 = np.zeros(arrays.num_tasks)
    np.maximum.at(c1, schedule.task, (arrays.learning_rate * beta)[schedule.task] * schedule.steps)
    first = Condition("C1", f"learning_rate * smoothness * steps <= {C1_LIMIT:g}", c1, C1_LIMIT)
    if sums.windows is not None:
        return (first, *window_conditions(arrays, sums.windows, C2_LIMIT))
    beta_h = beta[:, None] * sums.h_instant
    c2 = np.max(beta_h + STALE_FACTOR * beta_h * beta[:, None] * sums.stale_span, axis=1)
    return (
        first,
        Condition("C2", f"beta h_k + {STALE_FACTOR:g} beta^2 h_k sum h_s kappa_s <= {C2_LIMIT:g}", c2, C2_LIMIT),
    )


class AsyncScheduleBound:
    """Theorem 1 of the formulation, Theorem 2 with windows; scaled terms and the ``horizon`` variant are not covered by the proofs."""

    name = "async_schedule"

    def evaluate(self, problem: Problem, schedule: Schedule) -> BoundValue:
        """Ψ_j of every task, its terms and conditions.

        ``extra['bound_sharp']`` has the sharper participation term. It sharpens Theorem 1, which charges participation per instant;
        elsewhere, where it bounds nothing and may exceed Ψ, it is NaN.
        """
        arrays = problem.arrays
        sums = aggregate(arrays, schedule)
        raw = raw_terms(problem, schedule, sums)
        trained = sums.h_total > 0
        with np.errstate(divide="ignore"):
            factor = np.where(trained, FACTOR / sums.h_total, np.inf)
        terms = np.where(trained[:, None], np.where(trained, factor, 0.0)[:, None] * arrays.term_scale * raw, np.nan)
        total = np.where(trained, terms.sum(axis=1), np.inf)
        conditions = _conditions(arrays, schedule, sums)
        proven = problem.objective.participation != "horizon" and bool(np.all(arrays.term_scale >= 1))
        certified = trained & proven & arrays.delta_rule & (arrays.step_saturation == 0)
        for condition in conditions:
            certified = certified & condition.holds
        sharp = np.full(arrays.num_tasks, np.nan)
        if problem.objective.participation == "instant":
            sharp_raw = raw.copy()
            sharp_raw[:, TERMS.index("part")] = _sharp_participation(arrays, schedule, sums)
            sharp = np.where(trained, np.where(trained, factor, 0.0) * (sharp_raw @ arrays.term_scale), np.inf)
        extra = {"bound_sharp": sharp, "h_total": sums.h_total}
        enforced = {"theorem": conditions, "nothing": ()}.get(arrays.enforced)
        if enforced is None:
            enforced = stability_conditions(arrays, schedule)
        return BoundValue(self.name, total, TERMS, terms, raw, conditions, certified, enforced=enforced, extra=extra)
