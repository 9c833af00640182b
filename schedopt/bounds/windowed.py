r"""Theorem 2: participation charged per window of P instants, so that devices may take turns. Proof and constants: docs/theory.md.

One task; window m starts from the model of instant t = mP and ends with the upload at instant (m+1)P; H_m = Σ h_s over its uploads,
h_im the part of device i. An upload s = (i, a, b) of window m(s) is n_s = |mP − a| slots from its window's start, and spans
κ'_s = m(s) − ⌊a/P⌋ starts of windows. Γ_u = β² Σ_s h_s π_s over the receptions a_s ≥ b_u inside the window of u, where π_s is what the
window's uploads up to a_s weigh: how far models inside a window move. Under A1–A4 and rule ``delta``,

    (1/H) Σ_m H_m E‖∇F_{mP}(w^{mP})‖² ≤ Ψ = (8/3)/H · Σ_k T_k

with T_opt, T_loss, T_local and T_noise of Theorem 1 and

    T_part  = Σ_m 2 min_c (Σ_i |h_im − c λ_i| δ_i)² / H_m
    T_data  = (17/8) Σ_s h_s n_s² Δ_i²
    T_stale = k β² Σ_s h_s Σ_{k between a_s and mP} N_k + Σ_u h_u Γ_u (19 δ_i² + 38 n_u² Δ_i² + 19 η²β² e σ_i²(B))

Conditions: C1 of Theorem 1;  C2  βH_m + k β² H_m Σ_{s spans m} h_s κ'_s ≤ 1/2;  C3  Γ_u ≤ 1/200. k = 9, or 17/4 where no reception is
inside a window after an upload (Γ = 0; always so when P = 1, where Ψ is no looser than Theorem 1 but for T_data's 17/8 Δ² in place of
2Δ² + Δ̄²/8). Compared with exact gradients in ``tests/test_windowed.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.base import Condition
from schedopt.problem import FloatArray, IntArray, ProblemArrays
from schedopt.schedule import Schedule
from schedopt.windows import Windows

__all__ = [
    "C3_LIMIT",
    "WindowSums",
    "fair_amount",
    "local_movement",
    "participation_distance",
    "window_conditions",
    "window_excess",
    "window_sums",
    "window_terms",
]

DATA_FACTOR = 17.0 / 8.0
SPAN_FACTOR, INSIDE_FACTOR = 17.0 / 4.0, 9.0
MOVE_DISSIMILARITY, MOVE_DRIFT, MOVE_NOISE = 19.0, 38.0, 19.0
C3_LIMIT = 1.0 / 200.0


@dataclass(frozen=True)
class WindowSums:
    """Sums of a schedule that Theorem 2 is made of.

    ``h_window`` H_m, ``span`` Σ_{s spans m} h_s κ'_s, shape (J, M); ``h_device`` h_im, shape (I, J, M). Per assignment, shape (n,):
    ``distance`` n_s, ``noise_between`` Σ N_k between a_s and mP, ``movement`` Γ. ``factor``: k of each task, shape (J,).
    """

    h_window: FloatArray
    span: FloatArray
    h_device: FloatArray
    distance: FloatArray
    noise_between: FloatArray
    movement: FloatArray
    factor: FloatArray
    #: window of each assignment's upload, shape (n,), and its task
    window: IntArray
    task: IntArray


def participation_distance(h: FloatArray, weight: FloatArray, dissimilarity: FloatArray) -> FloatArray:
    """min over c of Σ_i |h_i − c λ_i| δ_i along the first axis: ``h`` (I, ...), ``weight`` λ and ``dissimilarity`` δ that fit it.

    The best c is a weighted median of h_i/λ_i with weights λ_iδ_i. Devices take turns without a bias when h is a multiple of λ.
    """
    return (np.abs(h - fair_amount(h, weight, dissimilarity) * weight) * dissimilarity).sum(axis=0)


def fair_amount(h: FloatArray, weight: FloatArray, dissimilarity: FloatArray) -> FloatArray:
    """The c of :func:`participation_distance`, the shape of ``h`` less its first axis; 0 where no device counts."""
    weight = np.broadcast_to(weight, h.shape)
    mass = weight * dissimilarity
    ratio = np.divide(h, weight, out=np.full(h.shape, np.inf), where=mass > 0)
    order = np.argsort(ratio, axis=0, kind="stable")
    cumulated = np.cumsum(np.take_along_axis(mass, order, axis=0), axis=0)
    middle = np.argmax(cumulated >= 0.5 * cumulated[-1:], axis=0)[None]
    best = np.take_along_axis(np.take_along_axis(ratio, order, axis=0), middle, axis=0)
    return np.where(np.isfinite(best), best, 0.0)[0]


def window_sums(arrays: ProblemArrays, schedule: Schedule, windows: Windows, h: FloatArray, noise: FloatArray) -> WindowSums:
    """The sums of a schedule; ``h`` and ``noise`` (shares of N_g): of its assignments, shape (n,)."""
    j, start, end = schedule.task, schedule.start, schedule.end
    window, begin = windows.of_upload(end), windows.of_model(start)
    shape, tasks = (arrays.num_tasks, windows.count), arrays.num_tasks
    spanned = window - begin
    opened = np.zeros((tasks, windows.count + 1))
    np.add.at(opened, (j, begin), h * spanned)
    np.add.at(opened, (j, window), -h * spanned)
    h_device = np.zeros((arrays.num_devices, *shape))
    np.add.at(h_device, (schedule.device, j, window), h)
    at_instant = np.zeros((2, tasks, arrays.slots + 1))
    np.add.at(at_instant[0], (j, end), h)
    np.add.at(at_instant[1], (j, end), noise)
    h_until, noise_until = np.cumsum(at_instant, axis=2)
    movement = _movement(arrays, schedule, windows, h, h_until)
    moves = np.zeros(tasks, dtype=bool)
    np.logical_or.at(moves, j, movement > 0)
    return WindowSums(
        h_window=h_device.sum(axis=0),
        span=np.maximum(np.cumsum(opened, axis=1)[:, :-1], 0.0),
        h_device=h_device,
        distance=windows.distance(start, end).astype(float),
        noise_between=np.abs(noise_until[j, window * windows.length] - noise_until[j, start]),
        movement=movement,
        factor=np.where(moves, INSIDE_FACTOR, SPAN_FACTOR),
        window=window,
        task=j,
    )


def _movement(arrays: ProblemArrays, schedule: Schedule, windows: Windows, h: FloatArray, h_until: FloatArray) -> FloatArray:
    """Γ of every assignment, shape (n,); ``h_until``: Σ h of the uploads up to each instant, shape (J, G+1)."""
    j, start, end = schedule.task, schedule.start, schedule.end
    before = np.maximum(h_until[j, start] - h_until[j, windows.of_model(start) * windows.length], 0.0)
    received = np.zeros((arrays.num_tasks, arrays.slots + 2))
    np.add.at(received, (j, start + 1), h * before)
    until = np.cumsum(received, axis=1)
    last = np.minimum((windows.of_upload(end) + 1) * windows.length, arrays.slots)
    return arrays.smoothness[j] ** 2 * np.maximum(until[j, last] - until[j, end], 0.0)


def window_terms(arrays: ProblemArrays, schedule: Schedule, sums: WindowSums, h: FloatArray, sigma2: FloatArray) -> dict[str, FloatArray]:
    """T_part, T_data and T_stale by name, each of shape (J,); ``h`` and ``sigma2`` σ²(B) of the assignments, shape (n,)."""
    i, j = schedule.device, schedule.task
    beta = arrays.smoothness[j]

    def per_task(values: FloatArray) -> FloatArray:
        return np.bincount(j, weights=values, minlength=arrays.num_tasks).astype(float)

    away = participation_distance(sums.h_device, arrays.aggregation_weight[:, :, None], arrays.dissimilarity[:, :, None])
    part = np.divide(2.0 * away**2, sums.h_window, out=np.zeros_like(away), where=sums.h_window > 0)
    drift = (sums.distance * arrays.gradient_drift[i, j]) ** 2
    moved = local_movement(arrays, schedule, sums, sigma2)
    return {
        "part": part.sum(axis=1),
        "data": DATA_FACTOR * per_task(h * drift),
        "stale": sums.factor * per_task(beta**2 * h * sums.noise_between) + per_task(h * sums.movement * moved),
    }


def local_movement(arrays: ProblemArrays, schedule: Schedule, sums: WindowSums, sigma2: FloatArray) -> FloatArray:
    """19 δ² + 38 n²Δ² + 19 η²β² e σ² of every assignment, which Γ multiplies, shape (n,)."""
    i, j = schedule.device, schedule.task
    drift = (sums.distance * arrays.gradient_drift[i, j]) ** 2
    noise = (arrays.learning_rate[j] * arrays.smoothness[j]) ** 2 * schedule.steps * sigma2
    return MOVE_DISSIMILARITY * arrays.dissimilarity[i, j] ** 2 + MOVE_DRIFT * drift + MOVE_NOISE * noise


def window_conditions(arrays: ProblemArrays, sums: WindowSums, limit: float) -> tuple[Condition, Condition]:
    """C2 and C3 of Theorem 2; ``limit``: what C2 allows."""
    c2, c3 = (value.max(axis=1) for value in _condition_values(arrays, sums))
    return (
        Condition("C2", f"beta H_m + k beta^2 H_m sum h_s kappa'_s <= {limit:g} in every window m", c2, limit),
        Condition("C3", f"movement inside a window beta^2 sum h_s pi_s <= {C3_LIMIT:g}", c3, C3_LIMIT),
    )


def window_excess(arrays: ProblemArrays, sums: WindowSums, limit: float, share: float) -> FloatArray:
    """By how many times the work of a window is too much, shape (J, M): for C2, which allows ``limit``, or a ``share`` of C3's limit."""
    c2, c3 = _condition_values(arrays, sums)
    # Γ is a sum of products of two uploads' h
    return np.maximum(c2 / limit, np.sqrt(c3 / (share * C3_LIMIT)))


def _condition_values(arrays: ProblemArrays, sums: WindowSums) -> tuple[FloatArray, FloatArray]:
    """What C2 and C3 limit, of every window, shape (J, M) each."""
    beta_h = arrays.smoothness[:, None] * sums.h_window
    c2 = beta_h * (1.0 + (sums.factor * arrays.smoothness)[:, None] * sums.span)
    c3 = np.zeros(c2.shape)
    np.maximum.at(c3, (sums.task, sums.window), sums.movement)
    return c2, c3
