"""Streams of random numbers, one per topic, and numbers as they stand in a problem file."""

from __future__ import annotations

from typing import Any

import numpy as np

from schedopt.problem import FloatArray, IntArray

__all__ = ["DIGITS", "apportion", "rounded", "stream"]

#: Decimal digits of the random numbers in a problem.
DIGITS = 6
#: Below this a number has lost digits, and its power of ten may be zero: it is taken for zero.
_TINY = np.finfo(float).tiny
#: One stream of random numbers per topic; new topics go to the end.
_TOPICS = ("position", "shadowing", "fading", "cpu", "power", "downlink", "budget", "holders", "sizes", "cycles", "gradients")


def stream(seed: int, topic: str, *index: int) -> np.random.Generator:
    """The random numbers of a topic, or of one task of it."""
    return np.random.default_rng([seed, _TOPICS.index(topic), *index])


def rounded(values: FloatArray | float) -> Any:
    """Values with few digits, so that files stay readable; a list for an array."""
    array = np.asarray(values, float)
    array = np.where(np.abs(array) < _TINY, 0.0, array)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(array > 0, np.floor(np.log10(array)), 0.0)
    mantissa = np.round(array / 10.0**exponent, DIGITS - 1)
    # through text: 3.2 · 1e-12 in floating point would print as 3.2000000000000004e-12
    text = [float(f"{m:.{DIGITS - 1}f}e{int(e)}") for m, e in zip(mantissa.ravel(), exponent.ravel(), strict=True)]
    return np.array(text).reshape(array.shape).tolist()


def apportion(fractions: FloatArray, total: int) -> IntArray:
    """Whole numbers of sum ``total`` nearest to ``fractions`` of it (largest remainders; ties to the first)."""
    exact = fractions * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]] += 1
    return counts
