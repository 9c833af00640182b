r"""Problem P on the scheduling tensors, relaxed: the published route (formulation 4a) as a smooth program.

Per (device, task, slot g) there are the relaxed binaries R (received at instant g), U (uploaded at the end of slot g), the occupancy
Π of the slot, and the time a in slots since the reception of the assignment that runs in it,

    Π_g = Π_{g−1} − U_{g−1} + R_g,    a_g = Π_g + a_{g−1} (1 − R_g),    a_{−1} free,

so that a restarts with each reception, and waits where nothing runs. At a steady flow of fractional assignments a = Π/R, their mean
length. (With U_g a_g handed back at uploads instead, a would have to be zero where nothing runs; no assignment could then begin to first
order, and multipliers would grow without bound.) Besides there are e, B, f, p, W of an upload at the end of the slot, should there be
one. With y = e B, times T (compute) and S (send), rate r(W, p),

    T f ≥ c y,   S r ≥ M,   U (T_dl + T + S) ≤ τ U a,   E0 ≥ ½ κ c y f² + p S + p_rx T_dl,   E ≥ U E0,   Σ U W ≤ band,   Ψ H ≥ (8/3)(C + N).

Resources are those of an upload that may or may not happen, and U gates what they cost: were they zero without an upload, S r ≥ M U
would have no constraint qualification at U = 0 and its multipliers would grow without bound. All non-convexities are products of two
variables (and the exponential in A(e) with a proximal term): longer products go through auxiliary variables. At binary R, U the program
is P itself, T_stale and C2 included; ``z(1 − z) ≤ 0`` makes them binary.

With ``logs`` the monomials in e, B and f go through logarithms instead: e = exp(ε) and so on, so that U e B, f² and 1/B need fewer
products of three. Variables are scaled to about one; :attr:`NativeProblem.scale` gives the unit of each block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import (
    C2_LIMIT,
    FACTOR,
    LOCAL_DRIFT_FACTOR,
    LOCAL_NOISE_FACTOR,
    STALE_FACTOR,
    fixed_terms,
    prox_step_square_sum,
    prox_step_sum,
)
from schedopt.formulation.candidates import steps_limit
from schedopt.formulation.nlp import Program, QuotientRows, RateRows, RowBuilder
from schedopt.formulation.uplink import uploads_of
from schedopt.problem import TERMS, FloatArray, IntArray, Problem, ProblemArrays
from schedopt.schedule import Schedule

__all__ = ["NativeProblem", "build_native"]

#: The published tensors: all other variables follow from them (and from "before").
_TENSORS = ("receive", "upload", "steps", "batch", "freq", "power", "bandwidth")
#: What describes an upload that may or may not happen.
_UNGATED = (*_TENSORS[2:], "compute", "send", "rate", "upload_energy", "inverse_batch", "samples", "work_freq", "progress", "progress2")
_UNGATED += ("log_steps", "log_batch", "log_freq", "log_compute", "log_energy", "compute_energy")
#: Affine rows Σ upload · use ≤ 1.
_LIMITS = ("band", "energy budget", "total energy")
#: Smallest H_j, relative to the most that could be trained; below, a task counts as untrained and its bound would be infinite.
_LEAST_H = 1e-4


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

    def usable(self, schedule: Schedule) -> np.ndarray:
        """Mask of the assignments whose device can train the task at all."""
        known = np.zeros((self.problem.arrays.num_devices, self.problem.arrays.num_tasks), dtype=bool)
        known[self.device, self.task] = True
        return known[schedule.device, schedule.task]

    def point(self, schedule: Schedule) -> FloatArray:
        """The point of ``schedule``: every row holds if the schedule is feasible (to rounding), shape (n,).

        Where nothing is uploaded, the resources are those of the least work, done slowly and sent with all power over all the band.
        """
        pair = np.full((self.problem.arrays.num_devices, self.problem.arrays.num_tasks), -1)
        pair[self.device, self.task] = np.arange(len(self.device))
        q, slot = pair[schedule.device, schedule.task], schedule.end - 1
        if np.any(q < 0):
            raise KeyError("an assignment of a pair that cannot train")
        names = _TENSORS
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
        limits = np.array([name in _LIMITS for name in program.affine.names], dtype=bool)
        used = 1.0 + float(program.affine.values(v)[limits].max(initial=-1.0))
        if used > 1.0:
            flow = flow * (1.0 - 1e-9) / used
            v = self.complete({**values, "receive": flow, "upload": flow})
        return v

    def restored(self, v: FloatArray) -> FloatArray:
        """``v`` with the same tensors and auxiliary variables that are consistent with them."""
        return self.complete({name: self.tensor(v, name) for name in (*_TENSORS, "before")})

    def idle(self, v: FloatArray) -> IntArray:
        """Variables that say how an upload would be made that ``v`` (whole binaries) does not make: nothing depends on them."""
        unused = np.round(v[self.blocks["upload"]]) == 0
        return np.concatenate([self.blocks[name][unused] for name in _UNGATED if name in self.blocks])

    def complete(self, values: dict[str, FloatArray]) -> FloatArray:
        """The point with the published tensors ``values`` (physical units) and all other variables as the rows define them."""
        v = np.clip(np.zeros(self.program.variables), self.program.lower, self.program.upper)
        for name, value in values.items():
            if self.logs and name in ("batch", "freq"):
                v[self.blocks[f"log_{name}"]] = np.log(value / self.scale[name])
            else:
                v[self.blocks[name]] = value / self.scale[name]
        return _filled(self, v)


def _rate(arrays: ProblemArrays, snr: FloatArray) -> FloatArray:
    """Rate over the whole band at full power in bit/s, shape (pairs, G)."""
    return arrays.bandwidth_hz * np.log1p(snr) / np.log(2.0)


class _Build:
    """Blocks, rows and bounds as they are added."""

    def __init__(self, problem: Problem, logs: bool) -> None:
        self.problem, self.a, self.logs = problem, problem.arrays, logs
        a = self.a
        self.limit = steps_limit(problem)
        usable = a.has_data & (a.samples >= a.min_batch) & (a.aggregation_weight > 0) & (self.limit >= 1)
        self.device, self.task = np.nonzero(usable)
        self.shape = (len(self.device), a.slots)
        self.factors = dict(zip(TERMS, a.term_scale.tolist(), strict=True))
        self.blocks: dict[str, IntArray] = {}
        self.scale: dict[str, FloatArray] = {}
        self.lower: list[FloatArray] = []
        self.upper: list[FloatArray] = []
        self.size = 0

    def add(self, name: str, low: object, high: object, scale: object = 1.0, shape: tuple[int, ...] | None = None) -> IntArray:
        """A block of variables with bounds in physical units."""
        shape = self.shape if shape is None else shape
        index = np.arange(self.size, self.size + int(np.prod(shape))).reshape(shape)
        self.size += index.size
        unit = np.broadcast_to(np.asarray(scale, float), shape).copy()
        self.blocks[name], self.scale[name] = index, unit
        self.lower.append((np.broadcast_to(np.asarray(low, float), shape) / unit).ravel())
        self.upper.append((np.broadcast_to(np.asarray(high, float), shape) / unit).ravel())
        return index

    def of_task(self, values: FloatArray) -> FloatArray:
        """Per-task numbers for every pair, shape (pairs, 1)."""
        return np.asarray(values)[self.task][:, None]

    def of_device(self, values: FloatArray) -> FloatArray:
        """Per-device numbers for every pair, shape (pairs, 1)."""
        return np.asarray(values)[self.device][:, None]

    def of_pair(self, values: FloatArray) -> FloatArray:
        """Per-(device, task) numbers for every pair, shape (pairs, 1)."""
        return np.asarray(values)[self.device, self.task][:, None]


def build_native(problem: Problem, *, logs: bool = False) -> NativeProblem:
    """The relaxed program of ``problem`` (formulation 4a); ``logs``: batch, frequency and their monomials through logarithms.

    Aggregation by the rule ``mixing`` is scheduled as ``delta`` (formulation 2), as everywhere in the solvers.
    """
    build = _Build(problem, logs)
    _declare(build)
    equalities, affine = RowBuilder(build.size), RowBuilder(build.size)
    hard, soft = RowBuilder(build.size), RowBuilder(build.size)
    _scheduling_rows(build, equalities, affine, hard)
    _time_and_energy_rows(build, affine, hard, soft)
    _error_rows(build, equalities, hard, soft)
    quotients = _bound_rows(build, equalities, affine, soft)
    cost, cost_scale = _cost(build, affine)
    _binary_rows(build, soft)
    none = np.zeros(0, dtype=np.int64)
    w, p, r = (build.blocks[name].ravel() for name in ("bandwidth", "power", "rate"))
    rates = RateRows(r, w, p, build.snr.ravel(), ("rate",) * len(r)) if len(r) else RateRows(none, none, none, none.astype(float), ())
    program = Program(
        cost=cost,
        lower=np.concatenate(build.lower),
        upper=np.concatenate(build.upper),
        convex_equalities=equalities.build(),
        affine=affine.build(),
        quotients=quotients,
        rates=rates,
        nonconvex_equalities=hard.build(),
        nonconvex_inequalities=soft.build(),
    )
    return NativeProblem(problem, program, build.device, build.task, build.blocks, build.scale, cost_scale, logs)


def _declare(build: _Build) -> None:
    """All variables, with bounds and units."""
    a, i, j = build.a, build.device, build.task
    build.longest = np.minimum(build.of_task(a.max_staleness + 1), a.slots).astype(float)
    limit, least, most = (x.astype(float) for x in (build.of_task(build.limit), build.of_task(a.min_batch), build.of_pair(a.samples)))
    q, slot = np.indices(build.shape)
    uploads = uploads_of(a, i[q].ravel(), j[q].ravel(), slot.ravel() + 1)
    possible = (uploads.shortest_s <= a.slot_s).reshape(build.shape)
    build.snr = build.of_device(a.max_power_w) * a.gain[i] / (a.noise_w_per_hz * a.bandwidth_hz)
    build.batch_unit = np.minimum(2.0 * least, most)
    per_cycle = 0.5 * build.of_device(a.capacitance) * build.of_pair(a.cycles_per_sample) * build.of_device(a.freq_max_hz) ** 2
    build.per_cycle = per_cycle
    build.energy_unit = 0.1 * (build.of_device(a.max_power_w) * a.slot_s + per_cycle * limit * build.batch_unit)
    low_f, high_f = build.of_device(a.freq_min_hz), build.of_device(a.freq_max_hz)
    build.add("receive", 0.0, 1.0)
    build.open = np.where(possible, 1.0, 0.0)
    # what rows bound from below alone needs no upper limit; where nothing can be uploaded, there is none of it
    build.unlimited = np.where(possible, np.inf, 0.0)
    build.add("upload", 0.0, build.open)
    build.add("occupancy", 0.0, 1.0)
    build.add("elapsed", 0.0, build.longest, build.longest)
    build.add("before", 0.0, build.longest[:, 0], build.longest[:, 0], (len(i),))
    build.add("steps", 1.0, limit, limit)
    if build.logs:
        build.scale["batch"], build.scale["freq"] = np.broadcast_to(build.batch_unit, build.shape), np.broadcast_to(high_f, build.shape)
        build.add("log_steps", 0.0, np.log(limit))
        build.add("log_batch", np.log(least / build.batch_unit), np.log(most / build.batch_unit))
        build.add("log_freq", np.log(low_f / high_f), 0.0)
    else:
        build.add("batch", least, most, build.batch_unit)
        build.add("freq", low_f, high_f, high_f)
    build.add("power", 0.0, build.of_device(a.max_power_w), build.of_device(a.max_power_w))
    build.add("bandwidth", 0.0, a.bandwidth_hz, a.bandwidth_hz)
    build.add("done", 0.0, limit * build.open, limit)
    full = _rate(a, build.snr)
    # where the channel is too poor for any upload, the rows are those of one that just fits: nothing is ever gated in
    build.bits = np.minimum(build.of_task(a.model_bits) / (a.slot_s * full), 1.0)
    build.add("compute", 0.0, np.inf, a.slot_s)
    build.add("send", 0.0, a.slot_s, a.slot_s)
    build.add("rate", 0.0, full, full)
    build.add("band_used", 0.0, a.bandwidth_hz * build.open, a.bandwidth_hz)
    build.add("upload_energy", 0.0, np.inf, build.energy_unit)
    build.add("energy", 0.0, build.unlimited, build.energy_unit)
    build.add("inverse_batch", 1.0 / most, 1.0 / least, 1.0 / build.batch_unit)
    build.add("noise", 0.0, build.unlimited, limit / build.batch_unit)
    if build.logs:
        build.add("compute_energy", 0.0, np.inf, build.energy_unit)
        # steps, batch and frequency have finite ranges, so their monomials have too
        span = np.log(limit * most / build.batch_unit), np.log(low_f / high_f)
        build.add("log_compute", np.log(least / build.batch_unit), span[0] - span[1])
        build.add("log_energy", np.log(least / build.batch_unit) + 2.0 * span[1], span[0])
    else:
        build.add("samples", 0.0, np.inf, limit * build.batch_unit)
        build.add("work_freq", 0.0, np.inf, limit * build.batch_unit * high_f)
    _declare_errors(build, limit, least)


def _declare_errors(build: _Build, limit: FloatArray, least: FloatArray) -> None:
    """Variables of the bound: weighted steps, staleness, local drift, participation, H, N, Ψ."""
    a, factors = build.a, build.factors
    build.prox = bool(np.any(a.prox[build.task] > 0))
    if build.prox:
        # A(e) and A2(e) of the proximal steps, alone and gated by the upload
        build.add("progress", 0.0, limit, limit)
        build.add("progress2", 0.0, limit, limit)
        build.add("done1", 0.0, limit * build.open, limit)
        build.add("done2", 0.0, limit * build.open, limit)
    drift = build.of_pair(a.gradient_drift) ** 2 + build.of_task(a.mean_gradient_drift) ** 2 / 16.0
    build.data = factors["data"] * drift
    build.stale = factors["stale"] > 0 or build.problem.objective.enforce_conditions
    missed = np.maximum(build.longest - 1.0, 1.0)
    if build.stale or np.any(build.data > 0):
        build.add("missed", 0.0, build.unlimited, missed)
        build.add("stale_steps", 0.0, build.unlimited, limit * missed)
    if np.any(build.data > 0):
        build.add("stale_steps2", 0.0, build.unlimited, limit * missed**2)
    tasks, instants = (a.num_tasks,), (a.num_tasks, a.slots)
    weight = a.learning_rate * a.server_weight
    build.step_weight = build.of_pair(weight)
    most_h = np.zeros(a.num_tasks)
    np.add.at(most_h, build.task, (build.step_weight * limit).ravel() * a.slots)
    build.h_unit = np.where(most_h > 0, most_h / 8.0, 1.0)
    if build.stale:
        build.add("held", 0.0, np.inf, limit * missed)
        build.add("passed", 0.0, np.inf, limit * missed)
        per_noise = build.step_weight**2 * build.of_pair(a.gradient_variance) * limit / least
        build.noise_unit, build.span_unit = np.full(a.num_tasks, 1e-30), np.full(a.num_tasks, 1e-30)
        np.maximum.at(build.noise_unit, build.task, per_noise.ravel())
        np.maximum.at(build.span_unit, build.task, (build.step_weight * limit * missed).ravel())
        build.add("noise_sum", 0.0, np.inf, build.noise_unit[:, None], instants)
        build.add("span", 0.0, np.inf, build.span_unit[:, None], instants)
    if build.problem.objective.enforce_conditions:
        build.add("h_instant", 0.0, np.inf, build.h_unit[:, None] / a.slots, instants)
    if factors["local"] > 0:
        build.add("done_steps", 0.0, build.unlimited, limit**2)
        build.add("done_steps2", 0.0, build.unlimited, limit**3)
        build.add("local_noise", 0.0, build.unlimited, limit**2 / build.batch_unit)
    if build.problem.objective.participation == "horizon" and factors["part"] > 0:
        build.off_unit = np.maximum((a.aggregation_weight * a.dissimilarity).sum(axis=0), 1e-12)
        build.add("off", 0.0, np.inf, build.h_unit[build.task], (len(build.task),))
        build.add("distance", 0.0, np.inf, build.h_unit * build.off_unit, tasks)
        build.add("participation", 0.0, np.inf, build.h_unit * build.off_unit**2, tasks)
    fixed = fixed_terms(a)
    build.error_unit = np.where(fixed > 0, fixed, build.h_unit * (np.mean(a.dissimilarity**2) + 1e-6))
    needed = a.weight > 0 if build.problem.objective.mode != "min_energy" else np.isfinite(a.target)
    build.needed = np.flatnonzero(needed)
    build.bound_unit = FACTOR * build.error_unit / build.h_unit
    build.add("h_total", np.where(needed, _LEAST_H * build.h_unit, 0.0), np.inf, build.h_unit, tasks)
    build.add("errors", 0.0, np.inf, build.error_unit, tasks)
    target = np.where(needed, a.target, np.inf) if build.problem.objective.mode == "min_energy" else np.inf
    build.add("bound", 0.0, target, build.bound_unit, tasks)


def _scheduling_rows(build: _Build, equalities: RowBuilder, affine: RowBuilder, hard: RowBuilder) -> None:
    """Occupancy, elapsed time, one task at a time."""
    b, slots, count = build.blocks, build.a.slots, int(np.prod(build.shape))
    receive, upload, occupancy, elapsed = (b[n] for n in ("receive", "upload", "occupancy", "elapsed"))
    rows = equalities.rows("occupancy", count).reshape(build.shape)
    equalities.linear(rows, occupancy).linear(rows, receive, -1.0)
    equalities.linear(rows[:, 1:], occupancy[:, :-1], -1.0).linear(rows[:, 1:], upload[:, :-1])
    rows = equalities.rows("everything uploaded", len(build.device))
    equalities.linear(rows, occupancy[:, -1]).linear(rows, upload[:, -1], -1.0)
    rows, before = hard.rows("elapsed", count).reshape(build.shape), np.concatenate([b["before"][:, None], elapsed[:, :-1]], axis=1)
    hard.linear(rows, elapsed).linear(rows, occupancy, -1.0 / build.longest).linear(rows, before, -1.0).product(rows, before, receive)
    rows = affine.rows("one task", build.a.num_devices * slots, -1.0).reshape(-1, slots)
    affine.linear(rows[build.device], occupancy)
    for name, small, large in (("upload while occupied", upload, occupancy), ("received while occupied", receive, occupancy)):
        rows = affine.rows(name, count).reshape(build.shape)
        affine.linear(rows, small).linear(rows, large, -1.0)


def _time_and_energy_rows(build: _Build, affine: RowBuilder, hard: RowBuilder, soft: RowBuilder) -> None:
    """Deadlines, band, steps done, compute times, energies and budgets."""
    a, b, shape, count = build.a, build.blocks, build.shape, int(np.prod(build.shape))
    upload, energy = b["upload"], b["energy"]
    receive_s = build.of_task(a.model_bits) / build.of_device(a.downlink_bps)
    rows = soft.rows("deadline", count).reshape(shape)
    soft.linear(rows, upload, receive_s / a.slot_s).product(rows, upload, b["elapsed"], -build.longest)
    soft.product(rows, upload, b["compute"]).product(rows, upload, b["send"])
    rows = affine.rows("band", a.slots, -1.0)
    affine.linear(np.broadcast_to(rows, shape), b["band_used"])
    rows = soft.rows("band used", count).reshape(shape)
    soft.linear(rows, b["band_used"], -1.0).product(rows, upload, b["bandwidth"])
    rows = hard.rows("steps done", count).reshape(shape)
    hard.linear(rows, b["done"]).product(rows, upload, b["steps"], -1.0)
    rows = soft.rows("upload energy", count, (build.of_device(a.receive_power_w) * receive_s / build.energy_unit * np.ones(shape)).ravel())
    rows = rows.reshape(shape)
    soft.linear(rows, b["upload_energy"], -1.0)
    soft.product(rows, b["power"], b["send"], build.of_device(a.max_power_w) * a.slot_s / build.energy_unit)
    slowness = build.of_pair(a.cycles_per_sample) / (a.slot_s * build.of_device(a.freq_max_hz))
    if build.logs:
        _monomials_by_logs(build, affine, hard, build.per_cycle, slowness)
        soft.linear(rows, b["compute_energy"])
    else:
        _monomials_by_products(build, soft, rows, build.per_cycle, slowness)
    rows = soft.rows("energy", count).reshape(shape)
    soft.linear(rows, energy, -1.0).product(rows, upload, b["upload_energy"])
    limited = np.flatnonzero(np.isfinite(a.energy_budget_j))
    rows = affine.rows("energy budget", len(limited), -1.0)
    for row, i in zip(rows, limited, strict=True):
        mine = build.device == i
        affine.linear(np.full((np.count_nonzero(mine), a.slots), row), energy[mine], build.energy_unit[mine] / a.energy_budget_j[i])


def _monomials_by_products(build: _Build, soft: RowBuilder, energy_rows: IntArray, per_cycle: FloatArray, slowness: FloatArray) -> None:
    """y ≥ e B, T f ≥ c y, F ≥ y f, and ½ κ c F f of the energy."""
    b, shape, count = build.blocks, build.shape, int(np.prod(build.shape))
    unit = build.of_task(build.limit) * build.batch_unit
    rows = soft.rows("samples", count).reshape(shape)
    soft.linear(rows, b["samples"], -1.0).product(rows, b["steps"], b["batch"])
    rows = soft.rows("compute time", count).reshape(shape)
    soft.linear(rows, b["samples"], slowness * unit).product(rows, b["compute"], b["freq"], -1.0)
    rows = soft.rows("work times frequency", count).reshape(shape)
    soft.linear(rows, b["work_freq"], -1.0).product(rows, b["samples"], b["freq"])
    soft.product(energy_rows, b["work_freq"], b["freq"], per_cycle * unit / build.energy_unit)


def _monomials_by_logs(build: _Build, affine: RowBuilder, hard: RowBuilder, per_cycle: FloatArray, slowness: FloatArray) -> None:
    """T ≥ c e B/f, the compute energy ½ κ c e B f² and 1/B are convex in the logarithms; e = exp(log e) is an equality."""
    b, shape, count = build.blocks, build.shape, int(np.prod(build.shape))
    rows = hard.rows("log steps", count).reshape(shape)
    hard.linear(rows, b["steps"]).exponential(rows, b["log_steps"], 1.0, -1.0 / build.of_task(build.limit))
    for name, target, power, factor in (
        ("log_compute", "compute", -1.0, slowness * build.batch_unit),
        ("log_energy", "compute_energy", 2.0, per_cycle * build.batch_unit / build.energy_unit),
    ):
        rows = affine.rows(f"{name} sum", count).reshape(shape)
        # ≤ is enough: the sum is exceeded by the variable whose exponential must be paid for
        affine.linear(rows, b["log_steps"]).linear(rows, b["log_batch"]).linear(rows, b["log_freq"], power).linear(rows, b[name], -1.0)
        rows = affine.rows(target, count).reshape(shape)
        affine.linear(rows, b[target], -1.0).exponential(rows, b[name], 1.0, factor)
    rows = affine.rows("inverse batch", count).reshape(shape)
    affine.linear(rows, b["inverse_batch"], -1.0).exponential(rows, b["log_batch"], -1.0, 1.0)


def _error_rows(build: _Build, equalities: RowBuilder, hard: RowBuilder, soft: RowBuilder) -> None:
    """Progress A(e), noise, staleness and local drift of every upload."""
    b, shape, count = build.blocks, build.shape, int(np.prod(build.shape))
    limit = build.of_task(build.limit)
    if build.prox:
        _proximal_rows(build, hard)
    once, twice = (b["done1"], b["done2"]) if build.prox else (b["done"], b["done"])
    rows = soft.rows("noise", count).reshape(shape)
    soft.linear(rows, b["noise"], -1.0).product(rows, twice, b["inverse_batch"])
    if "missed" in b:
        unit = build.scale["missed"]
        rows = soft.rows("missed", count).reshape(shape)
        soft.linear(rows, b["missed"], -1.0).linear(rows, b["upload"], -1.0 / unit)
        soft.product(rows, b["upload"], b["elapsed"], build.longest / unit)
        rows = soft.rows("stale steps", count).reshape(shape)
        soft.linear(rows, b["stale_steps"], -1.0).product(rows, b["progress"] if build.prox else b["steps"], b["missed"])
    if "stale_steps2" in b:
        rows = soft.rows("stale steps squared", count).reshape(shape)
        soft.linear(rows, b["stale_steps2"], -1.0).product(rows, b["stale_steps"], b["missed"])
    if build.stale:
        _span_rows(build, equalities, soft, once, twice)
    if "done_steps" in b:
        for name, x, y, factor in (("done_steps", once, "steps", 1.0), ("done_steps2", b["done_steps"], "steps", 1.0),
                                   ("local_noise", b["done_steps"], "inverse_batch", 1.0)):  # fmt: skip
            rows = soft.rows(name.replace("_", " "), count).reshape(shape)
            soft.linear(rows, b[name], -1.0).product(rows, x, b[y], factor * np.ones_like(limit))


def _proximal_rows(build: _Build, hard: RowBuilder) -> None:
    """A(e) = (1 − (1−ηρ)^e)/(ηρ), A2(e) the same with (1−ηρ)², and both times U; equal to e without a proximal term."""
    b, a, shape, count = build.blocks, build.a, build.shape, int(np.prod(build.shape))
    limit = build.of_task(build.limit)
    shrink = build.of_task(a.learning_rate * a.prox)
    for name, gated, factor in (("progress", "done1", shrink), ("progress2", "done2", shrink * (2.0 - shrink))):
        curved = np.broadcast_to(factor > 0, shape)
        safe = np.where(factor > 0, factor, 0.5)
        rows = hard.rows(name, count, np.where(curved, -1.0 / (safe * limit), 0.0).ravel()).reshape(shape)
        hard.linear(rows, b[name]).linear(rows, b["steps"], np.where(factor > 0, 0.0, -1.0))
        hard.exponential(rows, b["steps"], np.log1p(-safe) * limit, np.where(curved, 1.0 / (safe * limit), 0.0))
        rows = hard.rows(f"{name} done", count).reshape(shape)
        hard.linear(rows, b[gated]).product(rows, b["upload"], b[name], -1.0)


def _span_rows(build: _Build, equalities: RowBuilder, soft: RowBuilder, once: IntArray, twice: IntArray) -> None:
    """h κ of the running assignment, handed back from its upload to its start, and its sum over what spans an instant."""
    b, a, shape, count = build.blocks, build.a, build.shape, int(np.prod(build.shape))
    rows = equalities.rows("held", count).reshape(shape)
    equalities.linear(rows, b["held"]).linear(rows, b["stale_steps"], -1.0).linear(rows, b["passed"], -1.0)
    rows = soft.rows("passed", count).reshape(shape)
    soft.linear(rows, b["passed"], -1.0)
    soft.product(rows[:, :-1], b["occupancy"][:, :-1], b["held"][:, 1:]).product(rows[:, :-1], b["upload"][:, :-1], b["held"][:, 1:], -1.0)
    per_noise = build.step_weight**2 * build.of_pair(a.gradient_variance)
    total = equalities.rows("noise of an instant", a.num_tasks * a.slots).reshape(a.num_tasks, a.slots)
    equalities.linear(total, b["noise_sum"])
    unit = build.noise_unit[build.task][:, None]
    equalities.linear(total[build.task], b["noise"], -per_noise * build.scale["noise"] / unit)
    equalities.linear(total[build.task], twice, per_noise * build.of_task(build.limit) / build.of_pair(a.samples) / unit)
    total = equalities.rows("span of an instant", a.num_tasks * a.slots).reshape(a.num_tasks, a.slots)
    equalities.linear(total, b["span"])
    equalities.linear(total[build.task], b["passed"], -build.step_weight * build.scale["passed"] / build.span_unit[build.task][:, None])
    if "h_instant" in b:
        _condition_rows(build, equalities, soft, once)


def _condition_rows(build: _Build, equalities: RowBuilder, soft: RowBuilder, once: IntArray) -> None:
    """C2: β h_k + (17/4) β² h_k Σ h κ of what spans k ≤ ½ (C1 is a bound on e)."""
    b, a = build.blocks, build.a
    shape, count = (a.num_tasks, a.slots), a.num_tasks * a.slots
    rows = equalities.rows("h of an instant", count).reshape(shape)
    equalities.linear(rows, b["h_instant"])
    equalities.linear(rows[build.task], once, -build.step_weight * build.of_task(build.limit) / build.scale["h_instant"][build.task])
    beta = a.smoothness[:, None]
    rows = soft.rows("condition C2", count, -1.0).reshape(shape)
    unit = beta * build.scale["h_instant"] / C2_LIMIT
    soft.linear(rows, b["h_instant"], unit).product(rows, b["h_instant"], b["span"], STALE_FACTOR * beta * unit * build.span_unit[:, None])


def _bound_rows(build: _Build, equalities: RowBuilder, affine: RowBuilder, soft: RowBuilder) -> QuotientRows:
    """H, the error terms N, and Ψ H ≥ (8/3)(C + N)."""
    b, a, f, pairs = build.blocks, build.a, build.factors, build.task
    limit, weight = build.of_task(build.limit), build.step_weight
    once = b["done1"] if build.prox else b["done"]
    rows = equalities.rows("H", a.num_tasks)
    equalities.linear(rows, b["h_total"]).linear(rows[pairs][:, None], once, -weight * limit / build.h_unit[pairs][:, None])
    # T_stale makes the row of N a non-convex one
    group = soft if f["stale"] > 0 else affine
    rows = group.rows("error terms", a.num_tasks)
    group.linear(rows, b["errors"], -1.0)
    each, unit = rows[pairs][:, None], build.error_unit[pairs][:, None]
    beta, variance, samples = build.of_task(a.smoothness), build.of_pair(a.gradient_variance), build.of_pair(a.samples)
    delta2 = build.of_pair(a.dissimilarity) ** 2
    if build.problem.objective.participation == "instant":
        group.linear(each, once, f["part"] * 2.0 * delta2 * weight * limit / unit)
    elif "participation" in b:
        group.linear(rows, b["participation"], 2.0 * f["part"] * build.scale["participation"] / build.error_unit)
    if "stale_steps2" in b:
        group.linear(each, b["stale_steps2"], 2.0 * build.data * weight * build.scale["stale_steps2"] / unit)
    noise = f["noise"] * beta * weight**2 * variance
    twice = b["done2"] if build.prox else b["done"]
    group.linear(each, b["noise"], noise * build.scale["noise"] / unit).linear(each, twice, -noise * limit / samples / unit)
    if "done_steps" in b:
        local = f["local"] * 2.0 * (beta * build.of_task(a.learning_rate)) ** 2 * weight
        group.linear(each, b["local_noise"], local * LOCAL_NOISE_FACTOR * variance * build.scale["local_noise"] / unit)
        group.linear(each, b["done_steps"], -local * LOCAL_NOISE_FACTOR * variance / samples * limit**2 / unit)
        group.linear(each, b["done_steps2"], local * LOCAL_DRIFT_FACTOR * delta2 * limit**3 / unit)
    if f["stale"] > 0:
        factor = f["stale"] * STALE_FACTOR * a.smoothness**2 * build.noise_unit * build.span_unit / build.error_unit
        soft.product(rows[:, None], b["noise_sum"], b["span"], factor[:, None])
    need = build.needed
    rows = soft.rows("bound", len(need), fixed_terms(a)[need] / build.error_unit[need])
    soft.linear(rows, b["errors"][need]).product(rows, b["bound"][need], b["h_total"][need], -1.0)
    return _quotients(build, affine)


def _quotients(build: _Build, affine: RowBuilder) -> QuotientRows:
    """M/r ≤ S and 1/B ≤ b of every upload, d²/H ≤ participation of every task that counts, and |h_i − λ_i H| ≤ off behind d."""
    b, a, pairs = build.blocks, build.a, build.task
    count = int(np.prod(build.shape))
    x, y, z = [np.full(count, -1)], [b["rate"].ravel()], [b["send"].ravel()]
    factor, names = [build.bits.ravel()], ["send time"] * count
    if not build.logs:
        x, y, z = [*x, np.full(count, -1)], [*y, b["batch"].ravel()], [*z, b["inverse_batch"].ravel()]
        factor, names = [*factor, np.ones(count)], [*names, *(["inverse batch"] * count)]
    if "off" in b:
        h_unit, share = build.h_unit[pairs], a.aggregation_weight[build.device, pairs]
        for sign in (1.0, -1.0):
            rows = affine.rows("participation of a device", len(pairs))
            affine.linear(rows, b["off"], -1.0).linear(rows, b["h_total"][pairs], -sign * share)
            once = b["done1"] if build.prox else b["done"]
            affine.linear(rows[:, None], once, sign * build.step_weight * build.of_task(build.limit) / h_unit[:, None])
        rows = affine.rows("distance", a.num_tasks)
        affine.linear(rows, b["distance"], -1.0)
        affine.linear(rows[pairs], b["off"], a.dissimilarity[build.device, pairs] / build.off_unit[pairs])
        absent = a.aggregation_weight * a.dissimilarity
        absent = absent.sum(axis=0) - np.bincount(pairs, weights=absent[build.device, pairs], minlength=a.num_tasks)
        affine.linear(rows, b["h_total"], absent / build.off_unit)
        # a task that nothing is asked of may stay untrained, and d²/H would be 0/0
        need = build.needed
        x, y, z = [*x, b["distance"][need]], [*y, b["h_total"][need]], [*z, b["participation"][need]]
        factor, names = [*factor, np.ones(len(need))], [*names, *(["participation"] * len(need))]
    return QuotientRows(*(np.concatenate(part) for part in (x, y, z, factor)), names=tuple(names))


def _cost(build: _Build, affine: RowBuilder) -> tuple[FloatArray, float]:
    """Objective of the mode over its unit, and the unit."""
    objective, a, b = build.problem.objective, build.a, build.blocks
    cost = np.zeros(build.size)
    if objective.mode != "min_energy":
        cost[b["bound"]] = a.weight * build.bound_unit
    if objective.mode != "min_bound":
        price = objective.energy_weight if objective.mode == "weighted" else 1.0
        cost[b["energy"]] = price * np.broadcast_to(build.energy_unit, build.shape)
    elif objective.total_energy_j is not None:
        rows = affine.rows("total energy", 1, -1.0)
        affine.linear(np.broadcast_to(rows, build.shape), b["energy"], build.energy_unit / objective.total_energy_j)
    unit = float(np.abs(cost[b["bound"]]).sum() or np.abs(cost).max() or 1.0)
    return cost / unit, unit


def _binary_rows(build: _Build, soft: RowBuilder) -> None:
    """z − z² ≤ 0 for every relaxed binary."""
    for name in ("receive", "upload"):
        z = build.blocks[name].ravel()
        rows = soft.rows(f"binary {name}", len(z))
        soft.linear(rows, z).product(rows, z, z, -1.0)


def _filled(native: NativeProblem, v: FloatArray) -> FloatArray:
    """``v`` with every variable that the published tensors determine set so that its row holds."""
    a, b, device, task = native.problem.arrays, native.blocks, native.device, native.task
    upload, receive = native.tensor(v, "upload"), native.tensor(v, "receive")
    occupancy = np.cumsum(receive, axis=1) - np.concatenate([np.zeros((len(task), 1)), np.cumsum(upload, axis=1)[:, :-1]], axis=1)
    elapsed, carry = np.zeros_like(upload), native.tensor(v, "before")
    for g in range(a.slots):
        carry = elapsed[:, g] = occupancy[:, g] + carry * (1.0 - receive[:, g])
    steps, batch, freq = (native.tensor(v, name) for name in ("steps", "batch", "freq"))
    power, width = native.tensor(v, "power"), native.tensor(v, "bandwidth")
    cycles, limit = a.cycles_per_sample[device, task][:, None], native.scale["steps"]
    samples = steps * batch
    rates = native.program.rates
    reached = rates.rate((width / native.scale["bandwidth"]).ravel(), (power / native.scale["power"]).ravel())[0].reshape(upload.shape)
    send = native.program.quotients.factor[: upload.size].reshape(upload.shape) / reached * a.slot_s
    receive_s = a.model_bits[task][:, None] / a.downlink_bps[device][:, None]
    compute_energy = 0.5 * a.capacitance[device][:, None] * cycles * samples * freq**2
    upload_energy = power * send + a.receive_power_w[device][:, None] * receive_s + compute_energy
    values = {
        "occupancy": occupancy, "elapsed": elapsed, "done": upload * steps, "compute": cycles * samples / freq,
        "send": send, "rate": reached * native.scale["rate"], "band_used": upload * width, "upload_energy": upload_energy,
        "energy": upload * upload_energy, "inverse_batch": 1.0 / batch, "samples": samples, "work_freq": samples * freq,
        "log_steps": np.log(steps), "compute_energy": compute_energy,
    }  # fmt: skip
    ratio = np.log(batch / native.scale["batch"]), np.log(freq / native.scale["freq"])
    values["log_compute"], values["log_energy"] = np.log(steps) + ratio[0] - ratio[1], np.log(steps) + ratio[0] + 2.0 * ratio[1]
    shrink = (a.learning_rate * a.prox)[task][:, None]
    values["progress"], values["progress2"] = prox_step_sum(steps, shrink), prox_step_square_sum(steps, shrink)
    values["done1"], values["done2"] = upload * values["progress"], upload * values["progress2"]
    values["noise"] = values["done2"] / batch
    values["missed"] = upload * np.maximum(elapsed - 1.0, 0.0)
    values["stale_steps"] = values["progress"] * values["missed"]
    values["stale_steps2"] = values["stale_steps"] * values["missed"]
    values["done_steps"], values["done_steps2"] = values["done1"] * steps, values["done1"] * steps**2
    values["local_noise"] = values["done_steps"] / batch
    held, passed = np.zeros_like(upload), np.zeros_like(upload)
    for g in range(a.slots - 1, -1, -1):
        if g < a.slots - 1:
            passed[:, g] = np.maximum(occupancy[:, g] - upload[:, g], 0.0) * held[:, g + 1]
        held[:, g] = values["stale_steps"][:, g] + passed[:, g]
    values["held"], values["passed"] = held, passed
    for name, value in values.items():
        if name in b:
            v[b[name]] = value / native.scale[name]
    return _filled_sums(native, v, values, limit)


def _filled_sums(native: NativeProblem, v: FloatArray, values: dict[str, FloatArray], limit: FloatArray) -> FloatArray:
    """The variables that sum over devices, task by task."""
    a, b, device, task = native.problem.arrays, native.blocks, native.device, native.task
    weight = (a.learning_rate * a.server_weight)[device, task][:, None]
    samples = a.samples[device, task][:, None]

    def summed(per_pair: FloatArray) -> FloatArray:
        total = np.zeros((a.num_tasks, *per_pair.shape[1:]))
        np.add.at(total, task, per_pair)
        return total

    noise = weight**2 * a.gradient_variance[device, task][:, None] * (values["noise"] - values["done2"] / samples)
    h = weight * values["done1"]
    h_total = summed(h.sum(axis=1))
    sums = {"noise_sum": summed(noise), "span": summed(weight * values["passed"]), "h_instant": summed(h), "h_total": h_total}
    share = a.aggregation_weight[device, task]
    off = np.abs(h.sum(axis=1) - share * h_total[task])
    absent = (a.aggregation_weight * a.dissimilarity).sum(axis=0) - summed(share * a.dissimilarity[device, task])
    sums["off"], sums["distance"] = off, summed(a.dissimilarity[device, task] * off) + absent * h_total
    sums["participation"] = np.divide(sums["distance"] ** 2, h_total, out=np.zeros_like(h_total), where=h_total > 0)
    for name, value in sums.items():
        if name in b:
            v[b[name]] = value / native.scale[name]
    program = native.program
    # N and Ψ from their own rows: what is missing on the other side
    for rows in (program.affine, program.nonconvex_inequalities):
        chosen = [k for k, name in enumerate(rows.names) if name == "error terms"]
        if chosen:
            v[b["errors"]] = 0.0
            v[b["errors"]] = rows.values(v)[chosen]
    v[b["h_total"]] = np.maximum(v[b["h_total"]], program.lower[b["h_total"]])
    fixed = fixed_terms(a) * FACTOR / (native.scale["bound"] * native.scale["h_total"])
    trained = v[b["h_total"]] > 0
    v[b["bound"]] = np.where(trained, (fixed + v[b["errors"]]) / np.where(trained, v[b["h_total"]], 1.0), 0.0)
    return v
