r"""A run of softmax regression once more, in double precision: its constants, and what every term of Theorem 1 is in reality.

The engine tells the global models; batches follow from the seed, so that local training can be repeated step by step from them. With the
mean gradient of an upload, G_s = Σ_ℓ c_ℓ ∇L_i^a(w_s^ℓ) / A(e) with c_ℓ = (1 − ηρ)^{e−1−ℓ}, and the rest of it, noise,

    u_g = w^g − w^{g−1} = −h_g d_g + ζ_g,   d_g = Σ_s q_s G_s,   q_s = h_s / h_g    (s: b_s = g),

    ∇F_{g−1}(w^{g−1}) − d_g = Σ_s q_s [ (∇F_{g−1} − ∇L_i^{g−1})(w^{g−1})           participation
                                      + (∇L_i^{g−1} − ∇L_i^a)(w^{g−1})              data drift
                                      + ∇L_i^a(w^{g−1}) − ∇L_i^a(w^a)               staleness of the model
                                      + ∇L_i^a(w^a) − G_s ]                         local drift,

and smoothness gives, in every single run, with Σ_g over instants with uploads but in the losses,

    ½ Σ_g h_g ‖∇F_{g−1}(w^{g−1})‖² ≤ F_0(w^0) − F_{G−1}(w^G) + Σ_{g=1}^{G−1} [F_g − F_{g−1}](w^g)
        + Σ_g (h_g/2) (‖∇F_{g−1}(w^{g−1}) − d_g‖² − ‖d_g‖²) + Σ_g ⟨∇F_{g−1}(w^{g−1}), ζ_g⟩ + (β/2) Σ_g ‖u_g‖².

Theorem 1 bounds the right side term by term. :func:`realised_terms` has each term in reality; :attr:`RealisedTerms.slack` is the right side
less the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_runtime.constants import SoftmaxTask, cross_entropy
from fl_runtime.task_run import BATCH_STREAM
from fl_runtime.training.batches import draw_batches
from schedopt.bounds.async_schedule import aggregate
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["Replay", "Upload", "RealisedTerms", "realised_terms", "replay"]


@dataclass(frozen=True)
class Upload:
    """An assignment's local training: w_end − w^a, the mean gradient G_s, the largest V at its iterates; matrices (C, P)."""

    update: FloatArray
    gradient: FloatArray
    variance: float


@dataclass(frozen=True)
class Replay:
    """A run of one task: ``models`` w^0..w^G as the engine had them, and ``uploads``, one per assignment of ``schedule``."""

    problem: Problem
    schedule: Schedule
    task: SoftmaxTask
    models: Sequence[FloatArray]
    uploads: Sequence[Upload]

    @property
    def variance(self) -> FloatArray:
        """Largest V at the local iterates of every assignment, shape (n,)."""
        return np.array([upload.variance for upload in self.uploads])

    def error(self) -> float:
        """Largest distance of the engine's w^g − w^{g−1} from that of the uploads: what single precision and mistakes are worth."""
        theta = self.problem.arrays.server_weight[self.schedule.device, self.schedule.task]
        steps = np.diff(np.stack(self.models), axis=0)
        for k, end in enumerate(self.schedule.end):
            steps[end - 1] -= theta[k] * self.uploads[k].update
        return float(np.sqrt(np.einsum("gcp,gcp->g", steps, steps)).max())


def replay(problem: Problem, schedule: Schedule, task: SoftmaxTask, models: Sequence[FloatArray], seed: int) -> Replay:
    """Repeat the local training of all assignments (of the problem's only task, with rule ``delta``) from the run's models.

    ``models``: w^0..w^G, (C, P) each; ``seed``: the run's.
    """
    uploads = [_upload(problem, schedule, task, models, seed, k) for k in range(len(schedule))]
    return Replay(problem, schedule, task, models, uploads)


def _upload(problem: Problem, schedule: Schedule, task: SoftmaxTask, models: Sequence[FloatArray], seed: int, k: int) -> Upload:
    device, start, steps = int(schedule.device[k]), int(schedule.start[k]), int(schedule.steps[k])
    rate, prox = float(problem.arrays.learning_rate[0]), float(problem.arrays.prox[0])
    held = task.samples(device, start)
    batches = draw_batches((seed, BATCH_STREAM, 0, device, start), steps, int(schedule.batch[k]), len(held.labels))
    received = w = models[start]
    mean, total, variance = np.zeros_like(w), 0.0, 0.0
    for chosen in batches:
        full = task.local(device, start, w)
        mean, total = (1.0 - rate * prox) * mean + full.gradient, (1.0 - rate * prox) * total + 1.0
        variance = max(variance, full.variance)
        gradient = full.gradient
        if len(chosen) < len(held.labels):
            gradient = cross_entropy(held.x[chosen], held.labels[chosen], w)[1].T @ held.x[chosen] / len(chosen)
        w = w - rate * (gradient + prox * (w - received))
    return Upload(w - received, mean / total, variance)


