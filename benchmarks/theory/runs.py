"""One run: data, their constants, a schedule that meets C1 and C2, real training by it, the constants of its path, the bound."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from fl_runtime.constants import SoftmaxTask, bounds_everywhere, constants_on_path, least_loss
from fl_runtime.datasets import DataRequest, Dataset, load_dataset, make_dataset, register_dataset
from fl_runtime.device_data import make_task_data
from fl_runtime.drift import DriftSpec
from fl_runtime.errors import DataError
from fl_runtime.models import build_model, initial_parameters
from fl_runtime.partition import PartitionSpec
from fl_runtime.replay import Replay, realised_terms, replay
from fl_runtime.simulate import SimulateSettings, Simulation
from fl_runtime.task_run import DATA_STREAM, MODEL_STREAM, seed_of
from schedopt.bounds.async_schedule import C1_LIMIT, FACTOR, AsyncScheduleBound, aggregate
from schedopt.bounds.tight import tight_bound
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import TERMS, FloatArray, Problem
from schedopt.schedule import Schedule
from schedopt.solvers.heuristics import Context, fit, prepare
from schedopt.solvers.random_feasible import random_skeleton
from schedopt.solvers.round_robin import round_robin_skeleton
from schedopt.solvers.synchronous import synchronous_skeleton

__all__ = [
    "BATCHES",
    "DRIFTS",
    "LEVELS",
    "PARTITIONS",
    "SCHEDULES",
    "Run",
    "Setting",
    "compare",
    "execute",
    "full_set",
    "load_source",
    "measure",
    "short_set",
]

PARTITIONS = ("iid", "dirichlet:0.3", "dirichlet:0.1")
#: per slot: a share of the samples gets another label mix; degrees; a share of the samples is replaced
DRIFTS = ("none", "labels:0.05", "rotation:3", "arrivals:0.1")
SCHEDULES = ("synchronous", "round robin", "random")
#: η β e as a share of what C1 allows, and the server rate: small steps; C1 tight; both tight (the schedule gives way until C2 holds)
LEVELS = {"small": (0.2, 1.0), "C1": (1.0, 1.0), "C1+C2": (1.0, 10.0)}
#: mini-batches; "full": all samples, so that there is no noise and nothing in the theorem is about a mean
BATCHES = ("8", "64", "full")
#: e_max and, of the schedules that are not fresh, the largest κ
STEPS, STALENESS = 4, 5
DEVICES, SAMPLES = 6, 720
#: horizons: of most runs, and of those that are to come near the optimum, where the bound is sharpest
SLOTS, LONG = 25, 300
#: what is used of MNIST
MNIST, TRAIN, TEST = "mnist-12000", 12_000, 1_000


@dataclass(frozen=True)
class Setting:
    """What distinguishes the runs; see the tables of this module."""

    partition: str
    drift: str
    schedule: str
    level: str
    batch: str
    slots: int = SLOTS
    seed: int = 0

    def __str__(self) -> str:
        how = f"{self.schedule}, {self.level}, batch {self.batch}, {self.slots} slots, seed {self.seed}"
        return f"{self.partition}, drift {self.drift}, {how}"


def short_set(seed: int = 0) -> Iterator[Setting]:
    """Every partition with every drift and schedule, levels and batches taking turns; and a long run without anything that disturbs."""
    for p, d, s in product(range(len(PARTITIONS)), range(len(DRIFTS)), range(len(SCHEDULES))):
        level, batch = list(LEVELS)[(p + d + s) % 3], BATCHES[(p + d + 2 * s) % 3]
        yield Setting(PARTITIONS[p], DRIFTS[d], SCHEDULES[s], level, batch, seed=seed)
    yield Setting("iid", "none", "synchronous", "C1+C2", "full", LONG, seed)


def full_set(seed: int = 0) -> Iterator[Setting]:
    """Everything with everything, and long runs of the largest steps."""
    for entries in product(PARTITIONS, DRIFTS, SCHEDULES, LEVELS, BATCHES):
        yield Setting(*entries, seed=seed)
    for partition, drift, schedule in product(PARTITIONS, DRIFTS, SCHEDULES):
        yield Setting(partition, drift, schedule, "C1+C2", "full", LONG, seed)


@dataclass(frozen=True)
class Run:
    """What a run gave.

    ``measured``: left side of Theorem 1, as in the report; ``bound``: Ψ with the constants of the path; ``sharp``: the same with the
    sharper participation term; ``tight``: Theorem 3; ``everywhere``: Ψ with bounds that hold before the run, at all models it could
    reach. ``terms``: shares of
    ``bound``; ``realised``: what each of them was in this run, in the same unit; ``squares``: ``measured`` in double precision;
    ``slack``: of the descent inequality, in the same unit. ``loss``: F_0(w^0) and F_{G−1}(w^G).
    ``staleness``: largest κ; ``uploads``: assignments; ``conditions``: C1 and C2 as shares of what they allow; ``replay_error``: how far
    the engine's steps are from those in double precision, relative to the largest.
    """

    setting: Setting
    measured: float
    bound: float
    sharp: float
    tight: float
    everywhere: float
    certified: bool
    terms: dict[str, float]
    realised: dict[str, float]
    squares: float
    slack: float
    staleness: int
    uploads: int
    conditions: dict[str, float]
    loss: tuple[float, float]
    replay_error: float

    @property
    def ratio(self) -> float:
        """Ψ over what was measured."""
        return self.bound / self.measured

    @property
    def sharp_ratio(self) -> float:
        """The sharper Ψ over what was measured."""
        return self.sharp / self.measured

    @property
    def tight_ratio(self) -> float:
        """Theorem 3 over what was measured."""
        return self.tight / self.measured

    @property
    def violations(self) -> list[str]:
        """What contradicts the theorem or its proof, or shows that this is no test of it."""
        found = []
        if not self.certified:
            found.append("C1 or C2 does not hold")
        for name in ("bound", "sharp", "tight", "everywhere"):
            if not self.measured <= getattr(self, name):
                found.append(f"measured {self.measured:.6g} exceeds {name} {getattr(self, name):.6g}")
        for name in ("opt", "loss", "part", "data"):
            if self.realised[name] > self.terms[name] * (1 + 1e-9) + 1e-12:
                found.append(f"term {name}: {self.realised[name]:.6g} in reality exceeds {self.terms[name]:.6g}")
        if self.slack < -1e-6 * self.measured:
            found.append(f"the descent inequality fails by {-self.slack:.3g}")
        if self.replay_error > 1e-3 or abs(self.squares - self.measured) > 1e-3 * self.measured:
            found.append(f"the engine and double precision differ: steps by {self.replay_error:.1e}, {self.measured} and {self.squares}")
        return found


def load_source() -> tuple[str, str]:
    """Name of the data set, and words for it: real MNIST from SCHEDOPT_DATA_DIR, ../shared/data or the cache, else digits.

    Of MNIST it is the first samples of each part, which every simulation would else read and test on anew.
    """
    here = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = os.environ.get("SCHEDOPT_DATA_DIR") or (here if here.is_dir() else None)
    try:
        whole = load_dataset("mnist", data_dir=folder, download=False)
    except DataError:
        return "digits", "digits of scikit-learn, 8 x 8 pixels (MNIST not found; SCHEDOPT_DATA_DIR names its folder)"
    train, test = whole.train_features[:TRAIN], whole.test_features[:TEST]
    labels = whole.train_labels[:TRAIN], whole.test_labels[:TEST]
    _known[MNIST] = make_dataset(MNIST, train, labels[0], test, labels[1], source=whole.source, num_classes=10)
    register_dataset(MNIST, _load_known)
    return MNIST, f"MNIST, the first {TRAIN:,} training and {TEST:,} test images"


_known: dict[str, Dataset] = {}


def _load_known(request: DataRequest) -> Dataset:
    return _known[request.name]


def _problem(setting: Setting) -> Problem:
    """A generated problem; its constants are still those of the generator."""
    settings = GenerateSettings(
        name="theory",
        devices=DEVICES,
        tasks=1,
        task_names=("task",),
        slots=setting.slots,
        regime="certified",
        total_samples=SAMPLES,
        size_dirichlet=8.0,
        min_batch=8,
        max_steps=STEPS,
        max_staleness=0 if setting.schedule == "synchronous" else STALENESS,
        cycles_per_sample=1.0e4,  # no batch gives way to time
        server_rate=LEVELS[setting.level][1],
    )
    return generate_problem(settings, seed=setting.seed)


def _schedule(setting: Setting, problem: Problem) -> Schedule:
    context = Context.of(problem)
    rng = np.random.default_rng([setting.seed, 1])
    if setting.schedule == "synchronous":
        skeleton = synchronous_skeleton(context, 1, 1, 1.0, alternate=True)
    elif setting.schedule == "round robin":
        skeleton = round_robin_skeleton(context, 3, 4)
    else:
        skeleton = random_skeleton(context, rng, 0.7, 3.0)
    batch = np.inf if setting.batch == "full" else float(setting.batch)
    steps = rng.integers(1, STEPS + 1, len(skeleton)).astype(float) if setting.schedule == "random" else float(STEPS)
    return fit(context, prepare(context, skeleton), steps, batch)


@lru_cache(maxsize=1)
def _task(partition: str, drift: str, seed: int, sizes: tuple[int, ...], source: str, slots: int) -> SoftmaxTask:
    """The losses on the data that a simulation with the same seed will have."""
    specs, dataset = (PartitionSpec.parse(partition), DriftSpec.parse(drift)), load_dataset(source, download=False)
    data = make_task_data(dataset, sizes, *specs, slots=slots, seed=seed_of(seed, DATA_STREAM, 0))
    return SoftmaxTask(data, np.array(sizes) / sum(sizes), slots)


@lru_cache(maxsize=1)
def _least_loss(task: SoftmaxTask) -> float:
    """F*: samples that a linear model tells apart have 0."""
    return least_loss(task, task.slots - 1, worth=0.03)


def _with_smoothness(setting: Setting, problem: Problem, smoothness: float) -> Problem:
    """The problem with β, and with the learning rate at which ``STEPS`` steps use the level's share of C1."""
    data = problem.to_dict()
    rate = LEVELS[setting.level][0] * C1_LIMIT / (smoothness * STEPS)
    data["tasks"][0] |= {"smoothness": smoothness, "learning_rate": rate}
    return Problem.model_validate(data)


