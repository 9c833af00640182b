"""Samples of all peers in turn, after each has shown that it takes the steps it is told to take and learns by them."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.runtime.measure import QUIET, busy_jiffies
from benchmarks.runtime_peers.registry import OURS, PLAIN, Peer
from benchmarks.runtime_peers.runner import Child, PeerFailed
from benchmarks.runtime_peers.task import Task
from fl_runtime.models import num_parameters

__all__ = ["CHECK_ROUNDS", "TARGET", "Case", "Limits", "Way", "compare"]

#: Least ratio of our steps per second to those of the fastest peer.
TARGET = 2.0
#: Rounds after which the losses of all are compared, and part of our loss's decrease that a peer must reach.
CHECK_ROUNDS, ENOUGH = 20, 0.9
#: Seconds that the machine is watched for between samples.
WATCH_S = 0.3


@dataclass(frozen=True)
class Limits:
    """``samples`` of at least ``sample_s`` seconds each; ``limit_s``: for a peer to start, and for any one answer; ``warm_s``: of training
    before samples are taken; ``wait_s``: at most, before samples, for others to leave the machine alone."""

    samples: int = 8
    sample_s: float = 1.0
    limit_s: float = 180.0
    warm_s: float = 8.0
    wait_s: float = 0.0


@dataclass
class Way:
    """A peer in one mode: ``status`` "ok", "missing" or "failed", with a message; ``rates``: local steps per second, sample by sample."""

    peer: str
    mode: str
    version: str | None = None
    status: str = "ok"
    message: str = ""
    threads: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    rates: list[float] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """It is out."""
        self.status, self.message = "failed", message

    @property
    def decrease(self) -> float | None:
        """Of the loss in the first rounds."""
        return None if self.loss_before is None or self.loss_after is None else self.loss_before - self.loss_after


@dataclass
class Case:
    """One model: all ways, and cores that were busy while all ways waited (None: not known), before every sample and at the end."""

    task: Task
    parameters: int
    ways: list[Way] = field(default_factory=list)
    busy: list[float | None] = field(default_factory=list)
    interrupted: bool = False

    @property
    def samples(self) -> int:
        """Samples that all ways have which did not fail."""
        return min((len(way.rates) for way in self.ways if way.status == "ok"), default=0)

    def quiet(self) -> list[int]:
        """Samples before and after which the machine did nothing else."""
        calm = [busy is not None and busy < QUIET for busy in self.busy]
        return [r for r in range(min(self.samples, len(calm) - 1)) if calm[r] and calm[r + 1]]

    def judged(self) -> list[int]:
        """The samples that are reported: the quiet ones if there are at least three, else all."""
        quiet = self.quiet()
        return quiet if len(quiet) >= 3 else list(range(self.samples))

    def rate(self, way: Way) -> float | None:
        """Local steps per second, median; None for a way that failed."""
        return statistics.median(way.rates[r] for r in self.judged()) if way.status == "ok" and self.judged() else None

    def ratios(self, way: Way) -> list[float]:
        """How many times as fast as this way we are, sample by sample, ascending; empty if one of us failed."""
        ours = self.ways[0]
        if ours.status != "ok" or way.status != "ok":
            return []
        return sorted(ours.rates[r] / way.rates[r] for r in self.judged())

    def learned(self, way: Way) -> bool:
        """Whether the way's loss came down about as far as ours."""
        ours = self.ways[0].decrease
        return ours is not None and way.decrease is not None and way.decrease >= ENOUGH * ours

    @property
    def fastest(self) -> Way | None:
        """The fastest way of any peer that does the same as we; None if there is none."""
        rivals = [way for way in self.ways if way.peer not in (OURS.name, PLAIN.name) and self.rate(way) and self.learned(way)]
        return max(rivals, key=lambda way: self.rate(way) or 0.0, default=None)


