r"""One plan per device where participation is judged over the horizon: exchanges of assignments at given shared prices.

At shared prices a device's plan costs Σ c_k + Σ_j w_j |h_j − s_j|: what its assignments cost, and what it is off its shares. A mixture of
plans meets the shares; one plan alone is off by whole assignments. Here assignments known from pricing are put into plans, those in their
way leave, and the best exchange of every device is made until none gains. All devices at once; exact for the cost above.
"""

from __future__ import annotations

import numpy as np

from schedopt.formulation.tables import PlanColumns
from schedopt.problem import FloatArray, IntArray, Problem

__all__ = ["exchange"]

#: Exchanges per device at most.
_MOST_EXCHANGES = 200
#: Gains below this share of the costs are rounding.
_GAIN = 1e-9


def exchange(
    problem: Problem, columns: PlanColumns, cost: FloatArray, reach: FloatArray, share: FloatArray, planned: np.ndarray
) -> np.ndarray:
    """Columns of better plans (mask), from the plans in the mask ``planned``.

    ``cost`` of the columns, shape (n,); ``reach``, ``share`` (I, J): w and s. Plans never use a slot twice.
    """
    return _Exchange(problem, columns, cost, reach, share, planned).run()


class _Exchange:
    """The plans: which column uses each device's slot (−1: none), and the h trained, shape (I, J)."""

    def __init__(
        self, problem: Problem, columns: PlanColumns, cost: FloatArray, reach: FloatArray, share: FloatArray, planned: np.ndarray
    ) -> None:
        a = problem.arrays
        self.columns, self.cost, self.reach, self.share = columns, cost, reach, share
        span = columns.end - columns.start
        offset = np.arange(int(span.max(initial=1)))
        #: slots of each column, shape (n, longest), padded with its last one
        self.slots = columns.start[:, None] + np.minimum(offset, (span - 1)[:, None])
        self.user = np.full((a.num_devices, a.slots), -1)
        self.h: FloatArray = np.zeros(a.has_data.shape)
        for k in np.flatnonzero(planned):
            self._put(np.array([k]))

    def run(self) -> np.ndarray:
        """Exchange until nothing gains."""
        for _ in range(_MOST_EXCHANGES):
            gain = self._gains()
            best = self._best_of_devices(gain)
            if len(best) == 0:
                break
            self._leave(best)
            self._put(best)
        planned = np.zeros(len(self.columns), dtype=bool)
        planned[self.user[self.user >= 0]] = True
        return planned

    def _in_the_way(self) -> IntArray:
        """Planned columns that use a slot of each column, each once, shape (n, longest), −1 elsewhere."""
        users = self.user[self.columns.device[:, None], self.slots]
        again = np.zeros(users.shape, dtype=bool)
        # a column's slots are consecutive, so are the slots of what is in its way
        again[:, 1:] = users[:, 1:] == users[:, :-1]
        return np.where(again, -1, users)

    def _gains(self) -> FloatArray:
        """What each column would save in the place of what is in its way, shape (n,)."""
        c, users = self.columns, self._in_the_way()
        there = users >= 0
        saved = np.where(there, self.cost[users], 0.0).sum(axis=1) - self.cost
        rows, _ = np.nonzero(there)
        out = users[there]
        tasks = self.h.shape[1]
        change = np.bincount(np.arange(len(c)) * tasks + c.task, weights=c.h, minlength=len(c) * tasks)
        change -= np.bincount(rows * tasks + c.task[out], weights=c.h[out], minlength=len(c) * tasks)
        off = self.h[c.device] - self.share[c.device]
        moved = np.abs(off + change.reshape(len(c), tasks)) - np.abs(off)
        saved -= (self.reach[c.device] * moved).sum(axis=1)
        return saved

    def _best_of_devices(self, gain: FloatArray) -> IntArray:
        """The column that gains most of each device that gains at all."""
        good = np.flatnonzero(gain > _GAIN * float(np.abs(self.cost).max(initial=0.0)))
        order = good[np.lexsort((-gain[good], self.columns.device[good]))]
        _, first = np.unique(self.columns.device[order], return_index=True)
        return order[first]

    def _leave(self, columns: IntArray) -> None:
        """What is in the way of ``columns`` (one per device) leaves its plan."""
        out = self._in_the_way()[columns]
        out = out[out >= 0]
        c = self.columns
        np.subtract.at(self.h, (c.device[out], c.task[out]), c.h[out])
        mine = np.isin(self.user[c.device[out]], out)
        rows = np.repeat(c.device[out], mine.sum(axis=1))
        self.user[rows, np.nonzero(mine)[1]] = -1

    def _put(self, columns: IntArray) -> None:
        c = self.columns
        np.add.at(self.h, (c.device[columns], c.task[columns]), c.h[columns])
        self.user[c.device[columns][:, None], self.slots[columns]] = columns[:, None]