def measure(setting: Setting, source: str, understate: Mapping[str, float] | None = None) -> Run:
    """Do a run on the data set ``source`` and compare it with the theorem; ``understate``: see :func:`compare`."""
    with threadpool_limits(1):  # small matrices: threads of BLAS would only wait for one another
        return compare(setting, *execute(setting, source), understate)


def execute(setting: Setting, source: str) -> tuple[Replay, float, float]:
    """The run, its ``measured`` and, with bounds that hold everywhere, its ``bound`` as in the report."""
    problem = _problem(setting)
    sizes = tuple(int(n) for n in problem.arrays.samples[:, 0])
    task = _task(setting.partition, setting.drift, setting.seed, sizes, source, setting.slots)
    problem = _with_smoothness(setting, problem, task.smoothness)
    schedule = _schedule(setting, problem)
    dataset = task.data.dataset
    first = initial_parameters(build_model("softmax", dataset.shape, dataset.num_classes), seed_of(setting.seed, MODEL_STREAM, 0))
    h_total = float(aggregate(problem.arrays, schedule).h_total[0])
    problem = bounds_everywhere(task, task.model(first.double().numpy()), h_total).put_into(problem)
    drift = "" if setting.drift == "none" else setting.drift
    names = {"datasets": {"": source}, "models": {"": "softmax"}}
    options = SimulateSettings(setting.partition, drift, download=False, **names)
    models: list[FloatArray] = []
    with Simulation(problem, schedule, options, seed=setting.seed) as simulation:
        (run,) = simulation.engine.runs
        report = simulation.run(on_instant=lambda g: models.append(task.model(run.model.double().numpy()))).tasks["task"]
    assert report.measured is not None and report.bound is not None
    return replay(problem, schedule, task, models, setting.seed), report.measured, report.bound


