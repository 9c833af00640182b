"""Pairs of a candidate and its number of steps: what each costs but for its upload, and the best work in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import LOCAL_DRIFT_FACTOR, LOCAL_NOISE_FACTOR, prox_step_square_sum, prox_step_sum
from schedopt.formulation.candidates.columns import ParallelArrays, Prices, value_of_h
from schedopt.formulation.candidates.listing import Candidates
from schedopt.formulation.resources import MARGIN
from schedopt.formulation.uplink import Uploads
from schedopt.problem import FloatArray, IntArray

__all__ = ["Blocks", "Cells", "best_work", "blocks_of", "cells_of", "chunk_of", "with_blocks"]


@dataclass(frozen=True)
class Cells:
    """(candidate, steps) pairs to price, flat arrays: constants of min_y,T  fixed + Ke/y + ξ E_cmp(y, T_c) + upload(T_ul)."""

    candidate: IntArray
    steps: FloatArray
    fixed: FloatArray
    ke: FloatArray
    energy_price: FloatArray
    bandwidth_price: FloatArray
    capacitance: FloatArray
    cycles: FloatArray
    freq_min: FloatArray
    freq_max: FloatArray
    work_low: FloatArray
    work_high: FloatArray
    available_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    uploads: Uploads

    def take(self, index: object) -> Cells:
        cut = {n: getattr(self, n)[index] for n in self.__dataclass_fields__ if n != "uploads"}
        return Cells(**cut, uploads=self.uploads.take(index))


def best_work(cells: Cells, time_s: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best y at compute time ``time_s``: y, its cost Ke/y + ξ E_cmp, and −d cost/d time (all of the cells' shape).

    E_cmp = ½κ c y max(f_min, c y/T)² is convex with a kink at y0 = f_min T/c; both branches have closed-form minimisers.
    """
    c, f_min, weight = cells.cycles, cells.freq_min, cells.energy_price * cells.capacitance
    kink = f_min * time_s / c
    fast = np.sqrt(np.sqrt(cells.ke / (1.5 * weight * c)) * time_s / c)
    slow = np.sqrt(cells.ke / (0.5 * weight * c)) / f_min
    ceiling = cells.freq_max * time_s / c
    wanted = np.where(fast > kink, fast, np.minimum(slow, kink))
    y = np.clip(wanted, cells.work_low, np.minimum(cells.work_high, np.maximum(ceiling, cells.work_low)))
    freq = np.maximum(f_min, c * y / time_s)
    marginal_noise = cells.ke / (y * y)
    cost = marginal_noise * y + 0.5 * weight * c * y * freq * freq
    share = np.where(y > kink, 1.0, np.where(y < kink, 0.0, np.clip(marginal_noise / (weight * c * f_min * f_min) - 0.5, 0.0, 1.0)))
    slope = share * weight * freq**3
    capped = (wanted > ceiling) & (ceiling < cells.work_high)
    slope = slope + np.where(capped, np.maximum(marginal_noise - 1.5 * weight * c * freq * freq, 0.0) * cells.freq_max / c, 0.0)
    return y, cost, slope


@dataclass(frozen=True)
class Blocks(ParallelArrays):
    """What does not depend on prices of (candidate, block of steps) pairs, flat arrays.

    ``steps``: last of the block; ``h_low``, ``h_high``: h at its ends; ``linear``: scaled error terms without σ at its first steps;
    ``local``, ``noise``: coefficients of σ²-terms times e at its first steps (they multiply 1/y); ``local_full``, ``noise_full``: the
    same at its last steps over D (a full batch has no noise). Bounds of y and T_ul.
    """

    candidate: IntArray
    steps: FloatArray
    h_low: FloatArray
    h_high: FloatArray
    linear: FloatArray
    local: FloatArray
    noise: FloatArray
    local_full: FloatArray
    noise_full: FloatArray
    work_low: FloatArray
    work_high: FloatArray
    low_s: FloatArray
    high_s: FloatArray


