"""Rounds of training, way by way in turn, and what else the machine was doing."""

from __future__ import annotations

import math
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

__all__ = ["PLAIN", "QUIET", "Case", "Way", "busy_jiffies", "measure", "ways_of"]

PLAIN = "plain loop, 1 thread"
PLAIN_THREADED = "plain loop, torch threads"
#: Cores that other processes may keep busy, on average, in a sample that counts as quiet.
QUIET = 0.2
#: Seconds that a sample lasts at least, of as many rounds as it takes: load is told in hundredths of a second.
SAMPLE_S = 0.4


@dataclass
class Way:
    """Seconds of a round in every sample of one way, and cores that others kept busy meanwhile (None: not known)."""

    name: str
    seconds: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    chosen_path: str | None = None


@dataclass
class Case:
    """One model in one setting: a way per row, samples in the same order for all."""

    model: str
    parameters: int
    setting: Setting
    ways: list[Way]

    def quiet(self) -> list[int]:
        """Samples during which the machine did nothing else, whichever the way."""
        samples = range(len(self.ways[0].seconds))
        return [r for r in samples if all(way.others[r] is not None and (way.others[r] or 0.0) < QUIET for way in self.ways)]

    def judged(self) -> list[int]:
        """The samples that are reported: the quiet ones if there are at least three, else all."""
        quiet = self.quiet()
        return quiet if len(quiet) >= 3 else list(range(len(self.ways[0].seconds)))

    def steps_per_s(self, way: Way) -> float:
        """Client-local steps per second, median."""
        return self.setting.total / statistics.median(way.seconds[r] for r in self.judged())

    def ratios(self, way: Way) -> list[float]:
        """How many times as fast as the plain loop, ascending; in samples a few seconds apart."""
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


def busy_jiffies() -> int | None:
    """Hundredths of seconds in which a core did something, over all cores; None where the system does not say."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    fields = [int(word) for word in path.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]  # all but idle and waiting for a disk


def _own_jiffies() -> float:
    """The same of this process and of the processes it started."""
    own = time.process_time() * 100
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            own += int(fields[11]) + int(fields[12])
    return own


def _others() -> float | None:
    """Hundredths of seconds in which a core did something for others."""
    try:
        everything = busy_jiffies()
        return None if everything is None else everything - _own_jiffies()
    except OSError:
        return None


def measure(
    name: str,
    setting: Setting,
    workload: Workload,
    paths: Iterable[str],
    samples: int,
    *,
    wait_s: float = 0.0,
    threaded: bool = True,
    warm_s: float = 0.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Case:
    """Take ``samples`` of every path and of the plain loop, in turn; what comes before, see ``_warm_up``, is not counted.

    ``wait_s``: seconds to wait before a sample of all ways for the machine to do nothing else.
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
        repeats: dict[str, int] = {}
        for number in range(samples + 1):
            _wait(wait_s)
            for way in case.ways if number % 2 else reversed(case.ways):
                if number:
                    rounds = [workload.jobs(setting, 1000 * number + k) for k in range(repeats[way.name])]
                    _sample(way, rounds, runs[way.name])
                else:
                    jobs = workload.jobs(setting, number)
                    begin = time.perf_counter()
                    runs[way.name](jobs)
                    repeats[way.name] = max(1, math.ceil(SAMPLE_S / (time.perf_counter() - begin)))
            tell(f"{name}, {setting}: sample {number} of {samples}")
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


def _sample(way: Way, rounds: Sequence[list[LocalJob]], run: Callable[[list[LocalJob]], object]) -> None:
    before, begin = _others(), time.perf_counter()
    for jobs in rounds:
        run(jobs)
    seconds, after = time.perf_counter() - begin, _others()
    way.seconds.append(seconds / len(rounds))
    way.others.append(None if before is None or after is None else max(0.0, after - before) / 100 / seconds)


def _wait(wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        before = _others()
        time.sleep(0.2)
        after = _others()
        if before is None or after is None or (after - before) / 20 < QUIET:
            return
