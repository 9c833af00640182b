"""A comparison from start to end: our schedules, training by all, the report; what is done is kept on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fl_runtime.compare.contestants import others, ours, variants
from fl_runtime.compare.curves import importance_shares
from fl_runtime.compare.levels import Wanted
from fl_runtime.compare.plot import save_pictures
from fl_runtime.compare.report import comparison, curves_of, load_runs, text_of
from fl_runtime.compare.runs import Contest
from fl_runtime.compare.settings import CompareSettings, resource_kinds
from fl_runtime.compare.solving import OwnSchedule, Workshop, prepare_folder
from fl_runtime.datasets.progress import download_bars
from fl_runtime.settings import SimulateSettings
from schedopt.cli.output import STDOUT, write_output
from schedopt.io import is_stream
from schedopt.problem import Problem

__all__ = ["Job"]

#: Seconds between two writings of what is done so far.
WRITE_EVERY_S = 20.0


@dataclass
class Job:
    """One call of the command: its options, and how far it has come. ``say`` shows a line to people."""

    problem: Problem
    options: dict[str, Any]
    output: str | None
    plot: str | None
    compare: CompareSettings
    wanted: tuple[Wanted, ...]
    targets: tuple[tuple[int, float], ...]
    given: list[OwnSchedule]
    settings: SimulateSettings
    say: Callable[[str], None]
    interrupted: bool = False
    contest: Contest | None = None
    notes: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def begin(self, show: Callable[[str], None]) -> None:
        """Our schedules, who takes part, and what is there already."""
        schedules = [*self._solved(show), *self.given]
        kinds = resource_kinds(self.options["resources"])
        policies = self.options["policies"]
        if self.options["variants"]:
            policies = variants(policies, self.problem, schedules[0].schedule)
        contestants = [*ours(schedules), *others(policies, kinds, schedules[0])]
        shares = importance_shares(self.problem.arrays.weight)
        self.contest = Contest(self.problem, self.settings, self.compare, contestants, shares)
        if self.options["resume"] and self.output is not None:
            taken = self.contest.take(*load_runs(self.output, self.contest))
            self.say(f"{taken} runs taken from {self.output}")

    def _solved(self, show: Callable[[str], None]) -> list[OwnSchedule]:
        if not self.compare.solve:
            return []
        folder = None if self.options["keep"] is None else prepare_folder(self.options["keep"])
        workshop = Workshop(self.problem, self.compare, keep=folder, show=show)
        made = workshop.all()
        self.notes = workshop.notes
        self._warn(self.notes)
        return made

    def run(self, show: Callable[[str], None]) -> None:
        """Train; what is done is written now and then."""
        contest, told, last = self._contest, 0, time.monotonic()

        def after() -> None:
            nonlocal told, last
            self._warn(contest.warnings[told:])
            told = len(contest.warnings)
            if self._lasting and time.monotonic() - last >= WRITE_EVERY_S:
                self.write(self.report(interrupted=True))
                last = time.monotonic()

        with download_bars() as bars:
            contest.run(show, progress=bars, after=after)
        self._warn(f"{name} is left out: {reason}" for name, reason in contest.excluded.items())

    def report(self, *, interrupted: bool) -> dict[str, Any]:
        """All that there is."""
        elapsed = time.monotonic() - self.begun
        return comparison(self._contest, self.wanted, self.targets, interrupted=interrupted, notes=self.notes, wall_s=elapsed)

    def write(self, report: dict[str, Any]) -> None:
        """Write a report if there is a file for it."""
        if self.output is not None:
            write_output(self.output, text_of(report))

    def rescue(self) -> str:
        """Write what is done after an interruption, and say so."""
        if self.contest is None or not self.contest.runs:
            return "interrupted; nothing had been trained yet"
        self.write(self.report(interrupted=True))
        if self.output is None:
            return f"interrupted after {len(self.contest.runs)} runs; with -o FILE they would have been kept"
        if not self._lasting:
            return f"interrupted after {len(self.contest.runs)} runs, which were written"
        return f"interrupted; {len(self.contest.runs)} runs are in {self.output}, go on with --resume"

    @property
    def holds_stdout(self) -> bool:
        """Whether what there is to write went, or goes, to standard output."""
        return self.output == STDOUT and self.contest is not None and bool(self.contest.runs)

    def draw(self) -> list[str]:
        """The pictures that are wanted; returns what was written."""
        if self.plot is None:
            return []
        names = [task.name for task in self.problem.tasks]
        contest = self._contest
        return save_pictures(self.plot, contest.contestants, curves_of(contest), names, self.compare.confidence)

    @property
    def _contest(self) -> Contest:
        assert self.contest is not None
        return self.contest

    @property
    def _lasting(self) -> bool:
        """Whether the output can be written more than once."""
        return self.output is not None and self.output != STDOUT and not is_stream(self.output)

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self.say(f"warning: {warning}")
