"""Which samples each local step uses: drawn on the CPU from the job's seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_runtime.training.job import Data, LocalJob

__all__ = ["Batches", "draw_batches"]

#: Up to this share of the samples in a batch, repeated draws are few enough to be sorted out.
SPARSE = 0.25
#: Numbers of a block of batches that a GPU gathers at once.
BLOCK = 50_000_000
#: Fewer rows than this are drawn sooner one by one.
FEW = 4


def draw_batches(seed: Sequence[int], steps: int, batch: int, samples: int) -> NDArray[np.int64]:
    """Indices (steps, batch): every row a uniform draw of ``batch`` of ``samples`` without replacement, rows independent.

    The order within a row carries no meaning.
    """
    if batch == samples:
        return np.tile(np.arange(samples), (steps, 1))
    generator = np.random.default_rng(seed)
    if batch == 1:
        return generator.integers(0, samples, (steps, 1))
    if steps >= FEW and batch <= SPARSE * samples:
        return _first_distinct(generator, steps, batch, samples)
    return np.stack([_draw(generator, batch, samples) for _ in range(steps)])


def _draw(generator: np.random.Generator, batch: int, samples: int) -> NDArray[np.int64]:
    return generator.choice(samples, batch, replace=False, shuffle=False)


def _first_distinct(generator: np.random.Generator, steps: int, batch: int, samples: int) -> NDArray[np.int64]:
    """The first ``batch`` distinct values of a row of draws with replacement, which are a uniform draw without.

    Whether a row holds that many does not depend on which values they are, so that a row that does not is drawn anew by other means
    without bias. Several times as fast as ``choice``, a row at a time, where batches are small.
    """
    repeats = batch * batch / (2 * samples)  # expected among ``batch`` draws, at most
    width = batch + math.ceil(1.5 * repeats + 4 * math.sqrt(repeats) + 3)
    draws = generator.integers(0, samples, (steps, width))
    bits = width.bit_length()
    keys = (draws << bits) + np.arange(width)  # sorted by value, then by position
    keys.sort(axis=1)
    row, column = np.nonzero(keys[:, 1:] >> bits == keys[:, :-1] >> bits)
    position = keys[row, column + 1] & ((1 << bits) - 1)
    repeated = np.zeros((steps, width), dtype=bool)
    repeated[row, position] = True
    order = repeated.argsort(axis=1, kind="stable")[:, :batch]
    chosen = np.take_along_axis(draws, order, axis=1)
    for k in np.flatnonzero(repeated.sum(axis=1) > width - batch):
        chosen[k] = _draw(generator, batch, samples)
    return chosen


class Batches:
    """The batches of a chunk of jobs, most steps first, padded to the largest with samples of weight 0.

    After :meth:`load`: ``features`` (n, B, *shape), ``labels`` (n, 1, B), ``weights`` (n, 1, B): 1 / B of each
    job; of these n jobs the first, as many as :meth:`load` returned, take the step.
    """

    def __init__(
        self,
        jobs: Sequence[LocalJob],
        data: Sequence[Data],
        device: torch.device,
        buffer: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        self.data = data
        self.most = max(job.batch for job in jobs)
        self.block = self._block(jobs, data, device)
        shape = (len(jobs), self.block, self.most, *data[0][0].shape[1:])
        self._features = buffer(shape) if buffer is not None else torch.empty(shape, device=device)
        if any(job.batch != self.most for job in jobs):
            self._features.zero_()  # whatever lay there, times weight 0, might not be 0
        labels = torch.zeros(len(jobs), jobs[0].steps, 1, self.most, dtype=torch.int64, device=device)
        weights = torch.zeros(len(jobs), 1, self.most)
        self._chosen: list[Tensor] = []
        for k, job in enumerate(jobs):
            chosen = torch.from_numpy(draw_batches(job.seed, job.steps, job.batch, job.samples)).to(device)
            labels[k, : job.steps, 0, : job.batch] = data[k][1][chosen]
            weights[k, :, : job.batch] = 1.0 / job.batch
            self._chosen.append(chosen)
        self._labels = labels
        self.weights = weights.to(device)
        self._rows = [tuple(chosen) for chosen in self._chosen] if self.block == 1 else []
        self._places = [self._features[k, 0, : job.batch] for k, job in enumerate(jobs)]
        self.features, self.labels = self._features[:, 0], labels[:, 0]

    @staticmethod
    def _block(jobs: Sequence[LocalJob], data: Sequence[Data], device: torch.device) -> int:
        if device.type == "cpu":
            return 1  # a batch is used while it is in the cache
        size = len(jobs) * max(job.batch for job in jobs) * data[0][0][0].numel()
        return max(1, min(jobs[0].steps, BLOCK // size))  # a launch per job and block instead of one per job and step

    def load(self, step: int) -> int:
        """Bring in the batches of ``step``; steps must be asked for in order. Returns the number of jobs that take it."""
        count = 0
        for k, (chosen, (features, _)) in enumerate(zip(self._chosen, self.data, strict=True)):
            if step >= len(chosen):
                break
            count += 1
            if self.block == 1:
                torch.index_select(features, 0, self._rows[k][step], out=self._places[k])
            elif step % self.block == 0:
                wanted = chosen[step : step + self.block]
                self._features[k, : len(wanted), : wanted.shape[1]] = features[wanted]
        self.features, self.labels = self._features[:, step % self.block], self._labels[:, step]
        return count
