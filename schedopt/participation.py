r"""How participation enters N: 2c Σ_m d_m²/H_m,  d_m = Σ_i |h_im − c_m λ_i| δ_i, over groups m of uploads (c: the term's scale; per task).

Judged over the horizon there is one group, and its fair amount c_m is H; by windows every window is a group, and c_m is the best one.
Charged per instant, participation is a sum over assignments like other errors, and nothing is left here (``factor`` 0).

Arrays over devices and tasks are of shape (I, J), with windows (I, J, M): "(I, J[, M])" below; over tasks likewise (J[, M]).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.windowed import fair_amount, participation_distance
from schedopt.problem import TERMS, FloatArray, IntArray, Problem, ProblemArrays
from schedopt.windows import Windows

__all__ = ["ParticipationGroups", "at_upload", "over_groups", "participation_groups"]


def at_upload(values: FloatArray, arrays: ProblemArrays, device: IntArray, task: IntArray, end: IntArray) -> FloatArray:
    """Entries of ``values`` (I, J[, M]) for uploads of devices and tasks at instants ``end``, shape (n,)."""
    if values.ndim == 2:
        return values[device, task]
    assert arrays.windows is not None
    return values[device, task, arrays.windows.of_upload(end)]


def over_groups(values: FloatArray, like: FloatArray) -> FloatArray:
    """``values`` (J,) so that they go with ``like`` of shape (I, J[, M])."""
    return values[:, None] if like.ndim == 3 else values


@dataclass(frozen=True)
class ParticipationGroups:
    """``factor``: 2c; ``weight`` λ and ``dissimilarity`` δ, shape (I, J[, 1]); ``windows``: None where there is one group, the horizon."""

    arrays: ProblemArrays
    factor: float
    windows: Windows | None

    @property
    def free(self) -> bool:
        """Whether each group's fair amount is chosen; else it is H."""
        return self.windows is not None

    @property
    def over_horizon(self) -> bool:
        """Whether all uploads are judged together."""
        return self.factor > 0.0 and self.windows is None

    @property
    def shape(self) -> tuple[int, ...]:
        """(I, J[, M])."""
        groups = () if self.windows is None else (self.windows.count,)
        return (*self.arrays.has_data.shape, *groups)

    @property
    def weight(self) -> FloatArray:
        """λ, shape (I, J[, 1])."""
        return self._per_pair(self.arrays.aggregation_weight)

    @property
    def dissimilarity(self) -> FloatArray:
        """δ, shape (I, J[, 1])."""
        return self._per_pair(self.arrays.dissimilarity)

    def _per_pair(self, values: FloatArray) -> FloatArray:
        return values if self.windows is None else values[:, :, None]

    def number(self, end: IntArray) -> IntArray:
        """Group of uploads at instants ``end``."""
        return np.zeros_like(end) if self.windows is None else self.windows.of_upload(end)

    def place(self, device: IntArray, task: IntArray, end: IntArray) -> tuple[IntArray, ...]:
        """Where an upload counts, as an index into arrays of shape (I, J[, M])."""
        return (device, task) if self.windows is None else (device, task, self.windows.of_upload(end))

    def sums(self, device: IntArray, task: IntArray, end: IntArray, h: FloatArray) -> FloatArray:
        """Σ h of each device, task and group, shape (I, J[, M])."""
        place = np.ravel_multi_index(self.place(device, task, end), self.shape)
        return np.bincount(place, weights=h, minlength=int(np.prod(self.shape))).reshape(self.shape).astype(float)

    def per_task(self, values: FloatArray) -> FloatArray:
        """Sums of (..., J[, M]) over the groups."""
        return values if self.windows is None else values.sum(axis=-1)

    def spread(self, values: FloatArray) -> FloatArray:
        """The same for every group: (J,) as (J[, M])."""
        return values if self.windows is None else np.repeat(values[:, None], self.windows.count, axis=1)

    def distance(self, h: FloatArray, total: FloatArray | None = None) -> FloatArray:
        """d of given sums (I, J[, M]), shape (J[, M]); ``total``: H over the horizon, if not their sum."""
        if self.windows is None:
            total = h.sum(axis=0) if total is None else total
            return (np.abs(h - self.weight * total) * self.dissimilarity).sum(axis=0)
        return participation_distance(h, self.weight, self.dissimilarity)

    def square(self, h: FloatArray) -> FloatArray:
        """d²/H of given sums (I, J[, M]), shape (J[, M]); 0 where H is."""
        total = h.sum(axis=0)
        return np.divide(self.distance(h) ** 2, total, out=np.zeros_like(total), where=total > 0)

    def error(self, h: FloatArray) -> FloatArray:
        """2c Σ d²/H of given sums (I, J[, M]), shape (J,)."""
        return self.factor * self.per_task(self.square(h)) if self.factor > 0.0 else np.zeros(self.arrays.num_tasks)

    def slopes(self, h: FloatArray) -> FloatArray:
        """Derivatives of Σ d²/H by each device's h at given sums (I, J[, M]), of the same shape; in an empty group for a device alone."""
        total = h.sum(axis=0)
        used = total > 0
        if self.windows is None:
            sign = np.sign(h - self.weight * total) * self.dissimilarity
            sign = sign - (sign * self.weight).sum(axis=0)
            share = self.weight * self.dissimilarity
            alone = share.sum(axis=0) + self.dissimilarity - 2.0 * share
        else:
            sign, alone = _fair_signs(h, self.weight, self.dissimilarity), _alone(self.weight, self.dissimilarity)
        rate = np.divide(self.distance(h), total, out=np.zeros_like(total), where=used)
        return np.where(used, 2.0 * rate * sign - rate**2, alone**2)

    def multipliers(self, pull: FloatArray, error_price: FloatArray, h: FloatArray, total: FloatArray) -> tuple[FloatArray, FloatArray]:
        r"""Pulls near those given that prove a bound at prices ``error_price`` ρ of N, and what they add to the worth of H.

        For z ≥ 0 and |σ_i| ≤ 1:  ρ 2c d²/H ≥ 2ρc (2zd − z²H) and d ≥ Σ σ_i δ_i (h_i − c_m λ_i). So h of device i costs 4ρcz σ_iδ_i, its
        ``pull``, and H is worth 2ρcz² + Σ pull_i λ_i, the second part where c_m is H. A free c_m asks for Σ pull_i λ_i = 0 instead. With
        windows z is the least that the pulls allow; over the horizon d/H of the sums ``h`` (I, J) and ``total`` (J,), to which the pulls
        are cut.
        """
        if self.windows is None:
            total = np.maximum(total, 1e-300)
            z = self.distance(h, total) / total
            reach = 2.0 * error_price * self.factor * z * self.dissimilarity
            pull = np.clip(pull, -reach, reach)
            return pull, (pull * self.weight).sum(axis=0) + error_price * self.factor * z**2
        price = over_groups(error_price, pull)
        unit = 2.0 * price * self.factor * self.dissimilarity
        pull = _balanced(np.where(unit > 0, pull, 0.0), self.weight)
        z = np.divide(np.abs(pull), unit, out=np.zeros_like(pull), where=unit > 0).max(axis=0)
        return pull, price * self.factor * z**2


