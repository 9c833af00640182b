"""Data on the devices over time: rates that are reached, sizes that stay, and any instant in any order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from data_files import idx_arrays
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import rotate
from strategies import exactly

from fl_runtime import device_data
from fl_runtime.datasets import Dataset, load_dataset, make_dataset
from fl_runtime.device_data import TaskData, make_task_data
from fl_runtime.drift import DriftRule, DriftSpec
from fl_runtime.partition import PartitionSpec
from fl_runtime.rotation import FlatRotation, ImageRotation
from schedopt.errors import InputError

SLOTS = 40


def flat_dataset(counts: list[int], features: int = 3) -> Dataset:
    """So many train samples of each label; feature 0 tells which sample it is."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    values = np.random.default_rng(1).normal(size=(len(labels), features))
    values[:, 0] = np.arange(len(labels))
    return make_dataset("flat", values, labels, values[:1], labels[:1], source="generated", num_classes=len(counts))


LARGE = flat_dataset([2000] * 10)
DIGITS = load_dataset("digits")


def task(dataset: Dataset, sizes: list[int], drift: str, *, partition: str = "dirichlet:0.3", seed: int = 0) -> TaskData:
    return make_task_data(dataset, sizes, PartitionSpec.parse(partition), DriftSpec.parse(drift), slots=SLOTS, seed=seed)


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


rates = st.sampled_from([0, 0.01, 0.05, 0.1, 0.3, 1 / 3, 0.5])
specs = st.builds("labels:{},arrivals:{},rotation:{}".format, rates, rates, st.sampled_from([0, 1.5, -7, 90]))


# what holds for every drift


@exactly(60)
@given(specs, st.lists(st.integers(0, 400), min_size=1, max_size=4), st.permutations(range(0, SLOTS + 1, 4)), st.integers(0, 2))
def test_any_order_gives_the_same(drift: str, sizes: list[int], order: list[int], seed: int) -> None:
    """Random access is sequential access, for an object that was asked before and for a new one; sizes stay and no sample is twice."""
    forward, jumping = (task(DIGITS, sizes, drift, seed=seed) for _ in range(2))
    in_order = {(device, instant): forward.samples(device, instant) for instant in range(SLOTS + 1) for device in range(len(sizes))}
    for instant in order:
        for device, size in enumerate(sizes):
            got = jumping.samples(device, instant)
            assert same(got, in_order[device, instant])
            assert got[0].shape == (size, 1, 8, 8) and got[0].dtype == np.float32
            assert got[1].shape == (size,) and got[1].dtype == np.int64
            indices = jumping.indices(device, instant)
            assert len(np.unique(indices)) == size and np.array_equal(DIGITS.train_labels[indices], got[1])
            assert np.array_equal(np.bincount(got[1], minlength=10), jumping.label_counts(device, instant))
    assert forward.sizes == tuple(sizes)


@exactly(30)
@given(
    st.sampled_from(["none", "", "labels:0", "arrivals:0,rotation:0", "labels:0.5@1,arrivals:0.2@1,rotation:30@1"]),
    st.integers(0, SLOTS),
)
def test_no_rate_no_change(drift: str, instant: int) -> None:
    """Device 0 has no rate in any of these; its samples are those of the plain partition at all instants."""
    plain = make_task_data(DIGITS, [50, 60], PartitionSpec.parse("shards:2"), slots=SLOTS, seed=3)
    drifting = task(DIGITS, [50, 60], drift, partition="shards:2", seed=3)
    assert same(drifting.samples(0, instant), plain.samples(0, 0))
    assert drifting.samples(0, instant)[0] is drifting.samples(0, 0)[0]  # prepared once


def test_drift_starts_from_the_partition_and_other_seeds_drift_otherwise() -> None:
    drift = "labels:0.1,arrivals:0.1,rotation:5"
    plain, drifting, other = task(DIGITS, [100], "none"), task(DIGITS, [100], drift), task(DIGITS, [100], drift, seed=1)
    assert same(drifting.samples(0, 0), plain.samples(0, 0))
    assert not same(drifting.samples(0, 9), plain.samples(0, 9)) and not same(drifting.samples(0, 9), other.samples(0, 9))


# samples that are exchanged


