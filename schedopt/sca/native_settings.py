"""Switches of the native loop, and what it tells of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["STEP_RULES", "SURROGATES", "NativeRecord", "NativeSettings"]

STEP_RULES = ("adaptive", "diminishing")
SURROGATES = ("halves", "majorant")


@dataclass(frozen=True)
class NativeSettings:
    """Switches of the loop, each with its default and meaning."""

    #: proximal weight τ_p on every (scaled) variable; ``adaptive`` lowers it, to ``least_prox``, while steps succeed
    prox_weight: float = 1e-3
    least_prox: float = 1e-4
    step_rule: str = "adaptive"
    #: ``halves``: second-order terms by multipliers, with adaptive curvature; ``majorant``: the diagonal bound alone
    surrogate: str = "halves"
    #: keep rates (and exponentials) as exponential cones instead of linearising them; not with ECOS, which cannot mix them with others
    rate_cones: bool = False
    #: steps on the uploads made alone between steps on the whole program (see :mod:`schedopt.sca.working_set`)
    working_sets: bool = True
    #: c of the diminishing rule
    diminish: float = 1e-3
    #: longest stretch of a step, in doublings (adaptive)
    doublings: int = 4
    #: penalty of a non-convex row, as a multiple of its multiplier, and the least (the objective is about one)
    penalty_factor: float = 2.0
    penalty_floor: float = 0.02
    #: first price of z(1 − z), its growth at every step taken while binaries are fractional, and the most
    binary_price: float = 0.01
    binary_growth: float = 1.5
    binary_most: float = 0.5
    #: scaled KKT residual at which a phase has converged
    tolerance: float = 1e-5
    backend: str = field(default="clarabel", metadata={"switch": False})

    def __post_init__(self) -> None:
        for name, allowed in (("step_rule", STEP_RULES), ("surrogate", SURROGATES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}; must be one of {', '.join(allowed)}")
        for name in ("prox_weight", "least_prox", "diminish", "penalty_floor", "binary_price", "binary_most", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}; must be positive")
        if not self.diminish < 1:
            raise ValueError(f"diminish = {self.diminish}; must be below 1")
        if self.doublings < 0:
            raise ValueError(f"doublings = {self.doublings}; must be at least 0")
        for name in ("penalty_factor", "binary_growth"):
            if not getattr(self, name) > 1:
                raise ValueError(f"{name} = {getattr(self, name)}; must be above 1")


@dataclass(frozen=True)
class NativeRecord:
    """One iteration: merit before and after at the penalties of the step, whether it was taken, and what was measured."""

    iteration: int
    phase: str
    merit_before: float
    merit_after: float
    taken: bool
    objective: float
    step_norm: float
    infeasibility: float
    fractional: float
    residual: float
    curvature: float
    backend: str
    #: variables that could move
    variables: int