@dataclass(frozen=True)
class RealisedTerms:
    """The terms of Theorem 1 in one run; to be compared with the T_k, before the factor (8/3)/H.

    Certain in every run: ``opt`` ≤ T_opt, ``loss`` ≤ T_loss, ``part`` ≤ T_part, ``data`` ≤ T_data (constants on the path). In the mean
    over batches: ``noise`` ≤ T_noise. T_local and T_stale are only what is left of ``local`` and ``stale`` after the descent has paid its
    share by C1 and C2, so that these may exceed them.

    Attributes
    ----------
    opt : F_0(w^0) − F_{G−1}(w^G)
    loss : Σ_{g=1}^{G−1} [F_g(w^g) − F_{g−1}(w^g)]
    part, data, stale, local : Σ_g 2 h_g ‖·‖² of the four parts of ∇F − d, each summed over an instant's uploads
    noise : β Σ_g ‖ζ_g‖²
    squares : Σ_g h_g ‖∇F_{g−1}(w^{g−1})‖²; over H, the left side of Theorem 1
    slack : right side less left side of the descent inequality (see the module's docstring); never negative
    """

    opt: float
    loss: float
    part: float
    data: float
    local: float
    noise: float
    stale: float
    squares: float
    slack: float

    def terms(self) -> FloatArray:
        """The seven terms in the order of :data:`schedopt.problem.TERMS`."""
        return np.array([self.opt, self.loss, self.part, self.data, self.local, self.noise, self.stale])


def realised_terms(run: Replay) -> RealisedTerms:
    """What every term of Theorem 1 was in a run, β being that of the data."""
    task, models, slots = run.task, run.models, run.task.slots
    sums = aggregate(run.problem.arrays, run.schedule)
    opt = task.loss(0, models[0]) - task.loss(slots - 1, models[slots])
    loss = sum(task.loss(g, models[g]) - task.loss(g - 1, models[g]) for g in range(1, slots) if not task.unchanged(g - 1))
    total = dict.fromkeys(("part", "data", "local", "noise", "stale", "squares", "bend"), 0.0)
    for g in np.flatnonzero(sums.h_instant[0]):
        for name, value in _at_instant(run, int(g), sums.h, float(sums.h_instant[0, g])).items():
            total[name] += value
    slack = opt + loss + total.pop("bend") - 0.5 * total["squares"]
    return RealisedTerms(opt, loss, **total, slack=slack)


def _at_instant(run: Replay, g: int, h: FloatArray, h_g: float) -> dict[str, float]:
    """Shares of instant g in the terms, and as ``bend`` what the descent inequality adds to the losses."""
    task, before, schedule, smoothness = run.task, run.models[g - 1], run.schedule, run.task.smoothness
    local = task.gradients(g - 1, before)
    slope = task.mean(local)
    error = {name: np.zeros_like(before) for name in ("part", "data", "stale", "local")}
    for k in np.flatnonzero(schedule.end == g).tolist():
        i, a, q = int(schedule.device[k]), int(schedule.start[k]), h[k] / h_g
        outdated = local[i] if a == g - 1 else task.local(i, a, before).gradient
        received = outdated if a == g - 1 else task.local(i, a, run.models[a]).gradient
        error["part"] += q * (slope - local[i])
        error["data"] += q * (local[i] - outdated)
        error["stale"] += q * (outdated - received)
        error["local"] += q * (received - run.uploads[k].gradient)
    off = sum(error.values(), np.zeros_like(before))
    direction, step = slope - off, run.models[g] - before
    noise = step + h_g * direction
    bend = 0.5 * h_g * (_square(off) - _square(direction)) + float(np.sum(slope * noise)) + 0.5 * smoothness * _square(step)
    shares = {name: 2.0 * h_g * _square(value) for name, value in error.items()}
    return shares | {"noise": smoothness * _square(noise), "squares": h_g * _square(slope), "bend": bend}


def _square(values: FloatArray) -> float:
    return float(np.sum(values * values))
