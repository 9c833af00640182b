r"""Random problems from physics: a cell with path loss, shadowing and block fading, CPU classes, unequal data sizes and gradients.

A device at distance d from the server has the channel power gain

    gain[g] = 10^{−(L_ref + 10 n log10(d / 1 m) + X)/10} · F[g],    X ~ N(0, σ²) in dB,    F[g] ~ Exp(1), constant over a block,

(log-distance path loss, log-normal shadowing, Rayleigh fading). Every topic has its own stream of random numbers, so that a change
of, say, the tasks leaves the devices as they were. Where the defaults come from is said beside each; "literature" is published work
on federated learning over wireless networks: JSAC'24a, JSAC'24b (Han et al.), FEDL (Tran et al.), FedAST (Askin et al.), M3T-FFM
(its public code). Tested in ``tests/test_generate.py`` against closed forms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from schedopt.errors import InputError
from schedopt.generate.devices import device_data
from schedopt.generate.geometry import mean_gain
from schedopt.generate.presets import KNOWN_TASKS, OBJECTIVES, CpuClass
from schedopt.generate.settings import GenerateSettings, refuse, task_presets
from schedopt.generate.streams import rounded
from schedopt.generate.tasks import holders_of, pair_data, task_data
from schedopt.messages import describe_validation_error
from schedopt.problem import PROBLEM_SCHEMA, Problem

__all__ = ["KNOWN_TASKS", "CpuClass", "GenerateSettings", "generate_problem", "mean_gain"]


def objective_data(s: GenerateSettings) -> dict[str, Any]:
    """The objective as in the problem file."""
    data = {"mode": s.mode, "total_energy_j": s.total_energy_j, **OBJECTIVES[s.regime]}
    for field in ("energy_weight", "participation", "term_scale", "enforce_conditions"):
        if getattr(s, field) is not None:
            data[field] = getattr(s, field)
    return data


def generate_problem(settings: GenerateSettings, seed: int = 0) -> Problem:
    """A random problem; equal settings and seeds give equal problems.

    Parameters
    ----------
    settings
        Sizes, physics and objective.
    seed
        Seed of every random choice, a whole number from 0.

    Raises
    ------
    InputError
        If the seed is negative, or if extreme settings give no valid problem; the message says which field.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        refuse("seed", seed, "a whole number from 0")
    presets, devices, holds = task_presets(settings), device_data(settings, seed), holders_of(settings, seed)
    for j, (name, preset) in enumerate(zip(settings.names, presets, strict=True)):
        mine = np.flatnonzero(holds[:, j])
        for i, pair in zip(mine, pair_data(settings, seed, j, len(mine), preset), strict=True):
            devices[i]["tasks"][name] = pair
    band = settings.bandwidth_hz or 3.0e5 * settings.devices
    noise = rounded(settings.noise_w_per_hz * 10.0 ** (settings.noise_figure_db / 10.0))
    data = {
        "schema": PROBLEM_SCHEMA,
        "name": settings.name,
        "horizon": {"slots": settings.slots, "slot_s": settings.slot_s},
        "spectrum": {"bandwidth_hz": band, "noise_w_per_hz": noise},
        "tasks": [task_data(settings, j, preset) for j, preset in enumerate(presets)],
        "devices": devices,
        "objective": objective_data(settings),
    }
    try:
        return Problem.model_validate(data)
    except ValidationError as error:  # the settings exclude it; extreme products could still overflow
        raise InputError(f"the generated problem: {describe_validation_error(error, data, Problem)}") from None
