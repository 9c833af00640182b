"""What becomes of single joint plans: each is solved, and its schedule judged by the exact evaluator and offered to the incumbent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedopt.errors import SolverError
from schedopt.objective import evaluate_objective
from schedopt.physics import LN2, transmit_power_w
from schedopt.problem import FloatArray, IntArray
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent
from schedopt.solvers.enumeration.constants import DEFECT, PRUNE_TOLERANCE
from schedopt.solvers.enumeration.joint_plan import Choice, JointPlan
from schedopt.solvers.enumeration.joint_solver import JointSolver
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.rows import row_uploads
from schedopt.solvers.enumeration.slots import SlotCache
from schedopt.solvers.enumeration.tables import Prices, Tables
from schedopt.solvers.enumeration.terms import Terms

__all__ = ["Trials"]


class Trials:
    """Solves joint plans; what the last good one taught helps the next.

    ``prices``: of the joint plan accepted last, or until there is an incumbent of the first one tried; ``multipliers``: of its limits.
    """

    def __init__(self, terms: Terms, tables: Tables, plans: Sequence[Plans], incumbent: Incumbent) -> None:
        self.terms, self.tables, self.plans, self.incumbent = terms, tables, plans, incumbent
        self.slots = SlotCache(terms.problem, tables)
        self.prices: Prices | None = None
        self.multipliers: FloatArray | None = None

    @property
    def cutoff(self) -> float:
        """Objective from which on nothing is of interest."""
        best = self.incumbent.objective
        if np.isfinite(best):
            return best - PRUNE_TOLERANCE * abs(best)
        # whatever costs more energy than can be spent is infeasible
        return (1 + PRUNE_TOLERANCE) * self.terms.max_energy if self.terms.problem.objective.mode == "min_energy" else np.inf

    def solve_in_order(self, plans: IntArray, bounds: FloatArray) -> None:
        """Solve joint plans by increasing bound until none can improve."""
        for members, bound in zip(plans, bounds, strict=True):
            if bound >= self.cutoff:
                break
            self.incumbent.check_time()
            self.solve(members)

    def solve(self, members: IntArray) -> None:
        """Solve one joint plan exactly and offer its schedule."""
        plan = self.joint_plan(members)
        if any(slot.pick.shape[1] == 0 for slot in plan.slots):
            return
        solver = JointSolver(plan, self.incumbent.check_time)
        choice = solver.solve(self.cutoff, self.multipliers)
        if choice is not None:
            self.accept(choice)
        if choice is not None or (self.prices is None and self.incumbent.schedule is None):
            self.prices = solver.prices

    def joint_plan(self, members: IntArray) -> JointPlan:
        """The joint plan of each device's plan at these positions."""
        chosen = list(zip(self.plans, members, strict=True))
        rows = [plans.rows[p] for plans, p in chosen]
        span = np.sum([plans.span[p] for plans, p in chosen], axis=0)
        h = np.stack([plans.h_instant[p].sum(axis=1) for plans, p in chosen])
        none = len(self.tables.rows)
        by_slot = (tuple(int(row[g]) for row in rows if row[g] < none) for g in range(self.terms.problem.arrays.slots))
        return JointPlan(self.terms, self.tables, [self.slots.get(uploads) for uploads in by_slot if uploads], span, h)

    def accept(self, choice: Choice) -> None:
        """Offer the schedule of a choice; the exact evaluator must agree with its objective."""
        schedule = self.schedule(choice)
        exact = evaluate_objective(self.terms.problem, schedule).objective
        if abs(exact - choice.objective) > 1e-9 * max(abs(exact), abs(choice.objective)):
            raise SolverError(f"enumeration: found {choice.objective:.15g}, the evaluator says {exact:.15g}; {DEFECT}")
        if exact < self.incumbent.objective and not self.incumbent.offer(schedule):
            raise SolverError(f"enumeration: the validator refuses a schedule that should be feasible; {DEFECT}")
        self.multipliers = choice.multipliers

    def schedule(self, choice: Choice) -> Schedule:
        """A choice with the frequencies and powers that follow from it."""
        rows, r = self.tables.rows, choice.rows
        uploads = row_uploads(self.terms.problem, rows, r, choice.batch)
        power = transmit_power_w(uploads.nats / LN2, choice.time, choice.band, 1.0, uploads.noise_gain)
        return Schedule(
            rows.device[r], rows.task[r], rows.start[r], rows.end[r], rows.steps[r].astype(float), choice.batch.astype(float),
            uploads.frequency(choice.time), power, choice.band,
        )  # fmt: skip
