"""Which kernel a path uses, and how much a chunk may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fl_runtime.training.closed_form import ClosedFormKernel
from fl_runtime.training.job import Check, Data, Kernel, LocalJob
from fl_runtime.training.layers import flow_of
from fl_runtime.training.limits import is_out_of_memory
from fl_runtime.training.plan import Footprint
from fl_runtime.training.sequential import SequentialKernel
from fl_runtime.training.stacked import StackedKernel
from schedopt.errors import SolverError

__all__ = ["KernelName", "Recipe", "has_closed_form", "train_halving"]

KernelName = Literal["sequential", "closed_form", "stacked"]

#: Numbers of a chunk that a CPU core works on at best, and of parameters of it that stay in its cache.
CPU_MOST, CPU_CACHE = 2_500_000, 250_000
#: Numbers of a chunk of stacked models on a CPU.
STACK_MOST = 32_000_000


@dataclass(frozen=True)
class Recipe:
    """Everything a worker needs to make its kernel: kept picklable."""

    kernel: KernelName
    model: nn.Module
    shape: tuple[int, ...]
    learning_rate: float
    prox: float
    device: torch.device

    def make(self) -> Kernel:
        """A kernel of its own for one worker."""
        if self.kernel == "closed_form":
            return ClosedFormKernel(self.model, self.shape, self.learning_rate, self.prox, self.device)
        kind = StackedKernel if self.kernel == "stacked" else SequentialKernel
        return kind(self.model, self.learning_rate, self.prox, self.device)

    def footprint(self, memory_bytes: int | None) -> Footprint | None:
        """What a chunk holds and may hold within ``memory_bytes`` per worker; None where jobs are trained one by one."""
        kernel = self.make()
        if isinstance(kernel, SequentialKernel):
            return None
        assert isinstance(kernel, ClosedFormKernel | StackedKernel)
        model, sample = kernel.footprint(self.shape)
        most, cache = STACK_MOST, None
        if self.device.type == "cuda":
            most = torch.cuda.mem_get_info(self.device)[0] // (4 * 2)
        elif self.kernel == "closed_form":
            most, cache = CPU_MOST, CPU_CACHE
        if memory_bytes is not None:
            most = min(most, memory_bytes // 4)
        return Footprint(model, sample, most, cache)


def has_closed_form(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether gradients of ``model`` on samples of ``shape`` are derived by hand."""
    return flow_of(model, shape) is not None


def train_halving(
    kernel: Kernel, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check
) -> int:
    """Train ``jobs``; if memory does not suffice, half of them and then the other half, and so on.

    Returns the number of jobs that were trained at a time in the end. Raises SolverError (exit code 4) if one alone does not fit.
    """
    try:
        kernel.train(start, jobs, data, out, check)
        return len(jobs)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(jobs) == 1:
            raise SolverError(_too_large(jobs[0], start.device)) from error
    if start.device.type == "cuda":
        torch.cuda.empty_cache()
    half = (len(jobs) + 1) // 2
    parts = (slice(0, half), slice(half, None))
    return min(train_halving(kernel, start, jobs[part], data[part], out[part], check) for part in parts)


def _too_large(job: LocalJob, device: torch.device) -> str:
    return f"batch = {job.batch}: training one job does not fit into the memory of {device}; use a smaller batch or another device"