def participation_groups(problem: Problem) -> ParticipationGroups:
    """The groups over which ``problem`` judges participation."""
    instant = problem.objective.participation == "instant"
    factor = 0.0 if instant else 2.0 * float(problem.arrays.term_scale[TERMS.index("part")])
    return ParticipationGroups(problem.arrays, factor, problem.arrays.windows if factor > 0.0 else None)


def _balanced(pull: FloatArray, weight: FloatArray) -> FloatArray:
    """Pulls of which the larger side is scaled down, so that Σ pull λ along the first axis is zero but for rounding, towards less."""
    worth = pull * weight
    up, down = np.maximum(worth, 0.0).sum(axis=0), np.maximum(-worth, 0.0).sum(axis=0)
    less = np.minimum(up, down)
    positive = np.divide(less, up, out=np.zeros_like(up), where=up > 0)
    negative = np.divide(less, down, out=np.zeros_like(down), where=down > 0)
    return np.where(pull > 0, positive * pull, negative * pull)


def _fair_signs(h: FloatArray, weight: FloatArray, dissimilarity: FloatArray) -> FloatArray:
    """σδ with σ_i the sign of h_i − cλ_i at the best c, such that Σ σδλ = 0 along the first axis; the shape of ``h``."""
    off = h - fair_amount(h, weight, dissimilarity) * weight
    sign = np.where(np.abs(off) > 1e-9 * h.max(axis=0), np.sign(off), 0.0)
    mass = np.broadcast_to(weight * dissimilarity, h.shape)
    fair = np.where(sign == 0, mass, 0.0).sum(axis=0)
    rest = np.divide(-(sign * mass).sum(axis=0), fair, out=np.zeros_like(fair), where=fair > 0)
    return np.where(sign == 0, np.clip(rest, -1.0, 1.0), sign) * dissimilarity


def _alone(weight: FloatArray, dissimilarity: FloatArray) -> FloatArray:
    """d/h of a device that is a group's only one: it is all too much, or the others are missing; the shape of ``weight``."""
    mass = weight * dissimilarity
    others = np.divide(mass.sum(axis=0) - mass, weight, out=np.full(weight.shape, np.inf), where=weight > 0)
    return np.minimum(dissimilarity, np.maximum(others, 0.0))
