"""Which jobs are trained together: chunks, made from the jobs and the settings alone, so that a repeated run repeats its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_runtime.training.job import LocalJob

__all__ = ["Footprint", "plan_chunks"]

#: Jobs whose batches differ by more than this factor are not padded to one size.
PADDING = 1.25


@dataclass(frozen=True)
class Footprint:
    """Numbers (float32) that a chunk holds: ``model`` per job, ``sample`` per job and sample of a batch; no more than ``most`` in all.

    ``cache``: with batches of fewer than ``small`` samples the parameters are read more often than they are computed with, and no more
    than ``cache`` numbers of them are stacked. ``stack``: most jobs at a time in any case.
    """

    model: int
    sample: int
    most: int
    cache: int | None = None
    small: int = 4
    stack: int | None = None

    def limited(self, stack: int) -> Footprint:
        """The same for at most ``stack`` jobs at a time."""
        return replace(self, stack=stack if self.stack is None else min(stack, self.stack))

    def fits(self, jobs: int, batch: int) -> bool:
        """Whether that many jobs with batches of ``batch`` fit; one always does."""
        if self.stack is not None and jobs > self.stack:
            return False
        if jobs > 1 and self.cache is not None and batch < self.small and jobs * self.model > self.cache:
            return False
        return jobs == 1 or jobs * (self.model + batch * self.sample) <= self.most


def plan_chunks(jobs: Sequence[LocalJob], footprint: Footprint | None, workers: int) -> list[tuple[int, ...]]:
    """Positions of the jobs of each chunk, the ones with most steps first within a chunk, the most laborious chunk first.

    Without a footprint every job is a chunk. Otherwise jobs of similar batches go together, at most as many as fit and as leave a chunk for
    every worker.
    """
    chunks: list[list[int]] = []
    share = -(-len(jobs) // workers)
    for position in sorted(range(len(jobs)), key=lambda k: (-jobs[k].batch, -jobs[k].steps, k)):
        last = chunks[-1] if chunks and footprint is not None else None
        if last is not None and _joins(jobs, last, position, share, footprint):
            last.append(position)
        else:
            chunks.append([position])
    for chunk in chunks:
        chunk.sort(key=lambda k: (-jobs[k].steps, k))
    chunks.sort(key=lambda chunk: (-sum(jobs[k].steps * (jobs[k].batch + 1) for k in chunk), chunk[0]))
    return [tuple(chunk) for chunk in chunks]


def _joins(jobs: Sequence[LocalJob], chunk: list[int], position: int, share: int, footprint: Footprint | None) -> bool:
    assert footprint is not None
    widest = jobs[chunk[0]].batch
    similar = widest <= PADDING * jobs[position].batch
    return similar and len(chunk) < share and footprint.fits(len(chunk) + 1, widest)
