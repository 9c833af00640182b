r"""Best plans of many devices at given prices, by tables over upload times (formulation 4b): pricing that scales.

The cost of an assignment at its best is min over T of F(T) + u(T). F, the best compute cost when the upload takes T, depends on
(device, task, length) and grows with T; u, the cheapest upload in T seconds, depends on (device, bits, slot) and falls with T. With
nodes t_0 < … < t_K of upload times,

    min_k F(t_k) + u(t_{k+1})  ≤  min_T F(T) + u(T)  ≤  min_k F(t_k) + u(t_k),

so two small tables bound the costs of all assignments by additions alone. With participation by windows F depends on the slot as well,
and its table is as large as that of all assignments. Shortest paths over both bounds tell which assignments
can be on the best plan of their device (path value from below at most the plan's from above); only for those few the root in T is
sought (:func:`schedopt.formulation.candidates.price`). Tested in ``tests/test_tables.py`` against pricing all candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.formulation.candidates import (
    Candidates,
    Columns,
    Paths,
    Prices,
    backward_values,
    best_paths,
    candidates_among,
    forward_values,
    least_compute_costs,
    price,
    step_grid,
    steps_limit,
)
from schedopt.formulation.resources import MARGIN
from schedopt.formulation.uplink import Uploads
from schedopt.problem import FloatArray, IntArray, Problem

__all__ = ["PlanColumns", "Plans", "PlanTables"]

#: Nodes of upload times: the bounds of the costs differ by what an upload's cost falls between two of them.
_NODES = 12
#: Paths from below are compared with plans from above up to this much, relative: rounding of sums of costs.
_SLACK = 1e-12
#: Columns beside the best plan are looked for among those of plans that are worse by at most this share.
_BREADTH = 0.03
#: Devices whose tables are made at once, so that they stay small.
_DEVICES_AT_ONCE = 250
#: With windows, devices at once are so few that there are about this many pairs of an assignment and its steps; what does not depend
#: on prices is kept for so many blocks of devices.
_PAIRS_AT_ONCE, _BLOCKS_KEPT = 1 << 19, 8


@dataclass(frozen=True)
class PlanColumns:
    """Assignments of plans with their resources, parallel arrays of shape (n,): units as in :class:`~.candidates.Columns`."""

    device: IntArray
    task: IntArray
    start: IntArray
    end: IntArray
    steps: FloatArray
    work: FloatArray
    upload_s: FloatArray
    bandwidth_hz: FloatArray
    energy_j: FloatArray
    h: FloatArray
    error: FloatArray

    def __len__(self) -> int:
        return len(self.device)

    def take(self, index: object) -> PlanColumns:
        """The assignments at ``index``."""
        return PlanColumns(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def of(candidates: Candidates, columns: Columns) -> PlanColumns:
        """Columns with what their candidates are."""
        k = columns.candidate
        where = (candidates.device[k], candidates.task[k], candidates.start[k], candidates.end[k])
        return PlanColumns(
            *where,
            columns.steps,
            columns.work,
            columns.upload_s,
            columns.bandwidth_hz,
            columns.energy_j,
            columns.h,
            columns.error,
        )

    @staticmethod
    def join(parts: list[PlanColumns]) -> PlanColumns:
        """All parts, one after the other."""
        return PlanColumns(*(np.concatenate([getattr(part, name) for part in parts]) for name in PlanColumns.__dataclass_fields__))


@dataclass(frozen=True)
class Plans:
    """Best plans of some devices at some prices.

    ``lower``: proven lower bound of each device's cheapest plan, at most 0, shape (I,); ``cost``: what the plans in ``columns`` cost;
    ``forward``, ``backward``: least cost, from below, of slots 0..g−1 and of slots g..G−1, shape (I, G+1); ``near``: columns that come
    close to being on a best plan, those on it among them.
    """

    lower: FloatArray
    cost: FloatArray
    columns: PlanColumns
    near: PlanColumns
    forward: FloatArray
    backward: FloatArray

    @staticmethod
    def join(parts: list[Plans]) -> Plans:
        """Plans of blocks of devices, in their order."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("lower", "cost", "forward", "backward")}
        columns, near = (PlanColumns.join([getattr(part, name) for part in parts]) for name in ("columns", "near"))
        return Plans(**arrays, columns=columns, near=near)


