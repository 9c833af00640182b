"""Names of the data sets; each loader is imported when it is first used.

A data set of your own takes a loader, a function of a :class:`~fl_runtime.datasets.request.DataRequest` that returns a
:class:`~fl_runtime.datasets.base.Dataset`, and one line that gives it a name::

    import numpy as np
    from fl_runtime.datasets import make_dataset, register_dataset

    def load_mine(request):
        path = request.file("mine.npz")  # looked for as every data set's files are; url= and sha256= would download it
        with np.load(path) as data:
            return make_dataset(request.name, data["x"], data["y"], data["x_test"], data["y_test"], source=str(path.parent))

    register_dataset("mine", load_mine)

A package makes its data sets known to the command line by an entry point instead of that last line::

    [project.entry-points."fl_runtime.datasets"]
    mine = "my_package.data:load_mine"
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from fl_runtime.errors import DataError
from schedopt.errors import InputError, SchedOptError

if TYPE_CHECKING:
    from fl_runtime.datasets.base import Dataset
    from fl_runtime.datasets.fetch import Progress
    from fl_runtime.datasets.request import DataRequest

__all__ = ["ENTRY_POINT_GROUP", "Loader", "dataset_names", "load_dataset", "register_dataset"]

Loader = Callable[["DataRequest"], "Dataset"]

ENTRY_POINT_GROUP = "fl_runtime.datasets"

#: name -> "module:function"
_BUILT_IN: dict[str, str] = {
    "mnist": "fl_runtime.datasets.idx:load_mnist",
    "fashion-mnist": "fl_runtime.datasets.idx:load_fashion_mnist",
    "cifar-10": "fl_runtime.datasets.cifar:load_cifar_10",
    "svhn": "fl_runtime.datasets.svhn:load_svhn",
    "digits": "fl_runtime.datasets.embedded:load_digits",
    "breast-cancer": "fl_runtime.datasets.embedded:load_breast_cancer",
    "wine": "fl_runtime.datasets.embedded:load_wine",
}

_registered: dict[str, Loader] = {}


def register_dataset(name: str, loader: Loader) -> None:
    """Make ``loader`` the data set called ``name`` in this process.

    Raises :class:`~schedopt.errors.InputError` for a name that is taken or cannot be a folder's.
    """
    if not name or name != Path(name).name or name in (".", ".."):
        raise InputError(f"data set = {name!r}; must be a name that a folder can have")
    if name in _BUILT_IN or _registered.get(name, loader) is not loader:
        raise InputError(f"data set = {name!r}; there is one of this name already")
    _registered[name] = loader


def dataset_names() -> tuple[str, ...]:
    """Names of all data sets: the built-in ones, those registered here, those of other packages."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_registered, *(point.name for point in _points()))))


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    accept_incomplete: bool = False,
    download: bool = True,
    data_url: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read the data set called ``name``, downloading what is nowhere to be found.

    Parameters
    ----------
    name : one of :func:`dataset_names`
    data_dir : where its files are, in a sub-folder of its name or directly; searched before ``SCHEDOPT_DATA_DIR`` and the cache
    accept_incomplete : take files that are knowingly not as published (fewer or other samples); the result says ``complete = False``
    download : False never touches the network
    data_url : download from ``data_url/name/file`` instead of the publishers; as ``SCHEDOPT_DATA_URL``
    progress : called with file name, bytes there, bytes in all, while something is downloaded

    Raises :class:`~schedopt.errors.InputError` for an unknown name or a ``data_dir`` that is no folder, and
    :class:`~fl_runtime.errors.DataError` for data that are missing, damaged or not what the name says.
    """
    from fl_runtime.datasets.base import Dataset
    from fl_runtime.datasets.request import DataRequest

    loader = _loader(name)
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    request = DataRequest(name, folder, accept_incomplete, download, data_url, progress)
    try:
        dataset = loader(request)
    except SchedOptError:
        raise
    except OSError as error:
        raise DataError(f"data set {name}: {error.filename or ''}: {error.strerror or error}") from error
    except MemoryError:
        raise DataError(f"data set {name}: too large for the memory of this machine") from None
    if not isinstance(dataset, Dataset):
        raise DataError(f"data set {name}: its loader gives {type(dataset).__name__}; must give fl_runtime.datasets.Dataset")
    return dataset


def _loader(name: str) -> Loader:
    if name in _BUILT_IN:
        module, _, function = _BUILT_IN[name].partition(":")
        loader: Loader = getattr(import_module(module), function)
        return loader
    if name in _registered:
        return _registered[name]
    for point in _points():
        if point.name == name:
            return _of_entry_point(point)
    raise InputError(f"dataset = {name!r}; must be one of {', '.join(dataset_names())}")


def _of_entry_point(point: EntryPoint) -> Loader:
    try:
        loader: Loader = point.load()
    except Exception as error:  # another package's code
        raise DataError(f"data set {point.name}: {point.value} cannot be loaded: {type(error).__name__}: {error}") from error
    return loader


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
