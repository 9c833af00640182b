r"""Convex models of the bounds Ψ_j = (8/3)(C_j + N_j)/H_j that the master minimises.

Per task, with w = (8/3)γ_j, C the scaled terms that no schedule changes (T_opt, T_loss), N the scaled error terms and H = Σ h_s:

    a/H + b N + c H + q N² + r/H²   on   low ≤ H ≤ high.

- :func:`majorant`: at an iterate (H0, N0), N/H ≤ ½[N²/(N0 H0) + N0 H0/H²], an upper bound that touches to first order, because
  xy ≤ ½(x²·y0/x0 + y²·x0/y0) for positive numbers; so the merit of the convex–concave iteration never rises.
- :func:`box_underestimator`: on H in [low, high], with N ≥ ρ H for a known least error ρ per unit of h,
  N/H = ρ + (N − ρH)/H ≥ ρ + (N − ρH)/high, exact where N = ρH or H = high.

Tested in ``tests/test_surrogates.py`` (values and gradients at the iterate, majorisation, underestimation, convexity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.problem import TERMS, FloatArray, ProblemArrays

__all__ = ["RatioModel", "box_underestimator", "fixed_terms", "majorant"]


@dataclass(frozen=True)
class RatioModel:
    """a/H + b N + c H + q N² + r/H² + constant per task on low ≤ H ≤ high; every array has shape (J,)."""

    inverse: FloatArray
    linear_error: FloatArray
    linear_h: FloatArray
    square_error: FloatArray
    inverse_square: FloatArray
    constant: FloatArray
    low: FloatArray
    high: FloatArray

    def value(self, h: FloatArray, error: FloatArray) -> FloatArray:
        """Value per task at H = ``h`` > 0, N = ``error``."""
        linear = self.linear_error * error + self.linear_h * h + self.constant
        return self.inverse / h + linear + self.square_error * error**2 + self.inverse_square / h**2


def fixed_terms(arrays: ProblemArrays) -> FloatArray:
    """C_j: scaled T_opt + T_loss, which no schedule changes, shape (J,)."""
    scale = dict(zip(TERMS, arrays.term_scale, strict=True))
    return scale["opt"] * arrays.initial_gap + scale["loss"] * (arrays.slots - 1) * arrays.loss_drift


def majorant(arrays: ProblemArrays, h: FloatArray, error: FloatArray) -> RatioModel:
    """Upper bound of γ_jΨ_j that touches at H = ``h``, N = ``error`` (both > 0, shape (J,))."""
    w = FACTOR * arrays.weight
    zero = np.zeros_like(w)
    square, inverse_square = w / (2.0 * error * h), w * error * h / 2.0
    return RatioModel(w * fixed_terms(arrays), zero, zero, square, inverse_square, zero, zero, np.full_like(w, np.inf))


def box_underestimator(arrays: ProblemArrays, low: FloatArray, high: FloatArray, least_error: FloatArray) -> RatioModel:
    """Lower bound of γ_jΨ_j for H in [low, high] and N ≥ ``least_error``·H; shape (J,) each."""
    w = FACTOR * arrays.weight
    zero = np.zeros_like(w)
    return RatioModel(w * fixed_terms(arrays), w / high, -w * least_error / high, zero, zero, w * least_error, low, high)
