"""What the evaluators of published bounds share: one task's constants as those theorems want them, and the assembly of their values.

A theorem is written for one algorithm with equal steps, equal buffers, equal weights. A schedule has of each a range; the least and the
largest are kept here, and every evaluator says which one it takes and why that is the safe one. What a theorem asks of the algorithm is
a :class:`~schedopt.bounds.base.Condition` like its step sizes, so that a value is never taken for more than it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from schedopt.bounds.arrivals import Arrivals
from schedopt.bounds.async_schedule import minibatch_variance
from schedopt.bounds.base import BoundValue, Certainty, Condition, Kind
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = [
    "BOUNDED_GRADIENTS",
    "CLIENT_NOISE",
    "NOISE",
    "UNIFORM_CLIENTS",
    "Check",
    "FieldBound",
    "FieldSetting",
    "Range",
    "TaskBound",
    "algorithm_checks",
]

UNIFORM_CLIENTS = "every request goes to a client drawn uniformly at random"
BOUNDED_GRADIENTS = "the loss never exceeds its initial value, so that ||grad F_i|| <= sqrt(2 smoothness initial_gap) + max dissimilarity"
NOISE = "sigma_l^2: the largest gradient_variance (1/batch - 1/samples) of the updates"
CLIENT_NOISE = NOISE + ", and of devices without one at the least batch"


@dataclass(frozen=True)
class Range:
    """The least and the largest of something that a theorem takes for one number."""

    least: np.float64
    largest: np.float64

    @classmethod
    def of(cls, values: FloatArray) -> Range:
        """The range of an array."""
        return cls(np.float64(values.min()), np.float64(values.max()))

    @property
    def ratio(self) -> np.float64:
        """Largest over least; 1 where they are equal."""
        return self.largest / self.least


@dataclass(frozen=True)
class FieldSetting:
    """One task and its arrivals; numbers are ``float64``, so that absurd ones become infinite instead of raising.

    ``learning_rate`` η, ``smoothness`` L, ``gap`` F(w^0) - F*; ``noises`` V(1/B - 1/D) of the updates, ``noise`` the largest,
    ``client_noise`` σ_l² the largest also over devices without an update, at the least batch; ``dissimilarity`` σ_g (largest δ_i) and
    ``mean_dissimilarity2`` (1/M) Σ δ_i² over the M ``clients`` of positive weight, ``client_weights`` their λ_i; ``drift`` the largest of
    all Δ_i and Φ.
    Ranges over updates: ``steps`` e, ``weights`` θ. Ranges over versions: ``buffer`` b, ``server_step`` Σθ, ``step`` η Σ θ e.
    ``pending`` R and ``delay`` are the largest. ``gradient`` bounds every ‖∇F_i‖ as :data:`BOUNDED_GRADIENTS` says.
    """

    arrivals: Arrivals
    learning_rate: np.float64
    smoothness: np.float64
    gap: np.float64
    prox: np.float64
    drift: np.float64
    delta_rule: bool
    noises: FloatArray
    noise: np.float64
    client_noise: np.float64
    dissimilarity: np.float64
    mean_dissimilarity2: np.float64
    gradient: np.float64
    clients: int
    #: λ_i of the devices, zero without data, and δ_i, shape (I,)
    client_weight: FloatArray
    client_dissimilarity: FloatArray
    client_weights: Range
    rounds: np.float64
    steps: Range
    weights: Range
    buffer: Range
    server_step: Range
    step: Range
    pending: np.float64
    delay: np.float64

    @classmethod
    def of(cls, problem: Problem, task: int, arrivals: Arrivals) -> FieldSetting:
        """The constants of task number ``task`` as its arrivals meet them."""
        a, j, device = problem.arrays, task, arrivals.device
        weight = a.aggregation_weight[:, j]
        held = weight > 0
        delta = a.dissimilarity[held, j]
        noises = minibatch_variance(a.gradient_variance[device, j], arrivals.batch, a.samples[device, j].astype(float))
        idle = held & ~np.isin(np.arange(len(weight)), device)
        unseen = minibatch_variance(a.gradient_variance[idle, j], arrivals.batch.min(), a.samples[idle, j].astype(float))
        return cls(
            arrivals=arrivals,
            learning_rate=a.learning_rate[j],
            smoothness=a.smoothness[j],
            gap=a.initial_gap[j],
            prox=a.prox[j],
            drift=np.maximum(a.gradient_drift[held, j].max(), a.loss_drift[j]),
            delta_rule=bool(a.delta_rule[j]),
            noises=noises,
            noise=noises.max(),
            client_noise=np.maximum(noises.max(), unseen.max(initial=0.0)),
            dissimilarity=delta.max(),
            mean_dissimilarity2=(delta**2).mean(),
            gradient=np.sqrt(2.0 * a.smoothness[j] * a.initial_gap[j]) + delta.max(),
            clients=int(held.sum()),
            client_weight=weight,
            client_dissimilarity=np.where(held, a.dissimilarity[:, j], 0.0),
            client_weights=Range.of(weight[held]),
            rounds=np.float64(arrivals.rounds),
            steps=Range.of(arrivals.steps),
            weights=Range.of(arrivals.weight),
            buffer=Range.of(arrivals.buffer.astype(float)),
            server_step=Range.of(arrivals.per_round(arrivals.weight)),
            step=Range.of(a.learning_rate[j] * arrivals.per_round(arrivals.weight * arrivals.steps)),
            pending=np.float64(arrivals.pending.max()),
            delay=np.float64(arrivals.delay.max()),
        )


@dataclass(frozen=True)
class Check:
    """A :class:`~schedopt.bounds.base.Condition` of one task."""

    name: str
    statement: str
    value: float | np.float64
    limit: float


@dataclass(frozen=True)
class TaskBound:
    """One task's value: shares that sum to it, checks (of the same names for every task), and what else is known."""

    terms: Mapping[str, float | np.float64]
    checks: tuple[Check, ...]
    extra: Mapping[str, float | np.float64] = field(default_factory=dict)


