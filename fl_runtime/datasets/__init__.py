"""Data sets by name: found in a folder, in the cache, or downloaded; how to add one is told in :mod:`fl_runtime.datasets.registry`.

>>> from fl_runtime.datasets import load_dataset
>>> load_dataset("digits").shape
(1, 8, 8)
"""

from __future__ import annotations

from fl_runtime.datasets.base import Dataset, make_dataset
from fl_runtime.datasets.registry import dataset_names, load_dataset, register_dataset
from fl_runtime.datasets.request import DataRequest

__all__ = ["DataRequest", "Dataset", "dataset_names", "load_dataset", "make_dataset", "register_dataset"]
