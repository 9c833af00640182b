"""The problem: devices, tasks, horizon, spectrum and objective, validated once.

The pydantic models are ``problem.json`` itself (schema ``schedopt.problem/1``): field names, units and defaults are those of the
file. Numerical code reads :attr:`Problem.arrays`, the same numbers as read-only NumPy arrays indexed ``[device, task]``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from schedopt.windows import WINDOW_TAG, Windows

__all__ = [
    "MAX_GAINS",
    "MAX_PAIRS",
    "MAX_SLOTS",
    "PROBLEM_SCHEMA",
    "TERMS",
    "Device",
    "DeviceTask",
    "FloatArray",
    "Horizon",
    "IntArray",
    "Objective",
    "Problem",
    "ProblemArrays",
    "Spectrum",
    "Task",
    "TermScale",
    "WindowParticipation",
]

PROBLEM_SCHEMA = "schedopt.problem/1"

#: The seven terms of the convergence bound, in the order of every array of terms.
TERMS = ("opt", "loss", "part", "data", "local", "noise", "stale")

#: More slots than this is taken for a mistake (and would exhaust memory before it solved anything).
MAX_SLOTS = 100_000

#: Channel gains (devices x slots) and pairs (devices x tasks) that are still kept in memory.
MAX_GAINS = MAX_PAIRS = 50_000_000

#: Σ_i λ_ij may differ from one by this much (weights written with a few digits).
WEIGHT_SUM_TOLERANCE = 1e-6

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _number(value: Any) -> Any:
    """Refuse what JSON distinguishes from a number but pydantic would convert (true, "3")."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise PydanticCustomError("number", "must be a number")
    return value


def _integer(value: Any) -> Any:
    """Accept 20 and 20.0 (many writers emit the latter), refuse 20.5, true and "20"."""
    value = _number(value)
    if not isinstance(value, float):
        return value
    if not value.is_integer():
        raise PydanticCustomError("integer", "must be a whole number")
    return int(value)  # pydantic would refuse 1e300 without saying what is allowed


# limits before the validators: only next to the type do they reach pydantic's core (fast) and the published JSON Schema
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
PositiveInt = Annotated[int, Field(ge=1, le=10**12), BeforeValidator(_integer)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**12), BeforeValidator(_integer)]
SlotCount = Annotated[int, Field(ge=1, le=MAX_SLOTS), BeforeValidator(_integer)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Horizon(_Model):
    """G slots of ``slot_s`` seconds; instants are 0..G."""

    slots: SlotCount
    """Number of slots G."""
    slot_s: Positive
    """Length of a slot τ in seconds."""


class Spectrum(_Model):
    """The uplink band that the uploads of a slot share (OFDMA)."""

    bandwidth_hz: Positive
    """Uplink bandwidth that the uploads of one slot share, in Hz."""
    noise_w_per_hz: Positive
    """Noise power spectral density N0 in W/Hz."""


class Task(_Model):
    """One model to train."""

    name: Name
    weight: NonNegative
    """Importance γ_j in the objective."""
    model_bits: Positive
    """Size of the model and of an update, in bits."""
    max_staleness: NonNegativeInt
    """K_j: an assignment spans at most K_j + 1 slots."""
    max_steps: PositiveInt
    """Largest number of local SGD steps e of an assignment."""
    min_batch: PositiveInt = 1
    """Smallest mini-batch B."""
    learning_rate: Positive
    """Local step size η_j."""
    server_rate: Positive = 1.0
    """Server step size α_j."""
    prox: NonNegative = 0.0
    """Weight ρ_j of the local proximal term; learning_rate * prox < 1."""
    step_saturation: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), BeforeValidator(_number)] = 0.0
    """μ_j: share by which each further local step of an assignment is taken to count less than the one before; 0 is the theorem."""
    aggregation: Literal["delta", "mixing"] = "delta"
    """How the server merges an upload."""
    smoothness: Positive
    """β_j: every local loss has a β-Lipschitz gradient."""
    initial_gap: Positive
    """F_0(w^0) − F*."""
    loss_drift: NonNegative = 0.0
    """Φ_j: growth of the global loss at the current model, per slot."""
    target: Positive | None = None
    """ε_j: the bound Ψ_j that mode min_energy must reach; null = none."""
    dataset: str | None = None
    """Data set to train on; a solve does not use it."""
    model: str | None = None
    """Model to train; a solve does not use it."""


