r"""Random problems from physics: a cell with path loss, shadowing and block fading, CPU classes, unequal data sizes and gradients.

A device at distance d from the server has the channel power gain

    gain[g] = 10^{−(L_ref + 10 n log10(d / 1 m) + X)/10} · F[g],    X ~ N(0, σ²) in dB,    F[g] ~ Exp(1), constant over a block,

(log-distance path loss, log-normal shadowing, Rayleigh fading). Every topic has its own stream of random numbers, so that a change
of, say, the tasks leaves the devices as they were. Where the defaults come from is said beside each; "literature" is published work
on federated learning over wireless networks: JSAC'24a, JSAC'24b (Han et al.), FEDL (Tran et al.), FedAST (Askin et al.), M3T-FFM
(its public code). Tested in ``tests/test_generate.py`` against closed forms.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import ValidationError

from schedopt.errors import InputError
from schedopt.messages import describe_validation_error
from schedopt.problem import MAX_GAINS, MAX_PAIRS, MAX_SLOTS, PROBLEM_SCHEMA, TERMS, FloatArray, IntArray, Problem

__all__ = ["KNOWN_TASKS", "CpuClass", "GenerateSettings", "generate_problem", "mean_gain"]

Regime = Literal["practical", "certified"]
Mode = Literal["weighted", "min_energy", "min_bound"]
Participation = Literal["instant", "horizon"]

#: Larger problems are taken for mistakes.
MAX_DEVICES, MAX_TASKS = 100_000, 1_000
#: A gain below this is as good as none; it keeps gains positive whatever the geometry.
MIN_GAIN = 1e-30
#: Decimal digits of the random numbers in a problem.
DIGITS = 6
#: One stream of random numbers per topic; new topics go to the end.
_TOPICS = ("position", "shadowing", "fading", "cpu", "power", "downlink", "budget", "holders", "sizes", "cycles", "gradients")


class CpuClass(NamedTuple):
    """A class of processors: frequency range in Hz, effective capacitance κ in J s²/cycle³, relative share of the devices."""

    freq_min_hz: float
    freq_max_hz: float
    capacitance: float
    share: float


#: κ between 1e-28 (JSAC'24a) and 2e-28 (FEDL, whose energy has the same factor ½); 0.3 GHz up to 1-2 GHz (FEDL); slow, normal and
#: fast devices 25/50/25 % (FedAST).
CPU_CLASSES = (
    CpuClass(3.0e8, 1.0e9, 1.0e-28, 0.25),
    CpuClass(3.0e8, 1.5e9, 1.5e-28, 0.5),
    CpuClass(3.0e8, 2.0e9, 2.0e-28, 0.25),
)


@dataclass(frozen=True)
class _Preset:
    """Constants of a data set with a model; the names are those of the settings."""

    model: str
    model_bits: float
    cycles_per_sample: float
    learning_rate: float
    smoothness: float
    gradient_variance: float
    dissimilarity: float
    weight: float
    samples: int
    training_set: int
    initial_gap: float = 2.303  # ln 10: the loss of a uniform guess among ten classes, above a minimum of zero


def _presets(model: str, rows: Mapping[str, tuple[float, ...]]) -> dict[str, _Preset]:
    fields = ("model_bits", "cycles_per_sample", "learning_rate", "smoothness", "gradient_variance", "dissimilarity", "weight")
    presets = {}
    for name, row in rows.items():
        samples, training_set = _SIZES[name]
        presets[name] = _Preset(model=model, samples=samples, training_set=training_set, **dict(zip(fields, row, strict=True)))
    return presets


#: Samples a device (JSAC'24a: 1,200 of MNIST and Fashion-MNIST, 1,000 of CIFAR-10), and of the whole training set.
_SIZES = {"mnist": (1200, 60_000), "fashion-mnist": (1200, 60_000), "cifar-10": (1000, 50_000), "svhn": (1000, 73_257)}

# Model bits are 32 per parameter (JSAC'24a). Cycles per sample are 24 per multiply-add of the forward and the backward pass (three
# times the forward one), about JSAC'24a's 3e7. Smoothness (largest curvature), gradient variance and dissimilarity were
# measured on the data: of the CNN (LeNet-5) during 1,200 steps of batch 32 at rate 0.05, of softmax regression at the start (where
# the smoothness, half the largest eigenvalue of the inputs' second moment, is a bound); dissimilarity is the mean over label
# distributions Dirichlet(0.3). SVHN was not at hand: its rows are those of CIFAR-10, whose images have the same size.
# Columns: model_bits, cycles_per_sample, learning_rate, smoothness, gradient_variance, dissimilarity, weight.
_PRESETS: dict[str, dict[str, _Preset]] = {
    # learning rates: customary; FedAST takes 0.06 to 0.1, where the scaled local drift would allow two or three steps only
    "practical": _presets(
        "cnn",
        {
            "mnist": (44_426 * 32, 2.0e7, 0.05, 20.0, 120.0, 2.0, 1.0),
            "fashion-mnist": (44_426 * 32, 2.0e7, 0.05, 30.0, 150.0, 3.3, 1.0),
            "cifar-10": (62_006 * 32, 4.6e7, 0.03, 35.0, 160.0, 3.8, 1.0),
            "svhn": (62_006 * 32, 4.6e7, 0.03, 35.0, 160.0, 3.8, 1.0),
        },
    ),
    # learning rates: ten steps meet condition C1 (rate · smoothness · steps <= 1/20). Bounds grow with the smoothness; weights in
    # inverse proportion give every task the same say.
    "certified": _presets(
        "softmax",
        {
            "mnist": (7_850 * 32, 6.0e5, 2.5e-4, 20.0, 79.0, 3.1, 1.0),
            "fashion-mnist": (7_850 * 32, 6.0e5, 9.0e-5, 55.6, 144.0, 4.9, 0.36),
            "cifar-10": (30_730 * 32, 2.2e6, 1.3e-5, 374.0, 798.0, 12.1, 0.054),
            "svhn": (30_730 * 32, 2.2e6, 1.3e-5, 374.0, 798.0, 12.1, 0.054),
        },
    ),
}

#: Tasks with presets, in the order in which they are taken; further ones are called task4, task5, ... and repeat the presets.
KNOWN_TASKS = ("mnist", "fashion-mnist", "cifar-10", "svhn")

#: Objective of each regime. Practical: formulation section 3, starting values for practical problems; certified: the theorem as proven.
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "practical": {
        "energy_weight": 0.5,
        "participation": "horizon",
        "term_scale": {"opt": 1.0, "loss": 1.0, "part": 0.03, "data": 0.03, "local": 1e-5, "noise": 0.004, "stale": 1e-4},
        "enforce_conditions": False,
    },
    "certified": {
        "energy_weight": 200.0,
        "participation": "instant",
        "term_scale": dict.fromkeys(TERMS, 1.0),
        "enforce_conditions": True,
    },
}


@dataclass(frozen=True)
class GenerateSettings:
    """What :func:`generate_problem` draws from; ``None`` means "as the presets say". Raises ``InputError`` on a bad value."""

    #: name of the problem
    name: str = "generated"
    #: number of devices I
    devices: int = 10
    #: number of tasks J
    tasks: int = 3
    #: names of the tasks; empty = mnist, fashion-mnist, cifar-10, svhn, task4, ...
    task_names: tuple[str, ...] = ()
    #: number of slots G
    slots: int = 30
    #: length of a slot in seconds; a useful mini-batch run takes 0.1 to 3 slots of one second, see the presets
    slot_s: float = 1.0
    #: presets: "practical" (CNNs at customary rates, scaled terms) or "certified" (softmax regression, Theorem 1 as proven, C1 and C2)
    regime: Regime = "practical"

    #: uplink band in Hz that all devices share; None = 300 kHz a device (M3T-FFM: 300 kHz per link)
    bandwidth_hz: float | None = None
    #: thermal noise density in W/Hz: −174 dBm/Hz (JSAC'24a)
    noise_w_per_hz: float = 3.98e-21
    #: noise figure of the receiver in dB (customary for a base station)
    noise_figure_db: float = 5.0
    #: radius of the cell in m; devices are uniform in the disc (customary urban cell)
    cell_radius_m: float = 500.0
    #: no device is nearer to the server than this, in m
    min_distance_m: float = 10.0
    #: path loss at 1 m in dB (M3T-FFM)
    reference_loss_db: float = 30.0
    #: path loss exponent n (M3T-FFM)
    path_loss_exponent: float = 3.0
    #: standard deviation of the log-normal shadowing in dB (customary urban value); 0 = none
    shadowing_db: float = 8.0
    #: slots over which the Rayleigh fading stays the same; 0 = no fading
    fading_block_slots: int = 1
    #: fading power is at least this (1 = the mean): the scheduler's channel is never quite gone
    fading_floor: float = 0.01

    #: classes of processors: (freq_min_hz, freq_max_hz, capacitance, share) each
    cpu_classes: tuple[CpuClass, ...] = CPU_CLASSES
    #: range of the devices' largest transmit power in W (JSAC'24a)
    max_power_w: tuple[float, float] = (0.1, 0.3)
    #: power drawn while receiving, in W (most of the literature leaves it out)
    receive_power_w: float = 0.0
    #: range of the devices' downlink rates in bit/s (a CNN arrives within 0.2 s)
    downlink_bps: tuple[float, float] = (1.0e7, 4.0e7)
    #: range of the devices' energy budgets in J; None = unlimited
    energy_budget_j: tuple[float, float] | None = None

    #: samples of each task over all devices; None = 1,000 to 1,200 a device (JSAC'24a), at most the training set
    total_samples: int | None = None
    #: Dirichlet concentration of the data sizes; small = very unequal
    size_dirichlet: float = 1.0
    #: fraction of the devices that hold data of a task; every device holds some task
    holder_fraction: float = 1.0
    #: weights of the tasks in the objective; empty = preset
    task_weights: tuple[float, ...] = ()
    #: size of every model in bits
    model_bits: float | None = None
    #: CPU cycles per sample and step of every task
    cycles_per_sample: float | None = None
    #: spread (standard deviation of the logarithm) of the cycles per sample among devices
    cycles_spread: float = 0.2
    #: largest staleness K in slots
    max_staleness: int = 5
    #: largest number of local steps; FedAST takes 27
    max_steps: int = 20
    #: smallest mini-batch; at the starting scale of the terms small ones are best
    min_batch: int = 1
    #: local learning rate of every task
    learning_rate: float | None = None
    #: server learning rate (1 = FedAvg)
    server_rate: float = 1.0
    #: weight of the local proximal term
    prox: float = 0.0
    #: smoothness β of every task
    smoothness: float | None = None
    #: initial gap F_0(w^0) − F* of every task
    initial_gap: float | None = None
    #: median over the devices of the per-sample gradient variance V of every task
    gradient_variance: float | None = None
    #: spread (standard deviation of the logarithm) of V among devices
    variance_spread: float = 0.3
    #: median over the devices of the gradient dissimilarity δ of every task
    dissimilarity: float | None = None
    #: spread (standard deviation of the logarithm) of δ among devices; 0.25 to 0.3 measured for labels Dirichlet(0.3)
    dissimilarity_spread: float = 0.3
    #: median over the devices of the gradient drift Δ per slot (assumed; the data sets themselves are static); 0 = none
    gradient_drift: float = 0.1
    #: spread (standard deviation of the logarithm) of Δ among devices
    drift_spread: float = 0.5
    #: growth Φ of the global loss per slot
    loss_drift: float = 0.0

    #: what is minimised
    mode: Mode = "weighted"
    #: ξ in 1/J (mode weighted)
    energy_weight: float | None = None
    #: energy allowed in mode min_bound, in J; None = unlimited
    total_energy_j: float | None = None
    #: bound that every task must reach in mode min_energy
    target: float | None = None
    #: participation "instant" (Theorem 1) or "horizon"
    participation: Participation | None = None
    #: multipliers of the terms of the bound that differ from one
    term_scale: dict[str, float] | None = None
    #: whether conditions C1 and C2 are enforced
    enforce_conditions: bool | None = None

    def __post_init__(self) -> None:
        _check_settings(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        if self.task_names:
            return self.task_names
        return tuple(KNOWN_TASKS[j] if j < len(KNOWN_TASKS) else f"task{j}" for j in range(self.tasks))


# --- validation -----------------------------------------------------------------------------------------------------------------

_WHOLE = {
    "devices": (1, MAX_DEVICES),
    "tasks": (1, MAX_TASKS),
    "slots": (1, MAX_SLOTS),
    "fading_block_slots": (0, MAX_SLOTS),
    "total_samples": (1, 10**12),
    "max_staleness": (0, 10**12),
    "max_steps": (1, 10**12),
    "min_batch": (1, 10**12),
}
_POSITIVE = (
    "slot_s", "bandwidth_hz", "noise_w_per_hz", "cell_radius_m", "min_distance_m", "fading_floor", "size_dirichlet", "model_bits",
    "cycles_per_sample", "learning_rate", "server_rate", "smoothness", "initial_gap", "total_energy_j", "target",
)  # fmt: skip
_NON_NEGATIVE = (
    "path_loss_exponent", "shadowing_db", "receive_power_w", "cycles_spread", "prox", "gradient_variance", "variance_spread",
    "dissimilarity", "dissimilarity_spread", "gradient_drift", "drift_spread", "loss_drift", "energy_weight",
)  # fmt: skip
_DECIBEL = ("noise_figure_db", "reference_loss_db")
_CHOICES = {"regime": get_args(Regime), "mode": get_args(Mode), "participation": get_args(Participation)}
#: Physically absurd powers of ten would overflow; this is far outside anything real.
_LARGEST, _LARGEST_DECIBEL, _LARGEST_SPREAD = 1e30, 300.0, 5.0


def _refuse(name: str, value: object, allowed: str) -> None:
    raise InputError(f"{name} = {reprlib.repr(value)}; must be {allowed}")


def _is_number(value: object) -> bool:
    """Whether ``value`` is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _is_text(value: object) -> bool:
    """Whether ``value`` can be a name in a problem: no half surrogate pairs, which are not Unicode."""
    return isinstance(value, str) and 1 <= len(value) <= 200 and not any("\ud800" <= c <= "\udfff" for c in value)


