"""Local training of one task on many devices: plain, stacked, by hand-derived gradients, on threads and in processes, same numbers."""

from fl_runtime.training.job import LocalJob
from fl_runtime.training.trainer import PATHS, LocalTrainer, check_placement

__all__ = ["PATHS", "LocalJob", "LocalTrainer", "check_placement"]
