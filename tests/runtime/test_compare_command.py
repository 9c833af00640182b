"""``schedopt compare`` on small data: the same twice, as ``simulate`` says, stopped and gone on with, and what is wrong in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fl_runtime.compare import job, plot, runs
from fl_runtime.settings import SimulateSettings
from fl_runtime.simulate import Simulation
from schedopt import solve
from schedopt.cli import main
from schedopt.io import load_schedule, save_problem, save_schedule
from schedopt.result import SolveResult, SolveStatus
from schedopt.solvers.base import SolverSettings

from .policies.helpers import problem_of

FEW = ("--policy", "fedasync", "--policy", "sync_st:batch=8", "--seeds", 2, "--measure-every", 4, "--workers", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem and a schedule for it."""
    folder = tmp_path_factory.mktemp("compare")
    problem = problem_of("breast-cancer", "wine", slots=8)
    save_problem(folder / "problem.json", problem)
    found = solve(problem, solver="random_feasible", settings=SolverSettings(max_iterations=5)).schedule
    assert found is not None and len(found)
    save_schedule(folder / "schedule.json", problem, found.sorted())
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """A folder of its own with both."""
    for name in ("problem.json", "schedule.json"):
        shutil.copy(made / name, tmp_path / name)
    return tmp_path


def call(files: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", str(files / "problem.json"), *map(str, arguments)])


def given(files: Path, *arguments: object) -> Result:
    """Without solving."""
    return call(files, "--no-solve", "--schedule", files / "schedule.json", *FEW, *arguments)


def report(path: Path) -> dict[str, Any]:
    """A report without what depends on the clock."""
    found = json.loads(path.read_text())
    del found["wall_s"]
    for run in found["runs"]:
        del run["wall_s"]
    return found


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, Any]:
    """The report of a comparison that nothing disturbed."""
    done = given(made, "-o", made / "whole.json")
    assert done.exit_code == 0, done.output
    return report(made / "whole.json")


def test_equal_seeds_give_equal_reports(files: Path, whole: dict[str, Any]) -> None:
    assert given(files, "-o", files / "again.json").exit_code == 0
    assert report(files / "again.json") == whole


def test_report(whole: dict[str, Any]) -> None:
    assert (whole["schema"], whole["interrupted"]) == ("schedopt.comparison/1", False)
    names = ["file schedule.json", "fedasync (full)", "fedasync (closed form)", "sync_st:batch=8 (full)", "sync_st:batch=8 (closed form)"]
    assert list(whole["contestants"]) == names
    assert [(run["seed"], run["contestant"]) for run in whole["runs"]] == [(seed, name) for seed in (0, 1) for name in names]
    for run in whole["runs"]:
        shares = whole["summary"]["importance"]
        weighted = [sum(shares[n] * run["tasks"][n]["accuracy"][k] for n in shares) for k in range(len(run["time_s"]))]
        assert run["weighted_accuracy"] == pytest.approx(weighted)
        assert run["energy_j"] == pytest.approx([sum(e) for e in zip(*(t["energy_j"] for t in run["tasks"].values()), strict=True)])
        assert run["time_s"][0] == run["energy_j"][0] == 0.0 and run["energy_j"] == sorted(run["energy_j"])
    assert len({tuple(run["tasks"]["wine"]["accuracy"][:1]) for run in whole["runs"] if run["seed"] == 0}) == 1, "the same first model"
    full, closed = (next(r for r in whole["runs"] if r["contestant"] == f"fedasync ({kind})") for kind in ("full", "closed form"))
    assert closed["weighted_accuracy"] == full["weighted_accuracy"] and closed["energy_j"][-1] < full["energy_j"][-1]


def test_our_schedule_gives_what_simulate_gives(files: Path, whole: dict[str, Any]) -> None:
    file = load_schedule(files / "schedule.json")
    with Simulation(file.problem, file.schedule, SimulateSettings(gradient=False, measure_every=4, workers=1), seed=1) as simulation:
        expected = simulation.run()
    (run,) = (run for run in whole["runs"] if run["seed"] == 1 and run["contestant"] == "file schedule.json")
    for name, task in expected.tasks.items():
        assert run["tasks"][name]["accuracy"] == task.accuracy
        assert run["tasks"][name]["energy_j"] == pytest.approx(task.energy_j, rel=1e-12)
    assert whole["contestants"]["file schedule.json"]["planned_energy_j"] == pytest.approx(expected.energy_j, rel=1e-9)


