"""No solver of the short set becomes infeasible or worse than its stored objective by more than 1 %; nothing is asked of times.

After a wanted change: ``python -m benchmarks.solvers --refresh-references``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cases import PROBLEMS
from benchmarks.references import ALLOWED, SHORT_PROBLEMS, SHORT_SOLVERS, Reference, complaint, load_references, refresh
from benchmarks.solvers import __main__ as command
from schedopt import Problem, Schedule, load_problem, solve
from schedopt.errors import InputError
from schedopt.result import SolveResult


@pytest.mark.slow
@pytest.mark.parametrize("solver", SHORT_SOLVERS)
@pytest.mark.parametrize("name", SHORT_PROBLEMS)
def test_no_solver_is_worse_than_stored(name: str, solver: str) -> None:
    problem = load_problem(PROBLEMS / f"{name}.json")
    result = solve(problem, solver=solver)
    assert complaint(problem, solver, result, load_references().get(problem.digest)) is None


@pytest.fixture
def tiny() -> tuple[Problem, SolveResult, Reference]:
    problem = load_problem(PROBLEMS / "tiny_2dev_1task.json")
    result = solve(problem, solver="greedy_energy")
    return problem, result, Reference(problem.name, problem.digest, None, {"greedy_energy": result.objective})


def test_complaints_name_what_is_wrong(tiny: tuple[Problem, SolveResult, Reference]) -> None:
    problem, result, reference = tiny
    better = Reference(problem.name, problem.digest, None, {"greedy_energy": result.objective / (1 + 1.01 * ALLOWED)})
    nearly = Reference(problem.name, problem.digest, None, {"greedy_energy": result.objective / (1 + 0.99 * ALLOWED)})
    assert complaint(problem, "greedy_energy", result, reference) is None
    assert complaint(problem, "greedy_energy", result, nearly) is None
    assert "1.01 % worse than the stored" in str(complaint(problem, "greedy_energy", result, better))
    assert "no reference stored" in str(complaint(problem, "sca", result, reference))
    assert "no reference stored" in str(complaint(problem, "greedy_energy", result, None))
    assert "no feasible schedule" in str(complaint(problem, "greedy_energy", result.replace(schedule=None), reference))


def test_an_infeasible_schedule_is_found_out(tiny: tuple[Problem, SolveResult, Reference]) -> None:
    problem, result, reference = tiny
    assert result.schedule is not None
    columns = {name: getattr(result.schedule, name) for name in Schedule.__dataclass_fields__}
    greedy = Schedule(**(columns | {"freq_hz": 1e-3 * result.schedule.freq_hz}))
    assert "no feasible schedule" in str(complaint(problem, "greedy_energy", result.replace(schedule=greedy), reference))


def test_references_are_stored_and_read(
    tiny: tuple[Problem, SolveResult, Reference], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem, result, _ = tiny
    monkeypatch.setattr("benchmarks.references.SHORT_PROBLEMS", (problem.name,))
    monkeypatch.setattr("benchmarks.references.SHORT_SOLVERS", ("greedy_energy",))
    path = tmp_path / "references.json"
    refresh(path=path)
    assert load_references(path)[problem.digest].objectives == {"greedy_energy": result.objective}
    path.write_text(json.dumps({"schema": "other"}))
    with pytest.raises(InputError, match="schema = 'other'"):
        load_references(path)


def test_check_says_what_is_worse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.references.SHORT_PROBLEMS", ("tiny_2dev_1task",))
    monkeypatch.setattr("benchmarks.references.SHORT_SOLVERS", ("greedy_energy",))
    assert command.main(["--check"]) == 0
    monkeypatch.setattr("benchmarks.references.load_references", dict)
    assert command.main(["--check"]) == 1
    assert "no reference stored" in capsys.readouterr().out
