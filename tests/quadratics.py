"""Random quadratic learning problems on which every constant of Theorem 1 is known exactly.

Sample n of device i at instant g has loss ½ wᵀQw − (m_i^g + u_{i,n})ᵀw + c^g with one Hessian Q = diag(q) for all. Then

* β = max q; the sample variance V_i = Σ_n ‖u_{i,n}‖²/(D_i − 1) does not depend on w (Σ_n u_{i,n} = 0), nor do
  δ_i = max_g ‖m_i^g − m̄^g‖ and Δ_i = max_g ‖m_i^{g+1} − m_i^g‖;
* mini-batch noise is additive with covariance S_i (1/B − 1/D_i), so the iterates of section 2 of the formulation are an affine recursion
  with delays, driven by noise that is uncorrelated between assignments: mean and variance follow exactly, without sampling, and every
  coordinate by itself, because the squared norm needs no covariance between coordinates.

A diagonal Q costs no generality (the algorithm commutes with rotations). Constants that concern the path are taken on the path:
Φ = max_{1≤g≤G−1} E[F_g(w^g) − F_{g−1}(w^g)], no less than zero, and F* = inf F_{G−1}: the proof sums the descent on F_0..F_{G−1}, so that
the last loss that it meets is F_{G−1}; no larger F* would do, and inf over all F_g would only be looser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from builders import plain_device, plain_task
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Upload:
    """An assignment: device, instants a < b, local steps, mini-batch."""

    device: int
    a: int
    b: int
    steps: int
    batch: int

    @property
    def kappa(self) -> int:
        """Staleness."""
        return self.b - 1 - self.a


@dataclass(frozen=True)
class Setting:
    """One task of federated quadratics and its schedule (see the module's docstring for the symbols)."""

    curvature: Array
    #: m_i^g, shape (I, G, d), the data of instants 0..G-1
    centre: Array
    #: u_{i,n}: one (D_i, d) array per device, each with mean zero
    spread: tuple[Array, ...]
    #: c^g, shape (G,)
    offset: Array
    start: Array
    weight: Array
    learning_rate: float
    uploads: tuple[Upload, ...]
    server_rate: float = 1.0
    prox: float = 0.0

    @property
    def slots(self) -> int:
        """G."""
        return self.centre.shape[1]

    @property
    def smoothness(self) -> float:
        """β."""
        return float(self.curvature.max())

    @property
    def mean_centre(self) -> Array:
        """m̄^g, shape (G, d)."""
        return np.einsum("i,igd->gd", self.weight, self.centre)

    def scatter(self, device: int) -> Array:
        """Diagonal of the sample covariance S_i (with D − 1), shape (d,)."""
        u = self.spread[device]
        return (u**2).sum(axis=0) / (len(u) - 1)

    def step_sum(self, steps: int) -> float:
        """A(e)."""
        return float(np.sum((1 - self.learning_rate * self.prox) ** np.arange(steps)))

    def h(self, upload: Upload) -> float:
        """h_s = η θ_s A(e_s)."""
        return self.learning_rate * self.server_rate * self.weight[upload.device] * self.step_sum(upload.steps)

    def h_instant(self) -> Array:
        """h_g, shape (G+1,)."""
        h = np.zeros(self.slots + 1)
        for s in self.uploads:
            h[s.b] += self.h(s)
        return h

    def loss(self, g: int, w: Array) -> Array:
        """F_g(w) for w of shape (..., d)."""
        return 0.5 * (self.curvature * w**2).sum(axis=-1) - (self.mean_centre[g] * w).sum(axis=-1) + self.offset[g]

    def least_loss(self, g: int) -> float:
        """inf F_g."""
        return float(self.loss(g, self.mean_centre[g] / self.curvature))


# --- the exact left side --------------------------------------------------------------------------------------------------------


def exact_moments(setting: Setting) -> tuple[Array, Array]:
    """Mean and variance of every coordinate of w^0..w^G, each of shape (G+1, d).

    Local training maps w^a to w^a − η P (q w^a − m) + noise with P = Σ_{m<e} (1 − η(q+ρ))^m and noise variance
    η² Σ_{m<e} (1 − η(q+ρ))^{2m} S (1/B − 1/D); so (I − L) w = c + noise with L strictly lower triangular.
    """
    q, eta, size = setting.curvature, setting.learning_rate, setting.slots + 1
    shrink = 1 - eta * (q + setting.prox)
    system = np.tile(np.eye(size) - np.eye(size, k=-1), (len(q), 1, 1))
    constant, variance = np.zeros((size, len(q))), np.zeros((size, len(q)))
    constant[0] = setting.start
    for s in setting.uploads:
        powers = shrink ** np.arange(s.steps)[:, None]
        gain = setting.server_rate * setting.weight[s.device] * eta
        sampling = 1 / s.batch - 1 / len(setting.spread[s.device])
        system[:, s.b, s.a] += gain * powers.sum(axis=0) * q
        constant[s.b] += gain * powers.sum(axis=0) * setting.centre[s.device, s.a]
        variance[s.b] += gain**2 * (powers**2).sum(axis=0) * setting.scatter(s.device) * sampling
    response = np.linalg.inv(system)
    return np.einsum("dgk,kd->gd", response, constant), np.einsum("dgk,kd->gd", response**2, variance)


def gradient_norms(setting: Setting) -> Array:
    """E‖∇F_{g−1}(w^{g−1})‖² for g = 1..G, shape (G,), exactly."""
    mean, variance = exact_moments(setting)
    slope = setting.curvature * mean[:-1] - setting.mean_centre
    return (slope**2).sum(axis=1) + (setting.curvature**2 * variance[:-1]).sum(axis=1)


def left_side(setting: Setting) -> float:
    """(1/H) Σ_g h_g E‖∇F_{g−1}(w^{g−1})‖²."""
    h = setting.h_instant()[1:]
    return float(h @ gradient_norms(setting) / h.sum())


def loss_drift(setting: Setting) -> float:
    """Φ on the path: the loss is quadratic in w with one Hessian, so that its drift is affine and only the mean of w matters."""
    mean, _ = exact_moments(setting)
    growth = [float(setting.loss(g, mean[g]) - setting.loss(g - 1, mean[g])) for g in range(1, setting.slots)]
    return max(0.0, *growth) if growth else 0.0


# --- the same by sampling -------------------------------------------------------------------------------------------------------


def sampled_gradient_norms(setting: Setting, runs: int, rng: np.random.Generator) -> Array:
    """‖∇F_{g−1}(w^{g−1})‖² of ``runs`` runs of the algorithm, shape (runs, G): real mini-batches, step by step."""
    q, path = setting.curvature, [np.tile(setting.start, (runs, 1))]
    for g in range(1, setting.slots + 1):
        w = path[-1].copy()
        for s in setting.uploads:
            if s.b == g:
                theta = setting.server_rate * setting.weight[s.device]
                w += theta * (_train(setting, s, path[s.a], rng) - path[s.a])
        path.append(w)
    return np.stack([((q * path[g] - setting.mean_centre[g]) ** 2).sum(axis=1) for g in range(setting.slots)], axis=1)


def _train(setting: Setting, s: Upload, received: Array, rng: np.random.Generator) -> Array:
    targets = setting.centre[s.device, s.a] + setting.spread[s.device]
    w = received.copy()
    for _ in range(s.steps):
        order = rng.random((len(w), len(targets))).argsort(axis=1)[:, : s.batch]  # without replacement within a batch
        gradient = setting.curvature * w - targets[order].mean(axis=1)
        w = w - setting.learning_rate * (gradient + setting.prox * (w - received))
    return w


# --- constants and the files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constants:
    """What Theorem 1 asks for; per-device values have shape (I,)."""

    smoothness: float
    initial_gap: float
    loss_drift: float
    gradient_variance: Array
    dissimilarity: Array
    gradient_drift: Array

    def understate(self, name: str, factor: float) -> Constants:
        """A copy with one constant multiplied by ``factor``."""
        return replace(self, **{name: getattr(self, name) * factor})


def exact_constants(setting: Setting) -> Constants:
    """The smallest constants for which A1–A4 hold on the path."""
    steps = np.diff(setting.centre, axis=1)
    gap = float(setting.loss(0, setting.start)) - setting.least_loss(setting.slots - 1)
    return Constants(
        smoothness=setting.smoothness,
        # a file wants a positive gap, and the theorem allows any larger one
        initial_gap=max(gap, 1e-12),
        loss_drift=loss_drift(setting),
        gradient_variance=np.array([setting.scatter(i).sum() for i in range(len(setting.weight))]),
        dissimilarity=np.linalg.norm(setting.centre - setting.mean_centre, axis=2).max(axis=1),
        gradient_drift=np.linalg.norm(steps, axis=2).max(axis=1, initial=0.0),
    )


def as_files(setting: Setting, constants: Constants | None = None, **objective: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting as a problem and a schedule in the file formats; the radio part is there to fill the fields."""
    constants = constants or exact_constants(setting)
    task = plain_task(
        max_staleness=max((s.kappa for s in setting.uploads), default=0),
        max_steps=max((s.steps for s in setting.uploads), default=1),
        learning_rate=setting.learning_rate,
        server_rate=setting.server_rate,
        prox=setting.prox,
        smoothness=constants.smoothness,
        initial_gap=constants.initial_gap,
        loss_drift=constants.loss_drift,
    )
    devices = []
    for i, samples in enumerate(setting.spread):
        pair = {"samples": len(samples), "weight": float(setting.weight[i])}
        pair |= {name: float(getattr(constants, name)[i]) for name in ("gradient_variance", "dissimilarity", "gradient_drift")}
        devices.append(plain_device(f"d{i}", pair=pair))
    problem = {
        "schema": "schedopt.problem/1",
        "name": "quadratic",
        "horizon": {"slots": setting.slots, "slot_s": 1.0},
        "spectrum": {"bandwidth_hz": 1.0e6, "noise_w_per_hz": 1.0e-12},
        "tasks": [task],
        "devices": devices,
        "objective": {"mode": "weighted", "energy_weight": 0.0} | objective,
    }
    radio = {"task": "t0", "freq_hz": 1.0e9, "power_w": 0.1, "bandwidth_hz": 1.0e5}
    rows = [{"device": f"d{s.device}", "start": s.a, "end": s.b, "steps": s.steps, "batch": s.batch} | radio for s in setting.uploads]
    return problem, rows


# --- random settings ------------------------------------------------------------------------------------------------------------


def largest_server_rate(setting: Setting) -> float:
    """The α at which C2 holds with equality: per instant the positive root of βh_k α + (17/4)β²h_k S_k α² = 1/2."""
    one, beta = replace(setting, server_rate=1.0), setting.smoothness
    span = np.zeros(setting.slots + 1)
    for s in setting.uploads:
        span[s.a + 1 : s.b] += one.h(s) * s.kappa
    linear = beta * one.h_instant()
    busy = linear > 0
    square = 17 / 4 * beta * linear[busy] * span[busy]
    # the form of the root that does not cancel when there is no staleness
    return float(np.min(1 / (linear[busy] + np.sqrt(linear[busy] ** 2 + 2 * square))))


def random_uploads(rng: np.random.Generator, devices: int, slots: int, samples: list[int]) -> tuple[Upload, ...]:
    """Each device one at a time, delays up to 8, 20-100% of the devices at work; at least one upload."""
    max_steps, full = int(rng.integers(1, 13)), rng.random() < 0.2
    if rng.random() < 0.1:
        return _synchronous(rng, slots, samples, max_steps)
    longest, share = int(rng.integers(1, 10)), rng.uniform(0.2, 1.0)
    uploads = []
    for i in range(devices):
        g = int(rng.integers(0, 3))
        while g < slots:
            length = int(rng.integers(1, longest + 1))
            if rng.random() < share and g + length <= slots:
                batch = samples[i] if full else int(rng.integers(1, samples[i] + 1))
                uploads.append(Upload(i, g, g + length, int(rng.integers(1, max_steps + 1)), batch))
            g += length + int(rng.integers(0, 2))
    return tuple(uploads) or (Upload(0, 0, min(longest, slots), max_steps, 1),)


def _synchronous(rng: np.random.Generator, slots: int, samples: list[int], steps: int) -> tuple[Upload, ...]:
    """All devices in every round with the same work: the case that the sharper participation term is made for."""
    length = int(rng.integers(1, 4))
    rounds = range(0, slots - length + 1, length)
    return tuple(Upload(i, g, g + length, steps, int(rng.integers(1, n + 1))) for g in rounds for i, n in enumerate(samples))


def random_centres(rng: np.random.Generator, devices: int, slots: int, dim: int) -> Array:
    """Where each device's optimum lies over time: apart or alike, at rest, on a random walk, on a line or on a circle."""
    apart = rng.choice([0.0, 0.1, 1.0, 3.0]) * rng.normal(size=(devices, 1, dim))
    speed = rng.choice([0.0, 0.0, 0.02, 0.2]) * np.ones((devices, slots, 1))
    common, time = rng.random() < 0.3, np.arange(slots)[None, :, None]
    direction = rng.normal(size=(1 if common else devices, 1, dim))
    kind = rng.integers(3)
    if kind == 0:
        motion = rng.normal(size=(1 if common else devices, slots, dim)).cumsum(axis=1)
    elif kind == 1:
        motion = direction * time
    else:
        motion = direction * np.sin(2 * np.pi * (time / rng.uniform(4, 20) + rng.random()))
    return apart + speed * motion


def random_setting(rng: np.random.Generator, *, most_devices: int = 13, most_slots: int = 80) -> Setting:
    """A setting that meets C1 and C2, at times with equality."""
    devices, slots, dim = int(rng.integers(2, most_devices + 1)), int(rng.integers(5, most_slots + 1)), int(rng.integers(1, 6))
    samples = [int(n) for n in rng.integers(2, 30, size=devices)]
    curvature = np.exp(rng.uniform(np.log(0.02), 0.0, size=dim)) * rng.choice([0.3, 1.0, 10.0])
    spread = [rng.choice([0.0, 0.3, 3.0]) * rng.normal(size=(n, dim)) for n in samples]
    centre = random_centres(rng, devices, slots, dim)
    uploads = random_uploads(rng, devices, slots, samples)
    tight = rng.random() < 0.3
    rate = (0.999 if tight else rng.uniform(0.05, 0.999)) / (20 * curvature.max() * max(s.steps for s in uploads))
    weight = rng.dirichlet(np.full(devices, rng.choice([0.5, 5.0]))) if rng.random() < 0.5 else np.array(samples) / sum(samples)
    setting = Setting(
        curvature=curvature,
        centre=centre,
        spread=tuple(u - u.mean(axis=0) for u in spread),
        offset=np.zeros(slots),
        start=rng.choice([0.01, 1.0, 10.0]) * rng.normal(size=dim),
        weight=weight,
        learning_rate=float(rate),
        uploads=uploads,
        prox=float(rng.choice([0.0, 0.0, 0.1, 0.9]) / rate),
    )
    return replace(setting, server_rate=_server_rate(rng, setting), offset=_offset(rng, setting))


def _server_rate(rng: np.random.Generator, setting: Setting) -> float:
    """As large as C2 allows, a share of that, or the FedAvg value 1 where it is allowed."""
    largest = largest_server_rate(setting) * (1 - 1e-9)
    return float(min(largest, rng.choice([largest, largest * rng.uniform(0.02, 1.0), 1.0])))


def _offset(rng: np.random.Generator, setting: Setting) -> Array:
    """c^g of least squares on the samples, or such that every inf F_g = 0, or none: different shares of T_opt and T_loss."""
    kind = rng.integers(3)
    if kind == 0:
        return np.zeros(setting.slots)
    if kind == 1:
        return 0.5 * (setting.mean_centre**2 / setting.curvature).sum(axis=1)
    square = np.stack([m**2 + (u**2).mean(axis=0) for m, u in zip(setting.centre, setting.spread, strict=True)])
    return 0.5 * np.einsum("i,igd->g", setting.weight, square / setting.curvature)


# --- settings that are hard on one term -----------------------------------------------------------------------------------------


def _single(
    slots: int, uploads: list[Upload], *, beta_h: float, centre: Array | None = None, steps_share: float = 1e-3, **fields: Any
) -> Setting:
    """One coordinate of curvature 1 whose first upload has βh = ``beta_h``; ηβ = ``steps_share`` makes T_local negligible."""
    centre = np.zeros((1 + max(s.device for s in uploads), slots, 1)) if centre is None else centre
    devices = len(centre)
    setting = Setting(
        curvature=np.ones(1),
        centre=centre,
        spread=tuple(np.zeros((4, 1)) for _ in range(devices)),
        offset=np.zeros(slots),
        start=np.zeros(1),
        weight=np.full(devices, 1 / devices),
        learning_rate=steps_share,
        uploads=tuple(uploads),
    )
    setting = replace(setting, **fields)
    return replace(setting, server_rate=beta_h / replace(setting, server_rate=1.0).h(uploads[0]))


def _rounds(slots: int, device: int = 0) -> list[Upload]:
    return [Upload(device, g, g + 1, 1, 4) for g in range(slots)]


def descent() -> Setting:
    """Nothing but T_opt: noise-free gradient descent on one quadratic with the largest step that C2 allows."""
    return _single(40, _rounds(40), beta_h=0.5, start=np.ones(1))


def rising_loss() -> Setting:
    """T_opt and T_loss in the ratio 1 : 19: the loss itself grows by a constant per slot, so that F_{G−1} − F_0 eats most of the gap."""
    slots = 40
    setting = _single(slots, _rounds(slots), beta_h=0.5, start=np.ones(1))
    return replace(setting, offset=0.95 * 0.5 * np.arange(slots) / (slots - 1))


def one_sided() -> Setting:
    """T_part: only one of two opposite devices ever uploads, the model settles at its optimum, where ‖∇F‖ = δ."""
    slots = 200
    centre = np.broadcast_to(np.array([1.0, -1.0])[:, None, None], (2, slots, 1))
    return _single(slots, _rounds(slots), beta_h=0.5, centre=centre, start=np.ones(1))


def outdated_data(kappa: int = 6, rounds: int = 60) -> Setting:
    """T_data: the data swing to and fro; the device always receives at one end of the swing and uploads at the other.

    The model rests at the optimum of the received data, where the current gradient is κΔ. The loss of the resting model never changes
    (c^g), so that nothing is charged to T_loss.
    """
    slots = 2 * kappa * rounds
    swing = kappa / 2 - np.abs(np.arange(slots) % (2 * kappa) - kappa)  # −κ/2 at reception, +κ/2 at upload
    centre = -swing[None, :, None]
    uploads = [Upload(0, g, g + kappa + 1, 1, 4) for g in range(0, slots - kappa, 2 * kappa)]
    start = centre[0, 0]
    return _single(slots, uploads, beta_h=0.5, centre=centre, start=start, offset=centre[0, :, 0] * start[0])


def noisy() -> Setting:
    """T_noise: a single sample per step, at the optimum, with the largest step: all that is left is the noise of the model."""
    uploads = [Upload(0, g, g + 1, 1, 1) for g in range(300)]
    return _single(300, uploads, beta_h=0.5, spread=(np.array([[-1.0], [1.0]]),), steps_share=1e-4)


def stale_noise() -> Setting:
    """T_stale is most of the bound: uploads that weigh next to nothing but are very noisy, within the span of a heavy one."""
    uploads = [Upload(0, 0, 10, 1, 4)] + [Upload(1, g, g + 1, 1, 1) for g in range(9)]
    loud = 1e4 * np.array([[-1.0], [1.0], [-1.0], [1.0]])
    return _single(10, uploads, beta_h=0.499, spread=(np.zeros((4, 1)), loud), weight=np.array([1 - 1e-6, 1e-6]))


def local_noise() -> Setting:
    """T_local is most of the bound: single-sample steps at the limit of C1 under a small server rate."""
    uploads = [Upload(0, g, g + 1, 10, 1) for g in range(200)]
    return _single(200, uploads, beta_h=5e-4, spread=(np.array([[-1.0], [1.0]]),), steps_share=0.005)


# --- settings outside the conditions --------------------------------------------------------------------------------------------


def long_step() -> Setting:
    """βh = 2.5: gradient descent beyond 2/β."""
    return _single(30, _rounds(30), beta_h=2.5, start=np.ones(1))


def long_delay() -> Setting:
    """βh = 0.45, allowed when fresh; but nine devices in turn, each eight instants late, answer an error with too many corrections."""
    slots, devices = 150, 9
    uploads = [Upload(g % devices, g, g + devices, 1, 4) for g in range(slots - devices + 1)]
    return _single(slots, uploads, beta_h=0.45, start=np.ones(1))


def long_training() -> Setting:
    """ηβ = 3: nine local steps drive the device far away; βh = 1/2 all the same."""
    return _single(30, [Upload(0, g, g + 1, 9, 4) for g in range(30)], beta_h=0.5, steps_share=3.0, start=np.ones(1))


def chase() -> Setting:
    """The optimum runs away at constant speed, ever deeper, and the model follows at a constant distance.

    c^g is such that the loss at the current model never rises: Φ = 0, so that all the descent must come out of F_0(w^0) − F*.
    """
    slots = 200
    centre = np.arange(slots, dtype=float)[None, :, None]
    setting = _single(slots, _rounds(slots), beta_h=0.5, centre=centre, start=np.array([-2.0]))
    mean, _ = exact_moments(setting)
    return replace(setting, offset=np.concatenate([[0.0], np.cumsum(np.diff(centre[0, :, 0]) * mean[1:slots, 0])]))
