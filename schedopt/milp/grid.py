"""Which columns to discretise with: at a relaxation's prices and at others near them, whole batches, and shares of the band.

Every candidate's regret at the prices says how far it is from being on a best plan; those within reach get their best steps and batch
at several worths of h and of noise, and each of these the whole band, a half, a third, ... with the upload time that then needs the
least energy. Columns differ in what the MILP may mix: it then chooses between, and so shares the band anew.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from schedopt.formulation.candidates import Candidates, Columns, Paths, Prices, best_paths, make_columns, price, price_columns
from schedopt.formulation.resources import MARGIN
from schedopt.formulation.uplink import LN2
from schedopt.problem import FloatArray

__all__ = ["grid_columns", "nearest_columns", "share_columns", "whole_columns"]

#: Worths of h and of noise, as multiples of the prices', at which candidates choose their steps and batches.
_FACTORS = ((1.0, 1.0), (0.6, 1.0), (1.6, 1.0), (1.0, 0.4), (1.0, 2.5))
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
#: Golden sections: upload times to 1e-7 of their range.
_SECTIONS = 34


def grid_columns(candidates: Candidates, prices: Prices, known: Columns, *, levels: int, reach: float, most: int) -> Columns:
    """Columns of the candidates whose regret at ``prices`` is at most ``reach`` (in units of the objective), the best ``most`` of them.

    ``known``: further columns, whose steps and batches are used too; ``levels``: the band is shared by up to that many.
    """
    everything = known
    for worth, noise in _FACTORS:
        everything = everything.concat(price(candidates, replace(prices, value=worth * prices.value, noise=noise * prices.noise)).columns)
    everything = _once(whole_columns(candidates, everything))
    everything = everything.take(_regret(candidates, prices, everything) <= reach)
    everything = share_columns(candidates, everything, levels)
    return nearest_columns(candidates, prices, everything.take(_regret(candidates, prices, everything) <= reach), most)


def share_columns(candidates: Candidates, columns: Columns, levels: int) -> Columns:
    """The columns, and the same steps and batches over the whole band, a half, ..., 1/``levels`` of it, where that is possible."""
    for shared in [_at_share(candidates, columns, parts) for parts in range(1, levels + 1)]:
        columns = columns.concat(shared)
    return columns


def nearest_columns(candidates: Candidates, prices: Prices, columns: Columns, most: int) -> Columns:
    """The ``most`` columns of the least regret at ``prices``."""
    return columns.take(np.sort(np.argsort(_regret(candidates, prices, columns), kind="stable")[:most]))


def _regret(candidates: Candidates, prices: Prices, columns: Columns) -> FloatArray:
    """How much more a device pays at ``prices`` if it must use a column, shape of the columns."""
    cost = price_columns(candidates, columns, prices)
    least = np.full(len(candidates), np.inf)
    np.minimum.at(least, columns.candidate, cost)
    paths: Paths = best_paths(candidates, least)
    return paths.regret[columns.candidate] + cost - least[columns.candidate]


def whole_columns(candidates: Candidates, columns: Columns) -> Columns:
    """The columns with whole steps and batches, within the limits; those whose batch then is too late even at full speed are left out."""
    a, chosen = candidates.arrays, candidates.take(columns.candidate)
    i, j = chosen.device, chosen.task
    steps = np.round(columns.steps)
    batch = np.clip(np.round(columns.work / steps), a.min_batch[j], a.samples[i, j])
    fastest = a.freq_max_hz[i] * (chosen.available_s - columns.upload_s) / a.cycles_per_sample[i, j] * (1.0 + MARGIN)
    batch = np.where(steps * batch > fastest, np.floor(fastest / steps), batch)
    good = np.flatnonzero(batch >= a.min_batch[j])
    part = candidates.take(columns.candidate[good])
    work = (steps * batch)[good]
    return make_columns(part, columns.candidate[good], steps[good], work, columns.upload_s[good], columns.bandwidth_hz[good])


def _once(columns: Columns) -> Columns:
    """Without those that agree in candidate, steps, batch and, to about two digits, bandwidth."""
    band = np.round(50.0 * np.log(columns.bandwidth_hz)).astype(np.int64)
    keys = np.stack([columns.candidate, columns.steps.astype(np.int64), np.round(columns.work).astype(np.int64), band])
    return columns.take(np.sort(np.unique(keys, axis=1, return_index=True)[1]))


def _at_share(candidates: Candidates, columns: Columns, parts: int) -> Columns:
    """The same steps and batches over one of ``parts`` equal parts of the band, with the upload time of least energy; where possible."""
    a = candidates.arrays
    keys = np.stack([columns.candidate, columns.steps.astype(np.int64), np.round(columns.work).astype(np.int64)])
    columns = columns.take(np.sort(np.unique(keys, axis=1, return_index=True)[1]))
    chosen = candidates.take(columns.candidate)
    i, j = chosen.device, chosen.task
    band = np.full(len(columns), a.bandwidth_hz / parts)
    up = chosen.uploads
    shortest = up.bits * LN2 / (band * np.log1p(up.max_power_w / (up.noise_over_gain * band))) * (1.0 + 10.0 * MARGIN)
    fastest = a.cycles_per_sample[i, j] * columns.work / a.freq_max_hz[i]
    longest = np.minimum(a.slot_s * (1.0 - MARGIN), chosen.available_s - fastest * (1.0 + MARGIN))
    good = np.flatnonzero(shortest <= longest)
    columns, chosen, band = columns.take(good), chosen.take(good), band[good]

    def at(time_s: FloatArray) -> Columns:
        return make_columns(chosen, columns.candidate, columns.steps, columns.work, time_s, band)

    low, high = shortest[good], longest[good]
    for _ in range(_SECTIONS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        lower = at(left).energy_j <= at(right).energy_j
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    return at(0.5 * (low + high))
