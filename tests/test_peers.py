"""Peers: the shared model of P is exact, the runner survives whatever a peer does, and the judge is our own code."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_problem

from benchmarks.peers import __main__ as command
from benchmarks.peers import table
from benchmarks.peers.child import rows_of
from benchmarks.peers.genome import Genome
from benchmarks.peers.model import Model, sizes_of
from benchmarks.peers.registry import PEERS, Peer
from benchmarks.peers.runner import PeerResult, run_peer
from schedopt.constraints import validate_schedule
from schedopt.errors import InputError
from schedopt.io import save_problem
from schedopt.problem import Problem
from schedopt.registry import solve
from schedopt.result import SolveResult

#: Enough for a child to start on a busy machine; nothing waits for it unless a peer hangs.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Two devices, one task, two slots: six candidates."""
    return tiny_problem(np.random.default_rng(5), 2, 1, 2, max_steps=2)


@pytest.fixture(scope="module")
def optimum(problem: Problem) -> SolveResult:
    """By enumeration."""
    result = solve(problem, solver="enumeration")
    assert result.schedule is not None
    return result


class Fakes:
    """Makes peers from the body of their ``solve``; ``rows`` there is the optimal schedule."""

    def __init__(self, folder: Path, optimum: SolveResult) -> None:
        assert optimum.schedule is not None
        self.folder, self.rows, self.count = folder, rows_of(optimum.schedule), 0

    def __call__(self, body: str, packages: tuple[str, ...] = ()) -> Peer:
        self.count += 1
        lines = [
            "import os, subprocess, time",
            "from pathlib import Path",
            "from benchmarks.peers import channel",
            "from schedopt.schedule import Schedule",
            f"FOLDER, rows = Path({str(self.folder)!r}), {self.rows!r}",
            "def solve(problem, *, time_limit_s, seed):",
            *(f"    {line}" for line in body.splitlines()),
        ]
        name = f"fake_peer_{self.count}"
        (self.folder / f"{name}.py").write_text("\n".join(lines) + "\n")
        return Peer("fake", name, packages, "a test")


