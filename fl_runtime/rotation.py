"""Features that turn: images about their centre, flat features in the plane of their first two principal components."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_runtime.datasets.base import Dataset
from schedopt.errors import InputError

__all__ = ["FlatRotation", "ImageRotation", "Rotation", "rotation_of"]

#: Rotations kept for the next device: a schedule goes through the angles in order, the same ones on many devices.
_KEPT = 64


class Rotation(Protocol):
    """Turns standardized features."""

    def __call__(self, features: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
        """``features`` (n, \\*shape) turned by so many ``degrees``; at 0 they are returned as they are."""
        ...


def rotation_of(dataset: Dataset) -> Rotation:
    """The rotation that suits the features. Raises :class:`~schedopt.errors.InputError` where there is none: for a single feature."""
    return ImageRotation(dataset.shape[1], dataset.shape[2]) if len(dataset.shape) == 3 else FlatRotation(dataset)


class ImageRotation:
    """Images (n, channels, height, width) turned counter-clockwise about their centre.

    As ``scipy.ndimage.rotate(image, degrees, reshape=False, order=1, mode="nearest")`` does; it is linear in the pixels, so it is computed
    once per angle, as a sparse matrix, from what it does to each single pixel.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._matrices: OrderedDict[float, Any] = OrderedDict()

    def __call__(self, features: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
        angle = degrees % 360.0
        if angle == 0:
            return features
        pixels = features.reshape(-1, self._height * self._width)
        turned: NDArray[np.float32] = (self._matrix(angle) @ pixels.T).T
        return np.ascontiguousarray(turned, dtype=np.float32).reshape(features.shape)

    def _matrix(self, angle: float) -> Any:
        """(pixels, pixels), float32: turned image = matrix @ image."""
        if angle in self._matrices:
            self._matrices.move_to_end(angle)
        else:
            self._matrices[angle] = self._make_matrix(angle)
            if len(self._matrices) > _KEPT:
                self._matrices.popitem(last=False)
        return self._matrices[angle]

    def _make_matrix(self, angle: float) -> Any:
        from scipy.ndimage import rotate
        from scipy.sparse import csr_array

        count = self._height * self._width
        single = np.eye(count, dtype=np.float32).reshape(count, self._height, self._width)
        turned = rotate(single, angle, axes=(2, 1), reshape=False, order=1, mode="nearest")
        return csr_array(turned.reshape(count, count).T)


class FlatRotation:
    """Flat features (n, \\*shape) turned in the plane of the first two principal components of the standardized train part.

    Each component's sign is such that its largest entry is positive.
    """

    def __init__(self, dataset: Dataset) -> None:
        train = dataset.standardize(dataset.train_features).reshape(len(dataset.train_features), -1).astype(np.float64)
        if train.shape[1] < 2:
            raise InputError(f"drift: rotation of data set {dataset.name}, which has a single feature; needs at least 2")
        _, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
        plane = vectors[:, :-3:-1]  # eigenvalues ascend
        signs = np.sign(plane[np.abs(plane).argmax(axis=0), np.arange(2)])
        self._plane = (plane * signs).astype(np.float32)

    def __call__(self, features: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
        angle = np.deg2rad(degrees % 360.0)
        if angle == 0:
            return features
        cosine, sine = np.cos(angle), np.sin(angle)
        change = np.array([[cosine - 1, sine], [-sine, cosine - 1]], dtype=np.float32)  # of coordinates in rows
        flat = features.reshape(len(features), -1)
        turned: NDArray[np.float32] = flat + (flat @ self._plane) @ change @ self._plane.T
        return turned.reshape(features.shape)
