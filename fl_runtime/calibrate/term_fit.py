r"""Multipliers of the bound's terms from pilot runs: those with which Ψ orders schedules as training does.

Ψ = (8/3)/H · Σ_k c_k T_k with c ≥ 0. What a run gives (its final loss, say) is no linear function of Ψ, so that only ranks are fitted, and
few runs tell little of seven multipliers. So three numbers are fitted: how many times the starting scale's T_part, its local errors
(T_local, T_data) and its gradient noise (T_noise, T_stale) count. All combinations of :data:`TIMES` are tried; the best is that of the
greatest

    ρ − r · |log times|,

ρ Spearman's rank correlation between Ψ and outcome, r = :data:`PULL`. On half of the schedules of 15 cells of ``benchmarks.validation``
this ordered the other half better (0.958 on average) than multipliers that are each fitted for themselves by a smooth surrogate (0.950) or
by a wider grid (0.955). The starting scale itself and plain T_opt/H (all other c = 0) are candidates too, and what remains if the fit
orders runs that it has not seen worse than they do.

Only runs of one task are compared with one another; multipliers for several tasks are those that order the runs of each best on average.
Terms that no schedule changes (opt, loss) and terms that are zero in all runs keep their starting multipliers. The fit knows no more than
its runs: a solver that minimises the fitted Ψ goes where Ψ is least, so runs by *optimised* schedules belong among the pilots as well, and
what is written is decided by training (:mod:`fl_runtime.calibrate.tournament`).
Tested with planted multipliers in ``tests/runtime/test_term_fit.py``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, TypeVar

import numpy as np
from scipy.stats import rankdata

from schedopt.errors import InputError
from schedopt.generate.presets import OBJECTIVES
from schedopt.problem import TERMS, FloatArray, IntArray

__all__ = [
    "LEAST_SAMPLES",
    "PLAIN",
    "START",
    "PilotSample",
    "TermFit",
    "agreement",
    "best_form",
    "fit_terms",
    "guide_values",
    "rank_correlation",
    "spread_out",
]

#: Fewer runs than this say too little.
LEAST_SAMPLES = 8
#: Multipliers of the starting scale, and of plain T_opt/H (T_loss, a constant as T_opt is, counts with it); shape (7,).
START: FloatArray = np.array([OBJECTIVES["practical"]["term_scale"][term] for term in TERMS])
PLAIN: FloatArray = np.where([term in ("opt", "loss") for term in TERMS], START, 0.0)

#: How many times the starting scale counts: terms that share a number, and the numbers that are tried.
TIMES: dict[tuple[str, ...], tuple[float, ...]] = {
    ("part",): (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
    ("local", "data"): (0.0, 0.03, 0.1, 0.3, 1.0, 3.0),
    ("noise", "stale"): (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
}
#: Rank correlation that a number e times from 1 costs (0 is as far as :data:`LEAST_TIMES`).
PULL, LEAST_TIMES = 0.002, 0.01
FOLDS = 5
#: Rank correlation that a simpler form may cost.
TOLERANCE = 0.005

Form = TypeVar("Form", bound=Hashable)


@dataclass(frozen=True)
class PilotSample:
    """One pilot run of a task.

    ``terms``: raw T_k, shape (7,), in the order of ``schedopt.problem.TERMS``, with the participation that the problem is to have;
    ``h_total``: H; ``outcome``: what was measured, smaller is better, NaN or inf for a run that diverged; ``seconds``: what it cost;
    ``group``: runs of one group (of one schedule, with several seeds or tasks) are never on both sides of a cross-validation; None: on its
    own. ``task``: only runs of one task are compared.
    """

    terms: FloatArray
    h_total: float
    outcome: float
    seconds: float = 0.0
    group: Hashable = None
    task: Hashable = None


@dataclass(frozen=True)
class TermFit:
    """Multipliers c (7,), and how well they order runs that were not used for them.

    ``chosen``: "fit", "start" (the starting scale orders as well) or "plain" (nothing beats T_opt/H). Spearman's ρ between Ψ and outcome,
    mean over tasks: ``spearman`` of the whole procedure, cross-validated; ``spearman_plain`` of T_opt/H, ``spearman_start`` of the starting
    scale; ``spearman_seen`` of ``multipliers`` on the runs they were fitted to. ``samples`` runs took ``seconds``.
    """

    multipliers: FloatArray
    chosen: str
    spearman: float
    spearman_plain: float
    spearman_start: float
    spearman_seen: float
    samples: int
    seconds: float

    @property
    def term_scale(self) -> dict[str, float]:
        """As in the problem file's ``objective.term_scale``."""
        return dict(zip(TERMS, self.multipliers.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, the multipliers by name."""
        return {"term_scale": self.term_scale} | {f.name: getattr(self, f.name) for f in fields(self) if f.name != "multipliers"}


def guide_values(multipliers: FloatArray, terms: FloatArray, h_total: FloatArray) -> FloatArray:
    """Ψ without its factor 8/3, Σ_k c_k T_k / H, of ``terms`` (n, 7) and H (n,)."""
    return terms @ multipliers / h_total


def rank_correlation(guide: FloatArray, outcome: FloatArray) -> float:
    """Spearman's ρ; 0 where one of the two tells nothing apart. Outcomes that are not finite are the worst."""
    return float(_rank_correlations(guide[:, None], outcome)[0])


def _rank_correlations(guides: FloatArray, outcome: FloatArray) -> FloatArray:
    """:func:`rank_correlation` of every column of ``guides`` (n, m), shape (m,)."""
    first, second = (rankdata(np.where(np.isnan(values), np.inf, values), axis=0) for values in (guides, outcome))
    first, second = first - first.mean(axis=0), second - second.mean()
    scale = np.sqrt((first**2).sum(axis=0) * (second @ second))
    return np.divide(second @ first, scale, out=np.zeros(len(scale)), where=scale > 0)


def fit_terms(samples: Sequence[PilotSample], *, seed: int) -> TermFit:
    """The multipliers with which Ψ orders ``samples`` best without leaning on chance; ``seed``: of folds.

    Raises :class:`~schedopt.errors.InputError` for fewer than :data:`LEAST_SAMPLES` runs, and for runs whose terms are no terms.
    """
    runs, rng = _runs_of(samples), np.random.default_rng(seed)
    candidates, cost = _candidates(runs)
    guides = guide_values(candidates.T, runs.terms, runs.h_total[:, None])
    by_plain, by_start = (runs.agreement(guide_values(c, runs.terms, runs.h_total)) for c in (PLAIN, START))
    best, spearman = _best(runs.agreements(guides), cost), runs.agreement(_unseen(guides, cost, runs, rng))
    if best in (_START, _PLAIN) or spearman < max(by_plain, by_start):
        best, spearman = (_START, by_start) if by_start >= by_plain else (_PLAIN, by_plain)
    multipliers, chosen = candidates[best].copy(), {_START: "start", _PLAIN: "plain"}.get(best, "fit")
    seen = runs.agreement(guide_values(multipliers, runs.terms, runs.h_total))
    seconds = float(sum(sample.seconds for sample in samples))
    return TermFit(multipliers, chosen, spearman, by_plain, by_start, seen, len(samples), seconds)


def agreement(samples: Sequence[PilotSample], multipliers: FloatArray) -> float:
    """Spearman's ρ between Ψ with ``multipliers`` and the outcomes, mean over tasks."""
    runs = _runs_of(samples)
    return runs.agreement(guide_values(multipliers, runs.terms, runs.h_total))


def best_form(samples: Mapping[Form, Sequence[PilotSample]], *, seed: int) -> tuple[Form, TermFit]:
    """Of several forms of the bound, each with the same runs in its own terms and H, the one whose fit orders unseen runs best.

    The first of those that are within :data:`TOLERANCE` of the best: put the simplest form first. The fit's ``spearman`` does not know
    of this choice; with a handful of forms it is hardly too good.
    """
    fits = {form: fit_terms(runs, seed=seed) for form, runs in samples.items()}
    best = max(fit.spearman for fit in fits.values())
    form = next(name for name, fit in fits.items() if fit.spearman >= best - TOLERANCE)
    return form, fits[form]


def spread_out(terms: FloatArray, h_total: FloatArray, count: int) -> IntArray:
    """Positions of ``count`` schedules, of those with ``terms`` (n, 7) and H (n,), that lie far from one another: worth a pilot run.

    Distances are those of log H and of the logarithms of the shares T_k/H, each from 0 to 1 over all schedules; the first is the one
    next to the middle, each further one the farthest from those chosen (Gonzalez 1985).
    """
    shares = terms / h_total[:, None]
    used = [k for k in range(len(TERMS)) if shares[:, k].max() > shares[:, k].min()]
    columns = [np.log(h_total), *(np.log(np.maximum(shares[:, k], 1e-6 * shares[:, k].max())) for k in used)]
    place = np.stack([(c - c.min()) / max(float(np.ptp(c)), 1e-300) for c in columns], axis=1)
    chosen = [int(np.argmin(((place - np.median(place, axis=0)) ** 2).sum(axis=1)))]
    nearest = ((place - place[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(place)):
        nearest[chosen[-1]] = -1.0
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((place - place[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen, dtype=np.int64)


# --- runs ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """``terms`` (n, 7), ``h_total`` (n,), ``outcome`` (n,) with inf for what diverged, ``group`` and ``task`` (n,) numbers from 0."""

    terms: FloatArray
    h_total: FloatArray
    outcome: FloatArray
    group: IntArray
    task: IntArray

    def take(self, rows: IntArray) -> _Runs:
        return _Runs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def agreement(self, guide: FloatArray) -> float:
        """Spearman's ρ of ``guide`` (n,) with the outcome, mean over tasks."""
        return float(self.agreements(guide[:, None])[0])

    def agreements(self, guides: FloatArray) -> FloatArray:
        """:meth:`agreement` of every column of ``guides`` (n, m), shape (m,)."""
        mine = [self.task == task for task in np.unique(self.task)]
        return np.mean([_rank_correlations(guides[rows], self.outcome[rows]) for rows in mine], axis=0)

    def places(self, guides: FloatArray) -> FloatArray:
        """Place of every run among those of its task by ``guides`` (n, m), 0 to 1: what different guides say becomes comparable."""
        found = np.empty(guides.shape)
        for task in np.unique(self.task):
            mine = self.task == task
            found[mine] = rankdata(guides[mine], axis=0) / np.sum(mine)
        return found


def _runs_of(samples: Sequence[PilotSample]) -> _Runs:
    if len(samples) < LEAST_SAMPLES:
        raise InputError(f"pilot runs = {len(samples)}; must be at least {LEAST_SAMPLES}")
    shapes = {np.shape(sample.terms) for sample in samples}
    if shapes != {(len(TERMS),)}:
        raise InputError(f"terms of pilot runs have the shapes {sorted(shapes)}; must be ({len(TERMS)},)")
    numbers: dict[Hashable, int] = {}
    group = [numbers.setdefault((k,) if s.group is None else (s.group, "group"), len(numbers)) for k, s in enumerate(samples)]
    tasks: dict[Hashable, int] = {}
    task = [tasks.setdefault(s.task, len(tasks)) for s in samples]
    terms = np.array([np.asarray(s.terms, float) for s in samples])
    h_total, outcome = (np.array([getattr(s, name) for s in samples], dtype=float) for name in ("h_total", "outcome"))
    opt = terms[:, TERMS.index("opt")]
    for k in range(len(samples)):
        if not (np.isfinite(terms[k]).all() and (terms[k] >= 0).all() and opt[k] > 0 and 0 < h_total[k] < np.inf):
            found = f"terms {terms[k].tolist()}, H = {h_total[k]}"
            raise InputError(f"pilot run {k}: {found}; must be at least 0 and finite, opt and H positive")
    outcome = np.where(np.isfinite(outcome), outcome, np.inf)
    return _Runs(terms, h_total, outcome, np.array(group, dtype=np.int64), np.array(task, dtype=np.int64))


# --- choosing ---------------------------------------------------------------------------------------------------------------------

#: positions of the starting scale and of plain T_opt/H among the candidates
_START, _PLAIN = 0, 1


def _candidates(runs: _Runs) -> tuple[FloatArray, FloatArray]:
    """Multipliers (m, 7) that are tried, the starting scale and plain first, and (m,) what they cost of rank correlation."""
    groups = [np.isin(TERMS, names) & (runs.terms.max(axis=0) > 0) for names in TIMES]
    times = np.array([(1.0,) * len(TIMES), (0.0,) * len(TIMES), *product(*TIMES.values())])
    factors = np.ones((len(times), len(TERMS)))
    for k, group in enumerate(groups):
        factors[:, group] = times[:, [k]]
    multipliers = START * factors
    multipliers[_PLAIN] = PLAIN
    used = np.array([group.any() for group in groups])
    away = np.log(np.maximum(times, LEAST_TIMES)) * used
    cost = PULL * np.sqrt((away**2).sum(axis=1))
    cost[_PLAIN] = 0.0  # it is as simple
    return multipliers, cost


def _best(agreements: FloatArray, cost: FloatArray) -> int:
    """The candidate that orders runs best after its cost; the first of equal ones."""
    return int(np.argmax(np.round(agreements - cost, 12)))


def _unseen(guides: FloatArray, cost: FloatArray, runs: _Runs, rng: np.random.Generator) -> FloatArray:
    """Place of every run among all by the candidate that is best without the run's fold; a group is never divided."""
    groups = int(runs.group.max()) + 1
    if groups < 2:
        return np.zeros(len(runs.group))  # nothing is unseen
    fold = (rng.permutation(groups) % min(FOLDS, groups))[runs.group]
    places, found = runs.places(guides), np.empty(len(fold))
    for k in range(int(fold.max()) + 1):
        others = np.flatnonzero(fold != k)
        found[fold == k] = places[fold == k, _best(runs.take(others).agreements(guides[others]), cost)]
    return found
