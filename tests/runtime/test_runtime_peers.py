"""The comparison with simulators: what peers do wrong is a row of the table; no peer needs to be installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.runtime_peers import __main__ as command
from benchmarks.runtime_peers import compare as comparing
from benchmarks.runtime_peers import runner
from benchmarks.runtime_peers.compare import Case, Limits, Way, compare
from benchmarks.runtime_peers.registry import OURS, PEERS, Peer
from benchmarks.runtime_peers.table import missed, print_cases
from benchmarks.runtime_peers.task import Task, batches
from tests.runtime.fake_peers import KINDS, fake

ABSENT = Peer("absent", "benchmarks.runtime_peers.plain", OURS.modes, ("no_such_simulator",), "no-such-simulator[all]")
QUICK = Limits(samples=2, sample_s=0.02, limit_s=60.0, warm_s=0.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting, and random numbers for data, in the children too."""
    monkeypatch.setattr(comparing, "CHECK_ROUNDS", 2)
    monkeypatch.setattr(comparing, "WATCH_S", 0.01)
    monkeypatch.setenv("SCHEDOPT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _task(kind: str = "honest") -> Task:
    return Task("softmax", clients=4, samples=next(n for n, name in KINDS.items() if name == kind), per_round=2, steps=3, batch=8)


def test_ours_a_peer_that_runs_and_one_that_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    case = compare(_task(), [fake("honest"), ABSENT], QUICK)
    ours, plain, honest, absent = case.ways
    assert [way.status for way in case.ways] == ["ok", "ok", "ok", "missing"]
    assert case.samples == 2 and len(case.busy) == 3
    for way in (ours, plain, honest):
        assert len(way.rates) == 2 and min(way.rates) > 0 and way.decrease is not None
        assert way.loss_before == ours.loss_before
    assert plain.threads == honest.threads == 1
    assert honest.loss_after != honest.loss_before
    assert absent.message == "not installed: pip install 'no-such-simulator[all]'"
    assert case.ratios(ours) == [1, 1] and case.ratios(absent) == []
    print_cases([case], "random numbers", [])
    printed = capsys.readouterr().out
    assert "softmax, 7,850 parameters; 2 of 4 clients a round" in printed and absent.message in printed


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("crash", "ImportError: cannot import name 'simulator'"),
        ("silent", "no answer for 3 s"),
        ("lazy", "took 10 local steps in place of 12"),
        ("leaves", "RuntimeError: the simulator ended by itself"),
    ],
)
def test_a_peer_that_fails_is_a_row(kind: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5 if kind == "silent" else 10.0)
    monkeypatch.setattr(comparing, "OURS", fake(kind))
    monkeypatch.setattr(comparing, "PLAIN", ABSENT)
    case = compare(_task(kind), [], Limits(samples=1, sample_s=0.02, limit_s=3.0 if kind == "silent" else 60.0, warm_s=0.0))
    assert case.ways[0].status == "failed" and words in case.ways[0].message
    assert case.fastest is None and case.samples == 0
    assert missed([case]) == [f"softmax: {case.ways[0].message}"]
    print_cases([case], "random numbers", missed([case]))
    assert f"failed: {case.ways[0].message[:40]}" in capsys.readouterr().out


def test_a_peer_that_does_not_learn_does_not_count() -> None:
    ours = Way("ours", "auto", loss_before=2.0, loss_after=1.0, rates=[40.0, 60.0, 50.0])
    plain = Way("plain loop", "1 thread", loss_before=2.0, loss_after=1.0, rates=[50.0, 50.0, 50.0])
    rival = Way("a", "x", loss_before=2.0, loss_after=1.05, rates=[10.0, 40.0, 25.0])
    idle = Way("b", "y", loss_before=2.0, loss_after=1.2, rates=[100.0] * 3)
    broken = Way("c", "z", status="failed", message="exit code 1", rates=[1.0])
    case = Case(Task("cnn"), 10, [ours, plain, rival, idle, broken], [0.0, 0.1, 1.5, 0.0])
    assert case.samples == 3 and case.quiet() == [0] and case.judged() == [0, 1, 2]
    assert case.fastest is rival and case.rate(rival) == 25 and case.ratios(rival) == [1.5, 2, 4]
    assert missed([case]) == []
    rival.rates = [30.0, 40.0, 25.0]
    assert missed([case]) == ["cnn: 1.50 times the fastest peer (a, x); target 2"]
    case.busy = [0.0] * 4
    assert case.quiet() == [0, 1, 2]
    case.busy = [None] * 4
    assert case.quiet() == [] and case.rate(idle) == 100


def test_batches_are_a_permutation() -> None:
    task = _task()
    found = [labels for _, labels in batches(task.workload.features[0], task.workload.labels[0], 8)]
    assert [len(labels) for labels in found] == [8] * 7 + [4]
    assert sorted(int(label) for labels in found for label in labels) == sorted(task.workload.labels[0].tolist())
    assert Task.from_json(task.to_json()) == task


def test_command_without_any_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "PEERS", dict.fromkeys(PEERS, ABSENT))
    monkeypatch.setattr(command, "Task", lambda model: _task())
    monkeypatch.setattr(command, "Limits", lambda *arguments, **options: QUICK)
    output = tmp_path / "results" / "peers.json"
    assert command.main(["--models", "softmax", "--peers", "pfl", "--no-torch-threads", "-o", str(output)]) == 4
    data = json.loads(output.read_text())
    (case,) = data["cases"]
    assert [way["status"] for way in case["ways"]] == ["ok", "ok", "missing"]
    assert case["fastest"] is None and case["ways"][1]["ratio"] > 0 and "MNIST not found" in data["data"]
    assert "not installed" in capsys.readouterr().out


def test_an_interrupt_delivers_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "_busy", interrupt)
    monkeypatch.setattr(comparing, "PLAIN", ABSENT)
    monkeypatch.setattr(command, "Task", lambda model: _task())
    monkeypatch.setattr(command, "PEERS", {"pfl": ABSENT})
    monkeypatch.setattr(command, "Limits", lambda *arguments, **options: QUICK)
    output = tmp_path / "peers.json"
    assert command.main(["--models", "softmax", "mlp", "--peers", "pfl", "-o", str(output)]) == 130
    data = json.loads(output.read_text())
    assert data["interrupted"] and len(data["cases"]) == 1 and data["cases"][0]["ways"][0]["steps_per_s"] is None


@pytest.mark.parametrize("arguments", [["--models", "softmaxx"], ["--samples", "0"], ["--peers", "all"], ["--time-limit", "0"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("name", PEERS)
def test_peer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS[name]
    if peer.missing():
        pytest.skip(f"{' and '.join(peer.missing())} not installed")
    monkeypatch.setattr(comparing, "PLAIN", ABSENT)
    case = compare(_task(), [peer], Limits(samples=1, sample_s=0.02, limit_s=120.0, warm_s=0.0))
    for way in case.ways[2:]:
        assert way.status == "ok", f"{way.mode}: {way.message}"
        assert way.loss_before == pytest.approx(case.ways[0].loss_before)
        assert len(way.rates) == 1 and way.loss_after != way.loss_before
