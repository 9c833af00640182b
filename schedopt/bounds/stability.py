r"""Caps on steps and staleness that keep training from diverging, which no bound prices: ``enforce_conditions: "stability"``.

Staleness and large steps cost little for long, and then everything at once. On a quadratic of curvature β an upload s moves the model back
by the share

    x_s = θ_s · ηβ Σ_{m<e} (1 − η(β+ρ))^m  (ρ = 0, ηβ ≤ 1: θ_s (1 − (1−ηβ)^e), never above θ_s; more local steps add ever less)

of its distance, as it was when the device received. One upload per instant, each κ instants late, is stable exactly if
x < 2 sin(π/(2(2κ+1))). Its Σ_{s spans k} x_s κ_s is xκ², and x(1 + 0.8 xκ²) is between 1.8 and 2.0 at the threshold for every κ. Hence

    S1  ηβ ≤ 2;    S2  x_k + 0.8 x_k Σ_{s: a_s<k<b_s} x_s κ_s ≤ 2  at every instant k,   x_k = Σ_{s: b_s=k} x_s,

which is C2 with other numbers and with steps that saturate. No theorem: of 6,000 random schedules of quadratics it let none of the 2,439
unstable ones pass and refused 27 % of the stable ones (``tests/test_stability.py`` repeats a part). For a network β must be what it is
where training ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.base import Condition
from schedopt.problem import FloatArray, IntArray, ProblemArrays
from schedopt.schedule import Schedule

__all__ = ["LOCAL_LIMIT", "SPAN_WEIGHT", "STEP_LIMIT", "StabilitySums", "stability_conditions", "stability_sums", "step_share"]

LOCAL_LIMIT = 2.0
SPAN_WEIGHT = 0.8
STEP_LIMIT = 2.0


@dataclass(frozen=True)
class StabilitySums:
    """``share`` x_s (n,); ``instant`` x_k and ``span`` Σ x_s κ_s over those that span k, shape (J, G+1)."""

    share: FloatArray
    instant: FloatArray
    span: FloatArray

    @property
    def value(self) -> FloatArray:
        """Left side of S2, shape (J, G+1)."""
        return self.instant * (1.0 + SPAN_WEIGHT * self.span)


def step_share(arrays: ProblemArrays, device: IntArray, task: IntArray, steps: FloatArray) -> FloatArray:
    """x of uploads with ``steps`` local steps, shape (n,); beyond ηβ = 1 the most over all curvatures up to β."""
    eta, beta = arrays.learning_rate[task], arrays.smoothness[task]
    local = eta * (beta + arrays.prox[task])
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.abs(1.0 - local) ** steps
        whole = np.where(local <= 1.0, 1.0 - left, 1.0 + left)
    share = arrays.server_weight[device, task] * np.minimum(eta * beta / local * whole, eta * beta * steps)
    return np.where(np.isfinite(share), share, np.inf)


def stability_sums(arrays: ProblemArrays, schedule: Schedule) -> StabilitySums:
    """The sums of S2."""
    j, shape = schedule.task, (arrays.num_tasks, arrays.slots + 1)
    share = step_share(arrays, schedule.device, j, schedule.steps)
    instant, opened = np.zeros(shape), np.zeros(shape)
    np.add.at(instant, (j, schedule.end), share)
    np.add.at(opened, (j, schedule.start + 1), share * schedule.staleness)
    np.add.at(opened, (j, schedule.end), -share * schedule.staleness)
    return StabilitySums(share, instant, np.maximum(np.cumsum(opened, axis=1), 0.0))


def stability_conditions(arrays: ProblemArrays, schedule: Schedule) -> tuple[Condition, Condition]:
    """S1 and S2 of every task."""
    trained = np.zeros(arrays.num_tasks, dtype=bool)
    trained[schedule.task] = True
    local = np.where(trained, arrays.learning_rate * arrays.smoothness, 0.0)
    value = stability_sums(arrays, schedule).value.max(axis=1)
    return (
        Condition("S1", f"learning_rate * smoothness <= {LOCAL_LIMIT:g}", local, LOCAL_LIMIT),
        Condition("S2", f"x_k + {SPAN_WEIGHT:g} x_k sum x_s kappa_s <= {STEP_LIMIT:g}, x: share by which uploads move", value, STEP_LIMIT),
    )
