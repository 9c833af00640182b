"""What every bound evaluator returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["BoundEvaluator", "BoundValue", "Condition"]


@dataclass(frozen=True)
class Condition:
    """A condition of a theorem, per task: it holds where ``value <= limit`` (arrays of shape (J,))."""

    name: str
    statement: str
    value: FloatArray
    limit: float
    #: relative slack that rounding in a schedule file may use up
    tolerance: float = 1e-9

    @property
    def holds(self) -> np.ndarray:
        """Whether the condition holds, shape (J,), bool."""
        return self.value <= self.limit * (1 + self.tolerance)


@dataclass(frozen=True)
class BoundValue:
    """A bound Ψ_j per task.

    ``total``: Ψ, shape (J,), +inf for a task that is never trained. ``terms``: each term's share of the total, shape (J, K), rows sum
    to ``total``; ``raw_terms``: the T_k before scaling and before the common factor. ``certified``: shape (J,), bool.
    """

    name: str
    total: FloatArray
    term_names: tuple[str, ...]
    terms: FloatArray
    raw_terms: FloatArray
    conditions: tuple[Condition, ...]
    certified: np.ndarray
    #: whether it reads the objective's ``participation`` and ``term_scale``, which may take it out of what is proven
    reads_objective: bool = True
    #: the conditions that schedules must meet: ``conditions``, others, or none
    enforced: tuple[Condition, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


class BoundEvaluator(Protocol):
    """``evaluate(problem, schedule) -> BoundValue``."""

    name: str

    def evaluate(self, problem: Problem, schedule: Schedule) -> BoundValue:
        """Evaluate the bound of ``schedule``."""
        ...
