"""The benchmarks run, judge and report: a tiny case only; the real ones are run by hand (``make bench``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_problem

from benchmarks import __main__ as command
from benchmarks import drivers, guarantee, scale
from benchmarks.cases import CASES, Case
from benchmarks.drivers import Settings, run_cases, seconds_to_gap
from benchmarks.iteration import __main__ as iteration_command
from benchmarks.iteration.ways import Direct, Dpp, OwnSettings, ScalarLoop, Vectorised
from benchmarks.output import results_text
from benchmarks.solvers import __main__ as solvers_command
from benchmarks.solvers.profile import PARTS
from benchmarks.variants import variant
from schedopt.io import save_problem
from schedopt.registry import get_solver
from schedopt.result import IterationRecord, SolveResult, SolveStatus
from schedopt.solvers.base import SolverSettings

QUICK = Settings(seed=1, time_limit_s=1.5, variants=1)


@pytest.fixture
def tiny_case(tmp_path: Path) -> Case:
    """A case of a tiny problem, whatever the folder of problems holds."""
    problem = tiny_problem(np.random.default_rng(5), 2, 1, 2, max_steps=2)
    save_problem(tmp_path / f"{problem.name}.json", problem)
    return Case(problem.name, "oracle", "a test", folder=tmp_path)


def test_every_case_has_its_problem_file() -> None:
    assert [name for name, case in CASES.items() if not case.path.is_file()] == []


def test_variants_are_reproducible_and_differ(tiny_case: Case) -> None:
    problem = tiny_problem(np.random.default_rng(5), 2, 1, 2)
    before = problem.digest
    first = variant(problem, 0, seed=3)
    assert first.digest == variant(problem, 0, seed=3).digest
    assert len({first.digest, variant(problem, 1, seed=3).digest, variant(problem, 0, seed=4).digest, before}) == 4
    assert problem.digest == before


def test_command_on_a_tiny_case(
    tiny_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "CASES", {tiny_case.name: tiny_case})
    output = tmp_path / "results" / "tiny.json"
    code = command.main([tiny_case.name, "--variants", "1", "--time-limit", "2", "--seed", "1", "-o", str(output)])
    printed = capsys.readouterr().out
    data = json.loads(output.read_text())
    assert code == 0, printed
    assert "1 of 1 complete cases" in printed
    assert data["settings"]["seed"] == 1
    assert data["machine"]["cores"] >= 1
    assert data["versions"]["numpy"] == np.__version__
    (case,) = data["cases"]
    assert case["missed"] == []
    assert len(case["variants"]) == 1
    for row in case["variants"]:
        assert row["excess"] <= drivers.TARGET_EXCESS
        # on a slow machine the time may end before anything is proven
        assert row["lower_bound"] is None or row["lower_bound"] <= row["optimum"] * (1 + 1e-8)


def test_main_question_compares_with_the_heuristics(tiny_case: Case) -> None:
    ((result,), interrupted) = run_cases([replace(tiny_case, question="scale")], QUICK)
    assert not interrupted
    assert [row.solver for row in result.solvers] == ["greedy_energy", "round_robin", "random_feasible", "synchronous", "sca"]
    assert result.improvement is not None
    assert result.missed == []
    assert json.loads(results_text([result], QUICK, interrupted=False))["cases"][0]["case"] == tiny_case.name


@pytest.mark.parametrize(
    ("lower_factor", "objective_factor", "expected"),
    [(0.9, 1.006, "above the optimum; target 0.5 %"), (1.001, 1.002, "is above the optimum"), (0.9, 0.9, "better than enumeration")],
)
def test_missed_targets_are_named(
    tiny_case: Case, monkeypatch: pytest.MonkeyPatch, lower_factor: float, objective_factor: float, expected: str
) -> None:
    real = drivers.solve

    def forged(problem: object, *, solver: str = "sca", **options: object) -> SolveResult:
        oracle = real(problem, solver="enumeration", **options)  # type: ignore[arg-type]
        if solver == "enumeration":
            return oracle
        return oracle.replace(solver="sca", objective=oracle.objective * objective_factor, lower_bound=oracle.objective * lower_factor)

    monkeypatch.setattr(drivers, "solve", forged)
    ((result,), _) = run_cases([tiny_case], QUICK)
    assert any(expected in line for line in result.missed)


def test_an_interruption_keeps_what_is_done(tiny_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = drivers.solve, []

    def interrupted_third(problem: object, *, solver: str = "sca", **options: object) -> SolveResult:
        result = real(problem, solver="enumeration", **options)  # type: ignore[arg-type]
        calls.append(solver)
        return result.replace(status=SolveStatus.INTERRUPTED) if len(calls) == 3 else result

    monkeypatch.setattr(drivers, "solve", interrupted_third)
    results, interrupted = run_cases([tiny_case, tiny_case], replace(QUICK, variants=3))
    assert interrupted
    assert [len(result.variants) for result in results] == [1]
    assert results[0].interrupted


def test_unknown_case_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no_such_case"]) == 2
    assert "no_such_case" in capsys.readouterr().err


def test_seconds_to_gap() -> None:
    records = [IterationRecord(k, float(k), 10.0, bound, "") for k, bound in enumerate((-np.inf, 9.0, 9.85, 9.9))]
    assert seconds_to_gap(records, 0.02) == 2.0
    assert seconds_to_gap(records[:2], 0.02) is None


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A tiny problem in a file."""
    path = tmp_path / "problem.json"
    save_problem(path, tiny_problem(np.random.default_rng(5), 2, 1, 3, max_steps=2))
    return path


