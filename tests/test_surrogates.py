"""Convex models of the bounds: tangency, majorisation, underestimation, convexity; and the joint-convexity claims behind the masters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from builders import cases, make_problem, random_problem, seeds
from hypothesis import given

from schedopt.bounds.async_schedule import FACTOR, aggregate, fixed_terms, prox_step_sum, raw_terms
from schedopt.formulation.uplink import energy_shape
from schedopt.physics import compute_energy_j, transmit_power_w
from schedopt.problem import TERMS, ProblemArrays
from schedopt.sca.surrogates import RatioModel, majorant, partial_linearisation
from schedopt.schedule import Schedule

PART = TERMS.index("part")


def random_arrays(rng: np.random.Generator) -> ProblemArrays:
    return make_problem(random_problem(rng, tasks=3)).arrays


def log_uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...] | int = ()) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), shape))


def ratio(arrays: ProblemArrays, h: np.ndarray, error: np.ndarray) -> np.ndarray:
    """γ_jΨ_j = (8/3) γ (C + N)/H."""
    return 8.0 / 3.0 * arrays.weight * (fixed_terms(arrays) + error) / h


def iterate(rng: np.random.Generator) -> tuple[ProblemArrays, np.ndarray, np.ndarray]:
    arrays = random_arrays(rng)
    h = log_uniform(rng, 1e-4, 1e2, 3)
    return arrays, h, np.maximum(fixed_terms(arrays), 1e-3) * log_uniform(rng, 1e-3, 1e3, 3)


def differences(function: Callable[[np.ndarray], np.ndarray], point: np.ndarray) -> np.ndarray:
    """Central difference of an elementwise function, relative step."""
    step = 1e-5 * point
    return (function(point + step) - function(point - step)) / (2 * step)


@cases(60)
@given(seeds)
def test_fixed_terms_are_what_no_schedule_changes(seed: int) -> None:
    """Scaled T_opt + T_loss, as the exact evaluator has them for any schedule."""
    rng = np.random.default_rng(seed)
    problem = make_problem(random_problem(rng))
    schedule = Schedule.empty()
    raw = raw_terms(problem, schedule, aggregate(problem.arrays, schedule)) * problem.arrays.term_scale
    np.testing.assert_allclose(fixed_terms(problem.arrays), raw[:, :2].sum(axis=1), rtol=1e-14)


# --- majorant ------------------------------------------------------------------------------------------------------------------------


def check_touches(arrays: ProblemArrays, model: RatioModel, h: np.ndarray, error: np.ndarray) -> None:
    """Value and gradient of the model are those of the ratio at (H, N) = (h, error)."""
    value = ratio(arrays, h, error)
    np.testing.assert_allclose(model.value(h, error), value, rtol=1e-12)
    # derivatives times their variable have the size of the value, whatever the units
    for f, g, point in (
        (lambda x: model.value(x, error), lambda x: ratio(arrays, x, error), h),
        (lambda x: model.value(h, x), lambda x: ratio(arrays, h, x), error),
    ):
        off = (differences(f, point) - differences(g, point)) * point
        assert np.all(np.abs(off) <= 1e-8 * value)


@cases(80)
@given(seeds)
def test_majorant_touches_in_value_and_gradient(seed: int) -> None:
    arrays, h, error = iterate(np.random.default_rng(seed))
    check_touches(arrays, majorant(arrays, h, error), h, error)


@cases(80)
@given(seeds)
def test_majorant_lies_above(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays, h0, error0 = iterate(rng)
    model = majorant(arrays, h0, error0)
    for _ in range(50):
        h, error = h0 * log_uniform(rng, 1e-3, 1e3, 3), error0 * log_uniform(rng, 1e-3, 1e3, 3) * (rng.random(3) < 0.9)
        exact = ratio(arrays, h, error)
        assert np.all(model.value(h, error) >= exact * (1 - 1e-12))


def midpoint_excess(function: Callable[..., np.ndarray], first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> np.ndarray:
    """f(midpoint) − ½(f(a) + f(b)) over the size of the values: at most rounding for a convex function."""
    middle = tuple(0.5 * (x + y) for x, y in zip(first, second, strict=True))
    at_first, at_second, at_middle = function(*first), function(*second), function(*middle)
    scale = np.maximum(np.abs(at_first), np.abs(at_second)) + 1e-300
    return (at_middle - 0.5 * (at_first + at_second)) / scale


@cases(40)
@given(seeds)
def test_majorant_is_convex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays, h0, error0 = iterate(rng)
    model = majorant(arrays, h0, error0)

    def point() -> tuple[np.ndarray, np.ndarray]:
        return h0 * log_uniform(rng, 1e-2, 1e2, 3), error0 * log_uniform(rng, 1e-2, 1e2, 3)

    for _ in range(30):
        assert np.all(midpoint_excess(model.value, point(), point()) <= 1e-12)


def test_the_ratio_itself_is_not_convex() -> None:
    """Otherwise no majorant were needed: the midpoint test can tell."""
    arrays = random_arrays(np.random.default_rng(0))
    used = arrays.weight > 0
    assert used.any()

    def ratios(h: np.ndarray, error: np.ndarray) -> np.ndarray:
        return ratio(arrays, h, error) - ratio(arrays, h, 0.0 * error)

    one = np.ones(3)
    assert np.all(midpoint_excess(ratios, (one, one), (3 * one, 5 * one))[used] > 1e-2)


# --- partial linearisation -------------------------------------------------------------------------------------------------------------


@cases(60)
@given(seeds)
def test_partial_linearisation_touches_and_is_convex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays, h, error = iterate(rng)
    model = partial_linearisation(arrays, h, error)
    check_touches(arrays, model, h, error)
    # the constant may be large and negative: rounding is that of the largest part
    size = FACTOR * arrays.weight * (fixed_terms(arrays) + error) / h

    def point() -> tuple[np.ndarray, np.ndarray]:
        return h * log_uniform(rng, 1e-1, 1e2, 3), error * log_uniform(rng, 1e-2, 1e2, 3)

    for _ in range(20):
        first, second = point(), point()
        middle = tuple(0.5 * (x + y) for x, y in zip(first, second, strict=True))
        assert np.all(model.value(*middle) - 0.5 * (model.value(*first) + model.value(*second)) <= 1e-10 * size)


@cases(60)
@given(seeds)
def test_partial_linearisation_is_off_by_the_product_of_the_steps(seed: int) -> None:
    """By −w(N − N0)(1/H − 1/H0): above where N and H move together; the majorant is off by at least twice as much there."""
    rng = np.random.default_rng(seed)
    arrays, h0, error0 = iterate(rng)
    linear, upper = partial_linearisation(arrays, h0, error0), majorant(arrays, h0, error0)
    h, error = h0 * log_uniform(rng, 0.1, 10.0, 3), error0 * log_uniform(rng, 0.1, 10.0, 3)
    exact = ratio(arrays, h, error)
    off = -FACTOR * arrays.weight * (error - error0) * (1.0 / h - 1.0 / h0)
    size = FACTOR * arrays.weight * (fixed_terms(arrays) + error + error0) * (1.0 / h + 1.0 / h0)
    assert np.all(np.abs(linear.value(h, error) - exact - off) <= 1e-12 * size)
    together = (error - error0) * (h - h0) >= 0
    assert np.all((linear.value(h, error) >= exact - 1e-12 * size) == (together | (np.abs(off) <= 1e-12 * size)))
    assert np.all(upper.value(h, error) - exact >= 2.0 * off - 1e-12 * size)


# --- joint convexity (formulation 4b) ---------------------------------------------------------------------------------------------------

Point = tuple[np.ndarray, ...]


def random_points(rng: np.random.Generator, dimensions: int, count: int = 400) -> Point:
    return tuple(log_uniform(rng, 0.05, 20.0, count) for _ in range(dimensions))


def compute_energy(work: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """½κ c y max(f_min, c y/T)² with κ = c = 1 and f_min = 1.5."""
    return compute_energy_j(1.0, 1.0, 1.0, work, np.maximum(1.5, work / time_s))


def upload_energy(time_s: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
    """(N0/gain) T W (2^{M/(TW)} − 1) with M = 3, N0 = gain = 1."""
    return time_s * transmit_power_w(3.0, time_s, bandwidth_hz, 1.0, 1.0)


def upload_energy_of_root(root: np.ndarray) -> np.ndarray:
    """The same as a function of √(TW) alone."""
    return energy_shape(3.0 * np.log(2.0) / root**2)


def horizon_part(h: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """2 (Σ_i |h_i − λ_i H| δ_i)²/H for three devices."""
    per_device = np.stack([h, *others])
    weight, delta = np.array([0.2, 0.3, 0.5])[:, None], np.array([1.0, 0.4, 2.5])[:, None]
    total = per_device.sum(axis=0)
    return 2.0 * (np.abs(per_device - weight * total) * delta).sum(axis=0) ** 2 / total


def perspective_of_compute(x: np.ndarray, work: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """x E(y/x, T/x): the gated energy of a fraction x of an assignment."""
    return x * compute_energy(work / x, time_s / x)


CONVEX: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "compute energy in work and time": (compute_energy, 2),
    "upload energy in time and bandwidth": (upload_energy, 2),
    "upload energy in the root of time times bandwidth": (lambda s: upload_energy_of_root(0.1 + s), 1),
    "gradient noise e^2/y": (lambda e, y: e**2 / y, 2),
    "local noise e^3/y": (lambda e, y: e**3 / y, 2),
    "local drift e^3": (lambda e: e**3, 1),
    "horizon participation": (horizon_part, 3),
    "gated compute energy": (perspective_of_compute, 3),
    "steps of proximal descent, negated": (lambda e: -prox_step_sum(e, np.array(0.2)), 1),
    "root of time times bandwidth, negated": (lambda t, w: -np.sqrt(t * w), 2),
}


@pytest.mark.parametrize("name", CONVEX)
@cases(12)
@given(seed=seeds)
def test_jointly_convex_by_midpoints(name: str, seed: int) -> None:
    """Far and near pairs of points."""
    rng = np.random.default_rng(seed)
    function, dimensions = CONVEX[name]
    first = random_points(rng, dimensions)
    for second in (random_points(rng, dimensions), tuple(x * log_uniform(rng, 0.9, 1.1, len(x)) for x in first)):
        with np.errstate(over="ignore"):
            values = function(*first), function(*second)
        keep = np.isfinite(values[0]) & np.isfinite(values[1])
        pair = tuple(x[keep] for x in first), tuple(x[keep] for x in second)
        assert keep.sum() > 100
        assert np.all(midpoint_excess(function, *pair) <= 1e-12)


def hessian(function: Callable[..., np.ndarray], point: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Second differences in relative coordinates: entries x_i x_j ∂²f/∂x_i∂x_j."""
    n = len(point)
    out = np.empty((n, n))

    def at(*moves: tuple[int, float]) -> float:
        shifted = point.copy()
        for k, amount in moves:
            shifted[k] += amount * step * point[k]
        return float(function(*(np.array([x]) for x in shifted))[0])

    for i in range(n):
        for j in range(n):
            out[i, j] = (at((i, 1), (j, 1)) - at((i, 1), (j, -1)) - at((i, -1), (j, 1)) + at((i, -1), (j, -1))) / (4 * step**2)
    return out


