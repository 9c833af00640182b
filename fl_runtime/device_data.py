"""One task's data on all devices, at any instant."""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_runtime.datasets.base import Dataset
from fl_runtime.drift import DriftSpec
from fl_runtime.exchange import SampleExchange
from fl_runtime.partition import Partition, PartitionSpec
from fl_runtime.partition import partition as deal
from fl_runtime.rotation import Rotation, rotation_of
from schedopt.errors import InputError

__all__ = ["TaskData", "make_task_data"]

#: Bytes of prepared samples that are kept for the next call.
_CACHE_BYTES = 128 * 2**20

_Samples = tuple[NDArray[np.float32], NDArray[np.int64]]


class TaskData:
    """What the devices hold of one task's data set; made by :func:`make_task_data`.

    Any instant may be asked for in any order; the answer depends on nothing else. Going forward in time is fastest.

    Attributes
    ----------
    dataset : the data set
    sizes : samples D_i on each device, the same at all instants (0: the device has none)
    reused : whether devices share samples at instant 0 because the sizes add up to more than the data set has
    """

    def __init__(self, dataset: Dataset, held: Partition, drift: DriftSpec, *, slots: int, seed: int) -> None:
        self.dataset, self.sizes, self.reused = dataset, held.sizes, held.reused
        self._slots = slots
        self._exchanges = [
            SampleExchange(
                dataset.train_labels,
                indices,
                label_rate=drift.rate("labels", device),
                arrival_rate=drift.rate("arrivals", device),
                seed=seed,
                device=device,
            )
            for device, indices in enumerate(held.indices)
        ]
        # without whole turns, which would cost all digits of the angle
        self._turns = [math.fmod(drift.rate("rotation", device), 360.0) for device in range(len(held.indices))]
        self._rotation: Rotation | None = rotation_of(dataset) if any(self._turns) else None
        self._cache: OrderedDict[tuple[int, tuple[int, int], float], _Samples] = OrderedDict()
        self._cached_bytes = 0

    def samples(self, device: int, instant: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Standardized (and turned) features (D, \\*shape) and labels (D,) of ``device`` at ``instant``, read-only.

        Raises :class:`~schedopt.errors.InputError` for an instant outside the horizon or no device of the task.
        """
        self._check(device, instant)
        angle = (self._turns[device] * instant) % 360.0
        key = (device, self._exchanges[device].state(instant), angle)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        indices = self._exchanges[device].indices(instant)
        features = self.dataset.standardize(self.dataset.train_features[indices])
        if self._rotation is not None:
            features = self._rotation(features, angle)
        labels = self.dataset.train_labels[indices]
        features.setflags(write=False)
        labels.setflags(write=False)
        self._keep(key, (features, labels))
        return features, labels

    def label_counts(self, device: int, instant: int) -> NDArray[np.int64]:
        """How many samples of each label (classes,) ``device`` holds at ``instant``; errors as :meth:`samples`."""
        labels = self.dataset.train_labels[self.indices(device, instant)]
        return np.bincount(labels, minlength=self.dataset.num_classes).astype(np.int64)

    def indices(self, device: int, instant: int) -> NDArray[np.int64]:
        """Indices (D,) into the train part, no two the same; errors as :meth:`samples`."""
        self._check(device, instant)
        return self._exchanges[device].indices(instant)

    def _check(self, device: int, instant: int) -> None:
        if not 0 <= device < len(self.sizes):
            raise InputError(f"device = {device}; must be in 0..{len(self.sizes) - 1}")
        if not 0 <= instant <= self._slots:
            raise InputError(f"instant = {instant}; must be in 0..{self._slots}")

    def _keep(self, key: tuple[int, tuple[int, int], float], value: _Samples) -> None:
        """Put into the cache, and throw out what was longest unused until it fits."""
        self._cache[key] = value
        self._cached_bytes += _bytes(value)
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])


def _bytes(value: _Samples) -> int:
    return value[0].nbytes + value[1].nbytes


def make_task_data(
    dataset: Dataset,
    sizes: Sequence[int],
    partition: PartitionSpec | None = None,
    drift: DriftSpec | None = None,
    *,
    slots: int,
    seed: int,
) -> TaskData:
    """Deal the train part of ``dataset`` to devices and let it drift.

    Parameters
    ----------
    dataset : what to deal
    sizes : samples D_i of each device, 0 where it has none of this task
    partition : whose labels go where; "iid" if None. Kind "size" redraws the sizes: see ``TaskData.sizes``
    drift : what changes over time; nothing if None
    slots : the horizon G: instants 0..G may be asked for
    seed : whole number >= 0; the same seed gives the same data, whatever is asked in whatever order

    Raises :class:`~schedopt.errors.InputError` for sizes that the data set does not have, devices that are none, and the like.
    """
    spec, rates = partition or PartitionSpec(), drift or DriftSpec()
    numbers = [_whole(f"samples of device {device}", size) for device, size in enumerate(sizes)]
    rates.check_devices(len(numbers))
    rng = np.random.default_rng(np.random.SeedSequence(_whole("seed", seed), spawn_key=(0,)))
    held = deal(dataset.train_labels, numbers, spec, rng)
    return TaskData(dataset, held, rates, slots=_whole("slots", slots), seed=int(seed))


def _whole(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"{name} = {value!r}; must be a whole number of at least 0")
    return number
