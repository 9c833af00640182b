r"""The constants of Theorem 1 for softmax regression, from the data themselves; NumPy in double precision.

Sample n of a device has the loss −log p_y with p = softmax(W x), x the standardized features with a constant 1 appended, so that its
gradient is (p − e_y) xᵀ and its Hessian (diag(p) − ppᵀ) ⊗ xxᵀ. Only β is a supremum over all models that can be computed; V, δ, Δ and Φ
depend on the model, and come in two kinds:

* :func:`bounds_everywhere`: closed forms that hold at all models (Φ: at all that a run can reach), because ‖p − e_y‖ ≤ √2; loose.
* :func:`constants_on_path`: maxima over the models that a run visits, at the places where the proof of Theorem 1 asks for them. The least
  that the proof can do with; known after the run. What the theorem says of an expectation is then compared with one run.

Where the proof asks (for an upload s = (i, a, b), local iterates w_s^0..w_s^{e−1}, and κ = b − 1 − a):

* A2 at every local iterate, on the data of instant a: that is the variance of the mini-batch gradient there;
* A3 at (b − 1, w^{b−1}), for the participation error, and at (a, w^a), in ‖∇L_i(w^a)‖² ≤ 2δ² + 2‖∇F_a(w^a)‖², for the local drift;
* A4 at w^{b−1} between the instants a and b − 1: of device i for the data drift, and of all devices, as Δ̄, for ∇F_a(w^{b−1}) in place of
  ∇F_{b−1}(w^{b−1}); Φ at (g, w^g) for 1 ≤ g ≤ G − 1;
* F* as any lower bound of F_{G−1}(w^G), the last loss that the telescoped descent meets.

Tested in ``tests/runtime/test_constants.py`` against finite differences and brute force.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import eigvalsh
from scipy.optimize import OptimizeResult, minimize
from scipy.special import entr

from fl_runtime.device_data import TaskData
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.schedule import Schedule

__all__ = ["LocalLoss", "SoftmaxTask", "TheoremConstants", "bounds_everywhere", "constants_on_path", "least_loss"]

#: Bytes of samples in double precision that are kept for the next question.
_CACHE_BYTES = 256 * 2**20
#: A problem file wants a positive gap, and the theorem allows any larger one.
_LEAST_GAP = 1e-12


@dataclass(frozen=True)
class TheoremConstants:
    """What Theorem 1 asks for: β, F_0(w^0) − F*, Φ and, of shape (I,), V, δ and Δ; zero on devices without data."""

    smoothness: float
    initial_gap: float
    loss_drift: float
    gradient_variance: FloatArray
    dissimilarity: FloatArray
    gradient_drift: FloatArray

    def put_into(self, problem: Problem, task: int = 0) -> Problem:
        """``problem`` with these constants in place of those of task ``task``."""
        data = problem.to_dict()
        entry = data["tasks"][task]
        entry |= {"smoothness": self.smoothness, "initial_gap": max(self.initial_gap, _LEAST_GAP), "loss_drift": self.loss_drift}
        for i, device in enumerate(data["devices"]):
            if entry["name"] in device["tasks"]:
                for name in ("gradient_variance", "dissimilarity", "gradient_drift"):
                    device["tasks"][entry["name"]][name] = float(getattr(self, name)[i])
        return Problem.model_validate(data)


@dataclass(frozen=True)
class _Samples:
    """Samples of a device at an instant: ``x`` (D, P) with the constant, ``labels`` (D,), ``square`` ‖x‖² (D,)."""

    x: FloatArray
    labels: IntArray
    square: FloatArray


@dataclass(frozen=True)
class LocalLoss:
    """A device's mean loss at a model: its value, its gradient (C, P), and the sample variance of the gradient (trace, with D − 1)."""

    loss: float
    gradient: FloatArray
    variance: float


