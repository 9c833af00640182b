"""Runs a peer in a child process of its own, ends it when it does not end by itself, and judges what it found by our exact code.

Native solvers crash, hang and ignore limits; none of it may reach us. The child is the leader of a new process group and works in a
temporary folder; some seconds after its time limit the whole group is killed, and what it had handed over by then still counts.
POSIX only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.children import kill_group, last_words
from benchmarks.peers.model import require_weighted
from benchmarks.peers.registry import PEERS, Peer
from schedopt.constraints import validate_schedule
from schedopt.io import save_problem
from schedopt.problem import Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule

__all__ = ["GRACE_S", "PeerResult", "run_peer"]

#: Seconds beyond its limit that a peer may take, to start and to end included, before it is killed.
GRACE_S = 10.0
#: Threads of whatever numerical library the peer brings along.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ROOT = Path(__file__).resolve().parent.parent.parent

Status = Literal["ok", "no_schedule", "killed", "crashed", "missing"]


@dataclass(frozen=True)
class PeerResult:
    """What became of a peer.

    ``objective``: by our evaluator, of a schedule that our validator accepts, or None; a peer that was killed or crashed may still have
    one. ``repaired``: the peer's schedule was not feasible and what counts is the mended one. ``own_bound``: a lower bound that the
    peer claims. ``wall_s``: of the solve, without the start of the process; of everything if it was killed or crashed.
    """

    peer: str
    status: Status
    objective: float | None = None
    own_bound: float | None = None
    wall_s: float = 0.0
    message: str = ""
    repaired: bool = False


def run_peer(peer: Peer | str, problem: Problem, *, time_limit_s: float, seed: int = 0, grace_s: float = GRACE_S) -> PeerResult:
    """Run ``peer`` (or the one of the registry so called) on ``problem``, at most ``time_limit_s + grace_s`` seconds.

    Whatever the peer does is a value of the result. Raises :class:`~schedopt.errors.InputError` for a problem of another mode than
    weighted, and passes an interruption on after the child is dead.
    """
    peer = PEERS[peer] if isinstance(peer, str) else peer
    require_weighted(problem)
    missing = peer.missing()
    if missing:
        return PeerResult(peer.name, "missing", message=f"pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="schedopt-peer-", ignore_cleanup_errors=True) as folder:
        return _run_in(Path(folder), peer, problem, time_limit_s, seed, grace_s)


def _run_in(folder: Path, peer: Peer, problem: Problem, time_limit_s: float, seed: int, grace_s: float) -> PeerResult:
    save_problem(folder / "problem.json", problem)
    output, errors = folder / "found.json", folder / "errors.txt"
    command = [sys.executable, "-m", "benchmarks.peers.child", peer.module, str(folder / "problem.json")]
    command += ["--time-limit", repr(float(time_limit_s)), "--seed", str(seed), "--output", str(output)]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(folder)}
    began = time.monotonic()
    code = _watch(command, environment, folder, errors, time_limit_s + grace_s)
    wall_s = time.monotonic() - began
    data = _read(output)
    if code == 0 and data.get("finished"):
        objective, repaired, flaw = _judge(problem, data.get("schedule"))
        status: Status = "no_schedule" if objective is None else "ok"
        return PeerResult(peer.name, status, objective, data["own_bound"], data["seconds"], flaw or data["message"], repaired)
    objective, repaired, _ = _judge(problem, data.get("schedule"))
    message = f"killed after {wall_s:.1f} s" if code is None else last_words(code, errors)
    kept = "" if objective is None else f"; its best so far after {data['seconds']:.1f} s"
    return PeerResult(
        peer.name, "killed" if code is None else "crashed", objective, data.get("own_bound"), wall_s, message + kept, repaired
    )


def _watch(command: list[str], environment: dict[str, str], folder: Path, errors: Path, limit_s: float) -> int | None:
    """Exit code of the command; None if it had to be killed. Nothing of its process group outlives this call."""
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # also what an ended child has left behind, and on Ctrl-C
            kill_group(process.pid)
            process.wait()


def _read(output: Path) -> dict[str, Any]:
    """What the child wrote; empty if it did not come that far."""
    try:
        return json.loads(output.read_text())
    except (OSError, ValueError):
        return {}


def _judge(problem: Problem, rows: list[list[float]] | None) -> tuple[float | None, bool, str]:
    """Objective of the schedule (mended if it is infeasible), whether it was mended, and what is wrong if there is no objective."""
    if not rows:
        return None, False, ""
    schedule = Schedule.from_records(rows)
    report = validate_schedule(problem, schedule)
    if report.feasible:
        return _finite(report.evaluation.objective, False)
    name, violation = report.violations[0]
    state = repair(problem, schedule)
    if state is None or not validate_schedule(problem, state.schedule).feasible:
        return None, False, f"infeasible beyond repair: {name}, {violation.where}"
    return _finite(state.evaluation.objective, True)


def _finite(objective: float, repaired: bool) -> tuple[float | None, bool, str]:
    if np.isfinite(objective):
        return float(objective), repaired, ""
    return None, False, "a task that counts is never trained"
