"""What ``schedopt doctor`` tells of data sets: each is read as ``schedopt simulate --no-download`` reads it."""

from __future__ import annotations

from fl_runtime.datasets import Dataset, dataset_names, load_dataset
from fl_runtime.datasets.request import DATA_DIR_VARIABLE, WAYS_OUT
from fl_runtime.errors import DataError
from schedopt.cli.doctor import Finding

__all__ = ["data_sets"]

_MISSING = f"'schedopt simulate' downloads it; or name the folder that has it by --data-dir or {DATA_DIR_VARIABLE}"
_INSTALL = ": pip install "


def data_sets(data_dir: str | None) -> list[Finding]:
    """One finding for each data set; ``data_dir`` as in :func:`~fl_runtime.datasets.load_dataset`. Nothing is downloaded.

    Raises :class:`~schedopt.errors.InputError` for a ``data_dir`` that is no folder.
    """
    return [_finding(name, data_dir) for name in dataset_names()]


def _finding(name: str, data_dir: str | None) -> Finding:
    try:
        dataset = load_dataset(name, data_dir=data_dir, download=False)
    except DataError as error:
        return Finding(name, False, *_problem(str(error).removeprefix(f"data set {name}: ")))
    if not dataset.complete:
        return Finding(name, False, f"incomplete: {_size(dataset)}", "put the published files there, or name a folder without these")
    return Finding(name, True, _size(dataset))


def _size(dataset: Dataset) -> str:
    shape = " x ".join(map(str, dataset.shape))
    return f"{len(dataset.train_labels):,} + {len(dataset.test_labels):,} samples of {shape}, from {dataset.source}"


def _problem(message: str) -> tuple[str, str]:
    """Detail and remedy from the message of a loader."""
    missing, ways_out, hint = message.partition(f"; {WAYS_OUT}")
    if ways_out:
        return missing.removesuffix(", and it must not be downloaded") + hint, _MISSING
    detail, install, package = message.partition(_INSTALL)
    if install:
        return detail, install.removeprefix(": ") + package
    return message, "replace it; or remove it, and 'schedopt simulate' downloads it"
