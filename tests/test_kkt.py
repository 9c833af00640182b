"""KKT residuals: programs whose multipliers are known by hand, a recomputation by differences, and iterates that carry their proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import cases, seeds
from hypothesis import given
from tiny import tiny_problem

from schedopt.errors import InputError
from schedopt.formulation.native import build_native
from schedopt.formulation.nlp import Program, QuotientRows, RateRows, RowBuilder
from schedopt.io import load_iterate, save_iterate
from schedopt.registry import solve
from schedopt.result import SolveResult
from schedopt.sca.iterate import NativeIterate
from schedopt.sca.kkt import binary_multipliers, kkt_residual, least_multipliers
from schedopt.sca.native_step import Multipliers
from schedopt.solvers.base import SolverSettings

CLASSES = tuple(Multipliers.__dataclass_fields__)


def program_of(cost: list[float], lower: list[float], upper: list[float], **rows: Any) -> Program:
    """A program with some classes of rows, the others empty."""
    n, none = len(cost), np.zeros(0, dtype=int)
    parts = {name: RowBuilder(n).build() for name in ("convex_equalities", "affine", "nonconvex_equalities", "nonconvex_inequalities")}
    quotients = QuotientRows(none, none, none, np.zeros(0), ())
    rates = RateRows(none, none, none, np.zeros(0), ())
    return Program(**{
        "cost": np.array(cost), "lower": np.array(lower), "upper": np.array(upper), "quotients": quotients, "rates": rates, **parts, **rows,
    })  # fmt: skip


def multipliers_of(program: Program, **given_ones: list[float]) -> Multipliers:
    return Multipliers(**{name: np.array(given_ones.get(name, np.zeros(len(getattr(program, name)))), dtype=float) for name in CLASSES})


def rows(n: int, *add: Callable[[RowBuilder], None]) -> Any:
    builder = RowBuilder(n)
    for each in add:
        each(builder)
    return builder.build()


# --- programs whose KKT points are known -------------------------------------------------------------------------------------------------


def hyperbola() -> tuple[Program, np.ndarray, Multipliers]:
    """min x + 4y with xy = 1: x = 2, y = ½; 1 + λy = 0, so λ = −2."""
    program = program_of([1, 4], [0.1, 0.1], [9, 9], nonconvex_equalities=rows(2, lambda b: b.product(b.rows("xy", 1, -1.0), 0, 1)))
    return program, np.array([2.0, 0.5]), multipliers_of(program, nonconvex_equalities=[-2.0])


def hyperbola_below() -> tuple[Program, np.ndarray, Multipliers]:
    """The same as 1 − xy ≤ 0: λ = 2."""
    program = program_of([1, 4], [0.1, 0.1], [9, 9], nonconvex_inequalities=rows(2, lambda b: b.product(b.rows("xy", 1, 1.0), 0, 1, -1.0)))
    return program, np.array([2.0, 0.5]), multipliers_of(program, nonconvex_inequalities=[2.0])


def linear() -> tuple[Program, np.ndarray, Multipliers]:
    """min −x − y with x + y ≤ 1 and x − y = 0.4: (0.7, 0.3), multipliers 1 and 0."""
    affine = rows(2, lambda b: b.linear(np.repeat(b.rows("sum", 1, -1.0), 2), np.arange(2)))
    equal = rows(2, lambda b: b.linear(np.repeat(b.rows("difference", 1, -0.4), 2), np.arange(2), np.array([1.0, -1.0])))
    program = program_of([-1, -1], [0, 0], [1, 1], affine=affine, convex_equalities=equal)
    return program, np.array([0.7, 0.3]), multipliers_of(program, affine=[1.0], convex_equalities=[0.0])


def quotient() -> tuple[Program, np.ndarray, Multipliers]:
    """min 2y + z with 8/y ≤ z: y = 2, z = 4, multiplier 1."""
    q = QuotientRows(np.array([-1]), np.array([0]), np.array([1]), np.array([8.0]), ("8/y",))
    program = program_of([2, 1], [0.5, 0], [9, np.inf], quotients=q)
    return program, np.array([2.0, 4.0]), multipliers_of(program, quotients=[1.0])


def rate() -> tuple[Program, np.ndarray, Multipliers]:
    """min p − ln 4 · z with z ≤ rate(w, p), snr 3, w ≤ 1: ∂rate/∂p = 3/(ln 4 (1 + 3p)) is 1/ln 4 at p = 2/3; the multiplier is ln 4."""
    r = RateRows(np.array([2]), np.array([0]), np.array([1]), np.array([3.0]), ("rate",))
    program = program_of([0, 1, -np.log(4.0)], [0, 0, 0], [1, 1, 5], rates=r)
    return program, np.array([1.0, 2 / 3, np.log(3.0) / np.log(4.0)]), multipliers_of(program, rates=[np.log(4.0)])


def exponential() -> tuple[Program, np.ndarray, Multipliers]:
    """min y − 2x with e^x ≤ y: x = ln 2, multiplier 1."""

    def add(b: RowBuilder) -> None:
        row = b.rows("e^x", 1)
        b.linear(row, 1, -1.0).exponential(row, 0, 1.0, 1.0)

    program = program_of([-2, 1], [-5, 0], [5, np.inf], affine=rows(2, add))
    return program, np.array([np.log(2.0), 2.0]), multipliers_of(program, affine=[1.0])


def at_its_bound() -> tuple[Program, np.ndarray, Multipliers]:
    """No rows: each variable at the bound its cost sends it to."""
    program = program_of([1, -1], [0.5, -3], [4, 2])
    return program, np.array([0.5, 2.0]), multipliers_of(program)


KNOWN = [hyperbola, hyperbola_below, linear, quotient, rate, exponential, at_its_bound]


@pytest.mark.parametrize("known", KNOWN)
def test_known_points_have_no_residual(known: Callable[[], tuple[Program, np.ndarray, Multipliers]]) -> None:
    program, v, multipliers = known()
    assert kkt_residual(program, v, multipliers).total < 1e-14


@pytest.mark.parametrize("known", KNOWN)
def test_other_points_and_multipliers_have_one(known: Callable[[], tuple[Program, np.ndarray, Multipliers]]) -> None:
    program, v, multipliers = known()
    for name in CLASSES:
        right = getattr(multipliers, name)
        for k in range(len(right)):
            for wrong in (right[k] + 0.3, right[k] - 0.3, -right[k] - 0.1):
                changed = replace(multipliers, **{name: np.where(np.arange(len(right)) == k, wrong, right)})
                assert kkt_residual(program, v, changed).total > 0.05
    for k in range(len(v)):
        for step in (0.2, -0.2):
            assert kkt_residual(program, v + step * (np.arange(len(v)) == k), multipliers).total > 0.05


def test_each_part_by_hand() -> None:
    """x ≤ 1 (slack 0.4) with multiplier 0.3, at 0.6, cost −1: gradient −0.7, but the upper bound 0.9 is 0.3 away."""
    affine = rows(1, lambda b: b.linear(b.rows("x", 1, -1.0), 0))
    program = program_of([-1], [0], [0.9], affine=affine)
    found = kkt_residual(program, np.array([0.6]), multipliers_of(program, affine=[0.3]))
    assert (found.stationarity, found.complementarity, found.feasibility) == pytest.approx((0.3, 0.3, 0.0), abs=1e-15)
    found = kkt_residual(program, np.array([1.2]), multipliers_of(program, affine=[1.0]))
    assert (found.stationarity, found.complementarity, found.feasibility) == pytest.approx((0.3, 0.2, 0.3), abs=1e-15)
    found = kkt_residual(program, np.array([0.9]), multipliers_of(program, affine=[-0.5]))
    assert found.complementarity == 0.5 and found.total == 0.5
    # large multipliers: stationarity and complementarity are divided by their mean over 100
    found = kkt_residual(program, np.array([0.6]), multipliers_of(program, affine=[500.0]))
    assert found.stationarity == pytest.approx(0.6 / 5) and found.complementarity == pytest.approx(0.4 / 5)


def test_ignored_rows_do_not_count() -> None:
    def add(b: RowBuilder) -> None:
        row = b.rows("binary z", 1)
        b.linear(row, 0).product(row, 0, 0, -1.0)

    program = program_of([1], [0], [1], nonconvex_inequalities=rows(1, add, lambda b: b.linear(b.rows("z >= 0.4", 1, 0.4), 0, -1.0)))
    v, multipliers = np.array([0.4]), multipliers_of(program, nonconvex_inequalities=[0.0, 1.0])
    assert kkt_residual(program, v, multipliers, ignore=np.array([True, False])).total < 1e-15
    assert kkt_residual(program, v, multipliers).feasibility == pytest.approx(0.24)


# --- by differences ----------------------------------------------------------------------------------------------------------------------


def by_differences(program: Program, v: np.ndarray, multipliers: Multipliers, skip: np.ndarray) -> float:
    """The residual from values of rows alone; rows that are skipped are none at all."""
    left = np.where(skip, 0.0, multipliers.nonconvex_inequalities)
    multipliers = replace(multipliers, nonconvex_inequalities=left)

    def lagrangian(u: np.ndarray) -> float:
        return float(program.cost @ u) + sum(float(getattr(multipliers, name) @ getattr(program, name).values(u)) for name in CLASSES)

    step = 1e-6
    gradient = np.array([(lagrangian(v + step * unit) - lagrangian(v - step * unit)) / (2 * step) for unit in np.eye(len(v))])
    stationary = np.abs(v - np.minimum(np.maximum(v - gradient, program.lower), program.upper)).max()
    complementary, feasible = 0.0, max(np.max(program.lower - v), np.max(v - program.upper), 0.0)
    sizes = []
    for name in CLASSES:
        for k, (m, f) in enumerate(zip(getattr(multipliers, name), getattr(program, name).values(v), strict=True)):
            if name == "nonconvex_inequalities" and skip[k]:
                continue
            sizes.append(abs(m))
            if name.endswith("_equalities"):
                feasible = max(feasible, abs(f))
            else:
                complementary, feasible = max(complementary, abs(min(m, -f))), max(feasible, f)
    scale = min(max(1.0, sum(sizes) / len(sizes) / 100), 10.0)
    return max(stationary / scale, complementary / scale, feasible)


def test_huge_multipliers_excuse_little_and_numbers_must_be_finite() -> None:
    """A gradient of 1 stays one of at least 0.1, however large the multipliers of rows that cancel each other."""
    program = build_native(tiny_problem(np.random.default_rng(0), 2, 1, 2)).program
    zero = Multipliers(**{name: np.zeros(len(getattr(program, name))) for name in CLASSES})
    v = np.minimum(np.maximum(np.ones(program.variables), program.lower), program.upper)
    plain = kkt_residual(program, v, zero).stationarity
    assert plain > 1e-3
    huge = replace(zero, rates=np.full(len(program.rates), 1e9))
    assert kkt_residual(program, v, huge).total >= plain / 10
    assert kkt_residual(program, np.full(program.variables, np.nan), zero).total == np.inf


@pytest.mark.parametrize("logs", [False, True], ids=["products", "logs"])
@cases(6)
@given(seed=seeds)
def test_residual_by_differences(logs: bool, seed: int) -> None:
    """Any point and multipliers of a native program, near to nothing."""
    rng = np.random.default_rng(seed)
    mode = str(rng.choice(["weighted", "min_energy", "min_bound"]))
    program = build_native(tiny_problem(rng, 2, 1, 2, mode=mode), logs=logs).program
    high = np.where(np.isfinite(program.upper), program.upper, program.lower + 2.0)
    v = program.lower + (0.05 + 0.9 * rng.random(program.variables)) * (high - program.lower)
    multipliers = Multipliers(**{name: rng.exponential(float(rng.choice([0.1, 300.0])), len(getattr(program, name))) for name in CLASSES})
    skip = rng.random(len(program.nonconvex_inequalities)) < 0.3
    expected = by_differences(program, v, multipliers, skip)
    assert kkt_residual(program, v, multipliers, ignore=skip).total == pytest.approx(expected, rel=1e-5, abs=1e-6)


# --- multipliers that are not unique -----------------------------------------------------------------------------------------------------


def vanishing(cost: float, factor: float = 1.0) -> Program:
    """min cost · u with u (t − 1) · factor ≤ 0 and t = 3 fixed by its bounds, 0 ≤ u ≤ 1."""

    def add(b: RowBuilder) -> None:
        row = b.rows("gated", 1)
        b.linear(row, 0, -factor).product(row, 0, 1, factor)

    return program_of([cost, 0], [0, 3], [1, 3], nonconvex_inequalities=rows(2, add))


def test_least_multipliers_are_the_least_that_keep_their_variable() -> None:
    """At u = 0 the row's slope is 2: −5 + 2λ ≥ 0 from λ = 2.5 on."""
    program, v = vanishing(-5.0), np.array([0.0, 3.0])
    for given_one in (2.5, 7.0, 400.0, 0.0):
        multipliers = multipliers_of(program, nonconvex_inequalities=[given_one])
        least = least_multipliers(program, v, multipliers)
        assert least.nonconvex_inequalities[0] == pytest.approx(2.5)
        assert kkt_residual(program, v, least).total < 1e-15
    # none is needed where the cost holds the variable down
    least = least_multipliers(vanishing(1.0), v, multipliers_of(program, nonconvex_inequalities=[3.0]))
    assert least.nonconvex_inequalities[0] == 0.0


