"""Bytes of data files, read with limits: what is no regular file, too large or a damaged gzip is said so in one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_runtime.errors import DataError

__all__ = ["file_digest", "naming", "read_file", "read_maybe_gzip"]

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 2**20


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it, whether a check or the system says so."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except MemoryError:
        raise DataError(f"{path}: too large for the memory of this machine") from None


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. Raises :class:`~fl_runtime.errors.DataError` without the file's name."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise DataError("not a regular file")
    if info.st_size > limit:
        raise DataError(f"{info.st_size:,} bytes; must be at most {limit:,}")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"more than {limit:,} bytes")
    return data


def read_maybe_gzip(path: Path, limit: int) -> bytes:
    """As :func:`read_file`; gzip is recognised by content and expanded to at most ``limit`` bytes."""
    data = read_file(path, limit)
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            data = file.read(limit + 1)
    except EOFError:
        raise DataError("damaged gzip file: it ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"damaged gzip file: {error}") from None
    if len(data) > limit:
        raise DataError(f"gzip: expands to more than {limit:,} bytes")
    return data


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Checksum of a file as hexadecimal digits."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()