class DeviceTask(_Model):
    """What one device holds of one task."""

    samples: PositiveInt
    """Number of local samples D_ij."""
    cycles_per_sample: Positive
    """CPU cycles c_ij that one sample of one SGD step costs."""
    gradient_variance: NonNegative
    """V_ij: per-sample gradient variance (trace, with D − 1)."""
    dissimilarity: NonNegative
    """δ_ij: bound on ‖∇L_i − ∇F‖."""
    gradient_drift: NonNegative = 0.0
    """Δ_ij: bound on the change of ∇L_i per slot."""
    weight: Fraction | None = None
    """λ_ij; default samples_ij / Σ_i samples_ij; they sum to one over the devices of a task."""


class Device(_Model):
    """One wireless device."""

    name: Name
    freq_hz: tuple[Positive, Positive]
    """CPU frequency range [lowest, highest] in Hz."""
    capacitance: Positive
    """Effective switched capacitance κ_i in J s²/cycle³ (energy ½ κ · cycles · f²)."""
    max_power_w: Positive
    """Largest transmit power in W."""
    receive_power_w: NonNegative = 0.0
    """Power drawn while receiving a model, in W."""
    downlink_bps: Positive
    """Downlink rate in bit/s."""
    energy_budget_j: Positive | None = None
    """Energy budget over the horizon in J; null = unlimited."""
    gain: Positive | tuple[Positive, ...]
    """Channel power gain, one number or one per slot."""
    tasks: dict[Name, DeviceTask]
    """Tasks of which the device holds data, by task name."""

    @model_validator(mode="after")
    def _range(self) -> Device:
        low, high = self.freq_hz
        if low > high:
            raise PydanticCustomError(
                "freq_range", "freq_hz = [{low}, {high}] is inverted; must be [lowest, highest]", {"low": low, "high": high}
            )
        return self


class TermScale(_Model):
    """Multipliers c_k of the seven terms of the bound; all 1 is the theorem."""

    opt: NonNegative = 1.0
    loss: NonNegative = 1.0
    part: NonNegative = 1.0
    data: NonNegative = 1.0
    local: NonNegative = 1.0
    noise: NonNegative = 1.0
    stale: NonNegative = 1.0

    def as_array(self) -> FloatArray:
        """The multipliers, shape (7,), in the order of :data:`TERMS`."""
        return np.array([getattr(self, name) for name in TERMS])


class WindowParticipation(_Model):
    """Participation judged over windows of the horizon: ``{"window": P}``."""

    window: SlotCount
    """Instants in a window, P."""


def _participation_kind(value: Any) -> str:
    return WINDOW_TAG if isinstance(value, dict | WindowParticipation) else "name"


def _participation_name(value: Any) -> Any:
    if value not in ("instant", "horizon"):
        raise PydanticCustomError("participation", "must be {allowed}", {"allowed": '"instant", "horizon" or {"window": P}'})
    return value


Participation = Annotated[
    Annotated[WindowParticipation, Tag(WINDOW_TAG)]
    | Annotated[Literal["instant", "horizon"], BeforeValidator(_participation_name), Tag("name")],
    Discriminator(_participation_kind),
]