def test_least_multipliers_leave_alone_what_has_not_vanished() -> None:
    """Away from the bound, or where the row moves another variable too, they are as given."""
    program = vanishing(-5.0)
    multipliers = multipliers_of(program, nonconvex_inequalities=[7.0])
    assert least_multipliers(program, np.array([0.2, 3.0]), multipliers).nonconvex_inequalities[0] == 7.0
    free = replace(program, lower=np.array([0.0, 0.0]), upper=np.array([1.0, 9.0]))
    assert least_multipliers(free, np.array([0.5, 3.0]), multipliers).nonconvex_inequalities[0] == 7.0
    hold = least_multipliers(*hyperbola_below())
    assert hold.nonconvex_inequalities[0] == 2.0


@cases(30)
@given(seed=seeds)
def test_least_multipliers_never_hurt(seed: int) -> None:
    """At any point of a native program they stay nonnegative, change for rows that vanish alone, and do not raise the residual."""
    rng = np.random.default_rng(seed)
    native = build_native(tiny_problem(rng, 2, 1, 3))
    program = native.program
    v = native.spread(rng)
    closed = rng.random(native.blocks["upload"].shape) < 0.5
    values = {name: native.tensor(v, name) for name in ("receive", "upload", "before", "steps", "batch", "freq", "power", "bandwidth")}
    v = np.clip(native.complete({**values, "upload": np.where(closed, 0.0, values["upload"])}), program.lower, program.upper)
    multipliers = Multipliers(**{name: rng.exponential(1.0, len(getattr(program, name))) for name in CLASSES})
    least = least_multipliers(program, v, multipliers)
    assert np.all(least.nonconvex_inequalities >= 0)
    before, after = kkt_residual(program, v, multipliers), kkt_residual(program, v, least)
    assert after.stationarity <= before.stationarity * (1 + 1e-9)
    changed = np.flatnonzero(least.nonconvex_inequalities != multipliers.nonconvex_inequalities)
    assert len(changed) > 0 and np.all(np.abs(program.nonconvex_inequalities.values(v)[changed]) < 1e-5)