@pytest.mark.parametrize("name", [name for name, (_, dimensions) in CONVEX.items() if dimensions > 1])
def test_hessians_are_positive_semidefinite(name: str) -> None:
    rng = np.random.default_rng(17)
    function, dimensions = CONVEX[name]
    for _ in range(60):
        point = log_uniform(rng, 0.5, 5.0, dimensions)
        matrix = hessian(function, point)
        size = np.abs(matrix).max() + np.abs(function(*(np.array([x]) for x in point))).max()
        assert np.linalg.eigvalsh(0.5 * (matrix + matrix.T)).min() >= -1e-6 * size


def test_what_is_not_convex_is_caught() -> None:
    """The same checks on the native products: compute energy in steps and batch, and the rate in time and bandwidth."""
    rng = np.random.default_rng(3)

    def native(steps: np.ndarray, batch: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        return compute_energy(steps * batch, time_s)

    first, second = random_points(rng, 3), random_points(rng, 3)
    assert midpoint_excess(native, first, second).max() > 1e-2
    assert midpoint_excess(lambda t, w: t * w, first[:2], second[:2]).max() > 1e-2
    assert np.linalg.eigvalsh(hessian(native, np.array([1.0, 1.0, 3.0]))).min() < -0.1


def test_upload_energy_depends_on_time_times_bandwidth_alone() -> None:
    rng = np.random.default_rng(4)
    time_s, width = random_points(rng, 2, 100)
    keep = time_s * width > 0.01
    root = np.sqrt(time_s * width)[keep]
    unit = 3.0 * np.log(2.0)
    np.testing.assert_allclose(upload_energy(time_s[keep], width[keep]), unit * upload_energy_of_root(root), rtol=1e-10)
    grid = np.linspace(0.2, 10.0, 500)
    assert np.all(np.diff(upload_energy_of_root(grid)) < 0)


@cases(30)
@given(seeds)
def test_horizon_participation_is_that_of_the_evaluator(seed: int) -> None:
    """The function whose convexity is tested is T_part of the exact evaluator."""
    rng = np.random.default_rng(seed)
    problem = make_problem(random_problem(rng, devices=3, tasks=1, slots=3, participation="horizon"))
    a = problem.arrays
    holders = np.flatnonzero(a.has_data[:, 0] & (a.aggregation_weight[:, 0] > 0))
    one = np.ones(len(holders))
    schedule = Schedule(holders, 0 * holders, 0 * holders, 0 * holders + 1, rng.integers(1, 9, len(holders)), one, one, one, one)
    sums = aggregate(a, schedule)
    distance = sum(abs(sums.h_device[i, 0] - a.aggregation_weight[i, 0] * sums.h_total[0]) * a.dissimilarity[i, 0] for i in range(3))
    assert raw_terms(problem, schedule, sums)[0, PART] == pytest.approx(2 * distance**2 / sums.h_total[0], rel=1e-10, abs=1e-300)


# --- bounds of products -----------------------------------------------------------------------------------------------------------------


@cases(30)
@given(seeds)
def test_product_bounds_touch_and_lie_above(seed: int) -> None:
    """xy ≤ ½(x² y0/x0 + y² x0/y0), and xy = ½[(x+y)² − x² − y²] with its concave half linearised: both touch at (x0, y0)."""
    rng = np.random.default_rng(seed)
    x0, y0 = log_uniform(rng, 1e-3, 1e3), log_uniform(rng, 1e-3, 1e3)

    def by_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 * (x**2 * y0 / x0 + y**2 * x0 / y0)

    def by_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 * ((x + y) ** 2 - x0**2 - 2 * x0 * (x - x0) - y0**2 - 2 * y0 * (y - y0))

    x, y = x0 * log_uniform(rng, 1e-2, 1e2, 300), y0 * log_uniform(rng, 1e-2, 1e2, 300)
    size = (x + y) ** 2 + (x0 + y0) ** 2
    for bound in (by_squares, by_difference):
        assert np.all(bound(x, y) >= x * y - 1e-13 * size)
        assert bound(x0, y0) == pytest.approx(x0 * y0, abs=1e-13 * (x0 + y0) ** 2)
        for step in ((1e-6 * x0, 0.0), (0.0, 1e-6 * y0)):
            up, down = bound(x0 + step[0], y0 + step[1]), bound(x0 - step[0], y0 - step[1])
            expected = (x0 + step[0]) * (y0 + step[1]) - (x0 - step[0]) * (y0 - step[1])
            assert up - down == pytest.approx(expected, rel=1e-6, abs=1e-13 * (x0 + y0) ** 2)


@cases(30)
@given(seeds)
def test_majorant_is_the_product_bound(seed: int) -> None:
    """N/H = xy with x = N and y = 1/H."""
    rng = np.random.default_rng(seed)
    arrays, h0, error0 = iterate(rng)
    model = majorant(arrays, h0, error0)
    h, error = h0 * log_uniform(rng, 0.1, 10.0, 3), error0 * log_uniform(rng, 0.1, 10.0, 3)
    product = 0.5 * (error**2 / (error0 * h0) + error0 * h0 / h**2)
    expected = FACTOR * arrays.weight * (fixed_terms(arrays) / h + product)
    np.testing.assert_allclose(model.value(h, error), expected, rtol=1e-12)
