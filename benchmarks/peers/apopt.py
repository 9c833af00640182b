"""APOPT through GEKKO (on this machine, nothing is sent anywhere) on the full model: branch and bound on local optima, without a bound.

APOPT has no callback, and what it has found is lost when its time is up; so it runs first until any integer solution, which is handed
over, then for the rest of the time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gekko import GEKKO

from benchmarks.peers import channel
from benchmarks.peers.model import Model
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["Apopt", "solve"]

APOPT = 1
ITERATIONS = 1_000_000
#: Longest sum in one equation.
TERMS = 20


class Apopt:
    """GEKKO as a modelling language; ``rng`` moves starting values, None leaves them."""

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        self.model = GEKKO(remote=False)
        self.rng = rng

    def variable(self, low: float, high: float, start: float, *, whole: bool = False) -> Any:
        """A variable."""
        upper = None if np.isinf(high) else float(high)
        if self.rng is not None:
            start = float(np.clip(start * self.rng.uniform(2 / 3, 4 / 3), low, high))
        return self.model.Var(value=float(round(start) if whole else start), lb=float(low), ub=upper, integer=whole)

    def at_most(self, left: Any, right: Any) -> None:
        """left ≤ right."""
        self.model.Equation(left <= right)

    def equal(self, left: Any, right: Any) -> None:
        """left = right."""
        self.model.Equation(left == right)

    def exp(self, expression: Any) -> Any:
        """The exponential."""
        return self.model.exp(expression)

    def total(self, terms: Sequence[Any]) -> Any:
        """The sum; long ones by parts, as APOPT reads no equation of more than 15,000 characters."""
        while len(terms) > TERMS:
            terms = [self._part(terms[k : k + TERMS]) for k in range(0, len(terms), TERMS)]
        return sum(terms)

    def _part(self, terms: Sequence[Any]) -> Any:
        part = self.model.Var(value=1.0)
        self.model.Equation(part == sum(terms))
        return part

    def minimise(self, expression: Any) -> None:
        """The objective."""
        self.model.Minimize(expression)


def _run(problem: Problem, seed: int, time_s: float, enough: int) -> tuple[Schedule | None, str]:
    """The schedule and how it ended; APOPT stops ``enough`` nodes after its first integer solution."""
    language = Apopt(None if seed == 0 else np.random.default_rng(seed))
    written, model = Model(problem, language), language.model
    model.options.SOLVER, model.options.MAX_TIME = APOPT, max(time_s, 1.0)
    model.solver_options = [
        f"minlp_maximum_iterations {ITERATIONS}",
        f"minlp_max_iter_with_int_sol {enough}",
        "minlp_gap_tol 1.0e-4",
        "minlp_integer_tol 1.0e-4",
        "minlp_as_nlp 0",
    ]
    try:
        model.solve(disp=False)
    except Exception as error:  # GEKKO raises bare exceptions, at the time limit too
        return None, str(error)
    finally:
        model.cleanup()
    found = written.schedule(lambda variable: float(variable.value[0]))
    return found, f"{len(written.chosen)} candidates, stopped {enough} nodes after the first solution or at the end"


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """APOPT until its first integer solution, then for the rest of the time."""
    began = time.monotonic()
    best: Schedule | None = None
    for enough in (1, ITERATIONS):
        left = time_limit_s - (time.monotonic() - began)
        if left < 1:
            break
        found, ending = _run(problem, seed, left, enough)
        channel.remark(ending)
        if found is None:
            break
        best = found
        channel.offer(found)
    return best