def binary_program(cost: list[float]) -> Program:
    n = len(cost)

    def add(b: RowBuilder) -> None:
        z = b.rows("binary z", n)
        b.linear(z, np.arange(n)).product(z, np.arange(n), np.arange(n), -1.0)

    return program_of(cost, [0.0] * n, [1.0] * n, nonconvex_inequalities=rows(n, lambda b: b.rows("nothing", 1, -1.0), add))


def test_binary_multipliers_hold_whole_points() -> None:
    """Any whole point of min c·z is a KKT point: z = 0 with c < 0 needs −c, z = 1 with c > 0 needs c, the others nothing."""
    program, z = binary_program([-3.0, 2.0, -1.0, 4.0]), np.array([0.0, 1.0, 1.0, 0.0])
    multipliers = multipliers_of(program, nonconvex_inequalities=[0.0, 9.0, 9.0, 9.0, 9.0])
    found = binary_multipliers(program, z, multipliers, np.arange(4))
    np.testing.assert_array_equal(found.nonconvex_inequalities, [0.0, 3.0, 2.0, 0.0, 0.0])
    assert kkt_residual(program, z, found).total == 0.0
    assert kkt_residual(program, z, multipliers_of(program)).total == 1.0


# --- iterates ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["native_sca", "native_sca_log"])
def solved(request: pytest.FixtureRequest) -> tuple[Any, SolveResult]:
    problem = tiny_problem(np.random.default_rng(1), 2, 1, 3)
    settings = SolverSettings(switches={"polish_rounds": "0", "samples": "1"})
    return problem, solve(problem, solver=request.param, settings=settings)


