"""Exact optimum of tiny problems by implicit enumeration: the oracle that the other solvers are tested against.

Every choice of assignments, steps and batches is either evaluated exactly or excluded by a valid lower bound. A *row* is an
assignment with its number of steps; a *plan* is a set of disjoint rows of one device; a *joint plan* takes one plan per device.

What makes the enumeration exact and quick:

1. Given (device, task, start, end) and the work e·B, frequency and power follow from the upload's time T and bandwidth W: run as
   slowly as the deadline allows, send with the least power. What is left is jointly convex in (T, W); ``uploads`` solves it at a
   given bandwidth and at a given price of bandwidth.
2. The bound Ψ_j of a joint plan depends on the plans only through Σ_s h_s (its denominator, and the participation terms) and through
   sums over rows. Plans of a device are therefore grouped by their *key* (Σ h_s per task; ``plans``). A combination of keys fixes
   every H_j, and then bound and energy are sums over rows, but for the spectrum of a slot, T_stale, budgets and targets.
3. Lower bounds drop or price those couplings: T_stale ≥ 0; bandwidth of slot g costs μ_g ≥ 0 per hertz; budgets, targets and the
   energy limit have multipliers ≥ 0 (weak duality: any non-negative price gives a valid bound). They are applied to combinations of
   keys (``combinations``), then to joint plans (``expansion``), where T_stale is known and the bandwidth price of each slot is chosen
   anew. Tables over prices are read by linear interpolation: a minimum of linear functions is concave, so a chord lies below it.
4. A joint plan that survives is solved over its batches (``joint_solver``): slots are independent unless a budget, target or energy
   limit binds; if one does, every vector of batches whose Lagrangian value is below the best known objective is enumerated. The band
   of a slot is split by bisection-like root finding on its price, to about 1e-12 of the energy.

The answer is the optimum to a relative 1e-9 (``constants.PRUNE_TOLERANCE``). Every schedule is judged by the exact evaluator, which
must agree with the value found here.
"""

from schedopt.solvers.enumeration.oracle import Enumeration
from schedopt.solvers.enumeration.sizes import MAX_DEVICE_PLANS, MAX_JOINT_PLANS, count_plans

__all__ = ["MAX_DEVICE_PLANS", "MAX_JOINT_PLANS", "Enumeration", "count_plans"]
