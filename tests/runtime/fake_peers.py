"""Peers of the runtime benchmark's tests: one that does what is asked, and some that do not. Run in child processes."""

from __future__ import annotations

import time

from benchmarks.runtime_peers import plain
from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.registry import Mode, Peer
from benchmarks.runtime_peers.task import Task
from fl_runtime.models import initial_parameters

__all__ = ["fake", "run"]


def fake(kind: str) -> Peer:
    """The peer that behaves as ``kind`` says."""
    return Peer("fake", __name__, (Mode(kind),))


def run(task: Task, gate: Gate) -> None:
    """As the learning task's number of samples says: tests cannot hand over anything else."""
    kind = KINDS[task.samples]
    if kind == "honest":
        print("a line that is no answer")
        plain.run(task, gate)
    if kind == "crash":
        raise ImportError("cannot import name 'simulator'")
    if kind == "silent":
        time.sleep(60)
    parameters = initial_parameters(task.model(), 0)
    gate.ready(lambda: parameters)
    while kind != "leaves":
        gate.after_round(task.setting.total - (kind == "lazy"), lambda: parameters)


#: What the peer does, by the samples of a client.
KINDS = {60: "honest", 61: "crash", 62: "silent", 63: "lazy", 64: "leaves"}