def compare(task: Task, peers: Sequence[Peer], limits: Limits, *, tell: Callable[[str], None] = lambda line: None) -> Case:
    """Time our runtime, the plain loop and ``peers`` on ``task``. What fails is a value; Ctrl-C ends it early with what there is."""
    case = Case(task, num_parameters(task.model()))
    with ExitStack() as stack:
        try:
            running = list(_running(case, peers, limits, stack, tell))
            for number in range(limits.samples):
                case.busy.append(_busy(limits.wait_s))
                for way, child, rounds in running if number % 2 else reversed(running):
                    _sample(way, child, rounds, limits, task)
                tell(f"{task.model_name}: sample {number + 1} of {limits.samples}")
            case.busy.append(_busy(0.0))
        except KeyboardInterrupt:
            case.interrupted = True
    return case


def _running(
    case: Case, peers: Sequence[Peer], limits: Limits, stack: ExitStack, tell: Callable[[str], None]
) -> Iterator[tuple[Way, Child, int]]:
    """Start every way, one after the other; those that are ready for samples, with the rounds that make one."""
    for peer in (OURS, PLAIN, *peers):
        if peer.missing():
            case.ways.append(Way(peer.name, "", status="missing", message=f"not installed: pip install '{peer.install}'"))
            continue
        for mode in peer.modes:
            tell(f"{case.task.model_name}: {peer.name}, {mode.name}")
            way = Way(peer.name, mode.name, peer.version)
            case.ways.append(way)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="schedopt-peer-", ignore_cleanup_errors=True))
            child = stack.enter_context(closing(Child(peer, mode, case.task, Path(folder))))
            rounds = _prepare(way, child, case.task, limits, limits.warm_s if peer is OURS else limits.sample_s)
            if way.status == "ok":
                yield way, child, rounds


def _prepare(way: Way, child: Child, task: Task, limits: Limits, warm_s: float) -> int:
    """The checks and ``warm_s`` seconds of training; the rounds that make a sample."""
    try:
        ready = child.answer(limits.limit_s)
        way.threads, way.loss_before, way.message = ready["threads"], ready["loss"], ready["remark"]
        way.loss_after = _go(child, CHECK_ROUNDS, task, limits.limit_s, loss=True)["loss"]
        began, rounds, seconds = time.perf_counter(), 1, 0.0
        while seconds < limits.sample_s or time.perf_counter() - began < warm_s:
            seconds = _go(child, rounds, task, limits.limit_s)["seconds"]
            rounds = max(1, math.ceil(rounds * 1.05 * limits.sample_s / max(seconds, 1e-6)))
    except PeerFailed as error:
        way.fail(str(error))
        return 0
    return rounds


def _go(child: Child, rounds: int, task: Task, limit_s: float, *, loss: bool = False) -> dict[str, Any]:
    """Some rounds. Raises :class:`PeerFailed` also if the peer took other than the steps that were ordered."""
    child.order(rounds, loss=loss)
    answer = child.answer(limit_s)
    if answer["steps"] != rounds * task.setting.total:
        raise PeerFailed(f"took {answer['steps']} local steps in place of {rounds * task.setting.total}")
    return answer


def _sample(way: Way, child: Child, rounds: int, limits: Limits, task: Task) -> None:
    if way.status != "ok":
        return
    try:
        answer = _go(child, rounds, task, limits.limit_s)
    except PeerFailed as error:
        way.fail(str(error))
    else:
        way.rates.append(answer["steps"] / answer["seconds"])


def _busy(wait_s: float) -> float | None:
    """Cores that are busy while all peers wait, as soon as there are few or ``wait_s`` seconds have passed."""
    deadline = time.monotonic() + wait_s
    while True:
        before = busy_jiffies()
        time.sleep(WATCH_S)
        after = busy_jiffies()
        busy = None if before is None or after is None else (after - before) / 100 / WATCH_S
        if busy is None or busy < QUIET or time.monotonic() >= deadline:
            return busy
