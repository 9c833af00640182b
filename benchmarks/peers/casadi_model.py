"""CasADi as a modelling language, and the solve of what was written in it; shared by the peers on Bonmin and Ipopt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import casadi
import numpy as np

from benchmarks.peers.model import Model
from schedopt.problem import FloatArray, Problem

__all__ = ["CasadiModel"]


class _Casadi:
    """Collects variables, their ranges and the rows g ≤ 0 or g = 0."""

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.start: list[float] = []
        self.whole: list[bool] = []
        self.rows: list[Any] = []
        self.row_low: list[float] = []
        self.objective: Any = None

    def variable(self, low: float, high: float, start: float, *, whole: bool = False) -> Any:
        """A variable; it knows its place in the list by ``position``."""
        symbol = casadi.SX.sym(f"v{len(self.variables)}")
        for values, value in ((self.variables, symbol), (self.low, low), (self.high, high), (self.start, start), (self.whole, whole)):
            values.append(value)
        return symbol

    def at_most(self, left: Any, right: Any) -> None:
        """left ≤ right."""
        self.rows.append(left - right)
        self.row_low.append(-np.inf)

    def equal(self, left: Any, right: Any) -> None:
        """left = right."""
        self.rows.append(left - right)
        self.row_low.append(0.0)

    def exp(self, expression: Any) -> Any:
        """The exponential."""
        return casadi.exp(expression)

    def total(self, terms: Sequence[Any]) -> Any:
        """The sum."""
        return sum(terms)

    def minimise(self, expression: Any) -> None:
        """The objective."""
        self.objective = expression


class CasadiModel:
    """P in CasADi, to be solved by any of its plug-ins from any starting point."""

    def __init__(self, problem: Problem) -> None:
        self.language = _Casadi()
        self.written = Model(problem, self.language)
        self._position = {variable.name(): k for k, variable in enumerate(self.language.variables)}
        self.low, self.high = np.array(self.language.low, float), np.array(self.language.high, float)
        self.start, self.whole = np.array(self.language.start, float), np.array(self.language.whole)

    def solver(self, plugin: str, options: dict[str, Any], *, relaxed: bool) -> Any:
        """A function of the solver ``plugin`` (derivatives are made once, here)."""
        v = casadi.vertcat(*self.language.variables)
        program = {"x": v, "f": self.language.objective, "g": casadi.vertcat(*self.language.rows)}
        discrete = {} if relaxed else {"discrete": self.whole.tolist()}
        return casadi.nlpsol("solver", plugin, program, options | discrete | {"print_time": False, "error_on_fail": False})

    def run(self, solver: Any, start: FloatArray) -> tuple[FloatArray, float, str]:
        """Point, objective and status from a starting point, shape (variables,)."""
        inside = np.clip(start, self.low, self.high)
        found = solver(x0=inside, lbx=self.low, ubx=self.high, lbg=np.array(self.language.row_low), ubg=0.0)
        return np.array(found["x"]).ravel(), float(found["f"]), str(solver.stats()["return_status"])

    def values(self, variables: Sequence[Any], point: FloatArray) -> FloatArray:
        """Values of ``variables`` at a point."""
        return np.array([point[self._position[variable.name()]] for variable in variables])

    def random_start(self, rng: np.random.Generator) -> FloatArray:
        """The model's starting point, each entry moved at random by up to a third of it or of its range."""
        width = np.where(np.isfinite(self.high), self.high - self.low, np.abs(self.start))
        return self.start + rng.uniform(-1 / 3, 1 / 3, len(self.start)) * width
