r"""The robust counterpart of a problem: constants that are known up to a share, and schedules that hold whatever they are.

A *margin* m of a constant says that its true value is within [v/(1+m), v(1+m)] of the given v: it may be off by the factor 1 + m either
way, on every device, task and slot for itself. The box of all such problems is worst at one corner, for every schedule at once. For fix
the schedule, that is assignments, e, B, f, p and W:

- the rate W log2(1 + p·gain/(N0 W)) rises with the gain and falls with the noise, so that T_ul and the upload energy p·T_ul fall with the
  gain and rise with the noise; T_cmp = c e B/f and ½ κ c e B f² rise with c (``cycles_per_sample``). Constraints 3 and 6 and the energy
  are sums of these, so each is tightest at the least gain, the most noise and the most cycles. Constraints 1, 2, 4 and 5 have none of them;
- h, H and κ depend on the schedule and on η, α, λ, ρ alone, which have no margins. Every term of Ψ (Theorems 1 and 2, and the variant
  ``horizon``, at any non-negative ``term_scale``) is a sum of products of non-negative powers of β, V, δ, Δ, Φ and F_0 − F* with
  non-negative factors of the schedule, or a minimum of such sums; Ψ rises with each of them, and so do the left sides of C1, C2 and C3
  with β. The targets of mode ``min_energy`` bound Ψ, and γ and ξ are not negative.

So min over schedules of max over the box is the problem at that corner: :func:`worst_case`. A schedule that is feasible there is feasible
for every member of the box, with an objective no larger. Checked in ``tests/test_robust.py`` by random members and schedules.

The worst is rarely true, and a plan for it is too cautious on average. The margin ``limits`` asks for less: assignments, e, B and W are
decided now, and each device chooses f and p once it knows its channel and work (:mod:`schedopt.formulation.own_choice`). Then what can
be done with the given constants and f ≤ f_max/(1+m), p ≤ p_max/(1+m)², can be done in the same time by every member whose gain, noise
and cycles are within 1 + m, with f c'/c and p (N0'/N0)(gain/gain') (or f_min, if that is more), and spends at most (1+m)³ times as much:
½ κ c e B f² grows by (c'/c)³, p T_ul by (1+m)², reception not at all. So with limits divided by (1+m), (1+m)² and (1+m)³ every upload
can be made whatever the constants are, while the objective is that of the given ones. The total energy of mode ``min_bound`` is no limit of
a device; it is kept at the given constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from schedopt.errors import InputError
from schedopt.files import parse_problem
from schedopt.formulation.own_choice import choose_by_device
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["Margins", "delivered", "worst_case"]


@dataclass(frozen=True)
class Margins:
    """By which share each constant may be off, 0 = exact; the names are those of the problem file.

    ``limits``: room for gain, noise and cycles in the limits of frequency, power and energy; the objective does not look at it.
    Raises :class:`~schedopt.errors.InputError` for a share that is negative or no finite number.
    """

    gain: float = 0.0
    noise_w_per_hz: float = 0.0
    cycles_per_sample: float = 0.0
    smoothness: float = 0.0
    gradient_variance: float = 0.0
    dissimilarity: float = 0.0
    gradient_drift: float = 0.0
    initial_gap: float = 0.0
    loss_drift: float = 0.0
    limits: float = 0.0

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share < math.inf:
                raise InputError(f"margin {name} = {share:g}; must be a finite number, at least 0")
        if self.limits > MOST_ROOM:
            raise InputError(f"margin limits = {self.limits:g}; must be at most {MOST_ROOM:g}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Constants that can have a margin."""
        return tuple(field.name for field in fields(cls) if field.name != LIMITS)

    @classmethod
    def everywhere(cls, share: float) -> Margins:
        """The same share for every constant."""
        return cls(**dict.fromkeys(cls.names(), share))

    @classmethod
    def parse(cls, text: str) -> Margins:
        """``SHARE`` (of :data:`COVERED`) or ``NAME=SHARE``, NAME a constant, limits, physical or all; commas between, later ones replace.

        Raises :class:`~schedopt.errors.InputError` naming the entry that is none of these.
        """
        shares: dict[str, float] = {}
        for entry in text.split(","):
            name, equals, number = entry.strip().rpartition("=")
            groups = {"all": cls.names(), "physical": PHYSICAL, LIMITS: (LIMITS,)}
            covered = groups.get(name.strip(), (name.strip(),)) if equals else COVERED
            if covered[0] not in (LIMITS, *cls.names()):
                known = ", ".join((*groups, *cls.names()))
                raise InputError(f"margin {entry.strip()!r}; must be SHARE or NAME=SHARE with {known}")
            shares |= dict.fromkeys(covered, _share(entry, number))
        return cls(**shares)

    def __str__(self) -> str:
        given = [f"{name}={share:g}" for name, share in vars(self).items() if share > 0]
        return ",".join(given) or "none"


