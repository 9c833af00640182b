"""Random variants of a problem: the same structure, other channels, computations, noise and price of energy."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from schedopt.files import parse_problem
from schedopt.problem import Problem

__all__ = ["variant"]

#: Standard deviations of the logarithms of the factors: enough to change which assignments are best, seldom what is possible.
GAIN_SPREAD, CYCLES_SPREAD, VARIANCE_SPREAD, ENERGY_WEIGHT_SPREAD = 0.4, 0.2, 0.3, 0.4


def _factor(rng: np.random.Generator, spread: float) -> float:
    return float(np.exp(spread * rng.standard_normal()))


def variant(problem: Problem, number: int, seed: int = 0) -> Problem:
    """Variant ``number`` of ``problem``; equal arguments give equal problems.

    Every gain (per slot), cycles per sample, gradient variance and the energy weight is multiplied by a log-normal factor of its own.
    """
    # the name is part of the stream, so that variants of different problems are not alike
    rng = np.random.default_rng([seed, zlib.crc32(problem.name.encode()), number])
    data: dict[str, Any] = problem.to_dict()
    data["name"] = f"{problem.name}_variant{number:02d}"
    data["objective"]["energy_weight"] *= _factor(rng, ENERGY_WEIGHT_SPREAD)
    for device in data["devices"]:
        gain = device["gain"]
        if isinstance(gain, (list, tuple)):
            device["gain"] = [value * _factor(rng, GAIN_SPREAD) for value in gain]
        else:
            device["gain"] = gain * _factor(rng, GAIN_SPREAD)
        for pair in device["tasks"].values():
            pair["cycles_per_sample"] *= _factor(rng, CYCLES_SPREAD)
            pair["gradient_variance"] *= _factor(rng, VARIANCE_SPREAD)
    return parse_problem(data)
