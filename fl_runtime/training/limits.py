"""What torch may use while it trains: threads, precision, memory of the allocator."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["default_workers", "full_precision", "is_out_of_memory", "one_thread", "tune_malloc"]

#: glibc's names of two settings of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: What an allocation that failed is called, by torch and by operating systems.
SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def default_workers() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside: two collapse as soon as something else wants one of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products of a GPU keep all 24 bits inside: TF32 would make paths differ in the third digit."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases announce other names for these two settings
        settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [setting.allow_tf32 for setting in settings]
        for setting in settings:
            setting.allow_tf32 = False
        try:
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.allow_tf32 = value


def tune_malloc() -> bool:
    """Have glibc keep freed memory instead of returning it at every step; whether that was possible.

    Makes autograd on small convolutional networks 10 to 50 % faster, and lets the process keep the most memory it ever used. It changes
    the whole process, so the trainer calls it in its own worker processes only.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, largest))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SHORT_OF_MEMORY)
