"""Best-first search over combinations of keys, then over the joint plans of the most promising ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedopt.problem import FloatArray, IntArray
from schedopt.solvers.base import Incumbent
from schedopt.solvers.enumeration.combinations import Combinations, Quote
from schedopt.solvers.enumeration.constants import BOUND_MARGIN
from schedopt.solvers.enumeration.expansion import Expansion
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.relaxation import Relaxation
from schedopt.solvers.enumeration.rows import Rows
from schedopt.solvers.enumeration.tables import Prices, Tables
from schedopt.solvers.enumeration.terms import Terms
from schedopt.solvers.enumeration.trials import Trials

__all__ = ["Search"]


class Search:
    """The order in which things are looked at, with an incumbent that supplies cutoff and prices.

    *Pending* combinations are sorted by their ``bounds``.
    """

    def __init__(self, terms: Terms, rows: Rows, plans: Sequence[Plans], incumbent: Incumbent) -> None:
        self.problem, self.plans, self.incumbent = terms.problem, plans, incumbent
        self.tables = Tables(terms.problem, rows)
        self.combinations = Combinations(terms, self.tables, plans)
        self.expansion = Expansion(terms.problem, self.tables, plans, incumbent.check_time)
        self.trials = Trials(terms, self.tables, plans, incumbent)
        self.relax(Prices.zero(terms.problem))

    def run(self) -> None:
        """Search to the end; the incumbent holds the outcome."""
        pending = np.arange(self.combinations.total)
        bounds = self.quotes(pending)
        self.progress("bounds", bounds)
        pending, bounds = self.tune(*_sorted(pending[np.isfinite(bounds)], bounds[np.isfinite(bounds)]))
        size = 32
        while len(pending) and bounds[0] < self.trials.cutoff:
            before = self.incumbent.objective
            self.explore(pending[:size])
            pending, bounds = pending[size:], bounds[size:]
            if self.incumbent.objective < before - 1e-4 * abs(before):
                pending, bounds = self.reprice(pending, bounds)
            self.progress("search", bounds)
            size = min(2 * size, 4096)

    def progress(self, phase: str, bounds: FloatArray) -> None:
        """Record the bound over what is left, which with the incumbent bounds the optimum."""
        least = min(float(bounds.min(initial=np.inf)), self.incumbent.objective)
        if np.isfinite(least):
            self.incumbent.raise_lower_bound(least - BOUND_MARGIN * abs(least))
        self.incumbent.iteration += 1
        self.incumbent.record(phase)
        self.incumbent.check_time()

    def relax(self, prices: Prices) -> None:
        """Build the lower bounds at new prices."""
        self.relaxation = Relaxation(self.problem, self.tables, self.plans, self.combinations.nodes, prices)

    def quotes(self, flat: IntArray, rounds: int = 0) -> FloatArray:
        """Lower bounds of combinations, in blocks that bound the memory."""
        bounds = np.empty(len(flat))
        for block in range(0, len(flat), 50_000):
            self.incumbent.check_time()
            some = slice(block, block + 50_000)
            bounds[some] = self.combinations.quote(self.relaxation, flat[some], rounds).bound
        return bounds

    def tune(self, pending: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
        """Find a good incumbent, and prices of the band and of budgets from it, as long as that helps.

        Where rates or the price of energy are free, the best combinations at each value of them are looked at: some of these keep to the
        limits. Until there is an incumbent, the best joint plan supplies the prices, infeasible though it is.
        """
        for attempt in range(8):
            if not len(pending):
                break
            before, found = self.incumbent.objective, self.incumbent.schedule is not None
            self.trials.prices = self.trials.prices if found else None
            self.probe(pending[:64], self.combinations.quote(self.relaxation, pending[:64]))
            for point in self.combinations.points if self.combinations.grids else ():
                some = self.leaders(pending, point)
                self.probe(some, self.combinations.quote_at(self.relaxation, some, point))
            if not self.incumbent.objective < before and (found or attempt == 3):
                break
            pending, bounds = self.reprice(pending, bounds)
            self.progress("prices", bounds)
        return pending, bounds

    def leaders(self, pending: IntArray, point: FloatArray) -> IntArray:
        """The best few combinations at one point of the grid of free prices."""
        sample = pending[:: max(1, len(pending) // 20_000)]
        bounds = self.combinations.quote_at(self.relaxation, sample, point).bound
        return sample[np.argsort(bounds, kind="stable")[:32]]

    def reprice(self, pending: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
        """Raise the bounds by the prices found last and drop what they exclude."""
        keep = bounds < self.trials.cutoff
        pending, bounds = pending[keep], bounds[keep]
        if self.trials.prices is None or not len(pending):
            return pending, bounds
        self.relax(self.trials.prices)
        bounds = np.maximum(bounds, self.quotes(pending, rounds=2))
        keep = bounds < self.trials.cutoff
        return _sorted(pending[keep], bounds[keep])

    def probe(self, flat: IntArray, quote: Quote) -> None:
        """Solve the best joint plans among each device's best plans in a few combinations."""
        keys = self.combinations.keys(flat)
        plans, combination = self.expansion.allowed(*self.expansion.best(self.relaxation, keys, quote, each=3))
        bounds = self.expansion.bounds(self.relaxation, plans, quote.take(combination))
        order = np.argsort(bounds, kind="stable")[:24]
        self.trials.solve_in_order(plans[order], bounds[order])

    def explore(self, flat: IntArray) -> None:
        """Solve or exclude every joint plan of some combinations."""
        quote = self.combinations.quote(self.relaxation, flat, rounds=2)
        keep = np.flatnonzero(quote.bound < self.trials.cutoff)
        flat, quote = flat[keep], quote.take(keep)
        expanded = self.expansion.expand(self.relaxation, self.combinations.keys(flat), quote, self.trials.cutoff)
        if expanded is None:
            self.explore(flat[: len(flat) // 2])
            self.explore(flat[len(flat) // 2 :])
            return
        plans, owner = self.expansion.allowed(*expanded)
        bounds = self.expansion.bounds(self.relaxation, plans, quote.take(owner))
        for point in self.combinations.points if self.combinations.grids else ():
            keep = np.flatnonzero(bounds < self.trials.cutoff)
            plans, owner, bounds = plans[keep], owner[keep], bounds[keep]
            other = self.combinations.quote_at(self.relaxation, flat[owner], point)
            bounds = np.maximum(bounds, self.expansion.bounds(self.relaxation, plans, other))
        order = np.argsort(bounds, kind="stable")
        self.trials.solve_in_order(plans[order], bounds[order])


def _sorted(flat: IntArray, bounds: FloatArray) -> tuple[IntArray, FloatArray]:
    """Combinations by increasing bound."""
    order = np.argsort(bounds, kind="stable")
    return flat[order], bounds[order]
