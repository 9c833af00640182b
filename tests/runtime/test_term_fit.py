"""Multipliers of the terms from pilot runs: planted ones are found, nothing is made of noise, and the result is never below plain 1/H."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from fl_runtime.calibrate.term_fit import (
    LEAST_SAMPLES,
    PLAIN,
    START,
    PilotSample,
    fit_terms,
    guide_values,
    rank_correlation,
    spread_out,
)
from schedopt.errors import InputError
from schedopt.problem import TERMS

#: the starting scale with T_part ten, the local errors three and the noise five times
PLANTED = START * np.array([1.0, 1.0, 10.0, 3.0, 3.0, 5.0, 5.0])


def random_runs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Terms (n, 7) and H (n,) of the size that softmax regression in a strong regime has, each with its own causes."""
    rng = np.random.default_rng(seed)
    h_total = np.exp(rng.uniform(-2, 1, count))
    scale = np.array([0.0, 0.0, 40.0, 0.0, 5e5, 250.0, 1e4])
    terms = scale * h_total[:, None] * np.exp(rng.normal(0, 1, (count, 7)))
    terms[:, TERMS.index("opt")] = 2.5
    return terms, h_total


def samples_of(terms: np.ndarray, h_total: np.ndarray, outcome: np.ndarray, **more: object) -> list[PilotSample]:
    return [PilotSample(*row, **more) for row in zip(terms, h_total, outcome, strict=True)]  # type: ignore[arg-type]


def loss_of(psi: np.ndarray) -> np.ndarray:
    """A loss that grows with Ψ, but not linearly."""
    return 2.3 * psi / (psi + 10.0)


@pytest.mark.parametrize("seed", range(3))
def test_planted_multipliers_order_runs_that_were_not_fitted(seed: int) -> None:
    terms, h_total = random_runs(40, seed)
    noise = np.random.default_rng(seed).normal(0, 0.01, 40)
    fit = fit_terms(samples_of(terms, h_total, loss_of(guide_values(PLANTED, terms, h_total)) + noise, seconds=0.5), seed=seed)
    assert fit.chosen == "fit" and fit.samples == 40 and fit.seconds == pytest.approx(20.0)
    assert fit.spearman > max(fit.spearman_plain, fit.spearman_start) + 0.05
    others, h_others = random_runs(200, 100 + seed)
    truth = guide_values(PLANTED, others, h_others)
    assert spearmanr(guide_values(fit.multipliers, others, h_others), truth).statistic > 0.95
    for term in ("part", "local", "noise"):  # what matters is found within a factor
        k = TERMS.index(term)
        assert PLANTED[k] / 5 < fit.multipliers[k] < PLANTED[k] * 5


def test_units_do_not_matter() -> None:
    """Terms in other units (all by one factor) and H in others give the same multipliers."""
    terms, h_total = random_runs(30, 7)
    outcome = loss_of(guide_values(PLANTED, terms, h_total))
    one = fit_terms(samples_of(terms, h_total, outcome), seed=0)
    other = fit_terms(samples_of(1e6 * terms, 1e-9 * h_total, outcome), seed=0)
    np.testing.assert_allclose(other.multipliers, one.multipliers, rtol=1e-3)


def test_what_nothing_is_known_of_keeps_its_starting_multiplier() -> None:
    terms, h_total = random_runs(30, 3)
    terms[:, TERMS.index("stale")] = 0.0
    fit = fit_terms(samples_of(terms, h_total, loss_of(guide_values(PLANTED, terms, h_total))), seed=0)
    for term in ("opt", "loss", "data", "stale"):
        assert fit.term_scale[term] == START[TERMS.index(term)]


def test_plain_h_where_the_other_terms_only_mislead() -> None:
    terms, h_total = random_runs(40, 5)
    terms[:, 2:] *= 1e4  # the starting scale, too, is far off
    fit = fit_terms(samples_of(terms, h_total, 1 / h_total), seed=0)
    assert fit.spearman >= fit.spearman_plain - 1e-12 == pytest.approx(1.0)
    assert fit.chosen == "plain"
    np.testing.assert_array_equal(fit.multipliers, PLAIN)


def test_the_starting_scale_is_kept_where_it_is_as_good() -> None:
    terms, h_total = random_runs(40, 6)
    fit = fit_terms(samples_of(terms, h_total, guide_values(START, terms, h_total)), seed=0)
    assert fit.chosen == "start" and fit.spearman == pytest.approx(1.0)


def test_diverged_runs_are_the_worst() -> None:
    terms, h_total = random_runs(40, 8)
    psi = guide_values(PLANTED, terms, h_total)
    outcome = np.where(psi > np.quantile(psi, 0.8), np.nan, loss_of(psi))
    outcome[np.argmax(psi)] = np.inf
    fit = fit_terms(samples_of(terms, h_total, outcome), seed=0)
    assert fit.spearman > 0.9


def test_the_same_seed_gives_the_same_fit() -> None:
    terms, h_total = random_runs(25, 9)
    runs = samples_of(terms, h_total, loss_of(guide_values(PLANTED, terms, h_total)))
    one, other = fit_terms(runs, seed=4), fit_terms(runs, seed=4)
    np.testing.assert_array_equal(one.multipliers, other.multipliers)
    assert one.spearman == other.spearman


