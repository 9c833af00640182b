"""SVHN, cropped digits: two MATLAB files."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_runtime.datasets.base import Dataset, make_dataset
from fl_runtime.datasets.fetch import RemoteFile
from fl_runtime.datasets.files import naming, read_file
from fl_runtime.datasets.mat_check import check_numeric_mat
from fl_runtime.datasets.request import DataRequest
from fl_runtime.errors import DataError

__all__ = ["load_svhn", "read_svhn"]

_LIMIT = 512 * 2**20
_ADDRESS = "http://ufldl.stanford.edu/housenumbers"
_REMOTE = (
    RemoteFile(
        "train_32x32.mat",
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        (f"{_ADDRESS}/train_32x32.mat",),
        182_040_794,
    ),
    RemoteFile(
        "test_32x32.mat",
        "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        (f"{_ADDRESS}/test_32x32.mat",),
        64_275_384,
    ),
)
_COUNTS = (73_257, 26_032)


def load_svhn(request: DataRequest) -> Dataset:
    """SVHN (Netzer et al. 2011): house numbers, 73,257 + 26,032 colour images of 3 x 32 x 32; the file's label 10 is the digit 0.

    Raises :class:`~fl_runtime.errors.DataError` for files that are missing, damaged or, unless accepted, other than published.
    """
    paths = request.files([(file.name,) for file in _REMOTE], ("SVHN",), _REMOTE)
    parts, complete = [], True
    for path, file, count in zip(paths, _REMOTE, _COUNTS, strict=True):
        with naming(path):
            data = read_file(path, _LIMIT)
            published = hashlib.sha256(data).hexdigest() == file.sha256
            images, labels = read_svhn(data, trusted=published)
            if not published and not request.accept_incomplete:
                raise DataError(_difference(len(labels), count))
            complete &= published
        parts.append((images, labels))
    (train, train_labels), (test, test_labels) = parts
    source = str(Path(paths[0]).parent)
    return make_dataset(request.name, train, train_labels, test, test_labels, source=source, num_classes=10, complete=complete)


def _difference(rows: int, count: int) -> str:
    if rows != count:
        return f"{rows:,} samples; SVHN has {count:,}"
    return "not the contents that SVHN was published with (damaged or altered)"


def read_svhn(data: bytes, *, trusted: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 3, 32, 32) and labels (n,) in 0..9 from the file's ``X`` (32, 32, 3, n) and ``y`` (n, 1).

    Unless ``trusted`` the file's headers are checked before SciPy sees them. Raises :class:`~fl_runtime.errors.DataError`.
    """
    if not trusted:
        check_numeric_mat(data)
    content = _read_mat(data)
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{_kind('X', images)}; must be uint8 of shape (32, 32, 3, n)")
    count = images.shape[3]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iuf" or labels.shape != (count, 1):
        raise DataError(f"{_kind('y', labels)}; must be numbers of shape ({count}, 1)")
    if not np.isin(labels, np.arange(1, 11)).all():
        raise DataError("y holds something else than whole numbers in 1..10")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels[:, 0].astype(np.int64) % 10


def _kind(name: str, value: Any) -> str:
    if value is None:
        return f"holds no {name}"
    return f"{name} is {value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"{name} is no array"


def _read_mat(data: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of duplicate names and the like: what is read is checked
            content: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=["X", "y"])
    except MemoryError:
        raise DataError("damaged MATLAB file: asks for more memory than there is") from None
    except Exception as error:  # a damaged file raises nearly anything in there
        raise DataError(f"not a readable MATLAB file ({type(error).__name__})") from None
    return content
