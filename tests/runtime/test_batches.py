"""Batches: without repeats, uniform, a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fl_runtime.training.batches import draw_batches


@given(
    steps=st.integers(1, 12),
    samples=st.integers(1, 80),
    share=st.floats(0, 1),
    seed=st.lists(st.integers(0, 2**31), min_size=1, max_size=3),
)
def test_rows_hold_distinct_samples(steps: int, samples: int, share: float, seed: list[int]) -> None:
    batch = max(1, round(share * samples))
    rows = draw_batches(tuple(seed), steps, batch, samples)
    assert rows.shape == (steps, batch) and rows.dtype == np.int64
    assert rows.min() >= 0 and rows.max() < samples
    assert all(len(set(row)) == batch for row in rows.tolist())
    assert np.array_equal(rows, draw_batches(tuple(seed), steps, batch, samples))


def _uniform(counts: np.ndarray, expected: float, degrees: int) -> bool:
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return chi2.ppf(1e-4, degrees) < statistic < chi2.ppf(1 - 1e-4, degrees)


@pytest.mark.parametrize(("samples", "batch"), [(9, 2), (8, 1), (9, 4), (6, 5), (40, 10)])
def test_uniform_over_samples_and_pairs(samples: int, batch: int) -> None:
    """Singles and pairs occur equally often; fixed seed, so this either holds or does not."""
    rows = draw_batches((5, 1), 20_000, batch, samples)
    inside = np.zeros((len(rows), samples))
    np.put_along_axis(inside, rows, 1, axis=1)
    pairs = inside.T @ inside
    # the inclusions of a row exclude one another: the variance of a count is n p (1 - p), spread over samples - 1 degrees
    share = batch / samples
    singles = np.diag(pairs)
    scaled = (singles - len(rows) * share) / np.sqrt(len(rows) * share * (1 - share) * samples / (samples - 1))
    assert chi2.ppf(1e-4, samples - 1) < float((scaled**2).sum()) < chi2.ppf(1 - 1e-4, samples - 1)
    if batch > 1:
        together = batch * (batch - 1) / (samples * (samples - 1))
        off = pairs[np.triu_indices(samples, 1)]
        assert np.abs(off - len(rows) * together).max() < 5 * np.sqrt(len(rows) * together)


def test_subsets_are_equally_likely() -> None:
    """All 36 pairs of 9 samples, drawn the fast way, against the uniform distribution."""
    rows = np.sort(draw_batches((11,), 36_000, 2, 9), axis=1)
    _, counts = np.unique(rows[:, 0] * 9 + rows[:, 1], return_counts=True)
    assert len(counts) == 36 and _uniform(counts, 1000, 35)


def test_steps_are_independent_of_one_another() -> None:
    """The same sample in consecutive batches as often as chance has it."""
    rows = draw_batches((2,), 40_000, 4, 20)
    inside = np.zeros((len(rows), 20))
    np.put_along_axis(inside, rows, 1, axis=1)
    both = float((inside[1:] * inside[:-1]).sum(axis=1).mean())
    assert abs(both - 4 * 4 / 20) < 0.02


def test_seeds_give_different_batches() -> None:
    first, second = (draw_batches((1, k), 5, 8, 600) for k in range(2))
    assert not np.array_equal(first, second)


def test_all_samples_need_no_draw() -> None:
    assert np.array_equal(draw_batches((1,), 2, 3, 3), [[0, 1, 2], [0, 1, 2]])