@pytest.fixture
def fake(tmp_path: Path, optimum: SolveResult, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A maker of peers that the child can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Fakes(tmp_path, optimum)


def run(peer: Peer | str, problem: Problem, time_limit_s: float = 1.0, grace_s: float = PATIENCE_S) -> PeerResult:
    return run_peer(peer, problem, time_limit_s=time_limit_s, grace_s=grace_s, seed=1)


# --- the runner -----------------------------------------------------------------------------------------------------------------


def test_what_a_peer_returns_and_claims_is_reported(fake: Fakes, problem: Problem, optimum: SolveResult) -> None:
    peer = fake("print('noise')\nchannel.claim_bound(1.5)\nchannel.claim_bound(float('-inf'))\nchannel.remark('all\\nwell')\n"
                "return Schedule.from_records(rows)")  # fmt: skip
    result = run(peer, problem)
    assert (result.status, result.repaired, result.own_bound, result.message) == ("ok", False, 1.5, "all well")
    assert result.objective == pytest.approx(optimum.objective, rel=1e-12)


@pytest.mark.parametrize("body", ["return None", "return Schedule.empty()"])
def test_a_peer_without_a_schedule(fake: Fakes, problem: Problem, body: str) -> None:
    result = run(fake(body), problem)
    assert (result.status, result.objective) == ("no_schedule", None)


def test_a_hanging_peer_is_killed(fake: Fakes, problem: Problem) -> None:
    result = run(fake("time.sleep(1000)"), problem, 0.5, 0.5)
    assert (result.status, result.objective) == ("killed", None)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_peer_keeps_its_incumbent_and_leaves_no_process(fake: Fakes, problem: Problem, optimum: SolveResult) -> None:
    body = """channel.offer(Schedule.from_records(rows))
channel.offer(Schedule.from_records(rows[:1]))
other = subprocess.Popen(["sleep", "1000"])
(FOLDER / "pids.tmp").write_text(f"{os.getpid()} {other.pid}")
os.replace(FOLDER / "pids.tmp", FOLDER / "pids")
time.sleep(1000)"""
    peer, grace_s = fake(body), 5.0
    result = run(peer, problem, 1.0, grace_s)
    while not (fake.folder / "pids").exists():
        # the machine was too busy even to start the child: give it more time
        assert grace_s < PATIENCE_S
        grace_s *= 2
        result = run(peer, problem, 1.0, grace_s)
    assert result.status == "killed"
    assert result.objective == pytest.approx(optimum.objective, rel=1e-12)
    ends = time.monotonic() + 10
    pids = [int(pid) for pid in (fake.folder / "pids").read_text().split()]
    while any(is_running(pid) for pid in pids) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize(("ending", "message"), [("os.abort()", "SIGABRT"), ("raise ValueError('boom')", "exit code 1: ValueError: boom")])
def test_a_crashed_peer_keeps_its_incumbent(fake: Fakes, problem: Problem, optimum: SolveResult, ending: str, message: str) -> None:
    result = run(fake(f"channel.offer(Schedule.from_records(rows))\n{ending}"), problem)
    assert result.status == "crashed"
    assert message in result.message
    assert result.objective == pytest.approx(optimum.objective, rel=1e-12)


def test_an_infeasible_schedule_is_mended_and_flagged(fake: Fakes, problem: Problem, optimum: SolveResult) -> None:
    result = run(fake("s = Schedule.from_records(rows)\nreturn s.replace(bandwidth_hz=3 * s.bandwidth_hz)"), problem)
    assert (result.status, result.repaired) == ("ok", True)
    assert result.objective == pytest.approx(optimum.objective, rel=1e-6)


def test_a_schedule_beyond_repair_is_none(fake: Fakes, problem: Problem) -> None:
    result = run(fake("return Schedule.from_records(rows + rows)"), problem)
    assert (result.status, result.objective) == ("no_schedule", None)
    assert "beyond repair" in result.message


def test_a_missing_package_is_told_with_the_remedy(fake: Fakes, problem: Problem) -> None:
    result = run(fake("return None", packages=("numpy", "no_such_package_at_all")), problem)
    assert (result.status, result.message) == ("missing", "pip install no_such_package_at_all")


def test_only_weighted_problems(problem: Problem) -> None:
    other = tiny_problem(np.random.default_rng(5), 2, 1, 2, mode="min_bound")
    with pytest.raises(InputError, match="min_bound"):
        run("differential_evolution", other)


# --- the peers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_peer_on_a_tiny_problem(problem: Problem, optimum: SolveResult, name: str) -> None:
    """None beats the enumerated optimum, and no bound is above it; how much a peer finds in the time is its own affair."""
    missing = PEERS[name].missing()
    if missing:
        pytest.skip(f"{name} needs: pip install {' '.join(missing)}")
    result = run(name, problem, 2.0)
    assert result.status in ("ok", "no_schedule"), result
    assert result.objective is None or result.objective >= optimum.objective * (1 - 1e-6)
    assert result.own_bound is None or result.own_bound <= optimum.objective * (1 + 1e-4)
    if name in ("scip", "differential_evolution"):
        assert result.objective is not None, result


def changed(seed: int, devices: int, tasks: int, slots: int, budget_j: float | None, **options: Any) -> Problem:
    data = tiny_problem(np.random.default_rng(seed), devices, tasks, slots, **options).to_dict()
    data["devices"][0]["energy_budget_j"] = budget_j
    return Problem.model_validate(data)


VARIANTS = {
    "instant, heavy terms": lambda: changed(3, 2, 1, 3, None, term_scale={"stale": 500.0, "local": 300.0, "opt": 30.0}),
    "horizon, proximal steps, a budget": lambda: changed(4, 3, 2, 2, 0.05, participation="horizon", task={"prox": 20.0}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_is_p(name: str) -> None:
    """With the decisions of a schedule fixed, SCIP's optimum of the model is that schedule's exact objective."""
    pytest.importorskip("pyscipopt", reason="scip needs: pip install pyscipopt")
    from benchmarks.peers.scip import Scip

    problem = VARIANTS[name]()
    known = solve(problem, solver="greedy_energy")
    assert known.schedule is not None
    language = Scip()
    written, scip = Model(problem, language), language.model
    _fix(written, scip, known.schedule)
    scip.setParam("limits/gap", 1e-4)
    scip.optimize()
    assert scip.getObjVal() == pytest.approx(known.objective, rel=2e-4)
    best = scip.getBestSol()
    read = written.schedule(lambda variable: scip.getSolVal(best, variable))
    assert read is not None
    report = validate_schedule(problem, read)
    assert report.feasible, report.violations
    # the greedy schedule's resources are the best ones, so both must agree
    assert report.evaluation.objective == pytest.approx(known.objective, rel=2e-4)


def _fix(written: Model, scip: Any, schedule: Any) -> None:
    s = written.sizes
    places = {key: k for k, key in enumerate(zip(*(x.tolist() for x in (s.device, s.task, s.start, s.end)), strict=True))}
    made = {places[tuple(int(x) for x in row[:4])]: row for row in rows_of(schedule)}
    for k, chosen in enumerate(written.chosen):
        values = (1, made[k][4], made[k][5]) if k in made else (0,)
        for variable, value in zip((chosen, written.steps[k], written.batch[k]), values, strict=False):
            scip.chgVarLb(variable, value)
            scip.chgVarUb(variable, value)


def test_ranges_hold_every_known_schedule() -> None:
    """No range of the model cuts off what the exact solver does."""
    problem = tiny_problem(np.random.default_rng(1), 3, 2, 2)
    result = solve(problem, solver="enumeration")
    assert result.schedule is not None
    s = sizes_of(problem)
    places = {key: k for k, key in enumerate(zip(*(x.tolist() for x in (s.device, s.task, s.start, s.end)), strict=True))}
    for row in rows_of(result.schedule):
        k = places[tuple(int(x) for x in row[:4])]
        assert row[4] <= s.steps_max[k] and row[5] <= s.batch_max[k]
        assert row[8] / problem.spectrum.bandwidth_hz >= s.band_min[k]


def test_every_genome_is_judged_and_the_best_is_feasible(problem: Problem, optimum: SolveResult) -> None:
    genome, rng = Genome(problem, 1000.0), np.random.default_rng(0)
    merits = [genome.merit(rng.random(genome.length)) for _ in range(200)]
    assert np.all(np.isfinite(merits))
    assert genome.best is not None
    assert validate_schedule(problem, genome.best).feasible
    assert optimum.objective * (1 - 1e-9) <= genome.objective <= min(merits) * (1 + 1e-9)


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_command_prints_and_writes(problem: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_problem(tmp_path / "p.json", problem)
    output = tmp_path / "results" / "peers.json"
    arguments = ["--problems", str(tmp_path / "p.json"), "--peers", "differential_evolution", "--time-limit", "1", "-o", str(output)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    data = json.loads(output.read_text())
    assert [row["peer"] for row in data["problems"][0]["rows"]] == ["sca", "enumeration", "differential_evolution"]
    assert all(name in printed for name in ("sca", "enumeration", "differential_evolution", "ok"))
    assert min(row["excess"] for row in data["problems"][0]["rows"]) == 0
    assert data["settings"]["time_limit_s"] == 1


def test_an_interruption_keeps_what_is_done(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> PeerResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "run_peer", interrupted)
    monkeypatch.setattr(table, "OURS", ("greedy_energy",))
    (result,), was_interrupted = table.compare([problem], table.Settings(time_limit_s=1.0))
    assert was_interrupted and result.interrupted
    assert [row.status for row in result.rows] == ["ok"]


@pytest.mark.parametrize("arguments", [["--problems", "no_such_problem"], ["--seed", "-1"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert "peers: " in capsys.readouterr().err
