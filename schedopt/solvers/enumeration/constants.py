"""How exact the enumeration is: tolerances and margins that its modules must agree on."""

from __future__ import annotations

__all__ = ["BOUND_MARGIN", "DEFECT", "ENERGY_MARGIN", "PRUNE_TOLERANCE", "ROUNDING"]

#: What cannot improve the best objective by this fraction is not looked at.
PRUNE_TOLERANCE = 1e-9
#: The reported lower bound is below the optimum by this fraction: it covers pruning and the error of the resource solves.
BOUND_MARGIN = 1e-8
#: Energies in lower bounds are lowered by this fraction, far above the error of the convex solves.
ENERGY_MARGIN = 1e-10
#: Rows of a joint plan's limits may be exceeded by rounding only.
ROUNDING = 1e-11

#: What a failed check of the above says.
DEFECT = "this is a defect of schedopt, please report it"
