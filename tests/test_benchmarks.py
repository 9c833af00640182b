"""The benchmarks run, judge and report: a tiny case only; the real ones are run by hand (``make bench``)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_problem

from benchmarks import __main__ as command
from benchmarks import drivers
from benchmarks.cases import CASES, Case
from benchmarks.drivers import Settings, run_cases, seconds_to_gap
from benchmarks.output import results_text
from benchmarks.variants import variant
from schedopt.io import save_problem
from schedopt.result import IterationRecord, SolveResult, SolveStatus

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
