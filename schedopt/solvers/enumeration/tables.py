"""Tables over prices: the least cost of a row over its batches, at prices of noise, bandwidth and energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.solvers.enumeration.constants import ENERGY_MARGIN
from schedopt.solvers.enumeration.rows import Rows, row_uploads
from schedopt.solvers.enumeration.uploads import Uploads

__all__ = ["BAND_NODES", "Prices", "Tables"]

#: Points of the tables over prices: of noise per row, of bandwidth per slot.
NOISE_NODES = 32
BAND_NODES = 40


@dataclass(frozen=True)
class Prices:
    """Prices of what couples the plans, in units of energy: ``band`` (G,) the node of :attr:`Tables.band` of each slot (0 = free);
    ``budget`` (I,) extra price of a device's energy."""

    band: IntArray
    budget: FloatArray

    @classmethod
    def zero(cls, problem: Problem) -> Prices:
        """Everything is free."""
        return cls(np.zeros(problem.arrays.slots, dtype=np.int64), np.zeros(problem.arrays.num_devices))


class Tables:
    """Least cost of a row over its batches, at prices of noise, bandwidth and energy.

    ``band`` (G, M): prices of bandwidth in J/Hz, the first one zero; ``priced`` (R, n, M): least energy + price · bandwidth of a batch;
    ``least_band`` (R, n): bandwidth without which a batch is infeasible.
    """

    def __init__(self, problem: Problem, rows: Rows) -> None:
        self.rows = rows
        self.total_band = problem.arrays.bandwidth_hz
        finite = np.isfinite(rows.alone)
        index = np.nonzero(finite)[0]
        uploads, slot = row_uploads(problem, rows, index, rows.batch[finite]), rows.end[index] - 1
        self.band = self._band_nodes(problem, uploads, slot)
        self.priced = np.full((*rows.batch.shape, self.band.shape[1]), np.inf)
        self.priced[..., 0] = rows.alone
        for m in range(1, self.band.shape[1]):
            self.priced[finite, m] = uploads.at_price(self.band[slot, m])[0] + rows.receive_j[index]
        self.priced *= 1 - ENERGY_MARGIN
        self.least_band = np.full(rows.batch.shape, np.inf)
        self.least_band[finite] = uploads.least_band()
        self.noise_low, self.noise_log_ratio = self._noise_nodes()

    @staticmethod
    def _band_nodes(problem: Problem, uploads: Uploads, slot: IntArray) -> FloatArray:
        """Prices from where the first upload would give up a hertz of the whole band to where all would give up seven eighths."""
        a = problem.arrays
        nodes = np.zeros((a.slots, 1 if a.num_devices == 1 else BAND_NODES))
        if nodes.shape[1] == 1 or not len(slot):
            return nodes
        scarcity = np.stack([uploads.scarcity(a.bandwidth_hz * share) for share in (1.0, 0.5, 0.25, 0.125)])
        for g in range(a.slots):
            mine = scarcity[:, slot == g]
            if np.isfinite(mine).any():
                low = np.nanmin(mine)
                nodes[g, 1:] = np.geomspace(low, max(np.nanmax(mine), 2.0 * low), BAND_NODES - 1)
        return nodes

    def _noise_nodes(self) -> tuple[FloatArray, FloatArray]:
        """First positive node and log ratio of the nodes, per row: from where the smallest batch is best to where all samples are."""
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = -np.diff(self.rows.alone, axis=1) / np.diff(self.rows.sigma2, axis=1)
        good = np.isfinite(slope) & (slope > 0)
        some = good.any(axis=1)
        low = np.where(some, 0.5 * np.where(good, slope, np.inf).min(axis=1, initial=np.inf), 1.0)
        high = np.where(some, 4.0 * np.where(good, slope, 0.0).max(axis=1, initial=0.0), 10.0)
        return np.append(low, 1.0), np.append(np.log(high / low), 1.0) / (NOISE_NODES - 2)

    def noise_range(self) -> tuple[FloatArray, FloatArray]:
        """First positive and last node of each row's prices of noise, in J: between them its best batch depends on the price."""
        low, log_ratio = self.noise_low[:-1], self.noise_log_ratio[:-1]
        return low, low * np.exp(log_ratio * (NOISE_NODES - 2))

    def _noise_node(self, row: IntArray, node: IntArray) -> FloatArray:
        """Price of noise at a node of a row's table, in J; node 0 is zero."""
        return np.where(node > 0, self.noise_low[row] * np.exp((node - 1) * self.noise_log_ratio[row]), 0.0)

    def least(self, budget: FloatArray) -> FloatArray:
        """min over B of price · σ²(B) + (1 + budget_i) · energy + band price · W, shape (R+1, N, M); zero for the dummy row."""
        rows = self.rows
        factor = 1.0 + budget[rows.device]
        energy = self.priced
        if np.any(budget > 0):
            energy = np.stack([self.reweighted(r, factor[r], self.band[rows.end[r] - 1]) for r in range(len(rows))])
        result = np.zeros((len(rows) + 1, NOISE_NODES, self.band.shape[1]))
        every = np.arange(len(rows))
        for node in range(NOISE_NODES):
            noise = self._noise_node(every, np.full(len(rows), node))[:, None] * rows.sigma2
            result[:-1, node] = (noise[:, :, None] + energy).min(axis=1)
        return result

    def reweighted(self, row: int, factor: float, prices: FloatArray) -> FloatArray:
        """Least factor · energy + price · bandwidth of a row's batches at ``prices`` (m,), shape (n, m).

        That is factor · priced(price / factor): interpolated, and beyond the last node its value there, so from below.
        """
        nodes, priced = self.band[self.rows.end[row] - 1], self.priced[row]
        if nodes[-1] == 0:
            return np.repeat(factor * priced[:, :1], len(prices), axis=1)
        wanted = prices / factor
        left = np.clip(np.searchsorted(nodes, wanted, side="right") - 1, 0, len(nodes) - 2)
        t = np.minimum((wanted - nodes[left]) / (nodes[left + 1] - nodes[left]), 1.0)
        finite = np.isfinite(priced)
        some = np.where(finite, priced, 0.0)
        mixed = factor * ((1 - t) * some[:, left] + t * some[:, left + 1])
        return np.where(finite[:, :1], mixed, np.inf)

    def read(self, table: FloatArray, row: IntArray, price: FloatArray) -> FloatArray:
        """``table[row]`` at a price of noise, interpolated; beyond the last node its value there (valid: it only grows)."""
        with np.errstate(divide="ignore"):
            position = np.log(price / self.noise_low[row]) / self.noise_log_ratio[row]
        left = np.clip(np.floor(np.maximum(position, -1.0)).astype(np.int64) + 1, 0, NOISE_NODES - 2)
        low, high = self._noise_node(row, left), self._noise_node(row, left + 1)
        t = np.clip((price - low) / (high - low), 0.0, 1.0)
        t = t.reshape(t.shape + (1,) * (table.ndim - 2))
        return (1 - t) * table[row, left] + t * table[row, left + 1]