def _check_settings(s: GenerateSettings) -> None:
    for name, (low, high) in _WHOLE.items():
        value = getattr(s, name)
        if value is None and name == "total_samples":
            continue
        if not _is_number(value) or value % 1 != 0 or not low <= value <= high:
            _refuse(name, value, f"a whole number from {low} to {high}")
        object.__setattr__(s, name, int(value))
    optional = {field for field, default in GenerateSettings.__dict__.items() if default is None}
    for name in (*_POSITIVE, *_NON_NEGATIVE, *_DECIBEL):
        value = getattr(s, name)
        if value is not None or name not in optional:
            _check_number(name, value)
            object.__setattr__(s, name, float(value))
    for name, choices in _CHOICES.items():
        value = getattr(s, name)
        if not (value in choices or (value is None and name in optional)):
            _refuse(name, value, f"one of {', '.join(choices)}")
    _check_structures(s)
    _check_relations(s)


def _check_number(name: str, value: object) -> None:
    if name in _DECIBEL or name == "shadowing_db":
        low, high = (0.0 if name == "shadowing_db" else -_LARGEST_DECIBEL), _LARGEST_DECIBEL
    else:
        low, high = 0.0, _LARGEST_SPREAD if name.endswith("_spread") else _LARGEST
    if not _is_number(value) or not low <= value <= high:  # type: ignore[operator]
        _refuse(name, value, f"a number from {low:g} to {high:g}")
    if name in _POSITIVE and not value > 0:  # type: ignore[operator]
        _refuse(name, value, "greater than 0")