def test_runs_of_one_group_are_not_on_both_sides() -> None:
    """Outcomes that only the group explains cannot be learnt from the other run of the group."""
    rng = np.random.default_rng(0)
    terms, h_total = random_runs(20, 10)
    outcome = rng.permutation(20).astype(float)
    runs = [PilotSample(terms[k], float(h_total[k]), outcome[k], group=f"s{k}") for k in range(20) for _ in range(2)]
    fit = fit_terms(runs, seed=0)
    assert fit.spearman < 0.5 and fit.spearman >= fit.spearman_plain


def test_runs_of_a_single_group_say_nothing_of_unseen_ones() -> None:
    terms, h_total = random_runs(20, 4)
    fit = fit_terms(samples_of(terms, h_total, loss_of(guide_values(PLANTED, terms, h_total)), group="one"), seed=0)
    assert fit.chosen in ("start", "plain") and fit.spearman == max(fit.spearman_start, fit.spearman_plain)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(LEAST_SAMPLES, 20), st.floats(1e-12, 1e12))
def test_never_below_plain_h_and_always_finite(seed: int, count: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    terms = size * np.exp(rng.normal(0, 8, (count, 7))) * (rng.random((count, 7)) < 0.8)
    terms[:, 0] = size
    fit = fit_terms(samples_of(terms, np.exp(rng.normal(0, 5, count)), rng.integers(0, 4, count).astype(float)), seed=seed)
    assert np.isfinite(fit.multipliers).all() and (fit.multipliers >= 0).all() and fit.multipliers[0] == 1
    assert fit.spearman >= fit.spearman_plain - 1e-12 or fit.chosen == "fit"
    assert -1 <= fit.spearman <= 1 and fit.spearman >= fit.spearman_plain - 1e-12


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(np.ones(30), other) == 0.0
    assert rank_correlation(np.array([1.0, 2.0, np.nan]), np.array([1.0, 5.0, np.inf])) == pytest.approx(1.0)


def test_spread_out_covers_the_corners() -> None:
    terms, h_total = random_runs(300, 2)
    chosen = spread_out(terms, h_total, 40)
    assert len(set(chosen.tolist())) == 40
    share = np.log(np.c_[h_total, (terms / h_total[:, None])[:, [2, 4, 5, 6]]])
    away = np.sqrt((((share[:, None] - share[chosen][None]) / np.ptp(share, axis=0)) ** 2).sum(axis=2)).min(axis=1).max()
    some = np.random.default_rng(0).choice(300, 40, replace=False)
    by_chance = np.sqrt((((share[:, None] - share[some][None]) / np.ptp(share, axis=0)) ** 2).sum(axis=2)).min(axis=1).max()
    assert away < 0.8 * by_chance
    assert len(spread_out(terms[:5], h_total[:5], 10)) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda runs: runs[:5], "pilot runs = 5; must be at least 8"),
        (lambda runs: [*runs, PilotSample(np.ones(6), 1.0, 1.0)], "terms of pilot runs"),
        (lambda runs: [*runs, PilotSample(np.ones(7), 0.0, 1.0)], "pilot run 20: "),
        (lambda runs: [*runs, PilotSample(-np.ones(7), 1.0, 1.0)], "pilot run 20: "),
        (lambda runs: [*runs, PilotSample(np.full(7, np.nan), 1.0, 1.0)], "pilot run 20: "),
    ],
)
def test_bad_runs_are_refused_in_one_line(change, says: str) -> None:  # type: ignore[no-untyped-def]
    terms, h_total = random_runs(20, 0)
    runs = change(samples_of(terms, h_total, np.arange(20.0)))
    with pytest.raises(InputError) as caught:
        fit_terms(runs, seed=0)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


# --- several tasks -----------------------------------------------------------------------------------------------------------------


def test_runs_of_different_tasks_are_not_compared() -> None:
    """A task whose losses are all higher says nothing of multipliers; with its runs, the fit is what both tasks say."""
    terms, h_total = random_runs(60, 5)
    outcome = loss_of(guide_values(PLANTED, terms, h_total))
    shifted, names = outcome + 100.0 * (np.arange(60) % 2), ("easy", "hard")
    samples = [PilotSample(terms[k], float(h_total[k]), shifted[k], group=k // 2, task=names[k % 2]) for k in range(60)]
    apart = fit_terms(samples, seed=0)
    mixed = fit_terms([PilotSample(s.terms, s.h_total, s.outcome, group=s.group) for s in samples], seed=0)
    assert apart.chosen == "fit" and apart.spearman > 0.9 > mixed.spearman
    guide = guide_values(apart.multipliers, terms, h_total)
    by_task = [spearmanr(guide[k::2], outcome[k::2]).statistic for k in range(2)]
    assert apart.spearman_seen == pytest.approx(np.mean(by_task))


def test_shifting_the_losses_of_a_task_changes_nothing() -> None:
    terms, h_total = random_runs(40, 6)
    outcome = loss_of(guide_values(PLANTED, terms, h_total))
    fits = [
        fit_terms([PilotSample(terms[k], float(h_total[k]), outcome[k] + shift * (k % 2), task=k % 2) for k in range(40)], seed=0)
        for shift in (0.0, 50.0)
    ]
    np.testing.assert_array_equal(fits[0].multipliers, fits[1].multipliers)
