"""First prices of many devices from a sample of them: the same problem for every k-th device, with a k-th of the band.

Every sampled device stands for k: aggregation weights are k times as large, so that H keeps its size, the band and an energy limit are a
k-th, and energy costs k times as much. What is found are prices near those of all devices; they only start column generation
(:mod:`schedopt.colgen.loop`), so nothing rests on how good they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from schedopt.formulation.candidates import Prices
from schedopt.objective import needed_tasks
from schedopt.participation import participation_groups
from schedopt.problem import FloatArray, IntArray, Problem
from schedopt.sca.master import MasterPoint

__all__ = ["prices_for_all", "sample_devices", "sampled_problem"]


def sample_devices(problem: Problem, count: int) -> IntArray:
    """About ``count`` devices, evenly among all ordered by their mean channel, which divides devices most; ascending."""
    order = np.argsort(-problem.arrays.gain.mean(axis=1), kind="stable")
    places = np.round((np.arange(count) + 0.5) * len(order) / count - 0.5).astype(np.int64)
    return np.sort(order[np.unique(places)])


def sampled_problem(problem: Problem, devices: IntArray) -> Problem | None:
    """The problem of the sample, or None if a task that needs training has no holder in it."""
    a = problem.arrays
    share = a.aggregation_weight[devices].sum(axis=0)
    held = a.has_data[devices].any(axis=0)
    if not np.all(held & (share > 0) | ~needed_tasks(problem)) or not np.all(held):
        return None
    copies = a.num_devices / len(devices)
    data = problem.to_dict()
    data["devices"] = [data["devices"][i] for i in devices]
    for row, entry in zip(devices, data["devices"], strict=True):
        for j, task in enumerate(problem.tasks):
            if task.name in entry["tasks"]:
                entry["tasks"][task.name]["weight"] = float(a.aggregation_weight[row, j] / share[j])
    data["spectrum"]["bandwidth_hz"] /= copies
    objective = data["objective"]
    objective["energy_weight"] *= copies
    if objective.get("total_energy_j") is not None:
        objective["total_energy_j"] /= copies
    return Problem.model_validate(data)


def prices_for_all(problem: Problem, devices: IntArray, sampled: MasterPoint) -> MasterPoint:
    """A sampled problem's master, in prices of the whole problem.

    Devices outside the sample balance tasks as the sampled ones do on average.
    """
    a, mode = problem.arrays, problem.objective.mode
    copies, groups = a.num_devices / len(devices), participation_groups(problem)
    p = sampled.prices
    base = problem.objective.energy_weight if mode == "weighted" else float(p.energy.min()) / copies
    base = 1.0 if mode == "min_energy" else base
    energy = np.full(a.num_devices, base)
    h, weight = sampled.h, _shares(a.aggregation_weight[devices])
    pull = np.zeros(a.has_data.shape)
    if groups.factor > 0:
        mine, delta = sampled.task_value - p.value, groups.dissimilarity[devices]
        if groups.free:
            reach = np.divide(np.abs(mine), delta, out=np.zeros(mine.shape), where=delta > 0).max(axis=0)
        else:
            off = np.abs(sampled.h_device - weight * h) * delta
            reach = 2.0 * p.noise * groups.factor * (off.sum(axis=0) / np.maximum(h, 1e-300))
        sign = np.divide(mine, reach * delta, out=np.zeros(mine.shape), where=reach * delta > 0)
        pull = reach * np.clip(sign, -1.0, 1.0).mean(axis=0) * groups.dissimilarity
        pull[devices] = mine
    # an energy is worth as much in the sample as in the whole here, and there each device's part of H is a copy of its own
    unit = copies if mode == "min_energy" else 1.0
    prices = Prices(energy, unit * p.bandwidth / copies, unit * (sampled.task_value - pull), unit * p.noise)
    if groups.free:
        h_device = groups.weight * sampled.h_device.sum(axis=0)
    else:
        h_device = a.aggregation_weight * h
        # only the imbalance itself is known of the others: it is laid on the sampled ones
        h_device[devices] += sampled.h_device - weight * h
    return replace(sampled, prices=prices, task_value=unit * sampled.task_value, h_device=h_device)


def _shares(weight: FloatArray) -> FloatArray:
    return weight / np.maximum(weight.sum(axis=0), 1e-300)
