"""CIFAR-10, "python version": six pickles in a folder, or the archive that holds them.

An incomplete copy, whose file names end in ``_n<rows>`` (``data_batch_1_n9990``), is read if its own folder is named or
``accept_incomplete`` is given, never otherwise; the result then says ``complete = False``.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_runtime.datasets.base import Dataset, make_dataset
from fl_runtime.datasets.fetch import RemoteFile
from fl_runtime.datasets.files import naming, read_file
from fl_runtime.datasets.request import DataRequest, Folder
from fl_runtime.datasets.safe_pickle import array_of, load_plain_pickle
from fl_runtime.errors import DataError

__all__ = ["load_cifar_10"]

_ROWS = 10_000
#: No batch is larger, and no archive.
_BATCH_LIMIT, _ARCHIVE_LIMIT = 64 * 2**20, 512 * 2**20

#: Files as published, with the MD5 that every other loader checks too (no SHA-256 of them is published).
_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_ARCHIVE = RemoteFile(
    "cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    170_498_071,
)
_FOLDERS = ("cifar-10-batches-py", "cifar-10/cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py")
_PARTIAL = re.compile(r"(data_batch_[1-5]|test_batch)(?:_n(\d{1,5}))?")


def load_cifar_10(request: DataRequest) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 3 x 32 x 32, labels airplane .. truck.

    Raises :class:`~fl_runtime.errors.DataError` for files that are missing, damaged or, unless accepted, other than published.
    """
    incomplete: Path | None = None
    for folder in request.folders(_FOLDERS):
        files = [folder.path / name for name in _BATCHES]
        if all(file.is_file() for file in files):
            return _from_files(request, files)
        archive = folder.path / _ARCHIVE.name
        if archive.is_file() and not (folder.path == request.cache and request.download):
            return _from_archive(request, archive)
        if files := _partial_files(folder, request.accept_incomplete):
            return _from_files(request, files)
        if incomplete is None and _partial_files(folder, accept=True):
            incomplete = folder.path
    return _from_archive(request, _download(request, incomplete))


def _download(request: DataRequest, incomplete: Path | None) -> Path:
    hint = f"; an incomplete copy lies in {incomplete}: name that folder itself to use it" if incomplete is not None else ""
    try:
        if not request.download:
            raise request.missing(f"{', '.join(_BATCHES)} or {_ARCHIVE.name}", "it must not be downloaded")
        return request.fetch(_ARCHIVE)
    except DataError as error:
        raise DataError(f"{error}{hint}") from None


def _partial_files(folder: Folder, accept: bool) -> list[Path]:
    """Files of an incomplete copy that may be read: some training batch and the test batch, each once, the larger where there are two.

    In a folder that the user named, those that say themselves that rows are missing; any others only if incomplete data are accepted.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.path.iterdir()):
        match = _PARTIAL.fullmatch(path.name)
        if match and path.is_file() and (accept or (folder.named and match[2] is not None)):
            found.setdefault(match[1], path)
    return [found[name] for name in _BATCHES if name in found] if "test_batch" in found and len(found) > 1 else []


def _from_files(request: DataRequest, files: Sequence[Path]) -> Dataset:
    batches = []
    for path in files:
        with naming(path):
            batches.append((path.name, read_file(path, _BATCH_LIMIT), str(path)))
    return _assemble(request, batches, str(files[0].parent))


def _from_archive(request: DataRequest, archive: Path) -> Dataset:
    """Members are read into memory, never unpacked to disk."""
    contents: dict[str, bytes] = {}
    with naming(archive):
        if archive.stat().st_size > _ARCHIVE_LIMIT:
            raise DataError(f"{archive.stat().st_size:,} bytes; must be at most {_ARCHIVE_LIMIT:,}")
        try:
            with _opened(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    if name in _BATCHES and member.isreg():
                        contents[name] = _member(tar, member)
                while file.read(2**20):  # to the end, where the checksum is
                    pass
        except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError) as error:
            raise DataError(f"damaged archive: {str(error) or type(error).__name__}") from None
        except gzip.BadGzipFile as error:
            raise DataError(f"damaged gzip file: {error}") from None
        if missing := [name for name in _BATCHES if name not in contents]:
            raise DataError(f"holds no {', '.join(missing)}")
    return _assemble(request, [(name, contents[name], f"{archive}: {name}") for name in _BATCHES], str(archive))


def _opened(archive: Path) -> IO[bytes]:
    """Decompressed, if it is gzipped."""
    with open(archive, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(archive, "rb")) if zipped else open(archive, "rb")


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _BATCH_LIMIT:
        raise DataError(f"{member.name.rpartition('/')[2]} has {member.size:,} bytes; must be at most {_BATCH_LIMIT:,}")
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _assemble(request: DataRequest, batches: Sequence[tuple[str, bytes, str]], source: str) -> Dataset:
    parts, complete = [], len(batches) == len(_BATCHES)
    for name, data, where in batches:
        try:
            parts.append(_batch(data))
            complete &= _is_published(name, data, len(parts[-1][1]), request.accept_incomplete)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    images, labels = zip(*parts, strict=True)
    return make_dataset(
        request.name,
        np.concatenate(images[:-1]),
        np.concatenate(labels[:-1]),
        images[-1],
        labels[-1],
        source=source,
        num_classes=10,
        complete=complete,
    )


def _is_published(name: str, data: bytes, rows: int, accept: bool) -> bool:
    """Whether a batch is as published; raises :class:`~fl_runtime.errors.DataError` if it is neither that nor what its name says."""
    match = _PARTIAL.fullmatch(name)
    if match and match[2] is not None:
        if rows != int(match[2]):
            raise DataError(f"{rows:,} rows; its name says {int(match[2]):,}")
        return False
    if hashlib.md5(data, usedforsecurity=False).hexdigest() == _BATCHES[name]:
        return True
    if accept:
        return False
    if rows != _ROWS:
        raise DataError(f"{rows:,} rows; CIFAR-10 has {_ROWS:,} in each batch")
    raise DataError("not the contents that CIFAR-10 was published with (damaged or altered)")


def _batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 3, 32, 32) and labels (n,) of one batch."""
    content = load_plain_pickle(data)
    if not isinstance(content, dict):
        raise DataError("holds no dict; must be a batch of CIFAR-10")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    images = array_of(fields.get("data"))
    if images is None or images.ndim != 2 or images.shape[1] != 3072 or not len(images):
        raise DataError("'data' is no array of rows of 3,072 uint8 values; must be a batch of CIFAR-10")
    return images.reshape(-1, 3, 32, 32), _label_array(fields.get("labels"), len(images))


def _label_array(labels: Any, rows: int) -> NDArray[np.int64]:
    if not isinstance(labels, list) or len(labels) != rows:
        raise DataError(f"'labels' is no list of {rows:,} labels, one for each row of 'data'")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise DataError("'labels' holds something else than whole numbers in 0..9")
    return np.array(labels, dtype=np.int64)