def algorithm_checks(setting: FieldSetting, *names: str) -> tuple[Check, ...]:
    """What a theorem asks of the algorithm, by name: ``delta_rule``, ``mixing_rule``, ``no_prox``, ``no_drift``, ``same_steps``,
    ``same_buffers``, ``same_weights``, ``equal_clients``, ``one_update``, ``one_step``, ``no_delay``.
    """
    s = setting
    known = (
        Check("delta_rule", "updates are added (aggregation delta)", float(not s.delta_rule), 0.0),
        Check("mixing_rule", "models are mixed (aggregation mixing)", float(s.delta_rule), 0.0),
        Check("no_prox", "prox = 0", s.prox, 0.0),
        Check("no_drift", "gradient_drift = 0 and loss_drift = 0", s.drift, 0.0),
        Check("same_steps", "all updates have the same steps: largest over least", s.steps.ratio, 1.0),
        Check("same_buffers", "all versions merge equally many updates: most over fewest", s.buffer.ratio, 1.0),
        Check("same_weights", "all updates weigh the same: largest over least", s.weights.ratio, 1.0),
        Check("equal_clients", "all devices have the same weight in the loss: largest over least", s.client_weights.ratio, 1.0),
        Check("one_update", "every version merges one update: most", s.buffer.largest, 1.0),
        Check("one_step", "every update has one local step: most", s.steps.largest, 1.0),
        Check("no_delay", "every update is fresh: longest delay in versions", s.delay, 0.0),
    )
    by_name = {check.name: check for check in known}
    return tuple(by_name[name] for name in names)


class FieldBound(ABC):
    """A published bound: subclasses say what it is and compute one task.

    It is certified where all conditions hold, if it is a bound at all and assumes nothing that a schedule cannot show.
    """

    name: str
    source: str
    term_names: tuple[str, ...]
    metric: str = "mean of E||grad F||^2 over the versions of the model"
    kind: Kind = "bound"
    certainty: Certainty = "published"
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def task(self, setting: FieldSetting) -> TaskBound:
        """The bound of one task."""

    def evaluate(self, problem: Problem, schedule: Schedule) -> BoundValue:
        """The bound of every task of a schedule."""
        tasks = range(problem.arrays.num_tasks)
        return self.evaluate_arrivals(problem, [Arrivals.from_schedule(problem, schedule, j) for j in tasks])

    def evaluate_arrivals(self, problem: Problem, arrivals: Sequence[Arrivals | None]) -> BoundValue:
        """The bound of every task of a run: its arrivals, None where the task was never trained; one entry per task."""
        with np.errstate(all="ignore"):  # absurd but legal numbers may overflow; the values say so
            settings = [None if a is None else FieldSetting.of(problem, j, a) for j, a in enumerate(arrivals)]
            found = [None if setting is None else self.task(setting) for setting in settings]
            h_total = [0.0 if s is None else float(s.learning_rate * (s.arrivals.weight @ s.arrivals.steps)) for s in settings]
            return self._assemble(found, np.array(h_total))

    def _assemble(self, found: list[TaskBound | None], h_total: FloatArray) -> BoundValue:
        trained = np.array([task is not None for task in found])
        # what no task shows, nobody asks for
        example = next((task for task in found if task is not None), TaskBound({}, ()))
        names = self.term_names
        terms = np.array([[np.nan] * len(names) if t is None else [t.terms[n] for n in names] for t in found], dtype=float)
        total = np.where(trained, terms.sum(axis=1), np.inf)
        conditions = tuple(
            Condition(c.name, c.statement, np.array([0.0 if t is None else t.checks[k].value for t in found], dtype=float), c.limit)
            for k, c in enumerate(example.checks)
        )
        proven = self.kind == "bound" and self.certainty in ("derived", "published") and not self.assumed
        certified = trained & np.isfinite(total) & proven
        for condition in conditions:
            certified = certified & condition.holds
        extra = {n: np.array([np.nan if t is None else t.extra[n] for t in found], dtype=float) for n in example.extra}
        return BoundValue(
            self.name, total, names, terms, terms, conditions, certified, reads_objective=False, extra=extra | {"h_total": h_total},
            kind=self.kind, certainty=self.certainty, source=self.source, metric=self.metric, assumed=self.assumed, notes=self.notes,
        )  # fmt: skip
