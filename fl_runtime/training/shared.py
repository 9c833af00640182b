"""Arrays in memory that processes share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from multiprocessing import shared_memory

import torch
from torch import Tensor

from schedopt.errors import SolverError

__all__ = ["Block"]

#: Where Linux keeps shared memory; a container may have little of it, and writing beyond ends the process.
SHARED = "/dev/shm"


class Block:
    """A named piece of shared memory; the process that made it removes it."""

    def __init__(self, memory: shared_memory.SharedMemory, owner: bool) -> None:
        self._memory, self._owner = memory, owner

    @classmethod
    def make(cls, size: int) -> Block:
        """A new block of ``size`` bytes. Raises SolverError if there is not enough shared memory."""
        if os.path.isdir(SHARED) and shutil.disk_usage(SHARED).free < size:
            needed = f"{size / 2**20:.0f} MiB of shared memory needed, {shutil.disk_usage(SHARED).free / 2**20:.0f} free in {SHARED}"
            raise SolverError(f"{needed}; use another path than 'processes'")
        return cls(shared_memory.SharedMemory(create=True, size=max(1, size)), owner=True)

    @classmethod
    def open(cls, name: str) -> Block:
        """The block of that name, made by another process."""
        return cls(shared_memory.SharedMemory(name), owner=False)

    @property
    def name(self) -> str:
        """What another process opens it by."""
        return self._memory.name

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._memory.size

    def tensor(self, dtype: torch.dtype, offset: int, shape: Sequence[int]) -> Tensor:
        """The numbers from byte ``offset`` on; to be let go before the block is closed."""
        count = int(torch.Size(shape).numel())
        return torch.frombuffer(self._memory.buf, dtype=dtype, count=count, offset=offset).view(*shape)

    def close(self) -> None:
        """Let go of the memory, and remove it if this process made it."""
        if self._owner:
            try:
                self._memory.unlink()
            except FileNotFoundError:
                pass
            self._owner = False
        try:
            self._memory.close()
        except BufferError:  # a tensor still looks at it; the memory goes with that
            self._memory._buf = None  # type: ignore[attr-defined]
            self._memory._mmap = None  # type: ignore[attr-defined]