def compare(setting: Setting, run: Replay, measured: float, everywhere: float, understate: Mapping[str, float] | None = None) -> Run:
    """What a run says of the theorem; ``understate``: factors of constants, to see whether a wrong one would be noticed."""
    problem, schedule, task = run.problem, run.schedule, run.task
    constants = constants_on_path(task, run.models, schedule, run.variance, least_loss=_least_loss(task))
    constants = replace(constants, **{name: factor * getattr(constants, name) for name, factor in (understate or {}).items()})
    known = constants.put_into(problem)
    bound = AsyncScheduleBound().evaluate(known, schedule)
    realised = realised_terms(run)
    unit = FACTOR / float(bound.extra["h_total"][0])
    step = max(float(np.linalg.norm(after - before)) for before, after in pairwise(run.models))
    return Run(
        setting=setting,
        measured=measured,
        bound=float(bound.total[0]),
        sharp=float(bound.extra["bound_sharp"][0]),
        tight=float(tight_bound(known, schedule)[0]),
        everywhere=everywhere,
        certified=bool(bound.certified[0]),
        terms=dict(zip(TERMS, bound.terms[0].tolist(), strict=True)),
        realised=dict(zip(TERMS, (unit * realised.terms()).tolist(), strict=True)),
        squares=realised.squares * unit / FACTOR,
        slack=realised.slack * unit,
        staleness=int(schedule.staleness.max()),
        uploads=len(schedule),
        conditions={c.name: float(c.value[0] / c.limit) for c in bound.conditions},
        loss=(task.loss(0, run.models[0]), task.loss(task.slots - 1, run.models[-1])),
        replay_error=run.error() / step,
    )