def blocks_of(candidates: Candidates, first: IntArray, last: IntArray) -> Blocks:
    """Every allowed pair of a candidate and a block of steps ``first``..``last`` (both (n, m), 0 = none).

    Coefficients bound those of all steps of a block from below; they are exact where first = last.
    """
    a = candidates.arrays
    row, column = np.nonzero(last > 0)
    i, j = candidates.device[row], candidates.task[row]
    e_low, e_high = first[row, column].astype(float), last[row, column].astype(float)
    eta, theta, beta = a.learning_rate[j], a.server_weight[i, j], a.smoothness[j]
    shrink, weight = a.shrink[j], eta * theta
    h_low, h_high = weight * prox_step_sum(e_low, shrink), weight * prox_step_sum(e_high, shrink)
    local = candidates.scale["local"] * 2.0 * (beta * eta) ** 2
    variance, samples = a.gradient_variance[i, j], a.samples[i, j].astype(float)
    per_local = local * LOCAL_NOISE_FACTOR * variance
    per_noise = weight**2 * variance
    drift = local * LOCAL_DRIFT_FACTOR * e_low**2 * a.dissimilarity[i, j] ** 2
    work_low: np.ndarray = e_low * a.min_batch[j]
    fastest = a.cycles_per_sample[i, j] * work_low / a.freq_max_hz[i]
    low_s = candidates.uploads.take(row).shortest_s * (1.0 + MARGIN)
    high_s = np.minimum(a.slot_s * (1.0 - MARGIN), candidates.available_s[row] - fastest * (1.0 + MARGIN))
    blocks = Blocks(
        candidate=row,
        steps=e_high,
        h_low=h_low,
        h_high=h_high,
        linear=h_low * (candidates.linear_error[row] + drift),
        local=per_local * e_low**2 * h_low,
        noise=per_noise * prox_step_square_sum(e_low, shrink) * e_low,
        local_full=per_local * e_high * h_high / samples,
        noise_full=per_noise * prox_step_square_sum(e_high, shrink) / samples,
        work_low=work_low,
        work_high=e_high * samples,
        low_s=low_s,
        high_s=high_s,
    )
    return blocks.take(low_s <= high_s)


def with_blocks(candidates: Candidates, for_bound: bool) -> tuple[Candidates, Blocks]:
    """``candidates`` and their pairs with steps, or with blocks of steps where bounds must hold for all."""
    last = candidates.steps[candidates.task]
    return candidates, blocks_of(candidates, candidates.block[candidates.task] if for_bound else last, last)


def chunk_of(candidates: Candidates, begin: int, stop: int, for_bound: bool) -> tuple[Candidates, Blocks]:
    """Candidates begin..stop and their (candidate, steps) pairs, remembered while they fit in memory."""
    key = (begin, stop, for_bound and bool(np.any(candidates.block != candidates.steps)))
    if key in candidates.memory:
        return candidates.memory[key]
    made = with_blocks(candidates.take(slice(begin, stop)), for_bound)
    if candidates.remembered:
        candidates.memory[key] = made
    return made


def cells_of(candidates: Candidates, blocks: Blocks, prices: Prices, *, prune: bool = True) -> Cells:
    """Constants of the pairs at ``prices``; ``prune``: less those that cost more than they are worth even with free work."""
    a = candidates.arrays
    per_error = prices.noise[candidates.task]
    per_noise = per_error * candidates.scale["noise"] * a.smoothness[candidates.task]
    if prices.instant_noise is not None:
        per_noise = per_noise + prices.instant_noise[candidates.task, candidates.end]
    energy = prices.energy[candidates.device]
    receive = a.receive_power_w[candidates.device] * a.model_bits[candidates.task] / a.downlink_bps[candidates.device]
    least = energy * (receive + candidates.uploads.base_energy_j)
    row = blocks.candidate
    value = value_of_h(candidates, prices)[row]
    fixed = per_error[row] * (blocks.linear - blocks.local_full) - per_noise[row] * blocks.noise_full
    fixed -= np.where(value > 0, value * blocks.h_high, value * blocks.h_low)
    keep = np.flatnonzero((fixed + least[row] < 0.0) | (not prune))
    blocks, row, fixed = blocks.take(keep), row[keep], fixed[keep]
    i, j = candidates.device[row], candidates.task[row]
    return Cells(
        candidate=row,
        steps=blocks.steps,
        fixed=fixed + (energy * receive)[row],
        ke=per_error[row] * blocks.local + per_noise[row] * blocks.noise,
        energy_price=energy[row],
        bandwidth_price=prices.bandwidth[candidates.end[row] - 1],
        capacitance=a.capacitance[i],
        cycles=a.cycles_per_sample[i, j],
        freq_min=a.freq_min_hz[i],
        freq_max=a.freq_max_hz[i],
        work_low=blocks.work_low,
        work_high=blocks.work_high,
        available_s=candidates.available_s[row],
        low_s=blocks.low_s,
        high_s=blocks.high_s,
        uploads=candidates.uploads.take(row),
    )
