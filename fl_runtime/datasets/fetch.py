"""Download of published files through pooch: checksums, mirrors, and a broken download goes on where it stopped.

pooch keeps the cache and checks the checksum; what it lacks is added by its own hook, the downloader: bytes arrive in ``NAME.part``
beside the final file, stay there when the connection breaks, and the next attempt asks only for the rest (HTTP ``Range``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fl_runtime.errors import DataError
from schedopt.errors import InputError

__all__ = ["DATA_URL_VARIABLE", "Progress", "RemoteFile", "fetch"]

#: Where to download from instead of the publishers: files are at ``URL/DATA_SET/FILE``.
DATA_URL_VARIABLE = "SCHEDOPT_DATA_URL"

#: Called with the file's name, the bytes that are there and how many there will be (None if the server does not say).
Progress = Callable[[str, int, int | None], None]

_CHUNK = 2**18
#: Seconds until a connection must stand, and between two pieces of data.
_TIMEOUTS = (10.0, 30.0)
#: A connection that breaks after it brought something is opened again this often.
_ATTEMPTS = 4


@dataclass(frozen=True)
class RemoteFile:
    """A published file: ``urls`` are full addresses, the first is tried first; ``size`` in bytes, None if unknown."""

    name: str
    sha256: str
    urls: tuple[str, ...]
    size: int | None = None


def fetch(file: RemoteFile, folder: Path, *, dataset: str, data_url: str | None = None, progress: Progress | None = None) -> Path:
    """The file in ``folder``, downloaded unless it is there already with the right checksum.

    ``data_url`` replaces the publishers' addresses by ``data_url/dataset/name``. Raises :class:`~fl_runtime.errors.DataError` that says
    for each address why it could not be had, and :class:`~schedopt.errors.InputError` for a ``data_url`` that is no HTTP address.
    """
    try:
        import pooch  # noqa: F401
    except ImportError:
        raise DataError("pooch is not installed, which downloads: pip install 'schedopt[runtime]'") from None
    reasons = []
    for url in _addresses(file, dataset, data_url):
        try:
            return _fetch_from(url, file, folder, progress)
        except _Unobtainable as error:
            reasons.append(f"{url} {error}")
        except OSError as error:
            raise DataError(f"{error.filename or folder}: {error.strerror or error}: cannot be written") from error
    raise DataError("; ".join(reasons) or f"{file.name}: has no address to download it from")


class _Unobtainable(Exception):
    """Why an address did not give the file."""


def _addresses(file: RemoteFile, dataset: str, data_url: str | None) -> tuple[str, ...]:
    if data_url is None:
        return file.urls
    if not data_url.startswith(("http://", "https://")):
        raise InputError(f"{DATA_URL_VARIABLE} = {data_url!r}; must start with http:// or https://")
    return (f"{data_url.rstrip('/')}/{dataset}/{file.name}",)


def _fetch_from(url: str, file: RemoteFile, folder: Path, progress: Progress | None) -> Path:
    import pooch

    downloader = _Downloader(file, folder, progress)
    with _without_log(pooch.get_logger()):
        while True:
            try:
                return Path(pooch.retrieve(url, f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=downloader))
            except ValueError:  # the checksum; pooch has thrown the file away
                if not downloader.resumed:
                    raise _Unobtainable("gives a file with another checksum than published") from None
                downloader.resumed = False  # the old piece may be to blame: once more from the start


@contextmanager
def _without_log(logger: logging.Logger) -> Iterator[None]:
    """pooch tells of each download on stderr; here the progress does."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Downloader:
    """pooch's hook: puts the file at ``url`` into ``output_file``; ``resumed`` tells whether some of it came from an earlier attempt."""

    def __init__(self, file: RemoteFile, folder: Path, progress: Progress | None) -> None:
        self.file, self.part, self.progress = file, folder / f"{file.name}.part", progress
        self.resumed = False

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        with open(self.part, "ab") as part:
            if _is_ours(part, self.part):
                try:
                    self._complete(url, part)
                finally:
                    part.flush()
                    if not part.tell():
                        self.part.unlink(missing_ok=True)
                os.replace(self.part, output_file)
                return
        # somebody else is downloading the same file: leave theirs alone
        with open(output_file, "wb") as whole:
            self._complete(url, whole)

    def _complete(self, url: str, part: IO[bytes]) -> None:
        """Ask for what is missing until it is all there, as long as every attempt brings some of it."""
        self.resumed = part.tell() > 0
        for attempt in range(_ATTEMPTS):
            before = part.tell()
            try:
                return self._rest(url, part)
            except _Broken as error:
                part.flush()
                if part.tell() <= before or attempt == _ATTEMPTS - 1:
                    kept = f" (its first {part.tell():,} bytes are kept: the next attempt goes on from there)" if part.tell() else ""
                    raise _Unobtainable(f"{error}{kept}") from None

    def _rest(self, url: str, part: IO[bytes]) -> None:
        import requests

        have = part.tell()
        # the bytes as they lie on the server: a transfer compressed on the way could not be resumed
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
                status = response.status_code
                if status == 416 and have and _total(response) == have:
                    return  # it was complete already
                if status == 200:
                    _empty(part)  # the server sends the whole file
                if status == 200 or (status == 206 and have and _range_start(response) == have):
                    return self._receive(response, part)
                if not (status in (206, 416) and have):
                    raise _Unobtainable(f"answers {status} {response.reason}")
                _empty(part)  # nothing goes on from there
        except requests.exceptions.Timeout:
            raise _Broken("does not answer in time") from None
        except requests.exceptions.ConnectionError:
            raise _Broken("cannot be reached") from None
        except requests.exceptions.RequestException as error:
            raise _Broken(f"cannot be read ({type(error).__name__})") from None
        self._rest(url, part)  # once: now there is no piece

    def _receive(self, response: Any, part: IO[bytes]) -> None:
        """Append what arrives, as it is on the server."""
        import urllib3

        have = part.seek(0, os.SEEK_END)
        self.resumed = self.resumed and have > 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else self.file.size
        limit = self.file.size if self.file.size is not None else total
        try:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                part.write(chunk)
                have += len(chunk)
                if limit is not None and have > limit:
                    _empty(part)
                    raise _Unobtainable(f"sends more than the {limit:,} bytes that the file has")
                if self.progress is not None:
                    self.progress(self.file.name, have, total)
            broken = total is not None and have < total
        except urllib3.exceptions.HTTPError:
            broken = True
        if broken:
            raise _Broken(f"breaks off after {have:,} {'bytes' if total is None else f'of {total:,} bytes'}")


class _Broken(Exception):
    """The connection broke: asking again may help."""


def _empty(part: IO[bytes]) -> None:
    part.truncate(0)
    part.seek(0)


def _total(response: Any) -> int | None:
    """``Content-Range: bytes */TOTAL``"""
    stated = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(stated) if stated.isdecimal() else None


def _range_start(response: Any) -> int | None:
    """``Content-Range: bytes START-END/TOTAL``"""
    stated = response.headers.get("Content-Range", "").strip().removeprefix("bytes").strip().partition("-")[0]
    return int(stated) if stated.isdecimal() else None


def _is_ours(part: IO[bytes], path: Path) -> bool:
    """Whether no other process is at the same file (always true where the system has no such locks)."""
    try:
        import fcntl
    except ImportError:
        return True
    with suppress(OSError):
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # the other one may have finished, and moved the file away, in between
        return path.exists() and os.path.samestat(os.fstat(part.fileno()), os.stat(path))
    return False
