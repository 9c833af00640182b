"""From a schedule to ordered events in virtual time, and the meter of time and energy. No torch here.

At instant g (time g·τ) the server first aggregates every upload that is due, then sends the models. Between them a device receives,
computes and uploads; when each of these begins and ends, and what it costs, comes from :mod:`schedopt.physics` alone, so that what is
executed and what was planned cannot differ by more than an event that did not happen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from schedopt.physics import AssignmentPhysics, evaluate_physics
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["Event", "Meter", "Phase", "Timeline", "events_text"]

Kind = Literal["aggregate", "receive"]


@dataclass(frozen=True)
class Event:
    """What happens at an instant: ``assignment`` is the position in the schedule; ``start`` the instant at which it received."""

    instant: int
    kind: Kind
    assignment: int
    device: int
    task: int
    start: int


@dataclass(frozen=True)
class Phase:
    """One phase of an assignment in virtual time, from ``begin_s`` to ``end_s``, at the cost of ``energy_j``."""

    name: Literal["receive", "compute", "upload"]
    begin_s: float
    end_s: float
    energy_j: float


class Timeline:
    """Events of a schedule in the order in which they happen.

    Within an instant: aggregations, then receptions; each by task, device and start.
    """

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem, self.schedule = problem, schedule
        self.physics: AssignmentPhysics = evaluate_physics(problem, schedule)
        events = [event for k in range(len(schedule)) for event in self._events_of(k)]
        rank = {"aggregate": 0, "receive": 1}
        self.events = tuple(sorted(events, key=lambda e: (e.instant, rank[e.kind], e.task, e.device, e.start)))
        edges = np.searchsorted([event.instant for event in self.events], np.arange(problem.arrays.slots + 2))
        self._edges = [int(edge) for edge in edges]

    def _events_of(self, k: int) -> tuple[Event, Event]:
        s = self.schedule
        device, task, start = int(s.device[k]), int(s.task[k]), int(s.start[k])
        return Event(start, "receive", k, device, task, start), Event(int(s.end[k]), "aggregate", k, device, task, start)

    def at(self, instant: int, kind: Kind) -> tuple[Event, ...]:
        """Events of one kind at an instant."""
        return tuple(e for e in self.events[self._edges[instant] : self._edges[instant + 1]] if e.kind == kind)

    def phases(self, assignment: int) -> tuple[Phase, Phase, Phase]:
        """When an assignment receives, computes and uploads.

        Training begins at once; the upload waits for the assignment's last slot (formulation 1, constraint 3), whose channel it uses.
        """
        p, k, slot_s = self.physics, assignment, self.problem.arrays.slot_s
        received = float(self.schedule.start[k]) * slot_s + float(p.receive_s[k])
        computed = received + float(p.compute_s[k])
        upload = max(computed, float(self.schedule.end[k] - 1) * slot_s)
        return (
            Phase("receive", float(self.schedule.start[k]) * slot_s, received, float(p.receive_j[k])),
            Phase("compute", received, computed, float(p.compute_j[k])),
            Phase("upload", upload, upload + float(p.upload_s[k]), float(p.upload_j[k])),
        )


class Meter:
    """Energy of what has happened, per assignment and phase; sums are made as the objective makes them, over the whole schedule."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        count = len(timeline.schedule)
        self.received, self.finished = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)

    def note(self, event: Event) -> None:
        """Count an event: a reception costs at once, computing and uploading when the update is aggregated."""
        (self.received if event.kind == "receive" else self.finished)[event.assignment] = True

    def receive_j(self) -> FloatArray:
        """Receive energy so far of each assignment, shape (n,), in J."""
        return np.where(self.received, self._timeline.physics.receive_j, 0.0)

    def compute_j(self) -> FloatArray:
        """Compute energy so far of each assignment, shape (n,), in J."""
        return np.where(self.finished, self._timeline.physics.compute_j, 0.0)

    def upload_j(self) -> FloatArray:
        """Upload energy so far of each assignment, shape (n,), in J."""
        return np.where(self.finished, self._timeline.physics.upload_j, 0.0)

    def energy_j(self) -> FloatArray:
        """All energy so far of each assignment, shape (n,), in J; the order of summation is that of the plan."""
        return self.compute_j() + self.upload_j() + self.receive_j()


def events_text(timeline: Timeline) -> Iterator[str]:
    """One JSON line per event (formats, ``--events``)."""
    problem = timeline.problem
    for event in timeline.events:
        entry = {
            "instant": event.instant,
            "kind": event.kind,
            "device": problem.devices[event.device].name,
            "task": problem.tasks[event.task].name,
            "start": event.start,
        }
        yield json.dumps(entry, ensure_ascii=False) + "\n"