#: The margin that leaves constants as they are, its largest value, and what is left beyond it: a device that needs all of its power or
#: speed in the worst case must not miss its deadline by rounding.
LIMITS, MOST_ROOM, BEYOND = "limits", 1e6, 1e-6
#: All that decides whether an upload can be made in time and within the energy budgets.
PHYSICAL = ("gain", "noise_w_per_hz", "cycles_per_sample")
#: What a bare ``SHARE`` covers. Margins on the physical constants alone would make energy look dearer against the bounds than it is, and
#: schedules too thrifty. Smoothness is left out: where C1 is enforced, a margin on it takes away steps (``docs/studies.md``).
COVERED = tuple(name for name in Margins.names() if name != "smoothness")


def _share(entry: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise InputError(f"margin {entry.strip()!r}; must be a share, a finite number of at least 0 (0.2 = 20 %)")
    return share


def worst_case(problem: Problem, margins: Margins) -> Problem:
    """The member of the box that is worst for every schedule: least gain, everything else at its most; with room in its limits.

    Raises :class:`~schedopt.errors.InputError` where that leaves the numbers that a problem may have.
    """
    data = problem.to_dict()

    def raise_in(holder: dict, *names: str) -> None:
        for name in names:
            holder[name] *= 1.0 + getattr(margins, name)

    raise_in(data["spectrum"], "noise_w_per_hz")
    for task in data["tasks"]:
        raise_in(task, "smoothness", "initial_gap", "loss_drift")
    for device in data["devices"]:
        least = 1.0 / (1.0 + margins.gain)
        gain = device["gain"]
        device["gain"] = [value * least for value in gain] if isinstance(gain, list | tuple) else gain * least
        for pair in device["tasks"].values():
            raise_in(pair, "cycles_per_sample", "gradient_variance", "dissimilarity", "gradient_drift")
        if margins.limits:
            _leave_room(device, (1.0 + margins.limits) * (1.0 + BEYOND))
    return parse_problem(data)


def _leave_room(device: dict[str, Any], factor: float) -> None:
    """Limits with which a device can still do what was planned if gain, noise and cycles are off by ``factor``."""
    lowest, highest = device["freq_hz"]
    highest /= factor
    if lowest > highest:
        # it computes at its lowest frequency at least: planned more slowly, at the same energy
        device["capacitance"] *= (lowest / highest) ** 2
        lowest = highest
    device["freq_hz"] = [lowest, highest]
    device["max_power_w"] /= factor**2
    if device["energy_budget_j"] is not None:
        device["energy_budget_j"] /= factor**3


def delivered(problem: Problem, schedule: Schedule, margins: Margins) -> Schedule:
    """What a schedule of :func:`worst_case` is for the problem as given: with room in the limits devices choose f and p by themselves."""
    if not margins.limits:
        return schedule
    return choose_by_device(problem.arrays, schedule)[0]