@pytest.mark.parametrize("kind", ["labels", "arrivals"])
@pytest.mark.parametrize("rate", [0.001, 0.03, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_rate_is_reached(kind: str, rate: float, size: int) -> None:
    """In every slot rate * D samples, within the rounding; there are enough others of every label."""
    data = task(LARGE, [size], f"{kind}:{rate}")
    held = [set(data.indices(0, instant).tolist()) for instant in range(SLOTS + 1)]
    gone = np.array([len(now - then) for now, then in zip(held[:-1], held[1:], strict=True)])
    # a leg's new samples may be those that left in the leg before, and then leave and come in the same slot: rarely
    assert (gone <= rate * size + 1).all() and gone.sum() <= rate * size * SLOTS + 1
    assert gone.sum() >= 0.97 * rate * size * SLOTS - 1


def test_both_kinds_add_up() -> None:
    data = task(LARGE, [400], "labels:0.05,arrivals:0.1")
    gone = [len(np.setdiff1d(data.indices(0, k), data.indices(0, k + 1))) for k in range(SLOTS)]
    assert np.abs(np.array(gone) - 60).max() <= 2


def test_arrivals_keep_the_label_mix() -> None:
    data = task(LARGE, [300, 50], "arrivals:0.1")
    for device in (0, 1):
        start = data.label_counts(device, 0)
        assert all(np.array_equal(data.label_counts(device, instant), start) for instant in range(SLOTS + 1))
        assert not np.intersect1d(data.indices(device, 0), data.indices(device, 10)).size  # all new after 1 / rate slots


def test_labels_move_from_mix_to_mix() -> None:
    """Linearly within a leg of 1 / rate slots, up to how the exchanged samples happen to lie; each device to a mix of its own."""
    data = task(LARGE, [1000] * 3, "labels:0.1")
    mixes = np.array([[data.label_counts(device, instant) / 1000 for instant in range(SLOTS + 1)] for device in range(3)])
    for device in range(3):
        for leg in range(4):
            start, end = mixes[device, 10 * leg], mixes[device, 10 * leg + 10]
            assert np.abs(end - start).sum() > 0.3
            for step in range(1, 10):
                between = start + (end - start) * step / 10
                assert np.abs(mixes[device, 10 * leg + step] - between).max() < 0.05
    assert np.abs(mixes[0, 10] - mixes[1, 10]).sum() > 0.2


def test_labels_beside_arrivals_move_at_their_own_rate() -> None:
    """Towards the mix that the device would move to without arrivals: with as many arrivals, half-way after 1 / (both rates) slots."""
    dataset = flat_dataset([3000, 3000])
    alone = task(dataset, [1000], "labels:0.05", partition="dirichlet:1e-300")
    both = task(dataset, [1000], "labels:0.05,arrivals:0.05", partition="dirichlet:1e-300")
    start = alone.label_counts(0, 0)
    assert start.max() == 1000 and np.array_equal(both.label_counts(0, 0), start)
    assert np.abs(both.label_counts(0, 10) - (start + alone.label_counts(0, 20)) / 2).max() <= 1


@pytest.mark.parametrize("size", [30, 29, 16])
def test_what_cannot_be_exchanged_stays(size: int) -> None:
    """A device that holds (nearly) everything: no sample twice, none from nowhere, and as many as always."""
    dataset = flat_dataset([10, 10, 10])
    data = task(dataset, [size], "labels:0.5,arrivals:0.25", partition="iid")
    for instant in range(SLOTS + 1):
        assert len(np.unique(data.indices(0, instant))) == size
    if size == 30:
        assert np.array_equal(data.indices(0, SLOTS), data.indices(0, 0))


def test_a_scarce_label_is_reached_all_the_same() -> None:
    """There are enough of each label for any mix, if those that are there and may stay do: the same mixes as with plenty of samples."""
    scarce, plenty = (task(flat_dataset(counts), [10], "labels:0.1") for counts in ([10, 10], [1000, 1000]))
    for instant in (10, 20, 30, 40):
        assert np.array_equal(scarce.label_counts(0, instant), plenty.label_counts(0, instant))


def test_a_label_that_no_train_sample_has() -> None:
    dataset = make_dataset("gap", np.eye(6), [0, 0, 0, 2, 2, 2], np.eye(6), [0, 1, 2, 0, 1, 2], source="generated")
    data = task(dataset, [2, 2], "labels:0.5", partition="dirichlet:0.1")
    assert all(data.label_counts(device, instant)[1] == 0 for device in (0, 1) for instant in range(SLOTS + 1))


# features that turn


@pytest.mark.parametrize("degrees", [3.0, -20.0, 90.0, 181.5])
def test_images_turn_as_scipy_turns_them(degrees: float) -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, 9, 12)).astype(np.float32)
    expected = rotate(images, degrees, axes=(3, 2), reshape=False, order=1, mode="nearest")
    assert np.abs(ImageRotation(9, 12)(images, degrees) - expected).max() < 1e-5


