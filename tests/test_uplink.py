"""The uplink's closed forms: inverses against Lambert's W, power series and root finding; the best bandwidth against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from builders import cases, make_problem, plain_device, plain_problem, random_problem, seeds
from hypothesis import given
from scipy.optimize import brentq, minimize_scalar
from scipy.special import lambertw

from schedopt.formulation.uplink import (
    LN2,
    UplinkChoice,
    Uploads,
    energy_shape,
    inverse_energy_shape,
    inverse_price_shape,
    price_shape,
    uploads_of,
)
from schedopt.physics import transmit_power_w, uplink_rate_bps

#: x(u) = Σ u^k (k−1)/k! and m(u) − 1 = Σ u^k/(k+1)!: sums of positive terms, hence exact to rounding for moderate u.
TERMS = range(1, 120)


def series_price_shape(u: float) -> float:
    return math.fsum(math.exp(k * math.log(u) + math.log(k - 1) - math.lgamma(k + 1)) for k in TERMS if k > 1)


def series_energy_excess(u: float) -> float:
    return math.fsum(math.exp(k * math.log(u) - math.lgamma(k + 2)) for k in TERMS)


# --- shapes and their inverses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u", np.geomspace(1e-9, 30.0, 40))
def test_shapes_equal_their_power_series(u: float) -> None:
    assert price_shape(u) == pytest.approx(series_price_shape(u), rel=3e-12)
    assert energy_shape(u) == pytest.approx(1.0 + series_energy_excess(u), rel=3e-13)


def test_shapes_are_smooth_where_the_series_takes_over() -> None:
    """The price shape changes its formula at 1e-3; its growth there is that of u²/2."""
    u = np.array([1e-3 * (1 - 1e-9), 1e-3 * (1 + 1e-9)])
    low, high = price_shape(u)
    assert (high - low) / low == pytest.approx(2 * 2e-9 * (1 + 1e-3 / 3), rel=1e-2)


@cases(200)
@given(seeds)
def test_inverse_price_shape_is_lambert_w(seed: int) -> None:
    """u = 1 + W0((x − 1)/e); away from zero, where W0 is at its branch point and loses digits."""
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(np.log(1e-2), np.log(1e6), 20))
    expected = 1.0 + lambertw((x - 1.0) / math.e).real
    np.testing.assert_allclose(inverse_price_shape(x), expected, rtol=1e-10)


@pytest.mark.parametrize("u", [1e-8, 1e-6, 1e-4, 0.9e-3, 1.1e-3, 0.03, 0.5, 3.0, 25.0])
def test_inverses_find_the_root_of_the_series(u: float) -> None:
    bracket = (0.5 * u, 2.0 * u)
    for series, target, inverse in (
        (series_price_shape, series_price_shape(u), lambda x: inverse_price_shape(np.array(x))),
        (series_energy_excess, series_energy_excess(u), lambda m: inverse_energy_shape(np.array(1.0 + m))),
    ):
        root = brentq(lambda v, f=series, t=target: f(v) / t - 1.0, *bracket, xtol=1e-16, rtol=1e-14)
        # 1 + excess keeps only what is above 2e-16 of it
        tolerance = 1e-10 + (2e-16 / target if series is series_energy_excess else 0.0)
        assert float(inverse(target)) == pytest.approx(root, rel=tolerance)


def test_inverses_return_what_went_in() -> None:
    u = np.geomspace(1e-6, 600.0, 3000)
    np.testing.assert_allclose(inverse_price_shape(price_shape(u)), u, rtol=1e-9)
    wide = u[u > 1e-3]
    np.testing.assert_allclose(inverse_energy_shape(energy_shape(wide)), wide, rtol=1e-9)


def test_inverses_at_their_ends() -> None:
    for inverse, least in ((inverse_price_shape, 0.0), (inverse_energy_shape, 1.0)):
        assert np.array_equal(inverse(np.array([least, least - 1.0, -np.inf])), [0.0, 0.0, 0.0])
        assert inverse(np.array(np.inf)) == 600.0
        grid = inverse(least + np.geomspace(1e-12, 1e250, 2000))
        assert np.all(np.diff(grid) >= 0) and np.all(grid >= 0)


# --- the best bandwidth ----------------------------------------------------------------------------------------------------------


def random_uploads(rng: np.random.Generator, count: int) -> Uploads:
    """Uploads whose efficiency over the whole band in a second is between 0.01 and 10 nats."""
    band = float(np.exp(rng.uniform(np.log(1e5), np.log(1e8))))
    bits = band * np.exp(rng.uniform(np.log(0.01), np.log(10.0), count)) / LN2
    snr = np.exp(rng.uniform(np.log(0.1), np.log(1e4), count))
    power = rng.uniform(0.05, 1.0, count)
    return Uploads(bits, power / (snr * band), power, band)


def energy_over(uploads: Uploads, time_s: np.ndarray, bandwidth_hz: np.ndarray) -> np.ndarray:
    return time_s * transmit_power_w(uploads.bits, time_s, bandwidth_hz, 1.0 / uploads.noise_over_gain, 1.0)


def least_bandwidth(uploads: Uploads, k: int, time_s: float) -> float:
    """Bandwidth at which upload ``k`` needs full power, by root finding in log W."""

    def excess(log_w: float) -> float:
        rate = uplink_rate_bps(math.exp(log_w), uploads.max_power_w[k], 1.0 / uploads.noise_over_gain[k], 1.0)
        return float(rate) * time_s / uploads.bits[k] - 1.0

    top = math.log(uploads.band_hz)
    return math.exp(brentq(excess, top - 60.0, top + 1e-9, xtol=1e-14))


def brute_cost(uploads: Uploads, k: int, time_s: float, energy_price: float, bandwidth_price: float) -> tuple[float, float]:
    """Least ξE + νW over W between the power limit and the band, and its W: bounded scalar minimisation and both ends."""
    low, high = math.log(least_bandwidth(uploads, k, time_s)), math.log(uploads.band_hz)
    one = uploads.take(np.array([k]))

    def cost(log_w: float) -> float:
        w = math.exp(log_w)
        return float(energy_price * energy_over(one, np.array([time_s]), np.array([w]))[0] + bandwidth_price * w)

    found = minimize_scalar(cost, bounds=(min(low, high), high), method="bounded", options={"xatol": 1e-10, "maxiter": 500})
    options = [(cost(w), w) for w in (float(found.x), low, high)]
    value, log_w = min(options)
    return value, math.exp(log_w)


#: name -> bandwidth price as a multiple of the one at which the whole band is just best, or just too dear for the power limit
REGIMES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "whole band": lambda whole, limit, rng: whole * rng.uniform(0.0, 0.95, len(whole)),
    "free": lambda whole, limit, rng: whole * (limit / whole) ** rng.uniform(0.02, 0.98, len(whole)),
    "power limit": lambda whole, limit, rng: limit * np.exp(rng.uniform(0.05, 8.0, len(whole))),
}


def price_limits(uploads: Uploads, time_s: np.ndarray, energy_price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bandwidth prices up to which the whole band is best, and from which on full power is: −ξ dE/dW at both ends."""
    lowest = np.array([least_bandwidth(uploads, k, t) for k, t in enumerate(time_s)])
    marginal = []
    for width in (np.full(len(time_s), uploads.band_hz), lowest):
        nats = uploads.bits * LN2 / (time_s * width)
        marginal.append(energy_price * uploads.noise_over_gain * time_s * (nats * np.exp(nats) - np.expm1(nats)))
    return marginal[0], marginal[1]


