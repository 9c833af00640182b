"""A peer in a child process of its own, which answers orders one at a time and is ended when it does not.

The child leads a process group and works in a folder of its own; nothing of the group outlives ``close``. POSIX only.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.children import kill_group, last_words
from benchmarks.runtime_peers.registry import Mode, Peer
from benchmarks.runtime_peers.task import Task

__all__ = ["Child", "PeerFailed"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Seconds that a child gets to end by itself.
GRACE_S = 10.0


class PeerFailed(Exception):
    """The peer crashed, or did not answer in time; one line."""


class Child:
    """A running peer; ``folder`` is an empty folder for it."""

    def __init__(self, peer: Peer, mode: Mode, task: Task, folder: Path) -> None:
        task = replace(task, one_thread=mode.one_thread, parallel=mode.parallel)
        environment = {key: value for key, value in os.environ.items() if key not in _THREADS}
        environment |= dict.fromkeys(_THREADS, "1") if mode.one_thread else {}
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = folder / "errors.txt"
        work = folder / "work"
        work.mkdir()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.runtime_peers.child", peer.module, task.to_json()],
                cwd=work,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._read = b""

    def order(self, rounds: int, *, loss: bool = False) -> None:
        """Let the peer go on for ``rounds`` rounds; ``answer`` has the rest."""
        self._send({"rounds": rounds, "loss": loss})

    def answer(self, limit_s: float) -> dict[str, Any]:
        """What the peer says next. Raises :class:`PeerFailed` if it ended or says nothing for ``limit_s`` seconds."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise PeerFailed(f"no answer for {limit_s:g} s")
            some = os.read(self._process.stdout.fileno(), 65536)
            if not some:
                raise PeerFailed(self._ending())
            self._read += some
        line, _, self._read = self._read.partition(b"\n")
        data: dict[str, Any] = json.loads(line)
        return data

    def _ending(self) -> str:
        """How a peer ended that says no more."""
        try:
            return last_words(self._process.wait(GRACE_S), self._errors)
        except subprocess.TimeoutExpired:
            return "closed its output, but did not end"

    def _send(self, data: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(data).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer will tell

    def close(self) -> None:
        """End the peer, by force if need be."""
        try:
            self._send({"stop": True})
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill_group(self._process.pid)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # an order that nobody took
