"""The benchmark of the runtime: a tiny workload only; what it tells is read, not judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.output import run_and_deliver
from benchmarks.runtime import __main__ as command
from benchmarks.runtime import measure as measuring
from benchmarks.runtime import table
from benchmarks.runtime.measure import PLAIN, Case, Way
from benchmarks.runtime.workload import Setting, Workload, load_workload, plain_round
from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training import LocalTrainer
from schedopt.errors import SolverError


@pytest.fixture(scope="module")
def workload() -> Workload:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(40, 1, 28, 28, generator=generator) for _ in range(5)]
    return Workload(features, [torch.randint(0, 10, (40,), generator=generator) for _ in range(5)], "random numbers")


def test_the_plain_loop_does_what_the_trainer_does(workload: Workload) -> None:
    """With a batch of all samples there is nothing to draw."""
    model = build_model("softmax", (1, 28, 28), 10)
    start = initial_parameters(model, 0)
    jobs = workload.jobs(Setting(3, 4, 40), 1)
    assert len({id(job.features) for job in jobs}) == 3
    with LocalTrainer(model, learning_rate=0.05, path="sequential") as trainer:
        assert plain_round(model, start, jobs).allclose(trainer.train(start, jobs), rtol=1e-4, atol=1e-6)


def test_command(workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "load_workload", lambda: workload)
    monkeypatch.setattr(command, "Setting", lambda *sizes: Setting(2, 2, 4))
    monkeypatch.setattr(command, "WARM_S", 0.0)
    monkeypatch.setattr(measuring, "SAMPLE_S", 0.01)
    output = tmp_path / "results" / "runtime.json"
    code = command.main(["--models", "softmax", "--paths", "auto", "sequential", "--samples", "3", "--torch-threads", "-o", str(output)])
    data = json.loads(output.read_text())
    assert code == int(bool(data["missed"]))
    (case,) = data["cases"]
    assert [way["name"] for way in case["ways"]] == [PLAIN, "plain loop, torch threads", "auto", "sequential"]
    assert all(len(way["seconds"]) == 3 and way["steps_per_s"] > 0 for way in case["ways"])
    assert case["ways"][0]["ratio"] == 1 and case["ways"][2]["chosen_path"] == "closed_form"
    assert "softmax, 7,850 parameters, 2 clients, 2 steps of batch 4" in capsys.readouterr().out


def test_grid(workload: Workload, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "load_workload", lambda: workload)
    monkeypatch.setattr(command, "GRID", ((1, 3), (2,), (5,)))
    monkeypatch.setattr(measuring, "SAMPLE_S", 0.01)
    assert command.main(["--models", "softmax", "--grid", "--samples", "3"]) in (0, 1)
    assert capsys.readouterr().out.count("softmax") >= 2


@pytest.mark.parametrize("arguments", [["--models", "softmaxx"], ["--samples", "0"], ["--paths", "fast"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("ending", "code", "written"), [(None, 1, False), (KeyboardInterrupt(), 130, True), (SolverError("no such thing"), 4, None)]
)
def test_the_frame_of_a_benchmark(
    ending: BaseException | None, code: int, written: bool | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there is when Ctrl-C comes is delivered; an error is one line and leaves no file."""

    def results() -> Iterator[int]:
        yield 1
        if ending is not None:
            raise ending

    output = tmp_path / "new" / "results.json"
    found = run_and_deliver("name", str(output), results, lambda seen, interrupted: (json.dumps([seen, interrupted]), True))
    assert found == code
    if written is None:
        assert not output.exists() and capsys.readouterr().err == "name: no such thing\n"
    else:
        assert json.loads(output.read_text()) == [[1], written]


def test_a_benchmark_that_cannot_be_written_or_has_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_deliver("name", "/dev/full", lambda: [1], lambda seen, interrupted: ("text", False)) == 2
    assert capsys.readouterr().err == "name: /dev/full: No space left on device\n"
    assert run_and_deliver("name", str(tmp_path / "r"), list, lambda seen, interrupted: pytest.fail("nothing to deliver")) == 0


def _case(plain: list[float], auto: list[float], others: list[float | None]) -> Case:
    ways = [Way(PLAIN, plain, others), Way("auto", auto, [0.0] * len(plain))]
    return Case("cnn", 10, Setting(2, 5, 4), ways)


def test_only_quiet_rounds_are_judged_if_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "default_workers", lambda: 2)
    case = _case([1.0, 4.0, 2.0, 9.0], [0.5, 1.0, 1.0, 9.0], [0.0, 0.1, 0.0, 1.5])
    assert case.quiet() == case.judged() == [0, 1, 2]
    assert case.ratios(case.ways[1]) == [2, 2, 4] and case.ratio("auto") == 2
    assert case.steps_per_s(case.ways[1]) == 10
    assert table.missed([case], common=True) == []
    unknown = _case([1.0, 1.0, 1.0], [1.0, 2.0, 4.0], [None, None, None])
    assert unknown.judged() == [0, 1, 2] and unknown.quiet() == []
    assert table.missed([unknown], common=True) == ["cnn, 2 clients, 5 steps of batch 4: 0.50 times the plain loop; target 1.9"]
    assert table.missed([unknown], common=False) == ["cnn, 2 clients, 5 steps of batch 4: 0.50 times the plain loop; target 1"]


def test_random_numbers_stand_in_for_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = load_workload(3, 20)
    assert [tuple(features.shape) for features in found.features] == [(20, 1, 28, 28)] * 3
    assert "MNIST not found" in found.source