def regime_case(regime: str, seed: int, count: int = 8) -> tuple[Uploads, np.ndarray, np.ndarray, np.ndarray]:
    """Uploads, times above the shortest, energy prices and bandwidth prices of a regime."""
    rng = np.random.default_rng(seed)
    uploads = random_uploads(rng, count)
    time_s = uploads.shortest_s * (1.0 + np.exp(rng.uniform(np.log(0.02), np.log(20.0), count)))
    energy_price = np.exp(rng.uniform(-3, 3, count))
    return uploads, time_s, energy_price, REGIMES[regime](*price_limits(uploads, time_s, energy_price), rng)


@pytest.mark.parametrize("regime", REGIMES)
@cases(25)
@given(seed=seeds)
def test_best_bandwidth_against_brute_force(regime: str, seed: int) -> None:
    uploads, time_s, energy_price, bandwidth_price = regime_case(regime, seed)
    choice = uploads.best(time_s, energy_price, bandwidth_price)
    for k in range(len(time_s)):
        value, width = brute_cost(uploads, k, time_s[k], energy_price[k], bandwidth_price[k])
        assert choice.cost[k] == pytest.approx(value, rel=1e-9)
        assert choice.bandwidth_hz[k] == pytest.approx(width, rel=1e-3)
    check_consistent(uploads, choice, time_s, energy_price, bandwidth_price)


def check_consistent(uploads: Uploads, choice: UplinkChoice, time_s: np.ndarray, xi: np.ndarray, nu: np.ndarray) -> None:
    """Energy is that of physics, efficiency that of the bandwidth, and no limit is broken."""
    np.testing.assert_allclose(choice.energy_j, energy_over(uploads, time_s, choice.bandwidth_hz), rtol=1e-10)
    np.testing.assert_allclose(choice.cost, xi * choice.energy_j + nu * choice.bandwidth_hz, rtol=1e-14)
    np.testing.assert_allclose(choice.efficiency, uploads.bits * LN2 / (time_s * choice.bandwidth_hz), rtol=1e-14)
    assert np.all(choice.bandwidth_hz <= uploads.band_hz * (1 + 1e-14))
    assert np.all(choice.energy_j <= uploads.max_power_w * time_s * (1 + 1e-9))


