"""Memory that processes share: nameless, so that nothing is left of it when they are gone."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from schedopt.errors import SolverError

__all__ = ["Block"]


class Block:
    """A piece of shared memory; another process gets at it by its file descriptor."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory: mmap.mmap | None = memory
        self.size = len(memory)

    @classmethod
    def make(cls, size: int) -> tuple[Block, int]:
        """A new block of ``size`` bytes and the descriptor to pass on and close. Raises SolverError if the system has not that much."""
        descriptor = _nameless()
        try:
            # reserved now: memory that is found missing when it is written to ends the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.ftruncate(descriptor, size)
            return cls.open(descriptor, size), descriptor
        except OSError as error:
            os.close(descriptor)
            text = f"{size / 2**20:.0f} MiB of shared memory cannot be had ({error.strerror}); use another path than 'processes'"
            raise SolverError(text) from error

    @classmethod
    def open(cls, descriptor: int, size: int) -> Block:
        """The block of ``size`` bytes behind a descriptor, which may then be closed."""
        return cls(mmap.mmap(descriptor, size))

    def tensor(self, dtype: torch.dtype, offset: int, shape: Sequence[int]) -> Tensor:
        """The numbers from byte ``offset`` on; to be let go before the block is closed."""
        assert self._memory is not None
        count = int(torch.Size(shape).numel())
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(*shape)

    def close(self) -> None:
        """Let go of the memory."""
        memory, self._memory = self._memory, None
        if memory is not None:
            try:
                memory.close()
            except BufferError:
                pass  # a tensor still looks at it; the memory goes with that


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fl_runtime")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
