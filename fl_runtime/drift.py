"""How devices' data change over time: the text form of drift, and its rates per device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schedopt.errors import InputError

__all__ = ["DRIFT_KINDS", "DriftRule", "DriftSpec"]

#: kind -> what its rate may be, and the unit
DRIFT_KINDS: dict[str, str] = {
    "labels": "a fraction of the device's samples per slot, 0..1",
    "arrivals": "a fraction of the device's samples per slot, 0..1",
    "rotation": "a finite number of degrees per slot",
}

_ALLOWED = "KIND:RATE or KIND:RATE@DEVICE, separated by commas, KIND being labels, arrivals or rotation"


@dataclass(frozen=True)
class DriftRule:
    """One kind of drift at one rate, for one device or (None) for all that have no rule of their own."""

    kind: str
    rate: float
    device: int | None = None


@dataclass(frozen=True)
class DriftSpec:
    """What changes, how fast, on which devices; the empty one means that nothing does.

    Kinds, and the unit of their rates per slot
    ----
    labels : fraction of the device's samples that are exchanged for samples of a new label mix, so that its mix moves from its own towards
        another one, which is drawn per device uniformly from all mixes, and from there on to the next
    arrivals : fraction that depart and are replaced by newly arriving samples of the same label
    rotation : degrees by which the features turn: images about their centre, counter-clockwise (scipy.ndimage.rotate, linear
        interpolation, edges continued), flat features in the plane of the first two principal components of the standardized train part

    The number of samples stays the same. ``labels`` and ``arrivals`` together may exchange at most all samples in a slot.
    """

    rules: tuple[DriftRule, ...] = ()

    @classmethod
    def parse(cls, text: str, devices: Mapping[str, int] | None = None) -> DriftSpec:
        """From ``KIND:RATE[@DEVICE],...``; "" and "none" mean no drift. ``devices`` maps names to indices; without it, indices are names.

        Raises :class:`~schedopt.errors.InputError` that says what is allowed.
        """
        if text.strip() in ("", "none"):
            return cls()
        # a device's name may have commas in it: only those in front of a next kind separate
        items = re.split(r",(?=\s*[a-z]+\s*:)", text)
        rules = tuple(_rule(item.strip(), text, devices) for item in items)
        for index, rule in enumerate(rules):
            if any((rule.kind, rule.device) == (other.kind, other.device) for other in rules[:index]):
                whose = "all devices" if rule.device is None else "the same device"
                raise InputError(f"drift = {text!r}; has two rates of {rule.kind} for {whose}")
        return cls(rules)

    def rate(self, kind: str, device: int) -> float:
        """Rate of ``kind`` on ``device`` per slot; a rule of its own goes before one for all."""
        rates = {rule.device: rule.rate for rule in self.rules if rule.kind == kind}
        return rates.get(device, rates.get(None, 0.0))

    def check_devices(self, count: int, names: Sequence[str] | None = None) -> None:
        """Raises :class:`~schedopt.errors.InputError` if a rule is for no device of ``count``, or some device exchanges more than all.

        ``names``: what to call the devices.
        """
        for rule in self.rules:
            if rule.device is not None and not 0 <= rule.device < count:
                raise InputError(f"drift of device {rule.device}; must be in 0..{count - 1}")
        for device in range(count):
            exchanged = self.rate("labels", device) + self.rate("arrivals", device)
            if exchanged > 1:
                name = device if names is None else repr(names[device])
                raise InputError(f"drift of device {name}: labels + arrivals = {exchanged:g}; must be at most 1 per slot")


def _rule(item: str, text: str, devices: Mapping[str, int] | None) -> DriftRule:
    kind, colon, rest = item.partition(":")
    number, at, device = rest.partition("@")
    kind = kind.strip()
    if not colon or kind not in DRIFT_KINDS:
        raise InputError(f"drift = {text!r}; must be {_ALLOWED}")
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not math.isfinite(rate) or (kind != "rotation" and not 0 <= rate <= 1):
        raise InputError(f"drift: {kind} = {number.strip()!r}; must be {DRIFT_KINDS[kind]}")
    return DriftRule(kind, rate, _device(device.strip(), devices) if at else None)


def _device(name: str, devices: Mapping[str, int] | None) -> int:
    if devices is not None and name in devices:
        return devices[name]
    if devices is None and name.isdecimal():
        return int(name)
    allowed = "an index" if devices is None else f"one of {', '.join(list(devices)[:8])}{', ...' if len(devices) > 8 else ''}"
    raise InputError(f"drift of device {name!r}; must be {allowed}")