class Objective(_Model):
    """What is minimised, and how the bound is read."""

    mode: Literal["weighted", "min_energy", "min_bound"]
    energy_weight: NonNegative
    """ξ in 1/J (mode weighted)."""
    total_energy_j: Positive | None = None
    """Energy allowed in mode min_bound, in J; null = unlimited."""
    participation: Participation = "instant"
    """Whether participation bias is charged per aggregation instant (Theorem 1), per window (Theorem 2), or over the horizon."""
    term_scale: TermScale = TermScale()
    enforce_conditions: Literal[True, False, "stability"] = True
    """Whether schedules must meet the step-size conditions of the theorem, or those that keep training stable (S1 and S2)."""

    @model_validator(mode="before")
    @classmethod
    def _strict_bool(cls, data: Any) -> Any:
        value = data.get("enforce_conditions", True) if isinstance(data, dict) else True
        if not isinstance(value, bool) and value != "stability":
            raise PydanticCustomError(
                "bool_field",
                'enforce_conditions = {value}; must be true, false or "stability"',
                {"value": json.dumps(value, default=str)},
            )
        return data


@dataclass(frozen=True)
class ProblemArrays:
    """A problem as read-only arrays: I devices, J tasks, G slots.

    ``[device, task]`` entries of pairs without data are zero and ``has_data`` is False there. Absent budgets and targets are +inf.
    """

    slots: int
    slot_s: float
    bandwidth_hz: float
    noise_w_per_hz: float
    # tasks, shape (J,)
    weight: FloatArray
    model_bits: FloatArray
    max_staleness: IntArray
    max_steps: IntArray
    min_batch: IntArray
    learning_rate: FloatArray
    server_rate: FloatArray
    prox: FloatArray
    step_saturation: FloatArray
    smoothness: FloatArray
    initial_gap: FloatArray
    loss_drift: FloatArray
    target: FloatArray
    delta_rule: NDArray[np.bool_]
    # devices, shape (I,)
    freq_min_hz: FloatArray
    freq_max_hz: FloatArray
    capacitance: FloatArray
    max_power_w: FloatArray
    receive_power_w: FloatArray
    downlink_bps: FloatArray
    energy_budget_j: FloatArray
    #: channel power gain, shape (I, G)
    gain: FloatArray
    # pairs, shape (I, J)
    has_data: NDArray[np.bool_]
    samples: IntArray
    cycles_per_sample: FloatArray
    gradient_variance: FloatArray
    dissimilarity: FloatArray
    gradient_drift: FloatArray
    #: aggregation weight λ_ij
    aggregation_weight: FloatArray
    #: Δ̄_j = Σ_i λ_ij Δ_ij, shape (J,)
    mean_gradient_drift: FloatArray
    #: multipliers of the terms of the bound, shape (7,), order :data:`TERMS`
    term_scale: FloatArray
    #: windows over which participation is judged; None where it is judged per instant or over the horizon
    windows: Windows | None
    #: which conditions schedules must meet: those of the theorem, those that keep training stable, or none
    enforced: Literal["theorem", "stability", "nothing"]

    def __post_init__(self) -> None:
        for value in self.__dict__.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def num_devices(self) -> int:
        """I."""
        return self.has_data.shape[0]

    @property
    def num_tasks(self) -> int:
        """J."""
        return self.has_data.shape[1]

    @property
    def server_weight(self) -> FloatArray:
        """θ_ij = α_j λ_ij, shape (I, J)."""
        return self.server_rate * self.aggregation_weight

    @property
    def shrink(self) -> FloatArray:
        """ηρ + μ − ηρμ, shape (J,): by how much less a local step counts in A(e) and A2(e) than the one before."""
        proximal = self.learning_rate * self.prox
        return proximal + self.step_saturation * (1.0 - proximal)

    def unsaturated(self) -> ProblemArrays:
        """The same with local steps that count as training takes them: what a theorem, and what is measured, is about."""
        return replace(self, step_saturation=np.zeros(self.num_tasks)) if self.step_saturation.any() else self


