"""The channel: positions in a ring, log-distance path loss, log-normal shadowing, Rayleigh fading in blocks."""

from __future__ import annotations

import numpy as np

from schedopt.generate.settings import GenerateSettings
from schedopt.generate.streams import stream
from schedopt.problem import FloatArray

__all__ = ["MIN_GAIN", "gains", "mean_gain"]

#: A gain below this is as good as none; it keeps gains positive whatever the geometry.
MIN_GAIN = 1e-30


def mean_gain(settings: GenerateSettings, distance_m: FloatArray) -> FloatArray:
    """Channel power gain by path loss alone, 10^{−(L_ref + 10 n log10 d)/10}; array like ``distance_m``."""
    loss_db = settings.reference_loss_db + 10.0 * settings.path_loss_exponent * np.log10(distance_m)
    return 10.0 ** (-loss_db / 10.0)


def _distances(s: GenerateSettings, seed: int) -> FloatArray:
    """Distances in m of devices uniform in the ring between the least distance and the radius, shape (I,)."""
    squares = stream(seed, "position").uniform(s.min_distance_m**2, s.cell_radius_m**2, s.devices)
    return np.sqrt(squares)


def _fading(s: GenerateSettings, seed: int) -> FloatArray:
    """Fading powers of unit mean (but for the floor), shape (I, G), constant over blocks of slots; shape (I, 1) without fading."""
    if s.fading_block_slots == 0:
        return np.ones((s.devices, 1))
    blocks = -(-s.slots // s.fading_block_slots)
    powers = np.maximum(stream(seed, "fading").exponential(size=(s.devices, blocks)), s.fading_floor)
    return np.repeat(powers, s.fading_block_slots, axis=1)[:, : s.slots]


def gains(s: GenerateSettings, seed: int) -> FloatArray:
    """Channel power gains, shape (I, G), or (I, 1) without fading."""
    shadowing = 10.0 ** (-stream(seed, "shadowing").normal(0.0, s.shadowing_db, s.devices) / 10.0)
    gain = (mean_gain(s, _distances(s, seed)) * shadowing)[:, None] * _fading(s, seed)
    return np.clip(gain, MIN_GAIN, 1.0 / MIN_GAIN)
