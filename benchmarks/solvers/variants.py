"""The registry of variants: a solver each, and what is switched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A solver with its switches; ``asks``: what is learnt from it."""

    name: str
    solver: str
    asks: str
    switches: Mapping[str, str] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("sca", "sca", "the default: assignments, column generation, proof"),
        Variant("native_sca", "native_sca", "the published route: scheduling tensors, relaxation, rounding"),
        Variant("native_sca_log", "native_sca_log", "the same with monomials through logarithms"),
        Variant("prox_weight=0.1", "native_sca", "a proximal weight a hundred times larger", {"prox_weight": "0.1", "least_prox": "0.1"}),
        Variant("diminishing", "native_sca", "fixed majorant and diminishing steps instead of adaptive ones", {"step_rule": "diminishing"}),
        Variant("majorant", "native_sca", "the diagonal majorant alone as surrogate", {"surrogate": "majorant"}),
        Variant("whole_steps", "native_sca", "every step on the whole program, no working sets", {"working_sets": "false"}),
        Variant("rate_cones", "native_sca", "rates as exponential cones instead of linearised", {"rate_cones": "true"}),
        Variant("penalty_factor=10", "native_sca", "penalties five times larger", {"penalty_factor": "10"}),
        Variant("weights", "native_sca", "rounding by weights alone, no dive", {"rounding": "weights"}),
        Variant("no_polish", "native_sca", "what rounding alone gives", {"polish_rounds": "0"}),
        Variant("one_rounding", "native_sca", "the plan of most weight alone, no random roundings", {"samples": "0"}),
        Variant("spread", "native_sca", "a fractional start instead of a heuristic's schedule", {"start": "spread"}),
        Variant("greedy_energy", "greedy_energy", "the best heuristic, and the start of the native solvers"),
    )
}
