"""MNIST and Fashion-MNIST: four files in the idx format, gzipped or plain."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_runtime.datasets.base import Dataset, make_dataset
from fl_runtime.datasets.fetch import RemoteFile
from fl_runtime.datasets.files import naming, read_maybe_gzip
from fl_runtime.datasets.request import DataRequest
from fl_runtime.errors import DataError

__all__ = ["load_fashion_mnist", "load_mnist", "read_idx"]

#: No file of these data sets is larger, expanded or not.
_LIMIT = 64 * 2**20

_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_COUNTS = (60_000, 60_000, 10_000, 10_000)


@dataclass(frozen=True)
class _Published:
    """One of the two: title, other folder names, base addresses, and per file the SHA-256 gzipped, the size, and the SHA-256 expanded."""

    title: str
    folders: tuple[str, ...]
    addresses: tuple[str, ...]
    gzipped: tuple[str, ...]
    sizes: tuple[int, ...]
    expanded: tuple[str, ...]

    @property
    def remote(self) -> list[RemoteFile]:
        return [
            RemoteFile(f"{part}-ubyte.gz", digest, tuple(f"{address}/{part}-ubyte.gz" for address in self.addresses), size)
            for part, digest, size in zip(_PARTS, self.gzipped, self.sizes, strict=True)
        ]


_MNIST = _Published(
    "MNIST",
    ("MNIST/raw", "MNIST"),
    ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    (9_912_422, 28_881, 1_648_877, 4_542),
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

_FASHION_MNIST = _Published(
    "Fashion-MNIST",
    ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST"),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    (26_421_880, 29_515, 4_422_102, 5_148),
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def load_mnist(request: DataRequest) -> Dataset:
    """MNIST (LeCun, Cortes and Burges): digits, 60,000 + 10,000 images of 1 x 28 x 28."""
    return _load(request, _MNIST)


def load_fashion_mnist(request: DataRequest) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): clothing, 60,000 + 10,000 images of 1 x 28 x 28."""
    return _load(request, _FASHION_MNIST)


def _load(request: DataRequest, published: _Published) -> Dataset:
    """Raises :class:`~fl_runtime.errors.DataError` for files that are missing, damaged or, unless accepted, other than published."""
    wanted = [(f"{part}-ubyte.gz", f"{part}-ubyte", _dotted(part) + ".gz", _dotted(part)) for part in _PARTS]
    paths = request.files(wanted, published.folders, published.remote)
    arrays, complete = [], True
    for index, path in enumerate(paths):
        with naming(path):
            data = read_maybe_gzip(path, _LIMIT)
            array = read_idx(data, 3 if index % 2 == 0 else 1)
            if array.shape[1:] not in ((), (28, 28)):
                raise DataError(f"images of {' x '.join(map(str, array.shape[1:]))}; must be 28 x 28")
            if array.ndim == 1 and array.max(initial=0) > 9:
                raise DataError(f"label = {array.max()}; must be in 0..9")
            complete &= _is_published(data, array, index, published, request.accept_incomplete)
        arrays.append(array)
    for images, labels, path in ((arrays[0], arrays[1], paths[1]), (arrays[2], arrays[3], paths[3])):
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(labels)} labels for {len(images)} images; must be as many")
    train, train_labels, test, test_labels = arrays
    return make_dataset(
        request.name,
        train[:, np.newaxis],
        train_labels,
        test[:, np.newaxis],
        test_labels,
        source=str(paths[0].parent),
        num_classes=10,
        complete=complete,
    )


def _dotted(part: str) -> str:
    """``train-images.idx3-ubyte``: the name that the publisher's archive gives."""
    return part.replace("-idx", ".idx") + "-ubyte"


def _is_published(data: bytes, array: NDArray[np.uint8], index: int, published: _Published, accept: bool) -> bool:
    """Whether these are the published contents; raises :class:`~fl_runtime.errors.DataError` if not, unless others are accepted."""
    digest, other = hashlib.sha256(data).hexdigest(), _FASHION_MNIST if published is _MNIST else _MNIST
    if digest == published.expanded[index]:
        return True
    if digest == other.expanded[index]:
        raise DataError(f"is a file of {other.title}; must be one of {published.title}")
    if accept:
        return False
    if len(array) != _COUNTS[index]:
        raise DataError(f"{len(array):,} samples; {published.title} has {_COUNTS[index]:,}")
    raise DataError(f"not the contents that {published.title} was published with (damaged or altered)")


def read_idx(data: bytes, dimensions: int) -> NDArray[np.uint8]:
    """The array in the bytes of an idx file of unsigned bytes with so many ``dimensions``.

    Layout, big-endian: 0, 0, element type 8, number of dimensions, a 32-bit size for each, then the elements, the last index fastest.
    Raises :class:`~fl_runtime.errors.DataError` that says what is wrong.
    """
    start = 4 * (1 + dimensions)
    if len(data) < start:
        raise DataError(f"{len(data)} bytes; the header of an idx file alone has {start}")
    magic = bytes((0, 0, 8, dimensions))
    if data[:4] != magic:
        raise DataError(f"starts with 0x{data[:4].hex()}; an idx file of {dimensions} dimensions starts with 0x{magic.hex()}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, offset=4))
    promised = math.prod(shape)
    if len(data) - start != promised:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{len(data) - start:,} bytes after the header, which promises {sizes} = {promised:,}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
