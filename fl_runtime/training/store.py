"""Samples in shared memory, copied there once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_runtime.training.job import LocalJob
from fl_runtime.training.shared import Block

__all__ = ["Place", "Store"]

#: Bytes of a block for many devices' samples, and of all blocks that are kept for jobs to come.
BLOCK_BYTES, KEPT_BYTES = 2**26, 2**31


@dataclass(frozen=True)
class Place:
    """Block and first byte of a job's labels, which its features follow."""

    block: int
    offset: int


@dataclass
class _Shelf:
    """A block, its descriptor, how far it is filled, and what lies in it: the tensors are held so that their ids stay theirs."""

    block: Block
    descriptor: int
    filled: int = 0
    holds: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Store:
    """Blocks filled one after the other with samples; beyond ``kept_bytes`` the oldest block goes with all that is in it.

    Jobs that bring the same tensor objects share what lies here. ``dropped`` is told the number of a block that goes.
    """

    def __init__(self, dropped: Callable[[int], None], kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._dropped = dropped
        self._shelves: dict[int, _Shelf] = {}
        self._places: dict[tuple[int, int], Place] = {}
        self._next = 0

    def new_block(self, size: int) -> int:
        """The number of a new block, which no samples go into."""
        block, descriptor = Block.make(size)
        self._next += 1
        self._shelves[self._next] = _Shelf(block, descriptor, filled=size)
        return self._next

    def block(self, number: int) -> tuple[Block, int]:
        """A block and its descriptor."""
        shelf = self._shelves[number]
        return shelf.block, shelf.descriptor

    def drop(self, number: int) -> None:
        """Let a block go."""
        shelf = self._shelves.pop(number)
        for features, labels in shelf.holds:
            del self._places[id(features), id(labels)]
        shelf.block.close()
        os.close(shelf.descriptor)
        self._dropped(number)

    def place(self, jobs: Sequence[LocalJob]) -> list[Place]:
        """Where the samples of each job lie, copied if they were not there."""
        places = [self._place(job) for job in jobs]
        used = {place.block for place in places}
        sample_blocks = [number for number, shelf in self._shelves.items() if shelf.holds]
        total = sum(self._shelves[number].block.size for number in sample_blocks)
        for number in sample_blocks:
            if total <= self.kept_bytes:
                break
            if number not in used:
                total -= self._shelves[number].block.size
                self.drop(number)
        return places

    def close(self) -> None:
        """Let everything go, telling nobody."""
        for shelf in self._shelves.values():
            shelf.block.close()
            os.close(shelf.descriptor)
        self._shelves.clear()
        self._places.clear()

    def _place(self, job: LocalJob) -> Place:
        key = id(job.features), id(job.labels)
        if key not in self._places:
            self._places[key] = self._copy(job)
        return self._places[key]

    def _copy(self, job: LocalJob) -> Place:
        """Labels come first, for the sake of their alignment; sizes are rounded up to it."""
        size = -(-(8 * job.samples + 4 * job.features.numel()) // 64) * 64
        number = self._next
        shelf = self._shelves.get(number)
        if shelf is None or shelf.block.size - shelf.filled < size:
            number = self.new_block(max(size, BLOCK_BYTES))
            shelf = self._shelves[number]
            shelf.filled = 0
        offset = shelf.filled
        shelf.block.tensor(torch.int64, offset, job.labels.shape).copy_(job.labels)
        shelf.block.tensor(torch.float32, offset + 8 * job.samples, job.features.shape).copy_(job.features)
        shelf.filled += size
        shelf.holds.append((job.features, job.labels))
        return Place(number, offset)