def test_residuals_are_what_the_solver_reported(solved: tuple[Any, SolveResult]) -> None:
    problem, result = solved
    relaxed, final = result.iterate.residuals(problem)
    assert relaxed.total == result.kkt_residual
    assert final is not None and final.total == result.details["final_residual"]
    # and by differences
    program = build_native(problem, logs=result.iterate.logs).program
    binary = np.array([name.startswith("binary") for name in program.nonconvex_inequalities.names], dtype=bool)
    expected = by_differences(program, result.iterate.relaxed, result.iterate.relaxed_multipliers, binary)
    assert relaxed.total == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert relaxed.total < 1e-3


def test_iterates_survive_their_arrays(solved: tuple[Any, SolveResult]) -> None:
    problem, result = solved
    again = NativeIterate.from_arrays(result.iterate.arrays())
    assert again.residuals(problem) == result.iterate.residuals(problem)
    assert again.logs == result.iterate.logs and again.problem_digest == problem.digest
    first = replace(result.iterate, final=None, final_multipliers=None)
    assert not any(name.startswith("final") for name in first.arrays())
    again = NativeIterate.from_arrays(first.arrays())
    assert again.final is None and again.final_multipliers is None
    assert again.residuals(problem) == (result.iterate.residuals(problem)[0], None)
    arrays = result.iterate.arrays()
    del arrays["relaxed.affine"]
    with pytest.raises(KeyError, match="relaxed.affine"):
        NativeIterate.from_arrays(arrays)