def _check_structures(s: GenerateSettings) -> None:
    if not _is_text(s.name):
        _refuse("name", s.name, "a text of 1 to 200 characters")
    if s.enforce_conditions is not None and not isinstance(s.enforce_conditions, bool):
        _refuse("enforce_conditions", s.enforce_conditions, "true or false")
    for name in ("max_power_w", "downlink_bps", "energy_budget_j"):
        pair = getattr(s, name)
        if pair is not None or name != "energy_budget_j":
            _check_range(name, pair)
    _check_lists(s)
    if not isinstance(s.term_scale, (Mapping, type(None))):
        _refuse("term_scale", s.term_scale, f"an object with keys among {', '.join(TERMS)}")
    for term, scale in (s.term_scale or {}).items():
        if term not in TERMS:
            _refuse("term_scale has a key", term, f"one of {', '.join(TERMS)}")
        if not _is_number(scale) or scale < 0:
            _refuse(f"term_scale.{term}", scale, "a number, at least 0")


def _check_lists(s: GenerateSettings) -> None:
    for name in ("cpu_classes", "task_names", "task_weights"):
        if not isinstance(getattr(s, name), (tuple, list)):
            _refuse(name, getattr(s, name), "a list")
        object.__setattr__(s, name, tuple(getattr(s, name)))
    if not s.cpu_classes:
        _refuse("cpu_classes", s.cpu_classes, "at least one class")
    classes = tuple(_check_cpu_class(f"cpu_classes[{k}]", entry) for k, entry in enumerate(s.cpu_classes))
    object.__setattr__(s, "cpu_classes", classes)
    for k, weight in enumerate(s.task_weights):
        if not _is_number(weight) or weight < 0:
            _refuse(f"task_weights[{k}]", weight, "a number, at least 0")
    for k, text in enumerate(s.task_names):
        if not _is_text(text) or text in s.task_names[:k]:
            _refuse(f"task_names[{k}]", text, "a text of 1 to 200 characters, unlike the others")