class Problem(_Model):
    """A whole problem, as in ``problem.json``."""

    schema_: Literal["schedopt.problem/1"] = Field(alias="schema")
    name: Name
    horizon: Horizon
    spectrum: Spectrum
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]
    objective: Objective

    @model_validator(mode="after")
    def _consistent(self) -> Problem:
        check_consistency(self)
        return self

    @cached_property
    def arrays(self) -> ProblemArrays:
        """The same numbers as arrays, built once."""
        return _build_arrays(self)

    @cached_property
    def task_index(self) -> dict[str, int]:
        """Position of each task by name."""
        return {task.name: j for j, task in enumerate(self.tasks)}

    @cached_property
    def device_index(self) -> dict[str, int]:
        """Position of each device by name."""
        return {device.name: i for i, device in enumerate(self.devices)}

    def to_dict(self) -> dict[str, Any]:
        """The problem as plain JSON values; absent optional weights stay absent, and so does a saturation of zero."""
        data = self.model_dump(by_alias=True, mode="json")
        for task in data["tasks"]:
            if task["step_saturation"] == 0:
                del task["step_saturation"]
        for device in data["devices"]:
            for pair in device["tasks"].values():
                if pair["weight"] is None:
                    del pair["weight"]
        return data

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the problem, hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _fail(message: str) -> None:
    raise PydanticCustomError("consistency", "{message}", {"message": message})


def check_consistency(problem: Problem) -> None:
    """What no single field shows: unique names, known tasks, gain lengths, weights that sum to one, needs of the mode.

    Raises ``PydanticCustomError`` whose message starts with the path of the field.
    """
    _check_sizes(problem)
    named: tuple[tuple[str, tuple[Task | Device, ...]], ...] = (("tasks", problem.tasks), ("devices", problem.devices))
    for kind, items in named:
        seen: dict[str, int] = {}
        for k, item in enumerate(items):
            if item.name in seen:
                _fail(f"{kind}[{k}].name = {item.name!r}: already the name of {kind}[{seen[item.name]}]; names must be unique")
            seen[item.name] = k
    for j, task in enumerate(problem.tasks):
        if task.learning_rate * task.prox >= 1:
            _fail(f"tasks[{j}].prox = {task.prox}: learning_rate * prox = {task.learning_rate * task.prox:g}; must be below 1")
    _check_devices(problem)
    _check_weights(problem)
    participation = problem.objective.participation
    if isinstance(participation, WindowParticipation) and participation.window > problem.horizon.slots:
        _fail(f"objective.participation.window = {participation.window}: must be at most horizon.slots = {problem.horizon.slots}")
    if problem.objective.mode == "min_energy" and all(task.target is None for task in problem.tasks):
        _fail("tasks[0].target = null: mode min_energy needs a target in at least one task")


def _check_sizes(problem: Problem) -> None:
    devices, tasks, slots = len(problem.devices), len(problem.tasks), problem.horizon.slots
    for field, number, unit, limit in (("horizon.slots", slots, "slots", MAX_GAINS), ("tasks", tasks, "tasks", MAX_PAIRS)):
        if devices * number > limit:
            _fail(f"{field}: {devices:,} devices x {number:,} {unit} = {devices * number:,}; must be at most {limit:,}")


def _check_devices(problem: Problem) -> None:
    names = [task.name for task in problem.tasks]
    slots = problem.horizon.slots
    for i, device in enumerate(problem.devices):
        if isinstance(device.gain, tuple) and len(device.gain) != slots:
            _fail(f"devices[{i}].gain: {len(device.gain)} values; must be one number or one per slot ({slots})")
        for name in device.tasks:
            if name not in names:
                _fail(f"devices[{i}].tasks.{name}: no such task; tasks are {', '.join(names[:10])}")


def _check_weights(problem: Problem) -> None:
    for j, task in enumerate(problem.tasks):
        holders = [d.tasks[task.name] for d in problem.devices if task.name in d.tasks]
        if not holders:
            _fail(f"tasks[{j}].name = {task.name!r}: no device has an entry for this task; at least one must")
        total_samples = sum(pair.samples for pair in holders)
        total = sum(pair.samples / total_samples if pair.weight is None else pair.weight for pair in holders)
        if abs(total - 1) > WEIGHT_SUM_TOLERANCE:
            _fail(f"devices[*].tasks.{task.name}.weight: sums to {total:.9g} over the devices; must sum to 1")