def test_an_iterate_is_of_one_problem(solved: tuple[Any, SolveResult]) -> None:
    problem, result = solved
    other = tiny_problem(np.random.default_rng(2), 2, 1, 3)
    with pytest.raises(InputError, match=f"digest {problem.digest[:12]}, not {other.digest[:12]}"):
        result.iterate.residuals(other)


def test_a_changed_iterate_shows(solved: tuple[Any, SolveResult]) -> None:
    """The proof is of this point and these multipliers."""
    problem, result = solved
    iterate = result.iterate
    moved = replace(iterate, relaxed=iterate.relaxed + 0.01)
    assert moved.residuals(problem)[0].total > 5e-3
    doubled = replace(iterate.relaxed_multipliers, nonconvex_inequalities=2.0 * iterate.relaxed_multipliers.nonconvex_inequalities)
    assert replace(iterate, relaxed_multipliers=doubled).residuals(problem)[0].total > 1e-2


def test_iterates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Damaged files, and arrays of another length or of no numbers, are named."""
    problem = tiny_problem(np.random.default_rng(1), 2, 1, 2)
    result = solve(problem, solver="native_sca")
    assert result.iterate is not None
    arrays = result.iterate.arrays()
    for name, change in (("relaxed", arrays["relaxed"][1:]), ("relaxed.affine", arrays["relaxed.affine"] * np.nan)):
        with pytest.raises(InputError, match=name):
            NativeIterate.from_arrays({**arrays, name: change}).residuals(problem)
    path = tmp_path / "it.npz"
    save_iterate(path, result.iterate)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 20):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            load_iterate(path)
        except InputError:
            refused += 1
    assert refused > 20