class SoftmaxTask:
    """Losses of softmax regression on a task's devices. Models are (C, P): C classes, P features with the constant last.

    Parameters
    ----------
    data : the task's data; devices that hold none do not count
    weight : λ (I,), which sums to one over the devices that hold data
    slots : the horizon G
    """

    def __init__(self, data: TaskData, weight: FloatArray, slots: int) -> None:
        self.data, self.weight, self.slots = data, np.asarray(weight, float), slots
        self.devices = [int(i) for i in np.flatnonzero(self.weight > 0) if data.sizes[i]]
        self._kept: OrderedDict[int, tuple[object, _Samples]] = OrderedDict()
        self._bytes = 0

    def model(self, parameters: FloatArray) -> FloatArray:
        """The model (C, P) of flat parameters as ``fl_runtime.models`` orders them: all weights, then the constants."""
        classes = self.data.dataset.num_classes
        flat = np.asarray(parameters, float)
        return np.concatenate([flat[:-classes].reshape(classes, -1), flat[-classes:, None]], axis=1)

    def samples(self, device: int, instant: int) -> _Samples:
        """A device's samples; the same object as long as they stay the same."""
        features, labels = self.data.samples(device, instant)
        known = self._kept.get(id(features))
        if known is not None:
            self._kept.move_to_end(id(features))
            return known[1]
        x = np.ones((len(labels), features[0].size + 1))
        x[:, :-1] = features.reshape(len(labels), -1)
        made = _Samples(x, labels, np.einsum("np,np->n", x, x))
        self._kept[id(features)] = features, made  # the features live on, so that no others get their id
        self._bytes += x.nbytes
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1].x.nbytes
        return made

    def unchanged(self, instant: int) -> bool:
        """Whether all devices hold at ``instant`` + 1 what they hold at ``instant``."""
        return all(self.samples(i, instant) is self.samples(i, instant + 1) for i in self.devices)

    def local(self, device: int, instant: int, model: FloatArray) -> LocalLoss:
        """L_i^g at ``model``."""
        held = self.samples(device, instant)
        loss, residual = cross_entropy(held.x, held.labels, model)
        count = len(held.labels)
        gradient = residual.T @ held.x / count
        spread = float((residual**2).sum(axis=1) @ held.square) - count * float((gradient**2).sum())
        return LocalLoss(float(loss.mean()), gradient, max(spread, 0.0) / (count - 1) if count > 1 else 0.0)

    def gradients(self, instant: int, model: FloatArray) -> FloatArray:
        """∇L_i^g of all devices at ``model``, shape (I, C, P); zero where there are no data."""
        found = np.zeros((len(self.weight), *model.shape))
        for i in self.devices:
            found[i] = self.local(i, instant, model).gradient
        return found

    def mean(self, values: FloatArray) -> FloatArray:
        """Σ_i λ_i v_i of ``values`` (I, ...)."""
        return np.tensordot(self.weight, values, axes=1)

    def loss(self, instant: int, model: FloatArray) -> float:
        """F_g at ``model``."""
        held = [self.samples(i, instant) for i in self.devices]
        losses = [cross_entropy(samples.x, samples.labels, model)[0].mean() for samples in held]
        return float(self.weight[self.devices] @ losses)

    @cached_property
    def smoothness(self) -> float:
        """β = max over devices and instants of ½ λ_max(E[xxᵀ]), for all models (A1).

        diag(p) − ppᵀ is at most ½ (Böhning 1992), and reaches it where two classes share the probability; so no smaller β would do.
        """
        return 0.5 * max(largest for i in self.devices for largest in self._curvatures(i))

    def _curvatures(self, device: int) -> list[float]:
        """λ_max(E[xxᵀ]) at the instants at which the samples are new ones."""
        found, last = [], None
        for instant in range(self.slots):
            held = self.samples(device, instant)
            if held is not last:
                small = held.x @ held.x.T if len(held.x) < held.x.shape[1] else held.x.T @ held.x
                found.append(float(eigvalsh(small, subset_by_index=[len(small) - 1] * 2)[0]) / len(held.x))
                last = held
        return found


