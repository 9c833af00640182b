"""Who holds which samples: partitions of a data set over devices whose sizes are given.

Every kind first settles how many samples of each label a device gets, and then deals them from one shuffled deck per label; a deck that
runs out is shuffled anew. So no device holds a sample twice, two devices share none as long as the sizes fit into the data set, and
where they do not, all samples of a label are used equally often (within one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedopt.errors import InputError

__all__ = ["Partition", "PartitionSpec", "partition"]

_ALLOWED = "iid, dirichlet:ALPHA, shards:K or size[:SIGMA]"

#: Above this, Dirichlet draws differ from their mean by less than one sample of any data set.
_LARGE_ALPHA = 1e9
#: From here on one device has all that it can hold, and the next of the rest.
_LARGE_SIGMA = 1e6
#: Smaller shares of the largest are none: they are no sample of any data set, and what they were divided by could overflow.
_LEAST_SHARE = 1e-200


@dataclass(frozen=True)
class PartitionSpec:
    """How labels (or sizes) are skewed.

    Attributes
    ----------
    kind : one of
        "iid" - every device draws from the data set's own label mix;
        "dirichlet" - device i's label mix is drawn from Dirichlet(value * C * q), q the data set's label mix and C its number of labels:
        for equally frequent labels the usual Dirichlet(value, ..., value); small values give devices of one label, large ones iid;
        "shards" - samples are laid out by label and cut into pieces, each device getting ``value`` pieces (McMahan et al. 2017);
        "size" - labels as iid, sizes redrawn: device i's size becomes proportional to (given size) * exp(value * N(0, 1)), with the same
        total, at least 1 where it was at least 1, and at most the data set's.
    value : ALPHA, K or SIGMA, any finite number in its range: beyond 1e-300 and 1e9, the largest size, and 1e6 the outcome is that of the
        limit (one label or the data set's mix; shards of one sample; one device with all it can hold); not used by "iid"
    """

    kind: str = "iid"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> PartitionSpec:
        """From ``iid``, ``dirichlet:ALPHA``, ``shards:K`` or ``size[:SIGMA]`` (SIGMA is 1 if left out).

        Raises :class:`~schedopt.errors.InputError` that says what is allowed.
        """
        kind, colon, number = text.strip().partition(":")
        if kind == "iid" and not colon:
            return cls()
        if kind == "size" and not colon:
            return cls("size", 1.0)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        valid = {"dirichlet": value > 0, "shards": value >= 1 and value.is_integer(), "size": value >= 0}
        if not math.isfinite(value) or not valid.get(kind, False):
            raise InputError(f"partition = {text!r}; must be {_ALLOWED}, with ALPHA > 0, K a whole number of at least 1, SIGMA >= 0")
        return cls(kind, value)

    def __str__(self) -> str:
        return self.kind if self.kind == "iid" else f"{self.kind}:{self.value:g}"


@dataclass(frozen=True, eq=False)
class Partition:
    """Result of :func:`partition`.

    Attributes
    ----------
    indices : per device, the indices (D_i,) int64 of its samples, no two the same, in random order
    reused : True if some sample is on more than one device, because the sizes add up to more than the data set has
    """

    indices: tuple[NDArray[np.int64], ...]
    reused: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many samples each device holds."""
        return tuple(len(indices) for indices in self.indices)


def partition(labels: NDArray[np.int64], sizes: Sequence[int], spec: PartitionSpec, rng: np.random.Generator) -> Partition:
    """Deal samples with these ``labels`` (n,) to devices of these ``sizes``, each 0..n.

    The sizes are met exactly, but for kind "size", which redraws them. Raises :class:`~schedopt.errors.InputError` for a size that is
    negative or larger than n.
    """
    count = len(labels)
    for device, size in enumerate(sizes):
        if not 0 <= size <= count:
            raise InputError(f"device {device}: samples = {size}; must be in 0..{count}, which is what the data set has")
    wanted = np.array(sizes, dtype=np.int64)
    if spec.kind == "size":
        wanted = _redrawn_sizes(wanted, spec.value, count, rng)
    if spec.kind in ("iid", "size"):
        deck = _Deck(np.arange(count), rng)
        dealt = [deck.draw(int(size)) for size in wanted]
    else:
        classes, inverse = np.unique(labels, return_inverse=True)
        pools = [np.flatnonzero(inverse == k) for k in range(len(classes))]
        capacity = np.array([len(pool) for pool in pools], dtype=np.int64)
        settle = _dirichlet_counts if spec.kind == "dirichlet" else _shard_counts
        counts = settle(wanted, capacity, spec.value, rng)
        decks = [_Deck(pool, rng) for pool in pools]
        dealt = [np.concatenate([deck.draw(int(k)) for deck, k in zip(decks, row, strict=True)]) for row in counts]
    return Partition(tuple(rng.permutation(indices) for indices in dealt), reused=int(wanted.sum()) > count)


class _Deck:
    """Samples dealt in random order, all of them before any comes again, and none twice in one draw."""

    def __init__(self, samples: NDArray[np.int64], rng: np.random.Generator) -> None:
        self._samples, self._rng = samples, rng
        self._order, self._next = rng.permutation(samples), 0

    def draw(self, size: int) -> NDArray[np.int64]:
        """``size`` different samples; at most as many as there are."""
        rest = self._order[self._next :]
        if size <= len(rest):
            self._next += size
            return rest[:size]
        # the new round starts with samples that are not in hand; those come later in it
        others = self._rng.permutation(np.setdiff1d(self._samples, rest, assume_unique=True))
        more = size - len(rest)
        self._order = np.concatenate([others[:more], self._rng.permutation(np.concatenate([others[more:], rest]))])
        self._next = more
        return np.concatenate([rest, others[:more]])


def _redrawn_sizes(sizes: NDArray[np.int64], sigma: float, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sizes in proportion to size * exp(sigma * N(0, 1)), with the same total, in 1..most (0 stays 0)."""
    exponents = min(sigma, _LARGE_SIGMA) * rng.standard_normal(len(sizes))
    has = sizes > 0
    if not has.any():
        return sizes
    weights = np.where(has, sizes * np.exp(np.where(has, exponents - exponents[has].max(), 0.0)), 0.0)
    weights[weights < _LEAST_SHARE * weights.max()] = 0.0
    result = _spread(int(sizes.sum()), weights, np.where(has, most, 0))
    for device in np.flatnonzero(has & (result == 0)):
        result[result.argmax()] -= 1
        result[device] = 1
    return result


def _dirichlet_counts(sizes: NDArray[np.int64], capacity: NDArray[np.int64], alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples of each label on each device (I, C): multinomial by the device's own mix, as far as the labels reach.

    Devices are served in random order; what a label can no longer give is drawn from the other labels in the proportions of the device's
    mix, and once those are gone, of what is left.
    """
    mix = capacity / capacity.sum()
    disjoint = sizes.sum() <= capacity.sum()
    left = capacity.copy()
    counts = np.zeros((len(sizes), len(capacity)), dtype=np.int64)
    for device in rng.permutation(len(sizes)):
        weights = _dirichlet(alpha * len(mix) * mix, mix, rng)
        counts[device] = _draw_counts(int(sizes[device]), weights, left if disjoint else capacity, rng)
        left -= counts[device]
    return counts


def _dirichlet(concentration: NDArray[np.float64], mix: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A draw from Dirichlet(concentration), and its limits where floats cannot tell: one label, or ``mix`` itself."""
    if concentration.max() > _LARGE_ALPHA:
        return mix
    with np.errstate(all="ignore"):
        weights = rng.dirichlet(np.maximum(concentration, np.finfo(float).tiny))
    if np.isfinite(weights).all() and abs(weights.sum() - 1) < 1e-6:
        return weights / weights.sum()
    return np.eye(len(mix))[rng.choice(len(mix), p=mix)]


def _draw_counts(size: int, weights: NDArray[np.float64], room: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """``size`` draws over labels by ``weights``, none beyond its ``room``; ``size`` is at most the room in all."""
    counts = np.zeros(len(room), dtype=np.int64)
    while size > 0:
        free = room - counts
        usable = np.where(free > 0, weights, 0.0)
        if usable.sum() <= 0:
            usable = free.astype(np.float64)
        drawn = np.minimum(rng.multinomial(size, usable / usable.sum()), free)
        counts += drawn
        size -= int(drawn.sum())
    return counts


def _shard_counts(sizes: NDArray[np.int64], capacity: NDArray[np.int64], number: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples of each label on each device (I, C) when ``number`` shards of almost equal length per device are laid out in random order.

    They lie end to end along the labels, where each label has a stretch in proportion to its share of the data set; a shard that reaches
    over an end of a stretch holds both labels.
    """
    shards = int(min(number, max(1, sizes.max(initial=1))))
    total = int(sizes.sum())
    lengths = (sizes[:, np.newaxis] + np.arange(shards)) // shards  # K parts that add up to the size
    order = rng.permutation(lengths.size)
    ends = np.cumsum(lengths.ravel()[order])
    most = capacity if total <= capacity.sum() else np.full(len(capacity), total)
    borders = np.concatenate([[0], np.cumsum(_spread(total, capacity.astype(np.float64), most))])
    starts = ends - lengths.ravel()[order]
    overlap = np.minimum(ends[:, np.newaxis], borders[1:]) - np.maximum(starts[:, np.newaxis], borders[:-1])
    counts = np.zeros((len(sizes), len(capacity)), dtype=np.int64)
    np.add.at(counts, order // shards, np.maximum(overlap, 0))
    for row in counts:  # only where samples are reused can a device be due more of a label than there are
        excess = np.maximum(row - capacity, 0)
        if excess.any():
            row -= excess
            row += _draw_counts(int(excess.sum()), capacity.astype(np.float64), capacity - row, rng)
    return counts


def _spread(total: int, weights: NDArray[np.float64], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """``total`` in whole parts in proportion to ``weights`` (largest remainders), none above ``most``; total is at most their sum."""
    parts = np.zeros(len(weights), dtype=np.int64)
    while total > 0:
        free = most - parts
        usable = np.where(free > 0, weights, 0.0)
        if usable.sum() <= 0:  # what has a weight is full
            usable = (free > 0).astype(np.float64)
        exact = usable * (total / usable.sum())
        step = np.minimum(np.floor(exact).astype(np.int64), free)
        remainders = np.where((step < free) & (usable > 0), exact - step, -np.inf)
        short = min(total - int(step.sum()), int(np.isfinite(remainders).sum()))
        step[np.argsort(-remainders, kind="stable")[:short]] += 1
        parts += step
        total -= int(step.sum())
    return parts