def _check_range(name: str, pair: object) -> None:
    numbers = tuple(pair) if isinstance(pair, (tuple, list)) else ()
    if len(numbers) != 2 or not all(_is_number(x) and 0 < x <= _LARGEST for x in numbers) or numbers[0] > numbers[1]:
        _refuse(name, pair, f"[lowest, highest], two numbers greater than 0 and at most {_LARGEST:g}")


def _check_cpu_class(where: str, entry: object) -> CpuClass:
    numbers = tuple(entry) if isinstance(entry, (tuple, list)) else ()
    if len(numbers) != 4 or not all(_is_number(x) and 0 < x <= _LARGEST for x in numbers) or numbers[0] > numbers[1]:
        _refuse(where, entry, "[freq_min_hz, freq_max_hz, capacitance, share], four numbers greater than 0, frequencies in order")
    return CpuClass(*numbers)


def _check_relations(s: GenerateSettings) -> None:
    """What no single setting shows."""
    if s.devices * s.slots > MAX_GAINS:
        _refuse("devices * slots", s.devices * s.slots, f"at most {MAX_GAINS}")
    if s.devices * s.tasks > MAX_PAIRS:
        _refuse("devices * tasks", s.devices * s.tasks, f"at most {MAX_PAIRS}")
    if s.min_distance_m > s.cell_radius_m:
        _refuse("min_distance_m", s.min_distance_m, f"at most cell_radius_m = {s.cell_radius_m}")
    if s.fading_floor > 1:
        _refuse("fading_floor", s.fading_floor, "at most 1")
    if not _is_number(s.holder_fraction) or not 0 < s.holder_fraction <= 1:
        _refuse("holder_fraction", s.holder_fraction, "greater than 0 and at most 1")
    for name in ("task_names", "task_weights"):
        if getattr(s, name) and len(getattr(s, name)) != s.tasks:
            _refuse(name, getattr(s, name), f"empty or of tasks = {s.tasks} entries")
    if s.mode == "min_energy" and s.target is None:
        _refuse("target", s.target, "a number in mode min_energy (solve in mode weighted first to see which bounds are in reach)")
    for name, preset in zip(s.names, _task_presets(s), strict=True):
        rate = preset.learning_rate if s.learning_rate is None else s.learning_rate
        if rate * s.prox >= 1:
            _refuse("prox", s.prox, f"below 1 / learning_rate = {1 / rate:g} (task {name})")
    if s.total_samples is not None and s.total_samples < s.min_batch * s.devices:
        _refuse("total_samples", s.total_samples, f"at least min_batch * devices = {s.min_batch * s.devices}")


