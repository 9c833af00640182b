"""Rows of the schedule itself: occupancy, times, band, energies, whole binaries, and the cost."""

from __future__ import annotations

import numpy as np

from schedopt.formulation.native.variables import Build
from schedopt.formulation.nlp import RowBuilder
from schedopt.problem import FloatArray, IntArray

__all__ = ["binary_rows", "cost_of", "scheduling_rows", "time_and_energy_rows"]



def scheduling_rows(build: Build, equalities: RowBuilder, affine: RowBuilder, hard: RowBuilder) -> None:
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


def time_and_energy_rows(build: Build, affine: RowBuilder, hard: RowBuilder, soft: RowBuilder) -> None:
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


def _monomials_by_products(build: Build, soft: RowBuilder, energy_rows: IntArray, per_cycle: FloatArray, slowness: FloatArray) -> None:
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


def _monomials_by_logs(build: Build, affine: RowBuilder, hard: RowBuilder, per_cycle: FloatArray, slowness: FloatArray) -> None:
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


def cost_of(build: Build, affine: RowBuilder) -> tuple[FloatArray, float]:
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
    # energy alone: what all devices take if each makes an upload of middling energy in every third slot
    energy = float(cost[b["energy"]].mean()) * a.num_devices * a.slots / 3.0 if len(build.device) else 0.0
    unit = float(np.abs(cost[b["bound"]]).sum() or energy or 1.0)
    return cost / unit, unit


def binary_rows(build: Build, soft: RowBuilder) -> None:
    """z − z² ≤ 0 for every relaxed binary."""
    for name in ("receive", "upload"):
        z = build.blocks[name].ravel()
        rows = soft.rows(f"binary {name}", len(z))
        soft.linear(rows, z).product(rows, z, z, -1.0)
