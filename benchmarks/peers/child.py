"""``python -m benchmarks.peers.child PEER PROBLEM.json``: runs one peer in this process and keeps its best schedule on disk.

Not for people: :mod:`benchmarks.peers.runner` starts it and reads the output file, which is replaced whole on every improvement:

    {"seconds": since the solve began, "finished": whether solve returned, "own_bound": number or null, "message": one line,
     "schedule": rows of (device, task, start, end, steps, batch, freq_hz, power_w, bandwidth_hz), or null}

Schedules that the validator accepts come before those that it does not, and then the exact objective decides.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from benchmarks.peers import channel
from benchmarks.peers.registry import PEERS
from schedopt.constraints import validate_schedule
from schedopt.io import load_problem, write_text
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["Recorder", "main", "rows_of"]


def rows_of(schedule: Schedule) -> list[list[float]]:
    """The assignments as rows of plain numbers, in the order of the schedule's fields."""
    return [list(row) for row in zip(*(getattr(schedule, field.name).tolist() for field in fields(schedule)), strict=True)]


class Recorder:
    """Hears what the peer says and keeps the file up to date."""

    def __init__(self, problem: Problem, path: str) -> None:
        self.problem, self.path, self.began = problem, path, time.monotonic()
        self.best: tuple[bool, float] = (True, math.inf)
        self.data: dict[str, Any] = {"seconds": 0.0, "finished": False, "own_bound": None, "message": "", "schedule": None}

    def offer(self, schedule: Schedule) -> None:
        """Keep ``schedule`` if it is the best so far."""
        report = validate_schedule(self.problem, schedule)
        objective = report.evaluation.objective
        quality = (not report.feasible, objective if objective == objective else math.inf)
        if self.data["schedule"] is None or quality < self.best:
            self.best = quality
            self.data["schedule"] = rows_of(schedule)
            self.write()

    def claim_bound(self, bound: float) -> None:
        """Keep the best bound."""
        if self.data["own_bound"] is None or bound > self.data["own_bound"]:
            self.data["own_bound"] = bound

    def remark(self, text: str) -> None:
        """Keep the last remark."""
        self.data["message"] = text[:200]

    def write(self, *, finished: bool = False) -> None:
        """Write the file, whole or not at all."""
        self.data |= {"seconds": time.monotonic() - self.began, "finished": finished}
        write_text(self.path, json.dumps(self.data) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the peer; errors of its own end the process with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.child")
    parser.add_argument("peer", help="a name of the registry, or a module with a function solve")
    parser.add_argument("problem")
    parser.add_argument("--time-limit", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    options = parser.parse_args(arguments)
    problem = load_problem(options.problem)
    module = import_module(PEERS[options.peer].module if options.peer in PEERS else options.peer)
    recorder = Recorder(problem, options.output)
    recorder.write()
    channel.listen(recorder)
    schedule = module.solve(problem, time_limit_s=options.time_limit, seed=options.seed)
    if schedule is not None and len(schedule):
        recorder.offer(schedule)
    recorder.write(finished=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
