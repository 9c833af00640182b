"""`Dataset`: what every loader returns, checked once, arrays read-only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_runtime.errors import DataError

__all__ = ["Dataset", "make_dataset"]

#: Values counted at once when the mean is taken: large enough to be fast, small enough to need no memory to speak of.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in two parts; made by :func:`make_dataset`.

    Attributes
    ----------
    name : its name in the registry
    train_features, test_features : (n, \\*shape) uint8 or float32, as stored; images are (channels, height, width)
    train_labels, test_labels : (n,) int64 in 0..num_classes-1
    num_classes : how many labels there are
    mean, std : float32 that broadcast against ``shape``, in the unit of the stored features, taken over the train part: one value per
        channel of an image, one per feature otherwise; where nothing varies ``std`` is 1
    source : the folder it was read from, or the package
    complete : False if some published samples are knowingly missing or other than published
    """

    name: str
    train_features: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_features: NDArray[Any]
    test_labels: NDArray[np.int64]
    num_classes: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    source: str
    complete: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return tuple(self.train_features.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays, their shapes and types, as hexadecimal digits: the same data have the same, wherever they lay."""
        state = hashlib.sha256()
        for array in (self.train_features, self.train_labels, self.test_features, self.test_labels):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            state.update(f"{little.dtype.str}{little.shape}".encode())
            state.update(np.ascontiguousarray(little).data)
        return state.hexdigest()

    def standardize(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """(features - mean) / std as a new float32 array; ``features`` are (n, \\*shape), as stored."""
        result = np.subtract(features, self.mean, dtype=np.float32)
        result /= self.std
        return result


def make_dataset(
    name: str,
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    source: str,
    num_classes: int | None = None,
    complete: bool = True,
) -> Dataset:
    """A checked :class:`Dataset`: the one way to make one, for loaders of other packages too.

    Features are uint8, or become float32; labels are whole numbers from 0. Without ``num_classes`` it is the largest label plus 1.
    Raises :class:`~fl_runtime.errors.DataError` that names ``source`` and what does not fit.
    """
    where = f"{source}: {name}"
    train, test = _features(where, "train", train_features), _features(where, "test", test_features)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{where}: train features have shape {train.shape[1:]}, test features {test.shape[1:]}; must be the same")
    classes = num_classes if num_classes is not None else int(np.max(train_labels, initial=0)) + 1
    labels = _labels(where, "train", train_labels, len(train), classes), _labels(where, "test", test_labels, len(test), classes)
    mean, std = _moments(train)
    for array in (train, test, *labels, mean, std):
        array.setflags(write=False)
    return Dataset(name, train, labels[0], test, labels[1], classes, mean, std, source, complete)


def _features(where: str, part: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype != np.uint8:
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: {part} features are {array.dtype}; must be numbers")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{where}: {part} features hold NaN or infinite values; must be finite")
    if array.ndim < 2 or array.size == 0:
        raise DataError(f"{where}: {part} features have shape {array.shape}; must be (samples, ...), none of them 0")
    return np.ascontiguousarray(array).view()


def _labels(where: str, part: str, values: ArrayLike, count: int, classes: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        found = f"{array.dtype} of shape {array.shape}"
        raise DataError(f"{where}: {part} labels are {found}; must be whole numbers, one for each of {count} samples")
    if array.min() < 0 or array.max() >= classes:
        wrong = array[(array < 0) | (array >= classes)]
        raise DataError(f"{where}: {part} label = {wrong[0]}; must be in 0..{classes - 1}")
    return array.astype(np.int64)


def _moments(train: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation per channel (images) or per feature."""
    if train.dtype == np.uint8 and train.ndim == 4:
        pairs = np.array([_byte_moments(train[:, channel]) for channel in range(train.shape[1])])
        mean, std = (column.reshape(-1, 1, 1) for column in pairs.T)
    else:
        axes = (0, 2, 3) if train.ndim == 4 else (0,)
        mean, std = train.mean(axis=axes, dtype=np.float64), train.std(axis=axes, dtype=np.float64)
        if train.ndim == 4:
            mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    # of a feature that never varies, only rounding is left over
    std = np.where(std > 1e-7 * np.abs(mean), std, 1.0)
    return mean.astype(np.float32), std.astype(np.float32)


def _byte_moments(values: NDArray[np.uint8]) -> tuple[float, float]:
    """Exact: from how often each of the 256 values occurs."""
    rows = max(1, _CHUNK // max(1, values[0].size))
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(values), rows):
        counts += np.bincount(values[start : start + rows].ravel(), minlength=256)
    grid = np.arange(256.0)
    mean = float(counts @ grid) / float(counts.sum())
    return mean, float(np.sqrt(counts @ (grid - mean) ** 2 / counts.sum()))