# --- drawing --------------------------------------------------------------------------------------------------------------------


def _rng(seed: int, topic: str, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _TOPICS.index(topic), *index])


def _rounded(values: FloatArray | float) -> Any:
    """Values with few digits, so that files stay readable; a list for an array."""
    array = np.asarray(values, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(array > 0, np.floor(np.log10(array)), 0.0)
    mantissa = np.round(array / 10.0**exponent, DIGITS - 1)
    # through text: 3.2 · 1e-12 in floating point would print as 3.2000000000000004e-12
    text = [float(f"{m:.{DIGITS - 1}f}e{int(e)}") for m, e in zip(mantissa.ravel(), exponent.ravel(), strict=True)]
    return np.array(text).reshape(array.shape).tolist()


def mean_gain(settings: GenerateSettings, distance_m: FloatArray) -> FloatArray:
    """Channel power gain by path loss alone, 10^{−(L_ref + 10 n log10 d)/10}; array like ``distance_m``."""
    loss_db = settings.reference_loss_db + 10.0 * settings.path_loss_exponent * np.log10(distance_m)
    return 10.0 ** (-loss_db / 10.0)


def _distances(s: GenerateSettings, seed: int) -> FloatArray:
    """Distances in m of devices uniform in the ring between the least distance and the radius, shape (I,)."""
    squares = _rng(seed, "position").uniform(s.min_distance_m**2, s.cell_radius_m**2, s.devices)
    return np.sqrt(squares)


def _fading(s: GenerateSettings, seed: int) -> FloatArray:
    """Fading powers of unit mean (but for the floor), shape (I, G), constant over blocks of slots; shape (I, 1) without fading."""
    if s.fading_block_slots == 0:
        return np.ones((s.devices, 1))
    blocks = -(-s.slots // s.fading_block_slots)
    powers = np.maximum(_rng(seed, "fading").exponential(size=(s.devices, blocks)), s.fading_floor)
    return np.repeat(powers, s.fading_block_slots, axis=1)[:, : s.slots]


def _gains(s: GenerateSettings, seed: int) -> FloatArray:
    """Channel power gains, shape (I, G), or (I, 1) without fading."""
    shadowing = 10.0 ** (-_rng(seed, "shadowing").normal(0.0, s.shadowing_db, s.devices) / 10.0)
    gain = (mean_gain(s, _distances(s, seed)) * shadowing)[:, None] * _fading(s, seed)
    return np.clip(gain, MIN_GAIN, 1.0 / MIN_GAIN)


def _cpu_classes(s: GenerateSettings, seed: int) -> list[CpuClass]:
    """Class of each device: the shares as exactly as whole devices allow, in random order."""
    shares = np.array([c.share for c in s.cpu_classes])
    counts = _apportion(shares / shares.sum(), s.devices)
    order = _rng(seed, "cpu").permutation(np.repeat(np.arange(len(counts)), counts))
    return [s.cpu_classes[k] for k in order]


def _apportion(fractions: FloatArray, total: int) -> IntArray:
    """Whole numbers of sum ``total`` nearest to ``fractions`` of it (largest remainders; ties to the first)."""
    exact = fractions * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]] += 1
    return counts


