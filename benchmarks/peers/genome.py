"""The genome of the evolutionary peers: what each device does in each slot, and sizes; the rest is filled in by our code.

Genes are numbers in [0, 1], shape (3, I, G): per device and slot a *decision* (go on with what runs, idle, or receive a task's model),
and the *steps* and *batch* of what is received there. Steps and batches are fractions of what the deadline allows. Frequency, power
and bandwidth are shared out by rules of thumb while searching, and every new best schedule gets those of least energy from
:func:`schedopt.formulation.resources.allocate`; what is still infeasible is mended by :func:`schedopt.repair.repair`. These are help
that these peers would not have by themselves.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers import channel
from benchmarks.peers.model import require_weighted
from schedopt.constraints import validate_schedule
from schedopt.formulation.candidates import build_candidates, steps_limit
from schedopt.formulation.resources import feasible_times, least_bandwidth_hz
from schedopt.objective import evaluate_objective
from schedopt.physics import transmit_power_w, uplink_rate_bps
from schedopt.problem import FloatArray, Problem
from schedopt.repair import repair
from schedopt.schedule import Schedule
from schedopt.state import state_of

__all__ = ["PENALTY", "Genome", "TimeUp"]

#: Merit of genes without a schedule, and per task that is never trained: far above every objective of the small problems.
PENALTY = 1e6
#: Upload times that are tried, from the shortest (0) to the longest (1).
_TIMES = np.linspace(0.0, 1.0, 13) ** 1.5


class TimeUp(Exception):
    """The time limit was reached inside an evaluation."""


class Genome:
    """Reads genes as schedules, and keeps the best that was evaluated."""

    def __init__(self, problem: Problem, time_limit_s: float) -> None:
        require_weighted(problem)
        self.problem, self.ends = problem, time.monotonic() + time_limit_s
        a = problem.arrays
        self.shape = (3, a.num_devices, a.slots)
        self.length = int(np.prod(self.shape))
        self.best: Schedule | None = None
        self.objective, self._least, self.evaluations = np.inf, np.inf, 0
        candidates = build_candidates(problem)
        work_s = candidates.available_s - candidates.uploads.shortest_s
        #: cycles that each possible assignment can do before its deadline
        self._cycles = dict(
            zip(
                zip(*(x.tolist() for x in (candidates.device, candidates.task, candidates.start, candidates.end)), strict=True),
                work_s * a.freq_max_hz[candidates.device] * (1.0 - 1e-9),
                strict=True,
            )
        )
        self._steps = steps_limit(problem)
        self._held = [np.flatnonzero(row & (a.weight > 0)) for row in a.has_data]

    def schedule(self, genes: FloatArray) -> Schedule:
        """The schedule of ``genes`` (any shape of that size), its resources still zero."""
        decision, steps, batch = np.asarray(genes).reshape(self.shape)
        rows = []
        for i, row in enumerate(decision):
            for j, start, end in self._plan(i, row):
                size = self._size(i, j, start, end, steps[i, start], batch[i, start])
                if size is not None:
                    rows.append((i, j, start, end, *size, 0.0, 0.0, 0.0))
        return Schedule.from_records(rows)

    def _plan(self, i: int, decision: FloatArray) -> list[tuple[int, int, int]]:
        """(task, start, end) of device i, from its decisions of shape (G,)."""
        a, held = self.problem.arrays, self._held[i]
        plan: list[tuple[int, int, int]] = []
        task, start = -1, 0
        # 0 = go on, 1 = idle, then the tasks
        for g, choice in enumerate(np.minimum((decision * (2 + len(held))).astype(int), 1 + len(held))):
            full = task >= 0 and g - start > a.max_staleness[task]
            if task >= 0 and (choice > 0 or full):
                plan.append((task, start, g))
                task = -1
            if choice > 1:
                task, start = int(held[choice - 2]), g
        return plan if task < 0 else [*plan, (task, start, a.slots)]

    def _size(self, i: int, j: int, start: int, end: int, steps: float, batch: float) -> tuple[int, int] | None:
        """Steps and batch from their genes; None where no work is possible."""
        a, cycles = self.problem.arrays, self._cycles.get((i, j, start, end))
        if cycles is None:
            return None
        samples, least = cycles / a.cycles_per_sample[i, j], int(a.min_batch[j])
        most = int(min(self._steps[j], samples // least))
        if most < 1:
            return None
        chosen = min(1 + int(steps * most), most)
        largest = max(min(int(a.samples[i, j]), int(samples // chosen)), least)
        return chosen, int(np.clip(round(least * (largest / least) ** batch), least, largest))

    def merit(self, genes: FloatArray) -> float:
        """Objective of the schedule of ``genes`` with roughly shared resources, or a penalty. Raises :class:`TimeUp` after the limit.

        Whatever is better than all before gets its least-energy resources, and is kept.
        """
        if time.monotonic() > self.ends:
            raise TimeUp
        self.evaluations += 1
        filled = self._filled(self.schedule(genes))
        if filled is None:
            return PENALTY * (1 + self.problem.arrays.num_tasks)
        objective = evaluate_objective(self.problem, filled).objective
        if not np.isfinite(objective):
            untrained = np.bincount(filled.task, minlength=self.problem.arrays.num_tasks) == 0
            return PENALTY * int(np.sum(untrained & (self.problem.arrays.weight > 0)))
        if objective < self._least:
            self._least = objective
            self._take(filled, objective)
        return objective

    def _filled(self, schedule: Schedule) -> Schedule | None:
        """With resources and without what the band cannot hold; repaired where that is not enough; None if nothing is left."""
        schedule = self._fit_band(schedule)
        if len(schedule) == 0:
            return None
        if validate_schedule(self.problem, schedule).feasible:
            return schedule
        state = repair(self.problem, schedule)
        return None if state is None else state.schedule

    def _fit_band(self, schedule: Schedule) -> Schedule:
        """Each slot's band shared in proportion to what its uploads cannot do without, the neediest left out if it is too little.

        Upload times are the best of a few, as much as the exact allocation would take most of the time for little difference.
        """
        a = self.problem.arrays
        need = least_bandwidth_hz(a, schedule) / a.bandwidth_hz
        order = np.lexsort((need, schedule.end))
        used = np.cumsum(need[order])
        begins = np.searchsorted(schedule.end[order], schedule.end[order])
        used -= used[begins] - need[order][begins]
        kept = np.sort(order[used < 1.0 - 1e-9])
        schedule, need = schedule.take(kept), need[kept]
        total = np.bincount(schedule.end, weights=need, minlength=a.slots + 1)
        return self._with_times(schedule, need / total[schedule.end] * a.bandwidth_hz * (1.0 - 1e-12))

    def _with_times(self, schedule: Schedule, band: FloatArray) -> Schedule:
        """The schedule with bandwidths ``band`` in Hz and the upload times of least energy among a few, and what follows from them."""
        a, i, j, n = self.problem.arrays, schedule.device, schedule.task, len(schedule)
        gain, bits = a.gain[i, schedule.end - 1], a.model_bits[j]
        available, _, longest = feasible_times(a, schedule)
        shortest = bits / uplink_rate_bps(band, a.max_power_w[i], gain, a.noise_w_per_hz)
        times = shortest + (longest - shortest) * _TIMES[:, None]
        power = np.minimum(transmit_power_w(bits, times, band, gain, a.noise_w_per_hz), a.max_power_w[i])
        cycles = a.cycles_per_sample[i, j] * schedule.steps * schedule.batch
        freq = np.clip(cycles / (available - times), a.freq_min_hz[i], a.freq_max_hz[i])
        best = np.argmin(power * times + 0.5 * a.capacitance[i] * cycles * freq**2, axis=0), np.arange(n)
        return schedule.replace(freq_hz=freq[best], power_w=power[best], bandwidth_hz=band)

    def _take(self, schedule: Schedule, objective: float) -> None:
        fine = state_of(self.problem, schedule)
        if fine is not None:
            schedule, objective = fine.schedule, fine.evaluation.objective
        if objective < self.objective:
            self.best, self.objective = schedule, objective
            channel.offer(schedule)
