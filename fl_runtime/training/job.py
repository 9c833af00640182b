"""What one device does between receiving a model and uploading its update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from schedopt.errors import InputError

__all__ = ["Check", "Data", "Kernel", "LocalJob", "check_jobs"]

#: Features and labels of a job on the device that trains.
Data = tuple[Tensor, Tensor]
#: Called before every step; raises to call the work off.
Check = Callable[[], None]


@dataclass(frozen=True, eq=False)
class LocalJob:
    """``steps`` local SGD steps with mini-batches of ``batch`` out of the D samples that the device froze.

    ``features``: (D, *shape) float32; ``labels``: (D,) int64; both must stay as they are while a trainer uses them, and jobs that hold the
    same tensor objects share what is kept of them. ``seed``: the batches are a function of it, ``steps``, ``batch`` and D alone.
    """

    features: Tensor
    labels: Tensor
    steps: int
    batch: int
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        samples = len(self.features) if self.features.dim() else 0
        if self.features.dtype != torch.float32 or self.features.dim() < 2 or samples < 1:
            raise InputError(f"features = {self.features.dtype} of shape {tuple(self.features.shape)}; must be float32 (samples, ...)")
        if self.labels.dtype != torch.int64 or self.labels.shape != (samples,):
            raise InputError(f"labels = {self.labels.dtype} of shape {tuple(self.labels.shape)}; must be int64 ({samples},)")
        if self.steps < 1:
            raise InputError(f"steps = {self.steps}; must be at least 1")
        if not 1 <= self.batch <= samples:
            raise InputError(f"batch = {self.batch}; must be from 1 to the {samples} samples of the device")
        if not self.seed or any(part < 0 for part in self.seed):
            raise InputError(f"seed = {self.seed}; must be non-negative integers, at least one")

    @property
    def samples(self) -> int:
        """Number of samples D."""
        return len(self.features)


class Kernel(Protocol):
    """How the local steps of a few jobs are computed."""

    def train(self, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check) -> None:
        """Train ``jobs`` from ``start`` (P,), the ones with most steps first; job k's update goes to ``out[k]`` (P,)."""


def check_jobs(jobs: Sequence[LocalJob]) -> None:
    """Raise InputError unless all jobs hold samples of one shape."""
    for number, job in enumerate(jobs):
        if job.features.shape[1:] != jobs[0].features.shape[1:]:
            shapes = tuple(job.features.shape[1:]), tuple(jobs[0].features.shape[1:])
            raise InputError(f"jobs[{number}].features: samples of shape {shapes[0]}; must be {shapes[1]} as in jobs[0]")
