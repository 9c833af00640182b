"""Rows of smooth programs: values and Jacobians against differences, curvature that majorises, convex halves that split the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from builders import cases, seeds
from hypothesis import given

from schedopt.formulation.nlp import Program, QuotientRows, RateRows, RowBuilder, Rows

N = 7


def random_rows(rng: np.random.Generator, *, concave_squares: bool = True) -> Rows:
    """Five rows of every kind of term, several of a kind in a row, squares of both signs and exponentials of both directions."""
    builder = RowBuilder(N)
    rows = builder.rows("any", 5, rng.normal(size=5))
    builder.linear(rows, rng.integers(N, size=5), rng.normal(size=5)).linear(rows[:2], 0, rng.normal(size=2))
    x = rng.integers(N, size=(5, 3))
    y = np.where(rng.random((5, 3)) < 0.3, x, rng.integers(N, size=(5, 3)))
    factor = rng.normal(size=(5, 3))
    if not concave_squares:
        factor = np.where(x == y, np.abs(factor), factor)
    builder.product(rows[:, None], x, y, factor)
    builder.exponential(rows[:4], rng.integers(N, size=4), rng.normal(size=4), rng.normal(size=4))
    return builder.build()


def random_quotients(rng: np.random.Generator) -> QuotientRows:
    """Five rows; some numerators are the constant."""
    x = np.where(rng.random(5) < 0.4, -1, rng.integers(0, 2, size=5))
    return QuotientRows(x, rng.integers(2, 4, size=5), rng.integers(4, 6, size=5), rng.uniform(0.1, 3.0, size=5), ("quotient",) * 5)


def random_rates(rng: np.random.Generator) -> RateRows:
    """Five rows over signal-to-noise ratios from poor to excellent."""
    z, w, p = rng.integers(0, 2, size=5), rng.integers(2, 4, size=5), rng.integers(4, 6, size=5)
    return RateRows(z, w, p, np.exp(rng.uniform(-3, 6, size=5)), ("rate",) * 5)


def differences(function: Callable[[np.ndarray], np.ndarray], v: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences, shape (m, n)."""
    columns = [(function(v + step * unit) - function(v - step * unit)) / (2 * step) for unit in np.eye(len(v))]
    return np.array(columns).T


def written_out(rows: Rows, v: np.ndarray) -> np.ndarray:
    """Values term by term, in plain loops."""
    out = [float(rows.constant[r] + rows.linear[r].toarray()[0] @ v) for r in range(len(rows))]
    for r, x, y, factor in zip(rows.row, rows.x, rows.y, rows.factor, strict=True):
        out[r] += factor * v[x] * v[y]
    for r, x, rate, factor in zip(rows.exp_row, rows.exp_x, rows.exp_rate, rows.exp_factor, strict=True):
        out[r] += factor * np.exp(rate * v[x])
    return np.array(out)


# --- values and Jacobians ----------------------------------------------------------------------------------------------------------------