@pytest.mark.parametrize("regime", REGIMES)
@cases(30)
@given(seed=seeds)
def test_slope_is_the_derivative_of_the_cost(regime: str, seed: int) -> None:
    uploads, time_s, energy_price, bandwidth_price = regime_case(regime, seed)
    slope = uploads.best(time_s, energy_price, bandwidth_price).slope
    step = 1e-5 * np.minimum(time_s, time_s - uploads.shortest_s)
    high = uploads.best(time_s + step, energy_price, bandwidth_price).cost
    low = uploads.best(time_s - step, energy_price, bandwidth_price).cost
    # the difference of two costs carries their rounding
    noise = 4e-15 * (np.abs(high) + np.abs(low)) / step
    assert np.all(np.abs((high - low) / (2 * step) - slope) <= 1e-4 * np.abs(slope) + noise)
    assert np.all(slope <= 0)


@cases(40)
@given(seeds)
def test_more_time_never_costs_more_and_the_cost_is_convex(seed: int) -> None:
    """Over all regimes at once, as the time runs from the shortest one to a hundred times it."""
    rng = np.random.default_rng(seed)
    uploads = random_uploads(rng, 1)
    time_s = uploads.shortest_s * np.linspace(1.0 + 1e-9, 100.0, 400)
    price = float(np.exp(rng.uniform(-3, 3)))
    band_price = price_limits(uploads, time_s[-1:], np.array([price]))[0] * np.exp(rng.uniform(-2, 12))
    choice = uploads.take(np.zeros(400, dtype=int)).best(time_s, np.full(400, price), np.broadcast_to(band_price, 400))
    scale = choice.cost[0]
    assert np.all(np.diff(choice.cost) <= 1e-12 * scale)
    assert np.all(np.diff(choice.cost, 2) >= -1e-10 * scale)


def test_bandwidth_at_an_infinite_price_is_the_least_one() -> None:
    rng = np.random.default_rng(5)
    uploads = random_uploads(rng, 12)
    time_s = uploads.shortest_s * rng.uniform(1.05, 30.0, 12)
    choice = uploads.best(time_s, np.ones(12), np.full(12, np.inf))
    expected = [least_bandwidth(uploads, k, t) for k, t in enumerate(time_s)]
    np.testing.assert_allclose(choice.bandwidth_hz, expected, rtol=1e-9)


# --- the shortest upload ---------------------------------------------------------------------------------------------------------


@cases(50)
@given(seeds)
def test_shortest_time_is_full_power_over_the_whole_band(seed: int) -> None:
    uploads = random_uploads(np.random.default_rng(seed), 6)
    rate = uplink_rate_bps(uploads.band_hz, uploads.max_power_w, 1.0 / uploads.noise_over_gain, 1.0)
    np.testing.assert_allclose(uploads.shortest_s * rate, uploads.bits, rtol=1e-12)
    choice = uploads.best(uploads.shortest_s * (1 + 1e-12), np.ones(6), np.ones(6))
    np.testing.assert_allclose(choice.bandwidth_hz, uploads.band_hz, rtol=1e-9)
    np.testing.assert_allclose(choice.energy_j, uploads.max_power_w * uploads.shortest_s, rtol=1e-9)


def test_uploads_use_the_gain_of_the_last_slot() -> None:
    gains = [1e-6, 2e-6, 4e-6, 8e-6, 16e-6, 32e-6, 64e-6, 128e-6]
    arrays = make_problem(plain_problem([plain_device(gain=gains)])).arrays
    end = np.array([1, 3, 8])
    uploads = uploads_of(arrays, np.zeros(3, int), np.zeros(3, int), end)
    np.testing.assert_allclose(uploads.noise_over_gain, [1e-12 / gains[b - 1] for b in end], rtol=1e-14)
    assert np.array_equal(uploads.bits, [2e6] * 3) and np.array_equal(uploads.max_power_w, [0.4] * 3)


@cases(30)
@given(seeds)
def test_base_energy_is_the_limit_of_unlimited_bandwidth(seed: int) -> None:
    """E0 = N0 M ln2 / gain, whatever the time."""
    rng = np.random.default_rng(seed)
    arrays = make_problem(random_problem(rng)).arrays
    i, j = (x[0] for x in np.nonzero(arrays.has_data))
    uploads = uploads_of(arrays, np.array([i]), np.array([j]), np.array([1]))
    time_s = rng.uniform(0.1, 10.0, 1)
    wide = uploads.bits / time_s * 1e7
    np.testing.assert_allclose(energy_over(uploads, time_s, wide), uploads.base_energy_j, rtol=1e-6)
