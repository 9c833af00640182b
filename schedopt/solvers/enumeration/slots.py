"""One slot of a joint plan: the combinations of batches of the rows that upload in it, with bounds on their energies or exact ones."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

import numpy as np

from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.solvers.enumeration.constants import ENERGY_MARGIN
from schedopt.solvers.enumeration.rows import row_uploads
from schedopt.solvers.enumeration.tables import BAND_NODES, Tables
from schedopt.solvers.enumeration.uploads import Split, Uploads, split_band

__all__ = ["Slot", "SlotCache"]

#: Slots that are kept for other joint plans, and their options together.
MAX_KEPT_SLOTS = 2000
MAX_KEPT_OPTIONS = 5_000_000


class Slot:
    """The batches of the rows that upload in one slot: O options that fit into the band, each a batch per row, and their energies.

    ``pick`` (n, O): position of the batch in the row's list; ``alone`` (n, O): energies with the whole band; ``energy`` (O,): a lower
    bound on the energy of the rows together until ``exact``, then the least energy; ``parts``, ``time``, ``band`` (n, O): once exact.
    ``number``: which slot, from 0; ``nodes``: the prices of its band that are tabulated; ``receive_j`` (n,): energy of the downloads.
    """

    def __init__(self, problem: Problem, tables: Tables, rows: tuple[int, ...]) -> None:
        self.problem, self.tables, self.rows = problem, tables, rows
        table = tables.rows
        feasible = [np.flatnonzero(np.isfinite(table.alone[r])) for r in rows]
        self.index = np.array(rows)[:, None]
        self.number = int(table.end[rows[0]]) - 1
        self.nodes = tables.band[self.number]
        self.receive_j = table.receive_j[self.index[:, 0]]
        pick = np.stack([axis.ravel() for axis in np.meshgrid(*feasible, indexing="ij")])
        if len(rows) > 1:
            # at full power and as late as allowed, do they fit into the band together?
            pick = pick[:, tables.least_band[self.index, pick].sum(axis=0) < tables.total_band]
        self.pick = pick
        self.alone = table.alone[self.index, self.pick]
        self.sigma2 = table.sigma2[self.index, self.pick]
        self.parts, self.time, self.band = (np.full(self.pick.shape, np.nan) for _ in range(3))
        self.exact = np.zeros(self.pick.shape[1], dtype=bool)
        if len(rows) == 1:
            self.energy = self.alone[0].copy()
            self.refine(np.arange(len(self.exact)))
        else:
            self.energy = self._bound()

    def _bound(self) -> FloatArray:
        """Least energy at the best node of the bandwidth price, by weak duality."""
        best = np.full(self.pick.shape[1], -np.inf)
        for m, price in enumerate(self.nodes):
            value = self.tables.priced[self.index, self.pick, m].sum(axis=0) - price * self.tables.total_band
            np.maximum(best, value, out=best)
        return best

    @cached_property
    def least_parts(self) -> FloatArray:
        """Lower bounds on the energy of each row (n, O): all others have only the band without which they are infeasible."""
        if len(self.rows) == 1:
            return self.alone
        needed = self.tables.least_band[self.index, self.pick]
        room = self.tables.total_band - (needed.sum(axis=0) - needed)
        energy = self.uploads(np.arange(self.pick.shape[1])).at_band(room.T)[0].T + self.receive_j[:, None]
        return np.where(np.isfinite(energy), energy * (1 - ENERGY_MARGIN), self.alone)

    def weighted_bound(self, factor: FloatArray) -> FloatArray:
        """Lower bound on Σ factor · energy of the rows (n,) over all splits of the band, (O,)."""
        prices = np.append(0.0, np.geomspace(self.nodes[1] * factor.min(), self.nodes[-1] * factor.max(), BAND_NODES))
        tables = [self.tables.reweighted(r, float(w), prices) for r, w in zip(self.rows, factor, strict=True)]
        total = sum(table[pick] for table, pick in zip(tables, self.pick, strict=True))
        return (total - prices * self.tables.total_band).max(axis=1)

    def batch(self, option: int) -> IntArray:
        """The mini-batches of an option, (n,)."""
        return self.tables.rows.batch[self.index[:, 0], self.pick[:, option]]

    def uploads(self, options: IntArray) -> Uploads:
        """The uploads of options, arrays (len(options), n)."""
        table = self.tables.rows
        batch = table.batch[self.index, self.pick[:, options]].T
        return row_uploads(self.problem, table, np.broadcast_to(self.index.T, batch.shape), batch)

    def refine(self, options: IntArray) -> None:
        """Replace bounds by the exact least energies."""
        options = options[~self.exact[options]]
        if not len(options):
            return
        uploads = self.uploads(options)
        if len(self.rows) == 1:
            energy, time = uploads.at_band(uploads.band)
            split = Split(energy, time, np.full(energy.shape, uploads.band))
        else:
            split = split_band(uploads)
        parts = split.energy.T + self.receive_j[:, None]
        self.parts[:, options], self.time[:, options], self.band[:, options] = parts, split.time.T, split.band.T
        self.energy[options], self.exact[options] = parts.sum(axis=0), True

    def best_price(self, option: int) -> int:
        """Highest node of the bandwidth price that bounds the energy of an option as well as any node does."""
        value = self.tables.priced[self.index[:, 0], self.pick[:, option]].sum(axis=0) - self.nodes * self.tables.total_band
        return int(np.flatnonzero(value >= value.max() - 1e-9 * abs(value.max()))[-1])


class SlotCache:
    """The slots met last, by their rows: many joint plans have some in common."""

    def __init__(self, problem: Problem, tables: Tables) -> None:
        self.problem, self.tables = problem, tables
        self.slots: OrderedDict[tuple[int, ...], Slot] = OrderedDict()

    def get(self, rows: tuple[int, ...]) -> Slot:
        """The slot in which ``rows`` upload."""
        if rows in self.slots:
            self.slots.move_to_end(rows)
            return self.slots[rows]
        slot = self.slots[rows] = Slot(self.problem, self.tables, rows)
        while len(self.slots) > MAX_KEPT_SLOTS or sum(s.pick.shape[1] for s in self.slots.values()) > MAX_KEPT_OPTIONS:
            self.slots.popitem(last=False)
        return slot
