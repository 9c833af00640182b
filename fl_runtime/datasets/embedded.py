"""The small data sets that come with scikit-learn: no files, no network."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_runtime.datasets.base import Dataset, make_dataset
from fl_runtime.datasets.request import DataRequest
from fl_runtime.errors import DataError

__all__ = ["load_breast_cancer", "load_digits", "load_wine"]

#: One fifth of each class is the test part, always the same fifth.
_TEST_SHARE, _SPLIT_SEED = 0.2, 0


def load_digits(request: DataRequest) -> Dataset:
    """Optical recognition of handwritten digits: 1,437 + 360 images of 1 x 8 x 8 with values 0..16, stored as uint8."""
    data = _sklearn().load_digits()
    return _split(request, data.images[:, np.newaxis].astype(np.uint8), data.target)


def load_breast_cancer(request: DataRequest) -> Dataset:
    """Breast cancer Wisconsin (diagnostic): 455 + 114 samples of 30 features, 2 classes."""
    data = _sklearn().load_breast_cancer()
    return _split(request, data.data, data.target)


def load_wine(request: DataRequest) -> Dataset:
    """Wine recognition: 142 + 36 samples of 13 features, 3 classes."""
    data = _sklearn().load_wine()
    return _split(request, data.data, data.target)


def _sklearn() -> Any:
    try:
        import sklearn.datasets
    except ImportError:
        raise DataError("scikit-learn is not installed, which brings this data set: pip install 'schedopt[runtime]'") from None
    return sklearn.datasets


def _split(request: DataRequest, features: Any, labels: Any) -> Dataset:
    from sklearn.model_selection import train_test_split

    train, test, train_labels, test_labels = train_test_split(
        features, labels, test_size=_TEST_SHARE, stratify=labels, random_state=_SPLIT_SEED
    )
    return make_dataset(request.name, train, train_labels, test, test_labels, source="scikit-learn")
