"""Partitions meet the sizes, hold no sample twice, and have the label mixes that their kind promises."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import exactly

from fl_runtime.partition import Partition, PartitionSpec, partition
from schedopt.errors import InputError

KINDS = (
    "iid", "dirichlet:0.1", "dirichlet:1", "dirichlet:1e-300", "dirichlet:1e300", "shards:1", "shards:2", "shards:99", "size", "size:0",
)  # fmt: skip


def deal(labels: np.ndarray, sizes: list[int], kind: str, seed: int = 0) -> Partition:
    return partition(labels, sizes, PartitionSpec.parse(kind), np.random.default_rng(seed))


def labels_of(counts: list[int], seed: int = 0) -> np.ndarray:
    """So many samples of each label, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Labels, some of them without samples or much rarer than others, and sizes that need not fit together."""
    counts = draw(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=6).filter(any))
    total = sum(counts)
    scale = draw(st.sampled_from([total, max(1, total // 5)]))
    return labels_of(counts), draw(st.lists(st.integers(0, scale), max_size=8))


@exactly(400)
@given(cases(), st.sampled_from(KINDS), st.integers(0, 3))
@example((labels_of([3, 2]), [5, 0]), "dirichlet:0.1", 0)  # everything there is
@example((labels_of([3, 2]), [2, 2, 1]), "dirichlet:1e-300", 0)
@example((labels_of([40, 1]), [30, 30]), "shards:1", 0)
def test_sizes_and_samples(case: tuple[np.ndarray, list[int]], kind: str, seed: int) -> None:
    labels, sizes = case
    dealt = deal(labels, sizes, kind, seed)
    if kind.startswith("size"):
        assert sum(dealt.sizes) == sum(sizes)
        assert all((got == 0) == (asked == 0) and got <= len(labels) for got, asked in zip(dealt.sizes, sizes, strict=True))
    if not kind.startswith("size") or kind == "size:0":
        assert dealt.sizes == tuple(sizes)
    for indices in dealt.indices:
        assert indices.dtype == np.int64 and len(np.unique(indices)) == len(indices)
        assert len(indices) == 0 or (0 <= indices.min() and indices.max() < len(labels))
    assert dealt.reused == (sum(sizes) > len(labels))
    if not dealt.reused:
        assert all(not np.intersect1d(one, other).size for one, other in combinations(dealt.indices, 2))
    # all of a label before any again
    used = np.bincount(np.concatenate([*dealt.indices, np.zeros(0, dtype=np.int64)]), minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(used[labels == label]) <= 1
    if not kind.startswith(("dirichlet", "shards")):
        assert np.ptp(used) <= 1


@exactly(60)
@given(cases(), st.sampled_from(KINDS))
def test_same_seed_same_partition(case: tuple[np.ndarray, list[int]], kind: str) -> None:
    labels, sizes = case
    one, other = deal(labels, sizes, kind, 7), deal(labels, sizes, kind, 7)
    assert all(np.array_equal(a, b) for a, b in zip(one.indices, other.indices, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_another_partition(kind: str) -> None:
    labels = labels_of([50] * 4)
    one, other = deal(labels, [20] * 5, kind, 0), deal(labels, [20] * 5, kind, 1)
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(one.indices, other.indices, strict=True))


def counts_of(labels: np.ndarray, dealt: Partition) -> np.ndarray:
    """Samples of each label on each device."""
    return np.array([np.bincount(labels[indices], minlength=labels.max() + 1) for indices in dealt.indices])


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 10.0])
def test_dirichlet_has_the_concentration_that_was_asked_for(alpha: float) -> None:
    """E sum_c p_c^2 = (alpha + 1) / (C alpha + 1), and sum_c n_c (n_c - 1) / (D (D - 1)) estimates sum_c p_c^2 without bias."""
    labels, size = labels_of([20_000] * 10), 100
    counts = counts_of(labels, deal(labels, [size] * 600, f"dirichlet:{alpha}"))
    measured = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))
    assert measured.mean() == pytest.approx((alpha + 1) / (10 * alpha + 1), abs=4 * measured.std() / np.sqrt(600))


def test_dirichlet_keeps_the_mix_of_the_data_set_in_the_mean() -> None:
    labels = labels_of([6000, 3000, 1000])
    counts = counts_of(labels, deal(labels, [10] * 400, "dirichlet:0.5"))
    share = counts / 10
    assert np.abs(share.mean(axis=0) - [0.6, 0.3, 0.1]).max() < 4 * share.std(axis=0).max() / 20


def test_extremes_of_alpha() -> None:
    """Tiny: one label a device; huge: as iid. All samples are dealt in the end."""
    labels = labels_of([1000] * 5)
    assert ((counts_of(labels, deal(labels, [50] * 20, "dirichlet:1e-300")) > 0).sum(axis=1) == 1).all()
    assert counts_of(labels, deal(labels, [500] * 8, "dirichlet:1e300")).min() > 60
    counts = counts_of(labels, deal(labels, [50] * 100, "dirichlet:1e-300"))
    assert (counts.sum(axis=0) == 1000).all() and ((counts > 0).sum(axis=1) == 1).mean() > 0.8


@pytest.mark.parametrize("text", ["size:1e308", "size:800", "size:3e4", "dirichlet:1e308", "dirichlet:1e-308", "shards:1e308"])
def test_extreme_values_are_limits(text: str) -> None:
    """Nothing overflows (a warning would be an error), and sizes stay what they are or add up."""
    labels = labels_of([150] * 10)
    for seed in range(20):
        for sizes in ([20, 0, 5, 60], [1] * 40, [1500, 1500, 3]):
            held = partition(labels, sizes, PartitionSpec.parse(text), np.random.default_rng(seed)).sizes
            assert sum(held) == sum(sizes)
            if not text.startswith("size"):
                assert list(held) == sizes
            elif sizes[1] == 0:
                assert sorted(held) == [0, 1, 1, 83]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_shards_are_pure_where_they_fit(number: int) -> None:
    """10 labels x 100 samples, shards of 20 / number: none reaches over a border, so a device has at most ``number`` labels."""
    labels = labels_of([100] * 10)
    counts = counts_of(labels, deal(labels, [20] * 50, f"shards:{number}"))
    assert (counts % (20 // number) == 0).all() and (counts.sum(axis=0) == 100).all()
    assert 1 <= (counts > 0).sum(axis=1).max() <= number


def test_shards_of_few_devices_cover_all_labels() -> None:
    """Also where the devices hold less than the data set does."""
    labels = labels_of([100] * 10)
    counts = counts_of(labels, deal(labels, [20] * 10, "shards:2"))
    assert (counts.sum(axis=0) == 20).all()


def test_redrawn_sizes_are_log_normal() -> None:
    """The logarithms of the ratios have the deviation SIGMA."""
    sizes = deal(np.zeros(1_000_000, dtype=np.int64), [1000] * 900, "size:0.5").sizes
    assert np.std(np.log(np.array(sizes))) == pytest.approx(0.5, rel=0.1)
    assert deal(labels_of([50]), [50, 50, 1], "size:3").sizes != (50, 50, 1)
    assert sorted(deal(labels_of([50]), [30, 0, 30], "size:1000").sizes) == [0, 10, 50]  # none beyond what the data set has


@pytest.mark.parametrize(("text", "spec"), [
    ("iid", PartitionSpec("iid")), ("dirichlet:0.1", PartitionSpec("dirichlet", 0.1)), (" shards:2 ", PartitionSpec("shards", 2)),
    ("size", PartitionSpec("size", 1)), ("size:0.5", PartitionSpec("size", 0.5)), ("size:0", PartitionSpec("size", 0))])  # fmt: skip
def test_text(text: str, spec: PartitionSpec) -> None:
    assert PartitionSpec.parse(text) == spec and PartitionSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", [
    "", "idd", "iid:1", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:inf", "dirichlet:x",
    "shards:0", "shards:1.5", "shards", "size:-1", "size:", "labels:0.1"])  # fmt: skip
def test_bad_text(text: str) -> None:
    with pytest.raises(InputError, match="partition = .*; must be iid, dirichlet:ALPHA, shards:K or size") as error:
        PartitionSpec.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [-1, 6])
def test_bad_sizes(size: int) -> None:
    with pytest.raises(InputError, match=rf"device 1: samples = {size}; must be in 0..5, which is what the data set has"):
        deal(labels_of([3, 2]), [1, size], "iid")
