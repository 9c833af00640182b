"""`DataRequest`: what is asked of a loader, and where it finds its files.

Folders are searched in this order: the argument ``data_dir``, ``SCHEDOPT_DATA_DIR``, the cache (``SCHEDOPT_CACHE_DIR`` or the system's
cache folder). In the first two, files may lie in a sub-folder named as the data set or directly in the folder. What is in none of them
is downloaded into the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_runtime.datasets.fetch import DATA_URL_VARIABLE, Progress, RemoteFile, fetch
from fl_runtime.errors import DataError
from schedopt.errors import InputError

__all__ = ["CACHE_DIR_VARIABLE", "DATA_DIR_VARIABLE", "DataRequest", "Folder", "WAYS_OUT"]

DATA_DIR_VARIABLE = "SCHEDOPT_DATA_DIR"
CACHE_DIR_VARIABLE = "SCHEDOPT_CACHE_DIR"

#: How a message about a missing data set ends.
WAYS_OUT = f"name the folder that has it by --data-dir or {DATA_DIR_VARIABLE}, or take one that needs no files: digits, breast-cancer, wine"


@dataclass(frozen=True)
class Folder:
    """A folder that may hold a data set; ``named`` if the user named this very folder, not one above it."""

    path: Path
    named: bool


@dataclass(frozen=True)
class DataRequest:
    """What :func:`~fl_runtime.datasets.load_dataset` was asked for, as loaders get it.

    Attributes
    ----------
    name : the data set's name: that of its folder and of its part of the cache
    data_dir : the folder named by the caller, or None
    accept_incomplete : whether a data set that is knowingly not as published may be taken
    download : whether what is missing may be downloaded
    data_url : address to download from instead of the publishers', or None for ``SCHEDOPT_DATA_URL``
    progress : told how far a download is, or None
    """

    name: str
    data_dir: Path | None = None
    accept_incomplete: bool = False
    download: bool = True
    data_url: str | None = None
    progress: Progress | None = None

    @property
    def cache(self) -> Path:
        """This data set's part of the cache; it need not exist."""
        root = os.environ.get(CACHE_DIR_VARIABLE)
        if root:
            return Path(root).expanduser() / self.name
        try:
            from pooch import os_cache
        except ImportError:
            return Path("~/.cache/schedopt").expanduser() / self.name
        return Path(os_cache("schedopt")).expanduser() / self.name

    def folders(self, names: Sequence[str] = ()) -> Iterator[Folder]:
        """The folders to look into, in order: those that exist. ``names`` are sub-folders besides one named as the data set.

        Raises :class:`~schedopt.errors.InputError` if ``data_dir`` is no folder.
        """
        if self.data_dir is not None and not os.path.isdir(self.data_dir):
            raise InputError(f"data_dir = {os.fspath(self.data_dir)!r}; must be a folder that exists")
        for root in self._roots():
            for name in (self.name, *names):
                if os.path.isdir(root / name):
                    yield Folder(root / name, named=False)
            if os.path.isdir(root):
                yield Folder(root, named=True)
        if os.path.isdir(self.cache):
            yield Folder(self.cache, named=False)

    def files(self, wanted: Sequence[tuple[str, ...]], names: Sequence[str] = (), remote: Sequence[RemoteFile] = ()) -> list[Path]:
        """One file for each of ``wanted``, all in one folder; an entry lists the names that the file may have.

        ``remote`` are the same files as published, to be downloaded where no folder has them all. Raises
        :class:`~fl_runtime.errors.DataError` that says what was looked for where.
        """
        for folder in self.folders(names):
            found = [_first_file(folder.path, choices) for choices in wanted]
            # what lies in the cache goes through the checksums again, unless nothing could be had anew
            if None not in found and not (folder.path == self.cache and remote and self.download):
                return [path for path in found if path is not None]
        return [self.fetch(file) for file in self._downloadable(remote, wanted[0][0])]

    def file(self, name: str, *, url: str | None = None, sha256: str | None = None) -> Path:
        """The file called ``name``, or downloaded from ``url``, which must then have the checksum ``sha256``; errors as :meth:`files`."""
        remote = (RemoteFile(name, sha256, (url,)),) if url is not None and sha256 is not None else ()
        return self.files([(name,)], remote=remote)[0]

    def fetch(self, file: RemoteFile) -> Path:
        """The published file in the cache, downloaded if need be. Raises :class:`~fl_runtime.errors.DataError`."""
        address = self.data_url or os.environ.get(DATA_URL_VARIABLE) or None
        try:
            return fetch(file, self.cache, dataset=self.name, data_url=address, progress=self.progress)
        except DataError as error:
            raise self.missing(file.name, str(error)) from None

    def missing(self, file: str, why: str = "") -> DataError:
        """The error that says where ``file`` was looked for, ``why`` it could not be downloaded, and the ways out."""
        searched = " or ".join(str(root) for root in (*self._roots(), self.cache))
        return DataError(f"data set {self.name}: no {file} in {searched}{', and ' + why if why else ''}; {WAYS_OUT}")

    def _roots(self) -> list[Path]:
        variable = os.environ.get(DATA_DIR_VARIABLE)
        roots = ([self.data_dir] if self.data_dir is not None else []) + ([Path(variable).expanduser()] if variable else [])
        return list(dict.fromkeys(roots))

    def _downloadable(self, remote: Sequence[RemoteFile], name: str) -> Sequence[RemoteFile]:
        if not remote:
            raise self.missing(name)
        if not self.download:
            raise self.missing(name, "it must not be downloaded")
        return remote


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)