def test_images_turn_counter_clockwise_and_not_at_all_at_0() -> None:
    images = np.arange(2 * 9, dtype=np.float32).reshape(2, 1, 3, 3)
    turn = ImageRotation(3, 3)
    assert np.allclose(turn(images, 90), np.rot90(images, axes=(2, 3)), atol=1e-5)
    assert turn(images, 0) is images and turn(images, 720) is images


def test_angles_are_forgotten_in_time() -> None:
    turn = ImageRotation(4, 4)
    images = np.ones((1, 1, 4, 4), dtype=np.float32)
    for angle in range(1, 200):
        turn(images, angle)
    assert len(turn._matrices) <= 64


@pytest.mark.parametrize("degrees", [10.0, -135.0])
def test_flat_features_turn_in_the_principal_plane(degrees: float) -> None:
    """Against scikit-learn's components: lengths stay, coordinates in the plane turn, all others stay; turns add up."""
    from sklearn.decomposition import PCA

    dataset = load_dataset("breast-cancer")
    features = dataset.standardize(dataset.train_features)
    turn = FlatRotation(dataset)
    components = PCA().fit(features.astype(float)).components_
    components *= np.sign(components[np.arange(30), np.abs(components).argmax(axis=1)])[:, np.newaxis]
    before, after = features @ components.T, turn(features, degrees) @ components.T
    assert np.abs(after[:, 2:] - before[:, 2:]).max() < 1e-3
    turned = (before[:, 0] + 1j * before[:, 1]) * np.exp(1j * np.deg2rad(degrees))
    assert np.abs(after[:, 0] + 1j * after[:, 1] - turned).max() < 1e-3
    assert np.allclose(np.linalg.norm(after, axis=1), np.linalg.norm(before, axis=1), rtol=1e-4)
    assert np.abs(turn(turn(features, degrees), 25) - turn(features, degrees + 25)).max() < 1e-3
    assert turn(features, 0) is features


def test_rotation_of_samples_at_their_rates() -> None:
    data = task(DIGITS, [20, 20, 20], "rotation:5,rotation:-2@1,rotation:0@2")
    plain = task(DIGITS, [20, 20, 20], "none")
    for device, rate in enumerate((5, -2, 0)):
        start = plain.samples(device, 0)[0]
        expected = rotate(start, rate * 7, axes=(3, 2), reshape=False, order=1, mode="nearest") if rate else start
        assert np.abs(data.samples(device, 7)[0] - expected).max() < 1e-4
    flat = load_dataset("wine")
    assert not same(task(flat, [20], "rotation:5").samples(0, 1), task(flat, [20], "none").samples(0, 1))


@pytest.mark.parametrize("rate", [1e308, -1e308, 1e17 + 360, 725.0])
def test_whole_turns_do_not_count(rate: float) -> None:
    """However fast it turns, the angle is a number, and that of the rate without whole turns."""
    fast, slow = (
        make_task_data(load_dataset("wine"), [5], drift=DriftSpec.parse(f"rotation:{turn!r}"), slots=9, seed=0)
        for turn in (rate, math.fmod(rate, 360.0))
    )
    for instant in range(1, 10):
        found = fast.samples(0, instant)[0]
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, slow.samples(0, instant)[0])


def test_a_single_feature_cannot_turn() -> None:
    dataset = flat_dataset([5, 5], features=1)
    with pytest.raises(InputError, match="rotation of data set flat, which has a single feature; needs at least 2"):
        task(dataset, [3], "rotation:5")
    task(dataset, [3], "rotation:0")