def test_tables(files: Path) -> None:
    shown = given(files, "--seeds", 1, "--target", "wine=0.2", "--level", "50%")
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 300
    for text in ("energy and time at equal accuracy", "accuracy at equal energy", "sync_st: batch=8", "50% of ours", "wine 0.2"):
        assert text in shown.stdout, text


def test_tables_are_shown_where_the_report_cannot_be_written(files: Path) -> None:
    done = given(files, "-o", "/dev/full")
    assert done.exit_code == 2 and "/dev/full: No space left on device" in done.stderr
    assert "our schedules beside policies" in done.stdout and "/dev/full" not in done.stdout


def test_policies_are_listed(files: Path) -> None:
    shown = call(files, "--policy", "help")
    assert shown.exit_code == 0 and "alpha" in shown.stdout and "closed_loop" in shown.stdout
    assert json.loads(call(files, "--policy", "help", "--json").stdout)["fedasync"]["alpha"]["default"] == 0.6


def test_json(files: Path, whole: dict[str, Any]) -> None:
    shown = given(files, "--json")
    found = json.loads(shown.stdout)
    assert found["summary"] == whole["summary"] and found["runs"] == len(whole["runs"])
    printed = given(files, "--json", "-o", "-")
    assert json.loads(printed.stdout)["runs"][0]["contestant"] == "file schedule.json"


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[object]:
    """Ctrl-C in the run after ``count`` runs; returns what has begun."""
    begun: list[object] = []
    real: Callable[..., Any] = runs.run_policy

    def run_policy(*arguments: Any, **options: Any) -> Any:
        begun.append(arguments)
        if len(begun) > count:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(runs, "run_policy", run_policy)
    return begun