def _uniform(s: GenerateSettings, seed: int, topic: str, pair: tuple[float, float]) -> FloatArray:
    return _rng(seed, topic).uniform(pair[0], pair[1], s.devices)


def _task_presets(s: GenerateSettings) -> list[_Preset]:
    """Preset of each task; names without one take them in turn."""
    known = _PRESETS[s.regime]
    return [known.get(name, known[KNOWN_TASKS[j % len(KNOWN_TASKS)]]) for j, name in enumerate(s.names)]


def _holders(s: GenerateSettings, seed: int) -> np.ndarray:
    """Who holds data of what, shape (I, J), bool: the same number of devices for each task, and no device with nothing."""
    count = max(1, round(s.holder_fraction * s.devices))
    rng = _rng(seed, "holders")
    holds = np.zeros((s.devices, s.tasks), dtype=bool)
    for j in range(s.tasks):
        holds[rng.permutation(s.devices)[:count], j] = True
    for i in np.flatnonzero(~holds.any(axis=1)):
        holds[i, rng.integers(s.tasks)] = True
    return holds


def _sample_counts(s: GenerateSettings, seed: int, j: int, holders: int, preset: _Preset) -> IntArray:
    """Samples of each holder of task ``j``: ``min_batch`` each, the rest by Dirichlet proportions; shape (holders,)."""
    least = s.min_batch * holders
    total = s.total_samples
    if total is None:
        total = max(least, min(preset.samples * holders, preset.training_set))
    # gamma variates of a small shape can all underflow to zero; a hair keeps the proportions defined
    weights = _rng(seed, "sizes", j).standard_gamma(s.size_dirichlet, holders) + 1e-300
    return s.min_batch + _apportion(weights / weights.sum(), total - least)


def _log_normal(rng: np.random.Generator, median: float, spread: float, count: int) -> Any:
    return _rounded(median * np.exp(spread * rng.standard_normal(count)))


def _task_data(s: GenerateSettings, j: int, preset: _Preset) -> dict[str, Any]:
    """Task ``j`` as in the problem file."""

    def chosen(field: str) -> float:
        value = getattr(s, field)
        return float(getattr(preset, field) if value is None else value)

    name = s.names[j]
    known = name in _PRESETS[s.regime]
    own = {field: chosen(field) for field in ("model_bits", "learning_rate", "smoothness", "initial_gap")}
    shared = {f: getattr(s, f) for f in ("max_staleness", "max_steps", "min_batch", "server_rate", "prox", "loss_drift", "target")}
    weight = float(s.task_weights[j]) if s.task_weights else preset.weight
    names = {"dataset": name if known else None, "model": preset.model if known else None}
    return {"name": name, "weight": weight, **own, **shared, **names}