# memory, arguments, text


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small cache changes nothing but what is kept."""
    drift = "labels:0.2,rotation:1"
    plain = task(DIGITS, [100] * 3, drift)
    kept = [plain.samples(device, instant) for instant in range(10) for device in range(3)]
    monkeypatch.setattr(device_data, "_CACHE_BYTES", 60_000)
    small = task(DIGITS, [100] * 3, drift)
    for position, expected in enumerate(kept):
        assert same(small.samples(position % 3, position // 3), expected)
        assert sum(device_data._bytes(value) for value in small._cache.values()) == small._cached_bytes <= 60_000


def test_results_are_read_only() -> None:
    features, labels = task(DIGITS, [10], "none").samples(0, 0)
    for array in (features, labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_images_are_standardized() -> None:
    images, labels, test_images, test_labels = (array[:, np.newaxis] if array.ndim == 3 else array for array in idx_arrays())
    data = task(make_dataset("images", images, labels, test_images, test_labels, source="x"), [30], "none", partition="iid")
    features, _ = data.samples(0, 0)
    assert abs(features.mean()) < 1e-5 and features.std() == pytest.approx(1, abs=1e-4)
    assert np.allclose(features, (images[data.indices(0, 0)] - images.mean()) / images.std(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [10, -1]}, "samples of device 1 = -1; must be a whole number of at least 0"),
        ({"sizes": [1.5]}, "samples of device 0 = 1.5; must be a whole number"),
        ({"sizes": [1438]}, "device 0: samples = 1438; must be in 0..1437"),
        ({"seed": -1}, "seed = -1; must be a whole number"),
        ({"slots": "3"}, "slots = '3'; must be a whole number"),
        ({"drift": DriftSpec((DriftRule("labels", 0.1, 2),))}, r"drift of device 2; must be in 0..1"),
        ({"drift": DriftSpec.parse("labels:0.6,arrivals:0.5@1")}, r"device 1: labels \+ arrivals = 1.1; must be at most 1 per slot"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task_data(DIGITS, **{"sizes": [10, 10], "slots": 5, "seed": 0, **arguments})


def test_bad_instants_and_devices() -> None:
    data = task(DIGITS, [10, 0], "labels:0.5")
    assert data.samples(1, 3)[0].shape == (0, 1, 8, 8)
    for device, instant in ((2, 0), (-1, 0), (0, -1), (0, SLOTS + 1)):
        for method in (data.samples, data.label_counts, data.indices):
            with pytest.raises(InputError, match=r"; must be in 0\.\."):
                method(device, instant)


NAMES = {"dev00": 0, "a,b": 1, "x:y@z": 2}


@pytest.mark.parametrize(
    ("text", "names", "rules"),
    [
        ("", None, []),
        (" none ", None, []),
        ("labels:0.1", None, [("labels", 0.1, None)]),
        ("labels:0.1@3, rotation:-2.5", None, [("labels", 0.1, 3), ("rotation", -2.5, None)]),
        ("arrivals:1e-2@dev00,arrivals:0", NAMES, [("arrivals", 0.01, 0), ("arrivals", 0.0, None)]),
        ("labels:0.1@a,b,rotation:1@x:y@z", NAMES, [("labels", 0.1, 1), ("rotation", 1.0, 2)]),
    ],
)
def test_text(text: str, names: dict[str, int] | None, rules: list[tuple[str, float, int | None]]) -> None:
    spec = DriftSpec.parse(text, names)
    assert spec.rules == tuple(DriftRule(*rule) for rule in rules)
    for kind in ("labels", "arrivals", "rotation"):
        for device in range(4):
            general = next((rate for k, rate, d in rules if k == kind and d is None), 0.0)
            assert spec.rate(kind, device) == next((rate for k, rate, d in rules if k == kind and d == device), general)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("labels", None, "drift = 'labels'; must be KIND:RATE or KIND:RATE@DEVICE"),
        ("label:0.1", None, "drift = 'label:0.1'; must be KIND:RATE"),
        ("labels:0.1,", None, r"labels = '0.1,'; must be a fraction"),
        ("labels:1.5", None, r"labels = '1.5'; must be a fraction of the device's samples per slot, 0..1"),
        ("labels:-0.1", None, "labels = '-0.1'; must be a fraction"),
        ("rotation:nan", None, "rotation = 'nan'; must be a finite number of degrees per slot"),
        ("rotation:inf", None, "rotation = 'inf'; must be a finite number of degrees per slot"),
        ("labels:0.1@x", None, "drift of device 'x'; must be an index"),
        ("labels:0.1@dev7", NAMES, "drift of device 'dev7'; must be one of dev00, a,b, x:y@z"),
        ("labels:0.1,labels:0.2", None, "has two rates of labels for all devices"),
        ("labels:0.1@1,labels:0.2@1", None, "has two rates of labels for the same device"),
    ],
)
def test_bad_text(text: str, names: dict[str, int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        DriftSpec.parse(text, names)
    assert "\n" not in str(error.value)