@pytest.mark.parametrize("count", [3, 7])
def test_interrupted_and_resumed(files: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    output = files / "out.json"
    with monkeypatch.context() as patched:
        stop_after(patched, count)
        stopped = given(files, "-o", output)
    assert stopped.exit_code == 130 and f"{count} runs are in" in stopped.stderr and "--resume" in stopped.stderr
    kept = report(output)
    assert kept["interrupted"] and kept["runs"] == whole["runs"][:count]
    assert (kept["summary"] is None) == (count < 5)
    with monkeypatch.context() as patched:
        begun = stop_after(patched, 1000)
        gone_on = given(files, "-o", output, "--resume")
    assert gone_on.exit_code == 0, gone_on.output
    assert len(begun) == len(whole["runs"]) - count
    assert report(output) == whole


def test_interrupted_without_a_file_or_a_run(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        stopped = given(files, "--json")
    assert (stopped.exit_code, json.loads(stopped.stdout)["exit_code"]) == (130, 130)
    assert "nothing had been trained yet" in stopped.stderr
    stop_after(monkeypatch, 2)
    assert "with -o FILE they would have been kept" in given(files).stderr


def test_interrupted_with_standard_output_as_the_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is the one JSON object; without a run there is none, and the error is it."""
    for count in (1, 0):
        stop_after(monkeypatch, count)
        stopped = given(files, "-o", "-", "--json")
        found = json.loads(stopped.stdout)
        assert stopped.exit_code == 130 and "--resume" not in stopped.stderr
        assert found.get("interrupted") is True if count else found["exit_code"] == 130


def test_a_policy_that_uploads_nothing_is_told(files: Path) -> None:
    done = given(files, "--policy", "fedasync:slots=99", "--seeds", 1)
    assert done.exit_code == 0 and "nothing uploaded" in done.stdout


def test_what_is_done_is_written_on_the_way(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WRITE_EVERY_S", 0.0)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(job, "write_output", lambda path, text: written.append(json.loads(text)))
    assert given(files, "-o", files / "out.json").exit_code == 0
    assert [len(found["runs"]) for found in written] == [*range(1, 11), 10]
    assert [found["interrupted"] for found in written] == [True] * 10 + [False]


def test_more_seeds_and_policies_with_resume(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = files / "out.json"
    assert given(files, "-o", output, "--seeds", 1).exit_code == 0
    begun = stop_after(monkeypatch, 1000)
    assert given(files, "-o", output, "--resume", "--policy", "afl").exit_code == 0
    assert len(begun) == 2 + 7
    assert len(json.loads(output.read_text())["runs"]) == 14


def test_solves_once_and_keeps_what_it_solved(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = ("--solver", "greedy_energy", "--front", 3, "--energy", 0.05, "--policy", "sync_st", "--resources", "full", "--seeds", 1)
    kept, one, two = files / "kept" / "here", files / "one.json", files / "two.json"
    first = call(files, *fast, "--keep", kept, "-o", one)
    assert first.exit_code == 0, first.output
    found = json.loads(one.read_text())
    own = [name for name, entry in found["contestants"].items() if entry["group"] == "ours"]
    assert own[0] == "ours" and len(own) >= 2 and found["summary"]["reference"] == "ours"
    energies = [found["contestants"][name]["planned_energy_j"] for name in own[1:]]
    assert energies == sorted(energies)
    assert all((kept / path.name).exists() for path in kept.iterdir()) and len(list(kept.iterdir())) >= 2
    monkeypatch.setattr("fl_runtime.compare.solving.get_solver", lambda name: pytest.fail("solved again"))
    assert call(files, *fast, "--keep", kept, "-o", two).exit_code == 0
    assert report(one) == report(two)


def test_interrupted_while_solving(files: Path) -> None:
    class Solver:
        def solve(self, *_: Any, **__: Any) -> Any:
            return SolveResult(SolveStatus.INTERRUPTED, None, 0.0, "fake")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fl_runtime.compare.solving.get_solver", lambda name: Solver())
        stopped = call(files, "--seeds", 1, "-o", files / "out.json")
    assert stopped.exit_code == 130 and not (files / "out.json").exists()


def test_a_front_that_runs_out_of_time_is_left_out(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Solver:
        def solve(self, problem: Any, *, settings: Any, seed: int, progress: Any) -> Any:
            if settings.warm_start is not None:
                return SolveResult(SolveStatus.TIME_LIMIT, None, 0.0, "fake")
            return solve(problem, solver="greedy_energy", seed=seed)

    monkeypatch.setattr("fl_runtime.compare.solving.get_solver", lambda name: Solver())
    few = ("--seeds", 1, "--policy", "fedasync", "--resources", "full", "--measure-every", 4)
    done = call(files, *few, "--front", 2)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("no feasible schedule found within the time limit") == 2


def test_interrupted_while_a_policy_solves(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver takes the interrupt for the end of its own solve; the command must not."""
    stopped = SolveResult(SolveStatus.INTERRUPTED, load_schedule(files / "schedule.json").schedule, 0.0, "fake")
    monkeypatch.setattr("fl_runtime.policies.planned.solve", lambda *_, **__: stopped)
    done = given(files, "--policy", "closed_loop:every=4", "--seeds", 1, "-o", files / "out.json")
    assert done.exit_code == 130 and "--resume" in done.stderr, done.output
    found = json.loads((files / "out.json").read_text())
    assert found["interrupted"] and not any(run["contestant"].startswith("closed_loop") for run in found["runs"])


def test_pictures(files: Path) -> None:
    pytest.importorskip("matplotlib")
    few = ("--policy", "fedasync:batch=8", "--resources", "full")
    assert given(files, *few, "--seeds", 1, "--plot", files / "picture.png").exit_code == 0
    assert given(files, *few, "--plot", files / "new" / "folder").exit_code == 0
    pictures = [files / "picture.png", files / "new" / "folder" / "energy.png", files / "new" / "folder" / "time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_pictures_need_matplotlib(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    failed = given(files, "--plot", files / "picture.png")
    assert failed.exit_code == 4 and "schedopt[report]" in failed.stderr


def test_policies_that_are_not_for_the_problem_are_left_out(files: Path) -> None:
    done = given(files, "--policy", "fedavg", "--seeds", 1, "-o", files / "out.json")
    assert done.exit_code == 0 and "left out: fedavg (full)" in done.stdout
    found = json.loads((files / "out.json").read_text())
    assert "one task" in found["contestants"]["fedavg (full)"]["excluded"]
    assert found["summary"]["seeds"] == [0] and "fedavg (full)" not in found["summary"]["ends"]


def test_closed_loop_is_ours(files: Path) -> None:
    done = given(files, "--policy", "closed_loop:every=4,solver=greedy_energy", "--seeds", 1, "-o", files / "out.json")
    assert done.exit_code == 0, done.output
    (entry,) = (e for n, e in json.loads((files / "out.json").read_text())["contestants"].items() if n.startswith("closed_loop"))
    assert (entry["group"], entry["resources"]) == ("ours", None)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--policy", "nobody"), 2, "policy = 'nobody'; must be one of"),
        (("--policy", "fedasync:beta=1"), 2, "no option 'beta'"),
        (("--policy", "fedasync:alpha=2"), 2, "alpha = 2"),
        (("--level", "2"), 2, "--level 2: must be an accuracy"),
        (("--target", "beer=0.5"), 2, "no such task; must be one of breast-cancer, wine"),
        (("--target", "wine"), 2, "must be TASK=ACCURACY"),
        (("--seeds", "0"), 2, "must be a whole number"),
        (("--energy", "-1"), 2, "must be a finite number greater than 0"),
        (("--resources", "none"), 2, "none"),
        (("--solver", "oracle"), 2, "solver = 'oracle'"),
        (("--no-solve",), 2, "--schedule FILE"),
        (("--resume",), 2, "give -o FILE"),
        (("--dataset", "mnist", "--no-download", "--data-dir", "."), 4, "mnist"),
        (("--model", "wine=cnn2"), 2, "cnn2"),
        (("--partition", "odd"), 2, "odd"),
        (("--schedule", "nothing.json"), 2, "nothing.json"),
        (("--keep", "problem.json/kept", "--solver", "greedy_energy"), 2, "--keep"),
        (("--plot", "problem.json/x"), 2, "--plot"),
        (("--plot", ""), 2, "--plot"),
        (("--keep", "", "--solver", "greedy_energy"), 2, "--keep"),
        (("--plot", "problem.json/x.png"), 2, "x.png"),
        (("-o", "problem.json"), 2, "is the input"),
        (("-o", "nowhere/out.json"), 2, "no such directory"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("SCHEDOPT_CACHE_DIR", str(files / "cache"))
    monkeypatch.delenv("SCHEDOPT_DATA_DIR", raising=False)
    failed = call(Path("."), "--solver", "greedy_energy", "--front", 0, "--seeds", 1, *arguments)
    assert failed.exit_code == code and said in failed.stderr, failed.output
    assert len(failed.stderr.strip().splitlines()) == 1 and failed.stdout == ""


def test_problem_without_data_set(files: Path) -> None:
    data = json.loads((files / "problem.json").read_text())
    data["tasks"][1]["dataset"] = None
    (files / "problem.json").write_text(json.dumps(data))
    failed = call(files)
    assert failed.exit_code == 2 and "tasks[1].dataset" in failed.stderr


@pytest.mark.parametrize("text", ["{}", "no json", '{"schema": "schedopt.comparison/1", "tasks": {}, "runs": [{"seed": 0}]}'])
def test_resuming_from_what_is_no_comparison(files: Path, text: str) -> None:
    (files / "out.json").write_text(text)
    failed = given(files, "-o", files / "out.json", "--resume")
    assert failed.exit_code == 2 and "not a comparison" in failed.stderr
    assert (files / "out.json").read_text() == text


def test_resuming_another_comparison(files: Path) -> None:
    assert given(files, "--seeds", 1, "-o", files / "out.json").exit_code == 0
    before = (files / "out.json").read_text()
    failed = given(files, "--seeds", 1, "-o", files / "out.json", "--resume", "--partition", "iid")
    assert failed.exit_code == 2 and "another comparison" in failed.stderr
    assert (files / "out.json").read_text() == before


def test_schedules_of_other_problems_are_refused(files: Path) -> None:
    other = problem_of("digits", "wine", slots=8)
    found = solve(other, solver="random_feasible", settings=SolverSettings(max_iterations=2)).schedule
    assert found is not None
    save_schedule(files / "other.json", other, found)
    failed = call(files, "--no-solve", "--schedule", files / "other.json")
    assert failed.exit_code == 2 and "task 'digits' is not in the problem" in failed.stderr
    file = load_schedule(files / "schedule.json")
    save_schedule(files / "hot.json", file.problem, file.schedule.replace(power_w=file.schedule.power_w * 1e3))
    failed = call(files, "--no-solve", "--schedule", files / "hot.json")
    assert failed.exit_code == 3 and "cannot be executed" in failed.stderr
