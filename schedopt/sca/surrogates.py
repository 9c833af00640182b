r"""Convex models of the bounds Ψ_j = (8/3)(C_j + N_j)/H_j that the master minimises.

Per task, with w = (8/3)γ_j, C the scaled terms that no schedule changes (T_opt, T_loss), N the scaled error terms and H = Σ h_s:

    a/H + b N + q N² + r/H²     on   low ≤ H ≤ high.

- :func:`majorant`: at an iterate (H0, N0), N/H ≤ ½[N²/(N0 H0) + N0 H0/H²], an upper bound that touches to first order, because
  xy ≤ ½(x²·y0/x0 + y²·x0/y0) for positive numbers; so the merit of the convex–concave iteration never rises.
- :func:`partial_linearisation`: N/H ≈ N/H0 + N0/H − N0/H0, which also touches to first order. It is off by −(N − N0)(1/H − 1/H0), so it
  stays above where N and H move together, as they mostly do, by at most half of what the majorant does: longer steps. Where it falls
  below, the loop notices on the exact merit and takes a step of the majorant instead.

Tested in ``tests/test_surrogates.py`` (values and gradients at the iterate, majorisation, underestimation, convexity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.problem import FloatArray, ProblemArrays

__all__ = ["RatioModel", "majorant", "partial_linearisation"]


@dataclass(frozen=True)
class RatioModel:
    """a/H + b N + q N² + r/H² + constant per task on low ≤ H ≤ high; every array has shape (J,)."""

    inverse: FloatArray
    linear_error: FloatArray
    square_error: FloatArray
    inverse_square: FloatArray
    constant: FloatArray
    low: FloatArray
    high: FloatArray

    def value(self, h: FloatArray, error: FloatArray) -> FloatArray:
        """Value per task at H = ``h`` > 0, N = ``error``."""
        linear = self.linear_error * error + self.constant
        return self.inverse / h + linear + self.square_error * error**2 + self.inverse_square / h**2


def majorant(arrays: ProblemArrays, h: FloatArray, error: FloatArray) -> RatioModel:
    """Upper bound of γ_jΨ_j that touches at H = ``h``, N = ``error`` (both > 0, shape (J,))."""
    w = FACTOR * arrays.weight
    zero = np.zeros_like(w)
    square, inverse_square = w / (2.0 * error * h), w * error * h / 2.0
    return RatioModel(w * fixed_terms(arrays), zero, square, inverse_square, zero, zero, np.full_like(w, np.inf))


def partial_linearisation(arrays: ProblemArrays, h: FloatArray, error: FloatArray) -> RatioModel:
    """Convex model of γ_jΨ_j that touches at H = ``h``, N = ``error`` (both > 0, shape (J,)); not an upper bound everywhere."""
    w = FACTOR * arrays.weight
    zero = np.zeros_like(w)
    inverse = w * (fixed_terms(arrays) + error)
    return RatioModel(inverse, w / h, zero, zero, -w * error / h, zero, np.full_like(w, np.inf))
