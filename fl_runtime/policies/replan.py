"""Our own schedule in closed loop: every few slots the rest of the horizon is solved anew from where the training really is.

*The rest* at instant g is a problem of its own: the slots and channels that are left, the energy that is left of every budget once running
work is paid, and as initial gap what is measured, gap + F_g(w^g) − F_0(w^0). It is solved with the rest of the present plan to start
from, as if all devices were free. Devices that are busy keep to what they do: assignments of the new plan that collide with it go, and
uploads of the new plan beside one that is on its way share what band that leaves, at least energy; those that do not fit there go as well.

*Weights.* A bound is a mean over what it covers, energy is a sum. The bound of the rest is that of the whole by its share of the slots:
task weights are multiplied by it (``weigh=whole``). With ``weigh=rest`` they are not, and the closer the end, the more energy a plan spends
for the little that it can still do.

*Judged* by the exact objective of the rest, running work included (as if it had started at g), the new plan takes the place of what is
left of the old one if it is better; else the old one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fl_runtime.policies.options import choice, whole
from fl_runtime.policies.planned import OpenLoop, PlanOptions
from fl_runtime.policies.protocol import Request
from fl_runtime.policies.world import World
from schedopt.constraints import validate_schedule
from schedopt.errors import SolverError
from schedopt.formulation.resources import allocate, least_bandwidth_hz
from schedopt.physics import evaluate_physics
from schedopt.problem import FloatArray, Problem
from schedopt.schedule import Schedule

__all__ = ["ClosedLoop", "ReplanOptions", "beside", "rest_of"]

#: A gap that is measured below this share of the first one is taken for it: a bound needs a positive gap.
LEAST_GAP = 1e-3
#: A budget that is used up, in J: a problem needs a positive one.
NO_ENERGY_J = 1e-9
#: A new plan must be better by this, relative: less is rounding.
GAIN = 1e-9


@dataclass(frozen=True)
class ReplanOptions(PlanOptions):
    """Options of the closed loop."""

    every: int = whole(5, least=1, what="slots between solves")
    weigh: str = choice("whole", "rest", what="the bound of the rest counts by its share of the slots of the whole, or as if it were all")


def rest_of(
    problem: Problem, instant: int, *, gaps: Sequence[float], left_j: Sequence[float], total_left_j: float | None, weight: float = 1.0
) -> Problem:
    """What is left of ``problem`` at ``instant``; instants are counted from there.

    ``gaps``: F − F* of each task; ``left_j``: energy left of each device's budget, +inf without one; ``total_left_j``: of the total;
    ``weight``: multiplies the weight of every task.
    """
    data = problem.to_dict()
    slots = problem.horizon.slots - instant
    data["horizon"]["slots"] = slots
    for task, gap in zip(data["tasks"], gaps, strict=True):
        task["initial_gap"] = float(gap)
        task["weight"] *= weight
    for device, left in zip(data["devices"], left_j, strict=True):
        device["energy_budget_j"] = max(float(left), NO_ENERGY_J) if np.isfinite(left) else None
        if isinstance(device["gain"], list):
            device["gain"] = device["gain"][instant:]
    objective = data["objective"]
    if isinstance(objective["participation"], dict):
        objective["participation"]["window"] = min(objective["participation"]["window"], slots)
    if total_left_j is not None:
        objective["total_energy_j"] = max(total_left_j, NO_ENERGY_J)
    return Problem.model_validate(data)


def beside(problem: Problem, plan: Schedule, running: Schedule) -> Schedule:
    """What of ``plan`` is possible beside ``running`` work, which starts at instant 0 or before; resources of shared slots are new."""
    until = np.zeros(problem.arrays.num_devices, dtype=np.int64)
    np.maximum.at(until, running.device, running.end)
    plan = plan.take(plan.start >= until[plan.device])
    for end in np.unique(running.end):
        plan = _within_band(problem, plan, int(end), float(running.bandwidth_hz[running.end == end].sum()))
    return plan


def _within_band(problem: Problem, plan: Schedule, end: int, taken_hz: float) -> Schedule:
    """``plan`` with the uploads that end at ``end`` in what is left of the band; the most demanding ones go until the others fit."""
    a = problem.arrays
    here, left = plan.take(plan.end == end), a.bandwidth_hz - taken_hz
    others = plan.take(plan.end != end)
    if len(here) and left <= 1e-9 * a.bandwidth_hz:
        return others
    narrow = replace(a, bandwidth_hz=left)
    spent = np.bincount(others.device, weights=evaluate_physics(problem, others).energy_j, minlength=a.num_devices)
    budget: FloatArray = np.maximum(a.energy_budget_j - spent, 1e-300)
    while len(here):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = allocate(narrow, here, budget_j=budget)
        if found is not None:
            return others.concat(found.schedule)
        here = here.take(np.arange(len(here)) != int(np.argmax(least_bandwidth_hz(narrow, here))))
    return others


@dataclass(frozen=True)
class ClosedLoop(OpenLoop):
    """Executes a schedule, and solves for what is left of it every few slots."""

    options: ReplanOptions = field(default_factory=ReplanOptions)
    name = "closed_loop"
    first_loss: list[float] = field(default_factory=list, compare=False)

    def begin(self, world: World) -> None:
        """As open loop."""
        super().begin(world)
        self.first_loss.extend(world.measured(j).loss for j in range(world.arrays.num_tasks))

    def requests(self, world: World) -> Sequence[Request]:
        """The assignments that start now, after a new solve if it is time for one."""
        if world.instant and world.instant % self.options.every == 0:
            self._replan(world)
        return super().requests(world)

    def _replan(self, world: World) -> None:
        g, old = world.instant, self.plan[0]
        left, running = _shifted(old.take(old.start >= g), g), _running(world)
        solved, judge = self._problems(world, running)
        try:
            result = self.solve(solved, left if len(left) else None, g)
            found, status = result.schedule, result.status.value
        except SolverError as error:
            found, status = None, str(error)
        new = None if found is None else beside(solved, found, running)
        possible = new is not None and _possible(solved, new)
        before = _value(judge, left, running)
        after = _value(judge, new, running) if new is not None and possible else None
        taken = after is not None and _better(after, before)
        if taken and new is not None:
            self.plan[0] = old.take(old.start < g).concat(_shifted(new, -g)).sorted()
        dropped = 0 if found is None or new is None else len(found) - len(new)
        gaps = [task.initial_gap for task in solved.tasks]
        values = {"kept_value": before[1], "new_value": after[1] if after else None, "broken": [before[0], after[0] if after else None]}
        world.note("replan", taken=taken, status=status, dropped=dropped, running=len(running), gaps=gaps, **values)

    def _problems(self, world: World, running: Schedule) -> tuple[Problem, Problem]:
        """What is left, to solve and to judge by: the latter has the energy of running work still in the total."""
        p, g = world.problem, world.instant
        now = [world.measured(j).loss for j in range(len(p.tasks))]
        gaps = [
            max(task.initial_gap + loss - first, LEAST_GAP * task.initial_gap) if np.isfinite(loss) else task.initial_gap
            for task, loss, first in zip(p.tasks, now, self.first_loss, strict=True)
        ]
        left = [world.left_j(i) for i in range(len(p.devices))]
        limit = p.objective.total_energy_j
        total = None if limit is None else limit - world.spent_j
        under_way = float(evaluate_physics(p, _shifted(running, -g)).energy_j.sum())
        weight = 1.0 if self.options.weigh == "rest" else 1.0 - g / p.horizon.slots
        solved = rest_of(p, g, gaps=gaps, left_j=left, total_left_j=None if total is None else total - under_way, weight=weight)
        return solved, rest_of(p, g, gaps=gaps, left_j=[np.inf] * len(left), total_left_j=total, weight=weight)


def _shifted(schedule: Schedule, by: int) -> Schedule:
    """The same, ``by`` slots earlier."""
    return schedule.replace(start=schedule.start - by, end=schedule.end - by)


def _running(world: World) -> Schedule:
    """What devices are at, with instants counted from now: it starts before 0."""
    rows = []
    for device, flight in sorted(world.running.items()):
        r, plan = flight.request, flight.request.plan
        assert plan is not None
        start, end = flight.start - world.instant, plan.end - world.instant
        rows.append((device, r.task, start, end, r.steps, r.batch, plan.freq_hz, plan.power_w, plan.bandwidth_hz))
    return Schedule.from_records(rows)


def _better(one: tuple[int, float], other: tuple[int, float]) -> bool:
    """Whether a value is less than another by more than rounding; an untrained task makes the latter infinite."""
    margin = GAIN * abs(other[1]) if np.isfinite(other[1]) else 0.0
    return one[0] < other[0] or (one[0] == other[0] and one[1] < other[1] - margin)


def _possible(problem: Problem, plan: Schedule) -> bool:
    """Whether ``plan`` can be executed (constraints 1 and 3 to 6)."""
    return all(check.ok for check in validate_schedule(problem, plan).checks if check.name[0] in "13456")


def _value(problem: Problem, plan: Schedule, running: Schedule) -> tuple[int, float]:
    """How many limits of the mode and the theory ``plan`` breaks beside running work, and the exact objective of both; less is better."""
    both = plan.concat(running.replace(start=np.maximum(running.start, 0)))
    report = validate_schedule(problem, both)
    broken = sum(not check.ok for check in report.checks if not check.physical)
    return broken, report.evaluation.objective