@cases(40)
@given(seed=seeds)
def test_rows_and_their_jacobian(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, v = random_rows(rng), rng.normal(size=N)
    np.testing.assert_allclose(rows.values(v), written_out(rows, v), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rows.jacobian(v).toarray(), differences(rows.values, v), rtol=1e-6, atol=1e-7)


@cases(40)
@given(seed=seeds)
def test_quotients_and_their_jacobian(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, v = random_quotients(rng), rng.uniform(0.5, 2.0, size=6)
    top = [1.0 if x < 0 else v[x] for x in rows.x]
    expected = [f * t**2 / v[y] - v[z] for f, t, y, z in zip(rows.factor, top, rows.y, rows.z, strict=True)]
    np.testing.assert_allclose(rows.values(v), expected, rtol=1e-13)
    np.testing.assert_allclose(rows.jacobian(v).toarray(), differences(rows.values, v), rtol=1e-6, atol=1e-7)
    some = np.array([3, 0])
    np.testing.assert_array_equal(rows.take(some).values(v), rows.values(v)[some])
    np.testing.assert_array_equal(rows.take(some).jacobian(v).toarray(), rows.jacobian(v)[some].toarray())


@cases(40)
@given(seed=seeds)
def test_rates_and_their_jacobian(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, v = random_rates(rng), rng.uniform(0.05, 1.0, size=6)
    rate = v[rows.w] * np.log2(1 + rows.snr * v[rows.p] / v[rows.w]) / np.log2(1 + rows.snr)
    np.testing.assert_allclose(rows.values(v), v[rows.z] - rate, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(rows.jacobian(v).toarray(), differences(rows.values, v), rtol=1e-6, atol=1e-7)
    some = np.array([4, 1])
    np.testing.assert_array_equal(rows.take(some).values(v), rows.values(v)[some])


def test_rate_at_the_ends() -> None:
    """One at full band and power, none without band (to the width that stands for none), linear along rays."""
    rows = RateRows(np.array([0]), np.array([1]), np.array([2]), np.array([7.0]), ("rate",))
    assert rows.rate(np.array([1.0]), np.array([1.0]))[0][0] == pytest.approx(1.0, rel=1e-15)
    assert rows.rate(np.array([0.0]), np.array([1.0]))[0][0] < 1e-7
    assert rows.rate(np.array([0.5]), np.array([0.0]))[0][0] == 0.0
    for t in (0.1, 3.0):
        assert rows.rate(np.array([0.3 * t]), np.array([0.6 * t]))[0] == pytest.approx(t * rows.rate(np.array([0.3]), np.array([0.6]))[0])


@cases(30)
@given(seed=seeds)
def test_convex_rows_lie_above_their_tangents(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for rows in (random_quotients(rng), random_rates(rng)):
        v, other = rng.uniform(0.05, 2.0, size=(2, 6))
        assert np.all(rows.values(other) >= rows.values(v) + rows.jacobian(v) @ (other - v) - 1e-9)


# --- which rows move, fixed variables ----------------------------------------------------------------------------------------------------


@cases(30)
@given(seed=seeds)
def test_rows_with_fixed_variables(seed: int) -> None:
    """Same values and Jacobian wherever the fixed ones are what they are; no product of a fixed one is left."""
    rng = np.random.default_rng(seed)
    rows, fixed, known = random_rows(rng), rng.random(N) < 0.5, rng.normal(size=N)
    less = rows.with_fixed(fixed, known)
    assert not np.any(fixed[less.x] | fixed[less.y])
    v = np.where(fixed, known, rng.normal(size=N))
    np.testing.assert_allclose(less.values(v), rows.values(v), rtol=1e-12, atol=1e-12)
    free = ~fixed
    np.testing.assert_allclose(less.jacobian(v)[:, free].toarray(), rows.jacobian(v)[:, free].toarray(), rtol=1e-12, atol=1e-12)


@cases(30)
@given(seed=seeds)
def test_rows_that_move(seed: int) -> None:
    """A row that is said to stand still keeps its value when the free variables change; one that moves has a slope somewhere."""
    rng = np.random.default_rng(seed)
    free = rng.random(N) < 0.4
    for rows, free_here in ((random_rows(rng), free), (random_quotients(rng), free[:6]), (random_rates(rng), free[:6])):
        n = len(free_here)
        v = rng.uniform(0.2, 1.0, size=n)
        moved = np.where(free_here, rng.uniform(0.2, 1.0, size=n), v)
        still = ~rows.moving(free_here)
        np.testing.assert_array_equal(rows.values(moved)[still], rows.values(v)[still])
        slope = np.abs(rows.jacobian(v)[:, free_here].toarray()).sum(axis=1)
        assert np.all(slope[~still] > 0)


def random_program(rng: np.random.Generator) -> Program:
    """All classes of rows; a third of the variables are fixed."""
    lower = rng.uniform(0.1, 0.5, size=N)
    upper = np.where(rng.random(N) < 0.35, lower, lower + rng.uniform(0.5, 1.0, size=N))
    flat = RowBuilder(N)
    flat.linear(flat.rows("flat", 3, rng.normal(size=3)), rng.integers(N, size=3), rng.normal(size=3))
    linear = flat.build()
    return Program(
        rng.normal(size=N), lower, upper, linear, random_rows(rng), random_quotients(rng), random_rates(rng), random_rows(rng),
        random_rows(rng),
    )  # fmt: skip


@cases(20)
@given(seed=seeds)
def test_presolved_is_the_same_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(rng)
    presolved = program.presolved()
    v = program.lower + rng.random(N) * (program.upper - program.lower)
    assert presolved.objective(v) == program.objective(v) == pytest.approx(float(np.sum(program.cost * v)), rel=1e-12)
    assert presolved.violations(v) == pytest.approx(program.violations(v), rel=1e-12, abs=1e-12)
    for name in ("affine", "nonconvex_equalities", "nonconvex_inequalities"):
        np.testing.assert_allclose(getattr(presolved, name).values(v), getattr(program, name).values(v), rtol=1e-12, atol=1e-12)
        assert not np.any(~program.free[getattr(presolved, name).x])


def test_violations_by_hand() -> None:
    builder = RowBuilder(2)
    builder.product(builder.rows("x y", 1, -1.0), 0, 1)
    product = builder.build()
    flat = RowBuilder(2)
    flat.linear(flat.rows("x - 4", 1, -4.0), 0)
    none = np.zeros(0, dtype=int)
    quotient = QuotientRows(np.array([-1]), np.array([0]), np.array([1]), np.array([8.0]), ("8/x - y",))
    rates = RateRows(none, none, none, np.zeros(0), ())
    program = Program(np.ones(2), np.zeros(2), np.array([1.5, np.inf]), flat.build(), flat.build(), quotient, rates, product, product)
    found = program.violations(np.array([2.0, 3.0]))
    assert found == {"bounds": 0.5, "convex equalities": 2.0, "convex inequalities": 1.0, "non-convex equalities": 5.0,
                     "non-convex inequalities": 5.0}  # fmt: skip
    assert program.violations(np.array([2.0, 3.0]), np.array([False]))["non-convex inequalities"] == 0.0
    assert program.violations(np.array([-0.5, 3.0]))["bounds"] == 0.5


def test_builder_drops_terms_of_factor_zero_and_knows_affine_rows() -> None:
    builder = RowBuilder(3)
    rows = builder.rows("a", 2)
    builder.linear(rows, np.array([0, 1]), np.array([0.0, 2.0])).product(rows, 0, 1, np.array([0.0, 3.0]))
    rows = builder.rows("b", 1, 4.0)
    built = builder.build()
    assert built.names == ("a", "a", "b") and len(built) == 3 and list(rows) == [2]
    assert built.linear.nnz == 1 and list(built.row) == [1] and not built.is_affine
    np.testing.assert_allclose(built.values(np.array([5.0, 7.0, 0.0])), [0.0, 14.0 + 105.0, 4.0])
    assert builder.build().with_fixed(np.array([True, False, False]), np.ones(3)).is_affine
    assert RowBuilder(3).build().values(np.ones(3)).shape == (0,)


# --- curvature majorises -----------------------------------------------------------------------------------------------------------------


def remainder(rows: Rows | RateRows, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return rows.values(v + d) - rows.values(v) - rows.jacobian(v) @ d


@pytest.mark.parametrize("length", [1e-2, 1.0, 30.0])
@cases(40)
@given(seed=seeds)
def test_curvature_majorises_the_remainder(length: float, seed: int) -> None:
    """Whatever step sizes are expected, and for steps of any length within the bounds."""
    rng = np.random.default_rng(seed)
    rows, weight, size = random_rows(rng, concave_squares=False), rng.exponential(size=5), np.exp(rng.normal(0, 2, size=N))
    lower, upper = -rng.exponential(length, size=N), rng.exponential(length, size=N)
    v, end = (rng.uniform(lower, upper) for _ in range(2))
    diagonal = rows.curvature(weight, lower, upper, size)
    assert np.all(diagonal >= 0)
    missed, bound = float(weight @ np.abs(remainder(rows, v, end - v))), 0.5 * float(diagonal @ (end - v) ** 2)
    assert missed <= bound * (1 + 1e-9) + 1e-12


@cases(40)
@given(seed=seeds)
def test_concave_squares_need_no_curvature(seed: int) -> None:
    """Only the excess over the tangent counts: −z² is below its own."""
    rng = np.random.default_rng(seed)
    rows, weight, size = random_rows(rng), rng.exponential(size=5), np.exp(rng.normal(0, 2, size=N))
    v, end = rng.uniform(-1, 1, size=(2, N))
    diagonal = rows.curvature(weight, np.full(N, -1.0), np.ones(N), size)
    excess = np.maximum(remainder(rows, v, end - v), 0.0)
    assert float(weight @ excess) <= 0.5 * float(diagonal @ (end - v) ** 2) * (1 + 1e-9) + 1e-12
    builder = RowBuilder(1)
    z = builder.rows("binary", 1)
    builder.linear(z, 0).product(z, 0, 0, -1.0)
    assert builder.build().curvature(np.ones(1), np.zeros(1), np.ones(1), np.ones(1)) == 0.0


def test_curvature_of_one_product_is_tight() -> None:
    """At the expected ratio of the steps the bound is met with equality."""
    builder = RowBuilder(2)
    builder.product(builder.rows("x y", 1), 0, 1, -3.0)
    rows, v = builder.build(), np.array([0.4, -0.2])
    for sizes in ([1.0, 1.0], [0.01, 5.0]):
        d = np.array([1.0, -1.0]) * sizes
        diagonal = rows.curvature(np.array([2.0]), np.full(2, -9.0), np.full(2, 9.0), np.array(sizes))
        assert 2.0 * abs(remainder(rows, v, d)[0]) == pytest.approx(0.5 * float(diagonal @ d**2), rel=1e-12)


@cases(40)
@given(seed=seeds)
def test_curvature_of_rates_bounds_short_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weight, v = random_rates(rng), rng.exponential(size=5), rng.uniform(0.05, 1.0, size=6)
    d = 1e-3 * v * rng.uniform(-1, 1, size=6)
    diagonal = rows.curvature(weight, v)
    assert float(weight @ np.abs(remainder(rows, v, d))) <= 0.5 * float(diagonal @ d**2) * 1.01


# --- convex halves -----------------------------------------------------------------------------------------------------------------------


def hessian(rows: Rows | RateRows, multiplier: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Second derivatives of Σ multiplier · row, by differences of the gradient."""
    found = differences(lambda u: rows.jacobian(u).T @ multiplier, v, 1e-5)
    return 0.5 * (found + found.T)


@cases(40)
@given(seed=seeds)
def test_what_the_convex_half_leaves_is_concave(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, multiplier, v = random_rows(rng), rng.normal(size=5), rng.uniform(-1, 1, size=N)
    full = hessian(rows, multiplier, v)
    for size in (np.ones(N), np.exp(rng.normal(0, 2, size=N))):
        root = rows.convex_half(multiplier, v, size).toarray()
        assert np.linalg.eigvalsh(full - root.T @ root).max() <= 1e-6 * (1 + np.abs(full).max())


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (0.1, 4.0)])
@pytest.mark.parametrize("multiplier", [2.0, -0.7])
def test_convex_half_of_one_product_is_half_its_hessian(sizes: tuple[float, float], multiplier: float) -> None:
    """λ q xy = ¼λq (√α x + y/√α)² − ¼λq (√α x − y/√α)²: the halves, and nothing but them, make the Hessian."""
    builder = RowBuilder(2)
    builder.product(builder.rows("x y", 1), 0, 1, 1.5)
    rows, v, size = builder.build(), np.array([0.3, 2.0]), np.array(sizes)
    convex = rows.convex_half(np.array([multiplier]), v, size).toarray()
    concave = rows.convex_half(np.array([-multiplier]), v, size).toarray()
    assert convex.shape == (1, 2)
    expected = multiplier * 1.5 * np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(convex.T @ convex - concave.T @ concave, expected, atol=1e-14)
    # in the scaled variables the half is the positive part of the Hessian, no more
    scaled = np.diag(size) @ expected @ np.diag(size)
    values, vectors = np.linalg.eigh(scaled)
    positive = vectors @ np.diag(np.maximum(values, 0.0)) @ vectors.T
    np.testing.assert_allclose(np.diag(size) @ convex.T @ convex @ np.diag(size), positive, atol=1e-14)


def test_convex_half_of_squares_and_exponentials_counts_where_they_are_convex() -> None:
    builder = RowBuilder(2)
    rows = builder.rows("x²", 1)
    builder.product(rows, 0, 0, 3.0).exponential(rows, 1, -2.0, 0.5)
    built, v = builder.build(), np.array([0.7, 0.4])
    root = built.convex_half(np.array([2.0]), v, np.array([0.1, 7.0])).toarray()
    np.testing.assert_allclose(root.T @ root, hessian(built, np.array([2.0]), v), rtol=1e-6, atol=1e-8)
    assert built.convex_half(np.array([-2.0]), v, np.ones(2)).shape[0] == 0


@cases(30)
@given(seed=seeds)
def test_convex_half_of_rates_is_their_hessian(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, multiplier, v = random_rates(rng), rng.exponential(size=5), rng.uniform(0.1, 1.0, size=6)
    root = rows.convex_half(multiplier, v).toarray()
    np.testing.assert_allclose(root.T @ root, hessian(rows, multiplier, v), rtol=1e-4, atol=1e-5 * (1 + np.abs(root).max() ** 2))
    assert rows.convex_half(-multiplier, v).count_nonzero() == 0