class PlanTables:
    """Pricing of the devices ``first`` .. ``last`` − 1 of a problem; what does not depend on prices is kept between pricings."""

    def __init__(self, problem: Problem, first: int = 0, last: int | None = None) -> None:
        last = problem.arrays.num_devices if last is None else last
        edges = [*range(first, last, _devices_at_once(problem)), last]
        kept = problem.arrays.windows is None or len(edges) <= _BLOCKS_KEPT
        self._blocks = [_Block(problem, low, high, kept) for low, high in zip(edges[:-1], edges[1:], strict=True)]

    def plans(self, prices: Prices, *, fee: FloatArray | None = None, task: int | None = None, near: int = 0) -> Plans:
        """Best plan of every device at ``prices``.

        ``fee``: what using a slot costs a device, shape (I, G) for all devices of the problem, ≥ 0; ``task``: plans of this task alone;
        ``near``: up to this many columns per device beside its plan, by how little worse a plan with them would be.
        """
        return Plans.join([block.plans(prices, fee, task, near) for block in self._blocks])


class _Block:
    """Tables of a few devices."""

    def __init__(self, problem: Problem, first: int, last: int, kept: bool) -> None:
        self.problem, self.first, self.last, self.kept = problem, first, last, kept
        a = problem.arrays
        self.longest = int(min(a.max_staleness.max() + 1, a.slots))
        device, task = np.nonzero(a.has_data[first:last])
        bits, self.bits_of_task = np.unique(a.model_bits, return_inverse=True)
        row, kind, slot = np.indices((last - first, len(bits), a.slots))
        noise, power = a.noise_w_per_hz / a.gain[first:last], a.max_power_w[first:last]
        self.uploads = Uploads(bits[kind], noise[row, slot], power[row], a.bandwidth_hz)
        self.shortest_s = self.uploads.shortest_s * (1.0 + MARGIN)
        #: every (device, task, length), as if its upload had the best channel of the horizon; its slot says nothing. With windows, what
        #: is trained is worth more in one slot than in another: then there is one for each slot.
        self.slots = 1 if a.windows is None else a.slots
        pair, slot, length = (x.ravel() for x in np.indices((len(device), self.slots, self.longest)))
        device, task, length = device[pair] + first, task[pair], length + 1
        end = np.argmax(a.gain, axis=1)[device] + 1 if a.windows is None else slot + 1
        self.templates = candidates_among(problem, device, task, end, length, anywhere=a.windows is None)
        self._templates_of: dict[int, Candidates] = {}
        self._sent: tuple[bytes, list[FloatArray]] = (b"", [])
        self._coarse = bool(np.any(self.templates.block != self.templates.steps))
        self.nodes_s = np.linspace(0.0, a.slot_s * (1.0 - 2.0 * MARGIN), _NODES + 1)

    def plans(self, prices: Prices, fee: FloatArray | None, task: int | None, near: int) -> Plans:
        """See :meth:`PlanTables.plans`; prices and fees of all devices."""
        due = None if fee is None else np.concatenate([np.zeros((len(fee), 1)), np.cumsum(fee, axis=1)], axis=1)
        lower, upper = self._costs(prices, task)
        if due is not None:
            spans = self._spans(due[self.first : self.last])
            lower, upper = lower + spans, upper + spans
        candidates = self._candidates(lower, upper, _BREADTH if near else 0.0)
        priced = price(candidates, prices, for_bound=True)
        add = 0.0 if due is None else due[candidates.device, candidates.end] - due[candidates.device, candidates.start]
        # where steps are bounded by blocks, what is reached is another matter
        single = price(candidates, prices) if self._coarse else priced
        reached = best_paths(candidates, single.cost + add, self.first, self.last)
        chosen = np.searchsorted(single.columns.candidate, reached.chosen)
        close = np.union1d(chosen, _closest(candidates, single.columns, reached, near))
        # the others cannot be on a best plan, but a potential is to say what they cost at least
        place = (candidates.device - self.first, candidates.task, candidates.end - 1, candidates.end - candidates.start - 1)
        lower[place] = np.where(priced.lower < 0.0, priced.lower + add, np.inf)
        best = lower.min(axis=1)
        forward, _ = forward_values(best)
        columns, beside = (PlanColumns.of(candidates, single.columns.take(k)) for k in (chosen, close))
        return Plans(forward[:, -1], reached.value, columns, beside, forward, backward_values(best))

    def _spans(self, due: FloatArray) -> FloatArray:
        """Fees of the slots that an assignment of each last slot and length uses, (I', 1, G, L)."""
        start = np.arange(1, due.shape[1])[:, None] - np.arange(1, self.longest + 1)
        return (due[:, 1:, None] - due[:, np.maximum(start, 0)])[:, None]

    def _costs(self, prices: Prices, task: int | None) -> tuple[FloatArray, FloatArray]:
        """Costs of all assignments from below and from above, by device, task, last slot and length, (I', J, G, L) each.

        +inf = impossible, or costs more than it is worth.
        """
        a = self.problem.arrays
        send = self._uploads(prices)
        below, above = self._compute(prices, task)
        shape = (self.last - self.first, a.num_tasks, a.slots, self.longest)
        lower, upper = np.full(shape, np.inf), np.full(shape, np.inf)
        for j in range(a.num_tasks) if task is None else [task]:
            for k, cost in enumerate(send):
                upload = cost[:, self.bits_of_task[j], :, None]
                np.minimum(lower[:, j], upload + below[k][:, j], out=lower[:, j])
                np.minimum(upper[:, j], upload + above[k + 1][:, j], out=upper[:, j])
        started = np.arange(1, a.slots + 1)[:, None] >= np.arange(1, self.longest + 1)
        for cost in (lower, upper):
            cost[(cost >= 0.0) | ~started] = np.inf
        return lower, upper

    def _uploads(self, prices: Prices) -> list[FloatArray]:
        """Least cost of uploads that take as long as each node but the first, (I', bits, G) each; those of the last prices are kept."""
        energy = prices.energy[self.first : self.last]
        key = energy.tobytes() + prices.bandwidth.tobytes()
        if self._sent[0] != key:
            send = []
            for time_s in self.nodes_s[1:]:
                cost = self.uploads.best(np.full(self.shortest_s.shape, time_s), energy[:, None, None], prices.bandwidth).cost
                send.append(np.where(time_s >= self.shortest_s, cost, np.inf))
            self._sent = (key, send)
        return self._sent[1]

    def _compute(self, prices: Prices, task: int | None) -> tuple[list[FloatArray], list[FloatArray]]:
        """Least compute cost at each node of the upload's time, from below and as it can be reached, (I', J, 1, L) each.

        With windows (I', J, G, L).
        """
        a, every = self.problem.arrays, self.templates
        chosen = every if task is None else self._of_task(task)
        slot = np.zeros_like(chosen.end) if self.slots == 1 else chosen.end - 1
        place = (chosen.device - self.first, chosen.task, slot, chosen.end - chosen.start - 1)
        tables = []
        for for_bound in (True, False) if self._coarse else (True,):
            costs = least_compute_costs(chosen, prices, self.nodes_s, for_bound=for_bound)
            table = np.full((len(self.nodes_s), self.last - self.first, a.num_tasks, self.slots, self.longest), np.inf)
            table[(slice(None), *place)] = costs.T
            tables.append(list(table))
        if not self.kept:
            chosen.memory.clear()
        return tables[0], tables[-1]

    def _of_task(self, task: int) -> Candidates:
        if task not in self._templates_of:
            self._templates_of[task] = self.templates.take(self.templates.task == task)
        return self._templates_of[task]

    def _candidates(self, lower: FloatArray, upper: FloatArray, breadth: float) -> Candidates:
        """The assignments that can be on a plan that is worse than the best by at most a share ``breadth``, by the paths through them."""
        best = lower.min(axis=1)
        (forward, _), backward = forward_values(best), backward_values(best)
        (reached, _) = forward_values(upper.min(axis=1))
        worth = reached[:, -1] * (1.0 - breadth - _SLACK)
        end = np.arange(1, lower.shape[2] + 1)
        start = np.maximum(end[:, None] - np.arange(1, self.longest + 1), 0)
        around = forward[:, start] + backward[:, end][:, :, None] - worth[:, None, None]
        row, task, slot, length = np.nonzero(lower + around[:, None] <= 0.0)
        return candidates_among(self.problem, row + self.first, task, slot + 1, length + 1)


def _devices_at_once(problem: Problem) -> int:
    """Devices of a block of tables."""
    a = problem.arrays
    if a.windows is None:
        return _DEVICES_AT_ONCE
    lengths, steps = min(int(a.max_staleness.max()) + 1, a.slots), step_grid(steps_limit(problem))[0].shape[1]
    return max(1, min(_DEVICES_AT_ONCE, _PAIRS_AT_ONCE // (a.num_tasks * a.slots * lengths * steps)))


def _closest(candidates: Candidates, columns: Columns, paths: Paths, count: int) -> IntArray:
    """Indices of the ``count`` columns of every device whose use costs least beside its best plan."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    regret, device = paths.regret[columns.candidate], candidates.device[columns.candidate]
    order = np.lexsort((regret, device))
    rank = np.arange(len(order)) - np.searchsorted(device[order], device[order])
    return order[(rank < count) & np.isfinite(regret[order])]