def test_all_ways_of_modelling_an_iteration_have_the_same_optimum(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tiny_file.parent / "iteration.json"
    code = iteration_command.main(["--problems", str(tiny_file), "--count", "2", "--iterations", "5", "-o", str(output)])
    printed, told = capsys.readouterr()
    assert code == 0, told
    (timing,) = json.loads(output.read_text())["problems"]
    ways = [Direct.name, Vectorised.name, OwnSettings.name, Dpp.name, ScalarLoop.name]
    assert timing["skipped"] == {}
    assert list(timing["disagreement"]) == ways
    assert max(timing["disagreement"].values()) < 1e-4
    # the scalar loops get one subproblem unless more are asked for
    assert [sum(sample["way"] == way for sample in timing["samples"]) for way in ways] == [2, 2, 2, 2, 1]
    assert all(sample[part] > 0 for sample in timing["samples"] for part in ("build_s", "canonicalise_s", "solve_s"))
    assert timing["setup_s"][Dpp.name] > 0
    assert "outside the solver" in printed


def test_optima_that_differ_are_an_error(tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = Vectorised.canonicalise_and_solve
    monkeypatch.setattr(Vectorised, "canonicalise_and_solve", lambda way: right(way) + 1e-5)
    assert iteration_command.main(["--problems", str(tiny_file), "--count", "1", "--iterations", "3", "--ways", "vectorised"]) == 1
    assert "cvxpy, vectorised, rebuilt finds" in capsys.readouterr().err


def test_parameters_beyond_the_memory_are_not_compiled(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--problems", str(tiny_file), "--count", "1", "--iterations", "3", "--ways", "dpp", "--memory", "1e-6"]
    assert iteration_command.main(arguments) == 0
    assert "not measured at this size: cvxpy, parameters (DPP)" in capsys.readouterr().out


def test_solver_variants_side_by_side(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, picture = tiny_file.parent / "solvers.json", tiny_file.parent / "solvers.png"
    arguments = ["--problems", str(tiny_file), "--variants", "native_sca", "no_polish", "greedy_energy", "-o", str(output)]
    if find_spec("matplotlib"):
        arguments += ["--plot", str(picture)]
    assert solvers_command.main(arguments) == 0
    (result,) = json.loads(output.read_text())["problems"]
    rows = {row["variant"]: row for row in result["rows"]}
    assert result["best"] == min(row["objective"] for row in rows.values())
    assert all(row["feasible"] for row in rows.values())
    native = rows["native_sca"]
    assert native["excess"] >= 0
    assert all(native["parts_s"][part] > 0 for part in PARTS)
    assert rows["no_polish"]["parts_s"]["polish"] == 0
    assert sum(native["parts_s"].values()) == pytest.approx(native["wall_s"], rel=0.05)
    assert len(native["trace"]["residual"]) == len(native["trace"]["merit"]) > 0
    assert native["gap_rounded"] == pytest.approx((native["rounded"] - native["relaxed"]) / native["rounded"])
    assert min(native["trace"]["residual"]) <= native["relaxed_residual"] * (1 + 1e-9)
    assert not find_spec("matplotlib") or picture.read_bytes().startswith(b"\x89PNG")
    assert "KKT relaxed" in capsys.readouterr().out


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.solvers.plot.find_spec", lambda name: None)
    assert solvers_command.main(["--plot", "out.png"]) == 2
    assert "pip install 'schedopt[report]'" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["heuristic", "spread"])
def test_the_guarantee_counts_what_the_saved_points_show(start: str, tmp_path: Path) -> None:
    output = tmp_path / "runs.json"
    result = CliRunner().invoke(guarantee.main, ["--runs", "2", "--seed", "3", "--start", start, "-o", str(output)])
    runs = json.loads(output.read_text())["runs"]
    reached = sum(run["residual"] <= 1e-4 for run in runs)
    assert f"from {start}: {reached} of 2 runs reach" in result.output
    assert result.exit_code == (0 if reached == 2 else 1)
    for run in runs:
        problem = guarantee.instance(run["seed"])
        switches = {**guarantee.SWITCHES, "start": start}
        again = get_solver("native_sca").solve(problem, settings=SolverSettings(switches=switches, max_iterations=1000), seed=0)
        assert again.iterate is not None and again.iterate.residuals(problem)[0].total == run["residual"]


def test_growth_exponents_are_slopes_of_logarithms(tmp_path: Path) -> None:
    sizes = scale.sizes_of("devices", False)
    taken = [scale.Taken("devices", s, 0, 0.3 * s.devices**1.25, 50.0 * s.devices**0.5, 0.01, 5, "solved") for s in sizes]
    # runs that were stopped say nothing about growth
    taken.append(scale.Taken("devices", replace(sizes[-1], devices=5000), 0, 1.0, 1.0, None, 5, "time_limit"))
    assert scale.exponent(taken, "devices") == pytest.approx(1.25)
    assert scale.exponent(taken, "devices", "memory_mib") == pytest.approx(0.5)
    assert scale.exponent(taken, "tasks") is None
    if find_spec("matplotlib"):
        scale.picture(taken, tmp_path / "scale.png")
        assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_one_size_is_solved_in_a_process_of_its_own() -> None:
    taken = scale.measure("slots", scale.Size(6, 2, 5, 1), "instant", 60.0)
    assert taken.status == "solved" and taken.memory_mib > 50 and 0 <= taken.gap < 0.2 and taken.assignments > 0


@pytest.mark.parametrize("main", [iteration_command.main, solvers_command.main])
def test_unknown_problem_is_a_usage_error(main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--problems", "no_such_problem"]) == 2
    assert "no_such_problem" in capsys.readouterr().err
