"""The search of a proof: always the node of the least bound, bounded by its own prices, then split where that promises most."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.cuts import ROUNDING, Cut
from schedopt.formulation.candidates import Candidates, Columns
from schedopt.problem import FloatArray, Problem
from schedopt.proof.branching import choose_limits
from schedopt.proof.multipliers import node_cut
from schedopt.proof.nodes import Node
from schedopt.proof.pricing import PriceTables
from schedopt.proof.program import NodeProgram, NodeSolution
from schedopt.ratio_search import RatioSearch, least_over_box
from schedopt.sca.master import MasterPoint
from schedopt.sca.pool import ColumnPool

__all__ = ["ProofTree"]

#: Programs and pricings of one node at most; what a pricing may still raise the bound by (relative) to be worth another.
_ROUNDS = 2
_SETTLED = 5e-4
#: The same for nodes that cannot be split.
_FINAL = 1e-6
#: Columns beyond this many, or this many per slot of a device, are dropped where they are idle for long: programs take time.
_MANY_COLUMNS = 600
_MANY_PER_SLOT = 4


class ProofTree:
    """A search under way. ``search``: cuts that hold everywhere and boxes of (H, N), None in mode min_energy.

    ``floor``: a bound known already; ``unit``: size of the objective; ``point``: a relaxed point, for scales; ``least``: least N/H (J,).
    """

    def __init__(
        self,
        problem: Problem,
        candidates: Candidates,
        columns: Columns,
        search: RatioSearch | None,
        *,
        floor: float,
        unit: float,
        point: MasterPoint,
        least: FloatArray,
    ) -> None:
        self.problem, self.candidates, self.search, self.unit = problem, candidates, search, unit
        self.pool = ColumnPool(columns)
        self.tables = PriceTables(candidates)
        self.program = NodeProgram(problem, candidates, unit, point, least)
        self.closed = np.inf
        self.count = 0
        self.heap: list[Node] = []
        if search is None:
            self._push(Node(floor, 0, None))
        else:
            self.closed = search.closed
            for box in search.heap:
                self._push(Node(max(floor, box.bound), 0, box))

    @property
    def proven(self) -> float:
        """Bound over all nodes, open and closed, and what was cut off of their boxes."""
        cut_off = np.inf if self.search is None else self.search.cut_off
        return min(self.heap[0].bound if self.heap else np.inf, self.closed, cut_off)

    def _push(self, node: Node) -> None:
        self.count += 1
        heapq.heappush(self.heap, replace(node, number=self.count))

    def step(self, cutoff: float, tick: Callable[[], None]) -> NodeSolution | None:
        """Bound the node of the least bound and split it, unless it is closed; its program's solution if there is one.

        The heap always covers all that is open: whatever ``tick`` raises, the bound stays proven.
        """
        node = self.heap[0]
        solution, settled = None, True
        if node.box is not None:
            assert self.search is not None
            box = self.search.tighten(node.box, cutoff)
            if box is None:
                self._close(cutoff)
                return None
            box = self.search.evaluate(box)
            node = replace(node, box=box, bound=max(node.bound, box.bound))
        if node.bound < cutoff:
            node, solution, settled = self._bounded(node, cutoff, tick)
        if node.bound >= cutoff:
            self._close(node.bound)
            return None
        parts = [] if solution is None else self._parts(node, solution, cutoff, tick)
        heapq.heappop(self.heap)
        if not parts and not settled:
            parts = [node]
        if not parts:
            # nothing is left to split, or the program's solver has failed: this is as good as it gets
            self.closed = min(self.closed, node.bound)
        for part in parts:
            self._push(part)
        return solution

    def _close(self, bound: float) -> None:
        heapq.heappop(self.heap)
        self.closed = min(self.closed, bound)

    def _bounded(self, node: Node, cutoff: float, tick: Callable[[], None]) -> tuple[Node, NodeSolution | None, bool]:
        """Programs and pricings for a while; the last solution, and whether new columns could not raise the bound any more."""
        solution, settled = None, True
        for _ in range(_ROUNDS):
            columns = self._allowed(node)
            found = self.program.solve(node, columns)
            if found is None:
                break
            solution = found
            priced = node_cut(self.problem, self.candidates, self.tables, node, found.duals, self.unit)
            node = replace(node, bound=max(node.bound, self._value(node, priced.cut)))
            if self.search is not None and not node.limits:
                self.search.add(priced.cut, self._active)
            self._age(found.weights)
            added = self.pool.add(priced.columns)
            tick()
            missing = found.value - node.bound
            settled = not self.program.loose and (not added or missing < _FINAL * self.unit)
            if node.bound >= cutoff or settled or missing < _SETTLED * self.unit:
                break
        return node, solution, settled

    @property
    def _active(self) -> np.ndarray:
        return self.problem.arrays.weight > 0

    def _value(self, node: Node, cut: Cut) -> float:
        """The least that ratios and cut can be in the node."""
        if not np.isfinite([*cut.h_price, *cut.error_price, cut.level]).all():
            # numbers beyond 64-bit arithmetic prove nothing
            return -np.inf
        a = self.problem.arrays
        if node.box is None:
            # C + N ≤ (3/8) ε H: V ≥ ρ((3/8) ε H − N) + K ≥ ρC + K
            return float(cut.error_price @ fixed_terms(a)) * (1.0 - ROUNDING) + cut.level
        assert self.search is not None
        on, w = self._active, FACTOR * a.weight
        parts = least_over_box(w[on], self.search.fixed, self.search.least, node.box, cut.h_price[on], cut.error_price[on])
        return float(parts.sum()) + cut.level - ROUNDING * (float(np.abs(parts).sum()) + abs(cut.level))

    def _allowed(self, node: Node) -> Columns:
        columns, forbidden = self.pool.columns, node.forbidden
        keep = np.isin(self.candidates.task[columns.candidate], self.program.tasks)
        if forbidden is not None:
            keep &= ~forbidden[columns.candidate]
        self._kept = np.flatnonzero(keep)
        return columns.take(self._kept)

    def _age(self, weights: FloatArray) -> None:
        """Forget columns that have been idle for long, once there are too many."""
        wide = np.ones(len(self.pool))
        wide[self._kept] = weights
        a = self.problem.arrays
        if len(self.pool) > max(_MANY_COLUMNS, _MANY_PER_SLOT * a.num_devices * a.slots):
            self.pool.forget(wide)

    def _parts(self, node: Node, solution: NodeSolution, cutoff: float, tick: Callable[[], None]) -> list[Node]:
        """Two nodes that cover the node: halves of its box where ratios are underestimated, else by a number of assignments."""
        if node.box is not None:
            assert self.search is not None
            missing = self._underestimate(solution)
            if missing > max(0.1 * (cutoff - solution.value), 3e-4 * self.unit):
                return self._halves(node, solution)
        limits = choose_limits(self.program, solution, tick)
        if limits is None:
            return self._halves(node, solution) if node.box is not None and self._underestimate(solution) > 1e-9 * self.unit else []
        return [replace(node, limits=(*node.limits, limit)) for limit in limits]

    def _underestimate(self, solution: NodeSolution) -> float:
        assert self.search is not None
        w, fixed = self.search.w, self.search.fixed
        return float(np.sum(w * ((fixed + solution.n) / solution.h - fixed * solution.v - solution.r)))

    def _halves(self, node: Node, solution: NodeSolution) -> list[Node]:
        assert self.search is not None and node.box is not None
        box = replace(node.box, h=solution.h, n=solution.n, bound=node.bound)
        return [replace(node, box=part) for part in self.search.split(box)]