def cross_entropy(x: FloatArray, labels: IntArray, model: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Losses (n,) of samples ``x`` (n, P) and p − e_y (n, C)."""
    scores = x @ model.T
    scores -= scores.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    chosen = scores[rows, labels]
    residual = np.exp(scores)
    total = residual.sum(axis=1)
    residual /= total[:, None]
    residual[rows, labels] -= 1.0
    return np.log(total) - chosen, residual


def least_loss(task: SoftmaxTask, instant: int, worth: float, *, iterations: int = 5000) -> float:
    r"""A lower bound of inf F_g at ``instant``, by duality; 0 where no more than ``worth`` could be gained over it, or nothing is proven.

    For all probabilities α_n with Σ_n c_n (α_n − e_y) x_nᵀ = 0, c_n a sample's share of F_g, F_g ≥ Σ_n c_n H(α_n), H the entropy:
    log Σ exp z ≥ ⟨α, z⟩ + H(α). L-BFGS gives p_n with a small ∇F_g = R, and α_n = p_n − R M⁺ x_n with M = Σ_n c_n x_n x_nᵀ meets the
    equation. So the bound is the computed minimum less a gap that vanishes with ∇F_g; samples that a linear model tells apart have 0.
    ``iterations``: of L-BFGS, at most; after too few nothing is proven.
    """
    parts = [(task.weight[i], task.samples(i, instant)) for i in task.devices]
    x, labels = np.concatenate([held.x for _, held in parts]), np.concatenate([held.labels for _, held in parts])
    share = np.concatenate([np.full(len(held.labels), weight / len(held.labels)) for weight, held in parts])
    shape = (task.data.dataset.num_classes, x.shape[1])

    def value(flat: FloatArray) -> tuple[float, FloatArray]:
        losses, residual = cross_entropy(x, labels, flat.reshape(shape))
        return float(share @ losses), ((residual * share[:, None]).T @ x).ravel()

    def enough(intermediate_result: OptimizeResult) -> None:
        if intermediate_result.fun <= worth:
            raise StopIteration

    limits = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": 1e-9, "ftol": 0.0}
    found = minimize(value, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", callback=enough, options=limits)
    if found.fun <= worth:
        return 0.0
    residual = cross_entropy(x, labels, found.x.reshape(shape))[1]
    left = (residual * share[:, None]).T @ x
    residual -= x @ np.linalg.pinv((x * share[:, None]).T @ x, hermitian=True) @ left.T
    residual[np.arange(len(labels)), labels] += 1.0  # now α
    if residual.min() < 0:
        return 0.0
    return float(max(share @ entr(residual).sum(axis=1), 0.0))


# --- for all models -------------------------------------------------------------------------------------------------------------


def bounds_everywhere(task: SoftmaxTask, first: FloatArray, h_total: float) -> TheoremConstants:
    r"""Bounds that hold at every model; Φ at every one that a run with Σ h = ``h_total`` can reach. Known before the run, and loose.

    Of a gradient ‖(p − e_y)xᵀ‖ ≤ √2‖x‖ follow V_i ≤ 2 Σ_n ‖x_n‖² / (D_i − 1); δ_i ≤ √2 Σ_k |1[k = i] − λ_k| E_k‖x‖; and of samples that are
    replaced or turned Δ_i ≤ (√2/D_i) Σ_n (‖x_n‖ + ‖x_n'‖), the others cancelling. F_g(0) = log C at all g, so that F_g − F_{g−1} grows
    from 0 no faster than Δ̄ ‖w‖, and updates are no longer than √2 max‖x‖ h: Φ ≤ Δ̄ (‖w^0‖ + √2 max‖x‖ H). No Φ would do for all models.
    The gap is to F* = 0, the least that a cross-entropy can be.

    Parameters
    ----------
    task : the losses
    first : w^0 (C, P)
    h_total : H of the schedule
    """
    size = len(task.weight)
    second, norm, change, longest = np.zeros(size), np.zeros(size), np.zeros(size), 0.0
    for i in task.devices:
        held: _Samples | None = None
        for instant in range(task.slots):
            before, held = held, task.samples(i, instant)
            if held is before:
                continue
            second[i] = max(second[i], 2.0 * float(held.square.sum()) / max(len(held.x) - 1, 1))
            norm[i] = max(norm[i], float(np.sqrt(held.square).mean()))
            longest = max(longest, float(np.sqrt(held.square.max())))
            if before is not None:
                change[i] = max(change[i], _replaced(before, held))
        if task.data.sizes[i] == 1:
            second[i] = 0.0  # a batch is all there is
    share = np.abs(np.eye(size) - task.weight)
    dissimilarity = np.where(task.weight > 0, np.sqrt(2.0) * share @ norm, 0.0)
    return TheoremConstants(
        smoothness=task.smoothness,
        initial_gap=task.loss(0, first),
        loss_drift=(float(np.linalg.norm(first)) + np.sqrt(2.0) * longest * h_total) * float(task.weight @ change),
        gradient_variance=second,
        dissimilarity=dissimilarity,
        gradient_drift=change,
    )


def _replaced(before: _Samples, after: _Samples) -> float:
    """(√2/D) Σ (‖x‖ + ‖x'‖) over the positions whose sample is another one."""
    changed = (before.labels != after.labels) | np.any(before.x != after.x, axis=1)
    return float(np.sqrt(2.0) * (np.sqrt(before.square) + np.sqrt(after.square))[changed].sum() / len(changed))


# --- on the path of a run -------------------------------------------------------------------------------------------------------


def constants_on_path(
    task: SoftmaxTask,
    models: Sequence[FloatArray],
    schedule: Schedule,
    variance: FloatArray,
    *,
    least_loss: float = 0.0,
) -> TheoremConstants:
    """The least constants with which A2 to A4 hold wherever the proof uses them (see the module's docstring); β for all models.

    Parameters
    ----------
    task : the losses
    models : w^0..w^G of the run
    schedule : its assignments, all of this task
    variance : largest V_i at the local iterates of every assignment, shape (n,)
    least_loss : F*, at most inf F_{G−1}; 0 always is
    """
    size = len(task.weight)
    largest, apart, drift, rise = np.zeros(size), np.zeros(size), np.zeros(size), 0.0
    np.maximum.at(largest, schedule.device, variance)
    for g, w in enumerate(models[: task.slots]):
        now = task.gradients(g, w)
        apart = np.maximum(apart, _norms(now - task.mean(now)))
        # the uploads of instant g + 1 compare these gradients with those of the data that they received
        earliest = int(min(schedule.start[schedule.end == g + 1], default=g))
        drift = np.maximum(drift, _drift(task, g, w, now, min(earliest, g - 1)))
        if g >= 1 and not task.unchanged(g - 1):
            rise = max(rise, task.loss(g, w) - task.loss(g - 1, w))
    return TheoremConstants(
        smoothness=task.smoothness,
        initial_gap=task.loss(0, models[0]) - least_loss,
        loss_drift=rise,
        gradient_variance=largest,
        dissimilarity=np.where(task.weight > 0, apart, 0.0),
        gradient_drift=drift,
    )


def _drift(task: SoftmaxTask, instant: int, model: FloatArray, gradients: FloatArray, earliest: int) -> FloatArray:
    """Largest change per slot, back from ``instant`` to ``earliest``, of the ``gradients`` (I, C, P) of ``instant`` at ``model``; (I,)."""
    drift, later = np.zeros(len(gradients)), gradients
    for k in range(instant - 1, max(earliest, 0) - 1, -1):
        if task.unchanged(k):
            continue
        earlier = task.gradients(k, model)
        drift = np.maximum(drift, _norms(later - earlier))
        later = earlier
    return drift


def _norms(values: FloatArray) -> FloatArray:
    """Frobenius norm of every (C, P) of ``values`` (I, C, P)."""
    return np.sqrt(np.einsum("icp,icp->i", values, values))