def _build_arrays(problem: Problem) -> ProblemArrays:
    tasks, devices = problem.tasks, problem.devices

    def of_tasks(field: str, dtype: type = float) -> Any:
        return np.array([getattr(task, field) for task in tasks], dtype=dtype)

    def of_devices(field: str) -> FloatArray:
        return np.array([getattr(device, field) for device in devices], dtype=float)

    shape = (len(devices), len(tasks))
    pairs = {name: np.zeros(shape) for name in ("samples", "cycles_per_sample", "gradient_variance", "dissimilarity", "gradient_drift")}
    weight = np.full(shape, np.nan)
    has_data = np.zeros(shape, dtype=bool)
    for i, device in enumerate(devices):
        for name, pair in device.tasks.items():
            j = problem.task_index[name]
            has_data[i, j] = True
            for field, array in pairs.items():
                array[i, j] = getattr(pair, field)
            if pair.weight is not None:
                weight[i, j] = pair.weight
    default = pairs["samples"] / pairs["samples"].sum(axis=0)
    weight = np.where(np.isnan(weight), default, weight)
    slots = problem.horizon.slots
    gain = np.array([d.gain if isinstance(d.gain, tuple) else (d.gain,) * slots for d in devices], dtype=float)
    return ProblemArrays(
        slots=slots,
        slot_s=problem.horizon.slot_s,
        bandwidth_hz=problem.spectrum.bandwidth_hz,
        noise_w_per_hz=problem.spectrum.noise_w_per_hz,
        weight=of_tasks("weight"),
        model_bits=of_tasks("model_bits"),
        max_staleness=of_tasks("max_staleness", int),
        max_steps=of_tasks("max_steps", int),
        min_batch=of_tasks("min_batch", int),
        learning_rate=of_tasks("learning_rate"),
        server_rate=of_tasks("server_rate"),
        prox=of_tasks("prox"),
        step_saturation=of_tasks("step_saturation"),
        smoothness=of_tasks("smoothness"),
        initial_gap=of_tasks("initial_gap"),
        loss_drift=of_tasks("loss_drift"),
        target=np.array([np.inf if t.target is None else t.target for t in tasks]),
        delta_rule=np.array([t.aggregation == "delta" for t in tasks]),
        freq_min_hz=np.array([d.freq_hz[0] for d in devices]),
        freq_max_hz=np.array([d.freq_hz[1] for d in devices]),
        capacitance=of_devices("capacitance"),
        max_power_w=of_devices("max_power_w"),
        receive_power_w=of_devices("receive_power_w"),
        downlink_bps=of_devices("downlink_bps"),
        energy_budget_j=np.array([np.inf if d.energy_budget_j is None else d.energy_budget_j for d in devices]),
        gain=gain,
        has_data=has_data,
        samples=pairs["samples"].astype(np.int64),
        cycles_per_sample=pairs["cycles_per_sample"],
        gradient_variance=pairs["gradient_variance"],
        dissimilarity=pairs["dissimilarity"],
        gradient_drift=pairs["gradient_drift"],
        aggregation_weight=weight,
        mean_gradient_drift=(weight * pairs["gradient_drift"]).sum(axis=0),
        term_scale=problem.objective.term_scale.as_array(),
        windows=_windows(problem),
        enforced=_enforced(problem.objective.enforce_conditions),
    )


def _enforced(choice: bool | str) -> Literal["theorem", "stability", "nothing"]:
    if choice == "stability":
        return "stability"
    return "theorem" if choice else "nothing"


def _windows(problem: Problem) -> Windows | None:
    participation = problem.objective.participation
    return Windows(problem.horizon.slots, participation.window) if isinstance(participation, WindowParticipation) else None
