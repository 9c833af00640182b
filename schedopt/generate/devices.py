"""Devices: channel, processor class, radio and energy budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from schedopt.generate.geometry import gains
from schedopt.generate.presets import CpuClass
from schedopt.generate.settings import GenerateSettings
from schedopt.generate.streams import apportion, rounded, stream
from schedopt.problem import FloatArray

__all__ = ["device_data"]


def device_data(s: GenerateSettings, seed: int) -> list[dict[str, Any]]:
    """Devices as in the problem file, without their tasks."""
    gain = rounded(gains(s, seed))
    power, downlink = rounded(_uniform(s, seed, "power", s.max_power_w)), rounded(_uniform(s, seed, "downlink", s.downlink_bps))
    budgets = [None] * s.devices
    if s.energy_budget_j is not None:
        budgets = rounded(_uniform(s, seed, "budget", s.energy_budget_j))
    width = max(2, len(str(s.devices - 1)))
    return [
        {
            "name": f"dev{i:0{width}d}",
            "freq_hz": [float(cpu.freq_min_hz), float(cpu.freq_max_hz)],
            "capacitance": float(cpu.capacitance),
            "max_power_w": power[i],
            "receive_power_w": float(s.receive_power_w),
            "downlink_bps": downlink[i],
            "energy_budget_j": budgets[i],
            "gain": gain[i][0] if len(gain[i]) == 1 else gain[i],
            "tasks": {},
        }
        for i, cpu in enumerate(_cpu_classes(s, seed))
    ]


def _cpu_classes(s: GenerateSettings, seed: int) -> list[CpuClass]:
    """Class of each device: the shares as exactly as whole devices allow, in random order."""
    shares = np.array([c.share for c in s.cpu_classes])
    counts = apportion(shares / shares.sum(), s.devices)
    order = stream(seed, "cpu").permutation(np.repeat(np.arange(len(counts)), counts))
    return [s.cpu_classes[k] for k in order]


def _uniform(s: GenerateSettings, seed: int, topic: str, pair: tuple[float, float]) -> FloatArray:
    return stream(seed, topic).uniform(pair[0], pair[1], s.devices)
