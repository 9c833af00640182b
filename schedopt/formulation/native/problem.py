"""What a native program is, and how points are read and made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.formulation.native.fill import filled
from schedopt.formulation.nlp import Program
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.schedule import Schedule

__all__ = ["TENSORS", "NativeProblem"]

#: The published tensors: all other variables follow from them (and from "before").
TENSORS = ("receive", "upload", "steps", "batch", "freq", "power", "bandwidth")
#: What describes an upload that may or may not happen.
UNGATED = (
    *TENSORS[2:], "compute", "send", "rate", "upload_energy", "inverse_batch", "samples", "work_freq", "progress", "progress2",
    "log_steps", "log_batch", "log_freq", "log_compute", "log_energy", "compute_energy",
)  # fmt: skip
#: What an upload adds to sums, and uploads below this are none.
GATED = (
    "upload", "done", "done1", "done2", "band_used", "energy", "noise", "missed", "stale_steps", "stale_steps2",
    "done_steps", "done_steps2", "local_noise",
)  # fmt: skip
UNUSED = 1e-6
#: Affine rows Σ upload · use ≤ 1.
LIMITS = ("band", "energy budget", "total energy")


@dataclass(frozen=True)
class NativeProblem:
    """The relaxed problem: ``program`` in scaled variables, and how to read them.

    ``blocks``: name -> indices of variables, of shape (pairs, G) for the tensors (pairs: those of ``device``, ``task``), (J, G) or (J,);
    ``scale``: name -> unit of a scaled variable, of the same shape; ``cost_scale``: unit of the program's objective.
    """

    problem: Problem
    program: Program
    device: IntArray
    task: IntArray
    blocks: dict[str, IntArray]
    scale: dict[str, FloatArray]
    cost_scale: float
    logs: bool

    @property
    def binaries(self) -> IntArray:
        """Variables that must be 0 or 1 in the end."""
        return np.concatenate([self.blocks["receive"].ravel(), self.blocks["upload"].ravel()])

    def tensor(self, v: FloatArray, name: str) -> FloatArray:
        """Block ``name`` of a point in physical units."""
        if self.logs and name in ("batch", "freq"):
            return np.exp(v[self.blocks[f"log_{name}"]]) * self.scale[name]
        return v[self.blocks[name]] * self.scale[name]

    def rows_of(self, device: IntArray, task: IntArray) -> IntArray:
        """Row of each (device, task) in the tensors, −1 where the device cannot train the task at all."""
        row = np.full((self.problem.arrays.num_devices, self.problem.arrays.num_tasks), -1)
        row[self.device, self.task] = np.arange(len(self.device))
        return row[device, task]

    def usable(self, schedule: Schedule) -> np.ndarray:
        """Mask of the assignments whose device can train the task at all."""
        known = np.zeros((self.problem.arrays.num_devices, self.problem.arrays.num_tasks), dtype=bool)
        known[self.device, self.task] = True
        return known[schedule.device, schedule.task]

    def point(self, schedule: Schedule) -> FloatArray:
        """The point of ``schedule``: every row holds if the schedule is feasible (to rounding), shape (n,).

        Where nothing is uploaded, the resources are those of the least work, done slowly and sent with all power over all the band.
        """
        q, slot = self.rows_of(schedule.device, schedule.task), schedule.end - 1
        if np.any(q < 0):
            raise KeyError("an assignment of a pair that cannot train")
        names = TENSORS
        shape = (len(self.device), self.problem.arrays.slots)
        values = {name: np.zeros(shape) for name in names}
        a = self.problem.arrays
        values["steps"] += 1.0
        values["batch"] += a.min_batch[self.task][:, None]
        values["freq"] += a.freq_min_hz[self.device][:, None]
        values["power"] += a.max_power_w[self.device][:, None]
        values["bandwidth"] += a.bandwidth_hz
        values["before"] = np.minimum(a.max_staleness[self.task] + 1.0, a.slots)
        np.add.at(values["receive"], (q, schedule.start), 1.0)
        np.add.at(values["upload"], (q, slot), 1.0)
        for name, column in zip(names[2:], ("steps", "batch", "freq_hz", "power_w", "bandwidth_hz"), strict=True):
            values[name][q, slot] = getattr(schedule, column)
        return self.complete(values)

    def spread(self, rng: np.random.Generator | None = None) -> FloatArray:
        """A fractional point: every device shared by its tasks, an assignment begun and ended in every slot, middling resources.

        Shares are smaller where band or energy would not suffice. With ``rng`` shares and resources are random. The rows that define
        auxiliary variables hold, and the limits of band and energy; deadlines and conditions need not.
        """
        shape = self.blocks["receive"].shape
        mates = np.bincount(self.device, minlength=self.problem.arrays.num_devices)[self.device][:, None]
        share = 0.5 if rng is None else rng.uniform(0.1, 0.9, (len(self.device), 1))
        flow = share / mates * np.ones(shape)
        program, middle = self.program, 0.5 if rng is None else rng.uniform(0.1, 0.9, shape)
        values = {"receive": flow, "upload": flow, "before": self.scale["before"]}
        for name in ("steps", "batch", "freq", "power", "bandwidth"):
            index = self.blocks[f"log_{name}" if self.logs and name in ("batch", "freq") else name]
            low, high = program.lower[index], np.minimum(program.upper[index], 4.0)
            scaled = low + (np.maximum(high, low) - low) * middle
            values[name] = (np.exp(scaled) if self.logs and name in ("batch", "freq") else scaled) * self.scale[name]
        v = self.complete(values)
        # the convex rows, which iterations keep but do not mend, must hold: what they limit is in proportion to the flow
        limits = np.array([name in LIMITS for name in program.affine.names], dtype=bool)
        used = 1.0 + float(program.affine.values(v)[limits].max(initial=-1.0))
        if used > 1.0:
            flow = flow * (1.0 - 1e-9) / used
            v = self.complete({**values, "receive": flow, "upload": flow})
        return v

    def restored(self, v: FloatArray) -> FloatArray:
        """``v`` with the same tensors and auxiliary variables that are consistent with them."""
        return self.complete({name: self.tensor(v, name) for name in (*TENSORS, "before")})

    def idle(self, v: FloatArray) -> IntArray:
        """Variables that say how an upload would be made that ``v`` (whole binaries) does not make: nothing depends on them."""
        unused = np.round(v[self.blocks["upload"]]) == 0
        return np.concatenate([self.blocks[name][unused] for name in UNGATED if name in self.blocks])

    def dormant(self, v: FloatArray) -> IntArray:
        """Variables of uploads that ``v`` does not make, not even in part, and of pairs that do nothing at all."""
        unused = v[self.blocks["upload"]] <= UNUSED
        idle = np.flatnonzero(v[self.blocks["occupancy"]].max(axis=1) <= UNUSED)
        cells = [self.blocks[name][unused] for name in (*GATED, *UNGATED) if name in self.blocks]
        pairs = [block[idle].ravel() for name, block in self.blocks.items() if len(block) == len(self.device) and name != "off"]
        return np.concatenate(cells + [block for block in pairs if block.size])

    def complete(self, values: dict[str, FloatArray]) -> FloatArray:
        """The point with the published tensors ``values`` (physical units) and all other variables as the rows define them."""
        v = np.clip(np.zeros(self.program.variables), self.program.lower, self.program.upper)
        for name, value in values.items():
            if self.logs and name in ("batch", "freq"):
                v[self.blocks[f"log_{name}"]] = np.log(value / self.scale[name])
            else:
                v[self.blocks[name]] = value / self.scale[name]
        return filled(self, v)
