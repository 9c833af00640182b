"""SCIP on the full model: spatial branch and bound with a bound of its own; every incumbent is handed over at once.

Traps known: the Ipopt inside the wheel may crash or hang in MUMPS' ordering, hence an option file with another one; a crash inside
cannot be caught in Python, hence the child process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyscipopt
from pyscipopt import SCIP_EVENTTYPE, Eventhdlr

from benchmarks.peers import channel
from benchmarks.peers.model import Model
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["Scip", "solve"]

MEMORY_MB = 4000.0


class Scip:
    """SCIP as a modelling language."""

    def __init__(self) -> None:
        self.model = pyscipopt.Model()
        self.model.hideOutput()

    def variable(self, low: float, high: float, start: float, *, whole: bool = False) -> Any:
        """A variable; SCIP needs no starting value."""
        return self.model.addVar(vtype="I" if whole else "C", lb=float(low), ub=None if high == float("inf") else float(high))

    def at_most(self, left: Any, right: Any) -> None:
        """left ≤ right."""
        self.model.addCons(left - right <= 0)

    def equal(self, left: Any, right: Any) -> None:
        """left = right."""
        self.model.addCons(left - right == 0)

    def exp(self, expression: Any) -> Any:
        """The exponential."""
        return pyscipopt.exp(expression)

    def total(self, terms: Sequence[Any]) -> Any:
        """The sum."""
        return pyscipopt.quicksum(terms)

    def minimise(self, expression: Any) -> None:
        """The objective."""
        self.model.setObjective(expression, "minimize")


class _Incumbents(Eventhdlr):
    """Hands over every better solution."""

    def __init__(self, written: Model) -> None:
        self.written = written

    def eventinit(self) -> None:
        self.model.catchEvent(SCIP_EVENTTYPE.BESTSOLFOUND, self)

    def eventexit(self) -> None:
        self.model.dropEvent(SCIP_EVENTTYPE.BESTSOLFOUND, self)

    def eventexec(self, event: Any) -> None:
        schedule = _schedule(self.model, self.written)
        if schedule is not None:
            channel.claim_bound(self.model.getDualbound())
            channel.offer(schedule)


def _schedule(model: Any, written: Model) -> Schedule | None:
    best = model.getBestSol()
    return written.schedule(lambda variable: model.getSolVal(best, variable))


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """SCIP with default settings, one thread; the time limit is of the solve after the model is written."""
    language = Scip()
    written, model = Model(problem, language), language.model
    model.includeEventhdlr(_Incumbents(written), "incumbents", "hands over better solutions")
    model.setParam("limits/time", time_limit_s)
    model.setParam("limits/memory", MEMORY_MB)
    model.setParam("randomization/randomseedshift", seed)
    with tempfile.TemporaryDirectory() as folder:
        options = Path(folder) / "ipopt.opt"
        options.write_text("mumps_pivot_order 0\n")
        model.setParam("nlpi/ipopt/optfile", str(options))
        model.optimize()
    channel.claim_bound(model.getDualbound())
    channel.remark(f"{model.getStatus()}, {model.getNTotalNodes()} nodes, {len(written.chosen)} candidates")
    return _schedule(model, written) if model.getNSols() else None
