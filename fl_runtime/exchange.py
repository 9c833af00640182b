"""Samples that come and go on one device: which ones it holds at an instant, found without going through the instants before.

Time runs in legs of 1 / rate slots. In each leg every sample is exchanged once, in the order in which they are listed, so that ``rate``
of them change per slot, the oldest first. A leg's new samples are drawn when it is reached, from a seed of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["SampleExchange"]

_LEG, _MIX = 0, 1


class SampleExchange:
    """The samples of one device over time.

    ``label_rate`` and ``arrival_rate`` are fractions of the device's samples per slot, at most 1 together. A label exchange brings a
    sample of the mix that the device is moving to; after 1 / label_rate slots the next mix is drawn, uniform over all mixes. An arrival
    brings a sample of the label of the one that departs. What comes is drawn from all samples of the train part that the device does not
    hold at the time; if there are too few of a label, that many samples stay what they are. So none is ever there twice.

    Memory: two sets of indices. Time: the legs up to the instant at the first call and after going back, the new legs alone when going
    forward.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        initial: NDArray[np.int64],
        *,
        label_rate: float,
        arrival_rate: float,
        seed: int,
        device: int,
    ) -> None:
        self._labels, self._initial = labels, initial
        self._rate = label_rate + arrival_rate
        self._label_share = label_rate / self._rate if self._rate > 0 else 0.0
        self._seed, self._device = seed, device
        self._classes = np.unique(labels)
        self._leg, self._samples = 0, initial
        self._next: NDArray[np.int64] | None = None

    def state(self, instant: int) -> tuple[int, int]:
        """The leg, and how many of its exchanges have happened: what :meth:`indices` depends on."""
        done = self._rate * instant
        leg = math.floor(done)
        return leg, math.floor((done - leg) * len(self._initial) + 0.5)

    def indices(self, instant: int) -> NDArray[np.int64]:
        """Indices (D,) of the samples at ``instant``."""
        if self._rate == 0:
            return self._initial
        leg, exchanged = self.state(instant)
        if leg < self._leg:
            self._leg, self._samples, self._next = 0, self._initial, None
        while self._next is None or self._leg < leg:
            if self._next is not None:
                self._leg, self._samples = self._leg + 1, self._next
            self._next = self._after(self._leg, self._samples)
        return np.concatenate([self._next[:exchanged], self._samples[exchanged:]])

    def _after(self, leg: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at the end of ``leg``, by position, from those at its start."""
        rng = self._generator(_LEG, leg)
        present = self._labels[samples]
        wanted = self._wanted_labels(leg, present, rng)
        held = np.zeros(len(self._labels), dtype=bool)
        held[samples] = True
        result = samples.copy()
        for label in np.unique(wanted):
            positions = rng.permutation(np.flatnonzero(wanted == label))
            # where there are too few new ones, those stay that have the label already
            positions = positions[np.argsort(present[positions] == label, kind="stable")]
            new = rng.permutation(np.flatnonzero((self._labels == label) & ~held))[: len(positions)]
            result[positions[: len(new)]] = new
        return result

    def _wanted_labels(self, leg: int, present: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Label at each position at the end of ``leg``: the same at arrivals, of the new mix at label exchanges."""
        share = self._label_share * len(present)
        exchanges = math.floor(share * (leg + 1) + 0.5) - math.floor(share * leg + 0.5)
        mix = self._generator(_MIX, math.floor(self._label_share * leg)).dirichlet(np.ones(len(self._classes)))
        wanted = present.copy()
        wanted[rng.permutation(len(present))[:exchanges]] = rng.permutation(_in_proportion(exchanges, mix, self._classes))
        return wanted

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(1, self._device, purpose, number)))


def _in_proportion(count: int, mix: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """``count`` labels, as close to the proportions ``mix`` as whole numbers can be."""
    borders = np.floor(np.cumsum(mix) * count + 0.5).astype(np.int64)
    borders[-1] = count
    return np.repeat(classes, np.diff(borders, prepend=0))
