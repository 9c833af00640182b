"""Rounds of training, way by way in turn, with what else the machine was doing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from benchmarks.runtime.workload import LEARNING_RATE, Setting, Workload, plain_round
from fl_runtime.models import build_model, initial_parameters, num_parameters
from fl_runtime.training import LocalJob, LocalTrainer
from fl_runtime.training.kernels import has_closed_form

__all__ = ["PLAIN", "Case", "Way", "measure", "ways_of"]

PLAIN = "plain loop, 1 thread"
PLAIN_THREADED = "plain loop, torch threads"
#: Cores that other processes may keep busy in a round that counts as quiet, and seconds for which that is watched.
QUIET, WATCH_S = 0.25, 0.08


@dataclass
class Way:
    """Seconds of every round of one way, and cores that others kept busy just before and after, at most (None: not known)."""

    name: str
    seconds: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    chosen_path: str | None = None


@dataclass
class Case:
    """One model in one setting: a way per row, rounds in the same order for all."""

    model: str
    parameters: int
    setting: Setting
    ways: list[Way]

    def quiet(self) -> list[int]:
        """Rounds in which the machine did nothing else, whichever the way."""
        rounds = range(len(self.ways[0].seconds))
        return [r for r in rounds if all(way.others[r] is not None and (way.others[r] or 0.0) < QUIET for way in self.ways)]

    def judged(self) -> list[int]:
        """The rounds that are reported: the quiet ones if there are at least three, else all."""
        quiet = self.quiet()
        return quiet if len(quiet) >= 3 else list(range(len(self.ways[0].seconds)))

    def steps_per_s(self, way: Way) -> float:
        """Client-local steps per second, median."""
        return self.setting.total / statistics.median(way.seconds[r] for r in self.judged())

    def ratios(self, way: Way) -> list[float]:
        """How many times as fast as the plain loop, ascending; in rounds a few seconds apart."""
        plain = next(w for w in self.ways if w.name == PLAIN)
        return sorted(plain.seconds[r] / way.seconds[r] for r in self.judged())

    def ratio(self, name: str) -> float | None:
        """Median ratio of a way; None without it."""
        found = [way for way in self.ways if way.name == name]
        return statistics.median(self.ratios(found[0])) if found else None


def ways_of(model: str, wanted: Sequence[str]) -> list[str]:
    """Paths of ``wanted`` that exist for ``model``."""
    closed = has_closed_form(build_model(model, (1, 28, 28), 10), (1, 28, 28))
    return [path for path in wanted if closed or path != "closed_form"]


def _busy_cores(watch_s: float) -> float | None:
    """Cores that are busy while this process sleeps; None where the system does not say."""
    before = _jiffies()
    if before is None:
        return None
    begin = time.perf_counter()
    time.sleep(watch_s)
    after = _jiffies()
    assert after is not None
    return (after - before) / 100.0 / (time.perf_counter() - begin)


def _jiffies() -> int | None:
    """Hundredths of seconds in which a core did something, over all cores."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    fields = [int(word) for word in path.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]  # all but idle and waiting for a disk


def measure(
    name: str,
    setting: Setting,
    workload: Workload,
    paths: Iterable[str],
    rounds: int,
    *,
    wait_s: float = 0.0,
    threaded: bool = True,
    warm_s: float = 0.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Case:
    """Train ``rounds`` rounds by every path and by the plain loop, in turn; what comes before, see ``_warm_up``, is not counted.

    ``wait_s``: seconds to wait before a round for the machine to do nothing else.
    """
    model = build_model(name, (1, 28, 28), 10)
    start = initial_parameters(model, 0)
    case = Case(name, num_parameters(model), setting, [])
    with ExitStack() as stack:
        trainers = {path: stack.enter_context(LocalTrainer(model, learning_rate=LEARNING_RATE, path=path)) for path in paths}
        runs = _plain_runs(model, start, threaded)
        for path, trainer in trainers.items():
            runs[path] = lambda jobs, trainer=trainer: trainer.train(start, jobs)  # type: ignore[misc]
            _warm_up(trainer, start, setting, workload, warm_s if path == "auto" else 0.0)
        case.ways = [Way(label) for label in runs]
        for number in range(rounds + 1):
            jobs = workload.jobs(setting, number)
            _wait(wait_s)
            for way in case.ways if number % 2 else reversed(case.ways):
                before = _busy_cores(WATCH_S)
                begin = time.perf_counter()
                runs[way.name](jobs)
                seconds = time.perf_counter() - begin
                after = _busy_cores(WATCH_S)
                if number:
                    way.seconds.append(seconds)
                    way.others.append(None if before is None or after is None else max(before, after))
            tell(f"{name}, {setting}: round {number} of {rounds}")
        for path, trainer in trainers.items():
            next(way for way in case.ways if way.name == path).chosen_path = trainer.chosen_path
    return case


def _plain_runs(model: nn.Module, start: torch.Tensor, threaded: bool) -> dict[str, Callable[[list[LocalJob]], object]]:
    def plain(threads: int) -> Callable[[list[LocalJob]], object]:
        def run(jobs: list[LocalJob]) -> object:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                return plain_round(model, start, jobs)
            finally:
                torch.set_num_threads(before)

        return run

    runs = {PLAIN: plain(1)}
    if threaded:
        runs[PLAIN_THREADED] = plain(torch.get_num_threads())
    return runs


def _warm_up(trainer: LocalTrainer, start: torch.Tensor, setting: Setting, workload: Workload, seconds: float) -> None:
    """Every client once, so that its samples are where the path wants them, and then ``seconds`` for "auto" to find its way."""
    trainer.train(start, workload.jobs(Setting(len(workload.features), 1, setting.batch), 0))
    deadline = time.perf_counter() + seconds
    number = 10**6
    while time.perf_counter() < deadline:
        number += 1
        trainer.train(start, workload.jobs(setting, number))


def _wait(wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and (_busy_cores(0.2) or 0.0) >= QUIET:
        pass
