"""Tiny random problems whose optimum is not obvious, for tests against full enumeration.

Numbers are those of a small cell: an update fills a good part of a slot's band, so that two uploads of one slot must share and pay
with power; computing as many samples as would be liked does not fit one slot at low CPU frequency, so that longer (staler)
assignments can pay; and the energy weight is such that neither idling nor training all the time is best.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from schedopt.problem import Problem

__all__ = ["tiny_problem", "tiny_problem_dict"]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _task(rng: np.random.Generator, name: str, slots: int, max_steps: int, min_batch: int, changes: dict[str, Any]) -> dict[str, Any]:
    smoothness = _log_uniform(rng, 0.5, 2.0)
    task = {
        "name": name,
        "weight": rng.uniform(0.7, 1.4),
        "model_bits": _log_uniform(rng, 1.2e6, 2.4e6),
        "max_staleness": slots - 1,
        "max_steps": max_steps,
        "min_batch": min_batch,
        # the largest number of steps stays just inside condition C1
        "learning_rate": 0.048 / (smoothness * max_steps),
        "smoothness": smoothness,
        "initial_gap": rng.uniform(0.02, 0.05),
        "loss_drift": rng.uniform(0.0, 5e-4),
    }
    return task | changes


def _pair(rng: np.random.Generator, samples: tuple[int, int]) -> dict[str, Any]:
    return {
        "samples": int(rng.integers(samples[0], samples[1] + 1)),
        "cycles_per_sample": _log_uniform(rng, 0.8e7, 6.0e7),
        "gradient_variance": _log_uniform(rng, 50.0, 500.0),
        "dissimilarity": rng.uniform(0.1, 0.5),
        "gradient_drift": rng.uniform(0.0, 0.15),
    }


def _device(rng: np.random.Generator, name: str, tasks: list[str], slots: int, samples: tuple[int, int], fading: bool) -> dict[str, Any]:
    mean_gain = _log_uniform(rng, 3e-13, 1.5e-12)
    # Rayleigh fading, without the deepest fades
    gains = [mean_gain * float(np.clip(rng.exponential(), 0.3, 3.0)) for _ in range(slots)]
    return {
        "name": name,
        "freq_hz": [1.0e8, _log_uniform(rng, 1.2e9, 2.4e9)],
        "capacitance": _log_uniform(rng, 1e-28, 3e-28),
        "max_power_w": rng.uniform(0.15, 0.3),
        "receive_power_w": rng.uniform(0.0, 0.05),
        "downlink_bps": _log_uniform(rng, 1.5e7, 6e7),
        "gain": gains if fading else mean_gain,
        "tasks": {task: _pair(rng, samples) for task in tasks},
    }


def tiny_problem_dict(
    rng: np.random.Generator,
    devices: int = 2,
    tasks: int = 1,
    slots: int = 3,
    *,
    max_steps: int = 3,
    min_batch: int = 5,
    samples: tuple[int, int] = (20, 30),
    fading: bool = True,
    task: dict[str, Any] | None = None,
    **objective: Any,
) -> dict[str, Any]:
    """A tiny problem in the file format; ``task`` overrides fields of every task, keywords those of the objective.

    In mode min_energy every task has a target, and in mode min_bound there is an energy limit, unless given: about what a schedule that
    uses half of the device slots reaches and spends.
    """
    names = [f"task{j}" for j in range(tasks)]
    problem = {
        "schema": "schedopt.problem/1",
        "name": f"tiny_{devices}dev_{tasks}task",
        "horizon": {"slots": slots, "slot_s": 1.0},
        "spectrum": {"bandwidth_hz": 1.0e6, "noise_w_per_hz": 4.0e-21},
        "tasks": [_task(rng, name, slots, max_steps, min_batch, task or {}) for name in names],
        "devices": [_device(rng, f"dev{i}", names, slots, samples, fading) for i in range(devices)],
        "objective": {"mode": "weighted", "energy_weight": _log_uniform(rng, 5.0, 20.0)} | objective,
    }
    if problem["objective"]["mode"] == "min_energy":
        for entry in problem["tasks"]:
            entry.setdefault("target", _fair_target(entry, problem["devices"], slots / tasks))
    if problem["objective"]["mode"] == "min_bound":
        problem["objective"].setdefault("total_energy_j", 0.012 * devices * slots)
    return problem


def _fair_target(task: dict[str, Any], devices: list[dict[str, Any]], slots: float) -> float:
    """Bound of every second one of ``slots`` filled with the most steps, were noise and staleness a fifth of it."""
    steps = 0.5 * slots * task["max_steps"] * task["learning_rate"] * task.get("server_rate", 1.0)
    delta2 = float(np.mean([device["tasks"][task["name"]]["dissimilarity"] ** 2 for device in devices]))
    gap = task["initial_gap"] + (slots - 1) * task["loss_drift"]
    return 1.25 * (8.0 / 3.0) * (gap / steps + 2.0 * delta2)


def tiny_problem(rng: np.random.Generator, devices: int = 2, tasks: int = 1, slots: int = 3, **options: Any) -> Problem:
    """The validated problem of :func:`tiny_problem_dict`."""
    return Problem.model_validate(tiny_problem_dict(rng, devices, tasks, slots, **options))