def _pair_data(s: GenerateSettings, seed: int, j: int, holders: int, preset: _Preset) -> list[dict[str, Any]]:
    """What each holder of task ``j`` has, as in the problem file."""
    gradients = _rng(seed, "gradients", j)

    def median(field: str) -> float:
        value = getattr(s, field)
        return float(getattr(preset, field) if value is None else value)

    columns = {
        "samples": _sample_counts(s, seed, j, holders, preset).tolist(),
        "cycles_per_sample": _log_normal(_rng(seed, "cycles", j), median("cycles_per_sample"), s.cycles_spread, holders),
        "gradient_variance": _log_normal(gradients, median("gradient_variance"), s.variance_spread, holders),
        "dissimilarity": _log_normal(gradients, median("dissimilarity"), s.dissimilarity_spread, holders),
        "gradient_drift": _log_normal(gradients, s.gradient_drift, s.drift_spread, holders),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _device_data(s: GenerateSettings, seed: int) -> list[dict[str, Any]]:
    """Devices as in the problem file, without their tasks."""
    gains = _rounded(_gains(s, seed))
    power, downlink = _rounded(_uniform(s, seed, "power", s.max_power_w)), _rounded(_uniform(s, seed, "downlink", s.downlink_bps))
    budgets = [None] * s.devices
    if s.energy_budget_j is not None:
        budgets = _rounded(_uniform(s, seed, "budget", s.energy_budget_j))
    width = max(2, len(str(s.devices - 1)))
    return [
        {
            "name": f"dev{i:0{width}d}",
            "freq_hz": [float(cpu.freq_min_hz), float(cpu.freq_max_hz)],
            "capacitance": float(cpu.capacitance),
            "max_power_w": power[i],
            "receive_power_w": float(s.receive_power_w),
            "downlink_bps": downlink[i],
            "energy_budget_j": budgets[i],
            "gain": gains[i][0] if len(gains[i]) == 1 else gains[i],
            "tasks": {},
        }
        for i, cpu in enumerate(_cpu_classes(s, seed))
    ]


def _objective_data(s: GenerateSettings) -> dict[str, Any]:
    """The objective as in the problem file."""
    data = {"mode": s.mode, "total_energy_j": s.total_energy_j, **_OBJECTIVES[s.regime]}
    for field in ("energy_weight", "participation", "term_scale", "enforce_conditions"):
        if getattr(s, field) is not None:
            data[field] = getattr(s, field)
    return data


def generate_problem(settings: GenerateSettings, seed: int = 0) -> Problem:
    """A random problem; equal settings and seeds give equal problems.

    Parameters
    ----------
    settings
        Sizes, physics and objective.
    seed
        Seed of every random choice, a whole number from 0.

    Raises
    ------
    InputError
        If the seed is negative, or if extreme settings give no valid problem; the message says which field.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        _refuse("seed", seed, "a whole number from 0")
    presets, devices, holds = _task_presets(settings), _device_data(settings, seed), _holders(settings, seed)
    for j, (name, preset) in enumerate(zip(settings.names, presets, strict=True)):
        mine = np.flatnonzero(holds[:, j])
        for i, pair in zip(mine, _pair_data(settings, seed, j, len(mine), preset), strict=True):
            devices[i]["tasks"][name] = pair
    band = settings.bandwidth_hz or 3.0e5 * settings.devices
    noise = _rounded(settings.noise_w_per_hz * 10.0 ** (settings.noise_figure_db / 10.0))
    data = {
        "schema": PROBLEM_SCHEMA,
        "name": settings.name,
        "horizon": {"slots": settings.slots, "slot_s": settings.slot_s},
        "spectrum": {"bandwidth_hz": band, "noise_w_per_hz": noise},
        "tasks": [_task_data(settings, j, preset) for j, preset in enumerate(presets)],
        "devices": devices,
        "objective": _objective_data(settings),
    }
    try:
        return Problem.model_validate(data)
    except ValidationError as error:  # the settings exclude it; extreme products could still overflow
        raise InputError(f"the generated problem: {describe_validation_error(error, data, Problem)}") from None
