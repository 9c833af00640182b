"""The solver behind the name: refuse what is too large, give a reason where nothing is feasible, else search to the end."""

from __future__ import annotations

import numpy as np

from schedopt.problem import Problem
from schedopt.result import SolveResult, SolveStatus
from schedopt.schedule import Schedule
from schedopt.solvers.base import Incumbent, ProgressCallback, SolverSettings, TimeLimitReached, check_participation
from schedopt.solvers.enumeration.constants import BOUND_MARGIN
from schedopt.solvers.enumeration.plans import build_plans
from schedopt.solvers.enumeration.reasons import infeasibility, unaffordable, untrainable
from schedopt.solvers.enumeration.rows import build_rows
from schedopt.solvers.enumeration.search import Search
from schedopt.solvers.enumeration.sizes import check_combinations, check_counts
from schedopt.solvers.enumeration.terms import Terms, read_terms

__all__ = ["Enumeration"]


class Enumeration:
    """The oracle: exact optimum of tiny problems, see the package's text."""

    name = "enumeration"
    by_windows = False

    def solve(self, problem: Problem, *, settings: SolverSettings, seed: int = 0, progress: ProgressCallback | None = None) -> SolveResult:
        """Exact optimum; ``lower_bound`` is the optimum lowered by :data:`BOUND_MARGIN`.

        Raises ``InputError`` if the problem has more plans than the limits of :mod:`schedopt.solvers.enumeration.sizes`. Deterministic:
        ``seed`` is only recorded.
        """
        check_participation(self, problem)
        terms = read_terms(problem)
        incumbent = Incumbent(problem, settings, progress)
        check_counts(problem)
        status, reason = SolveStatus.SOLVED, ""
        try:
            reason = self._search(terms, incumbent)
        except TimeLimitReached:
            status, reason = SolveStatus.TIME_LIMIT, "time limit"
        except KeyboardInterrupt:
            status, reason = SolveStatus.INTERRUPTED, "interrupted"
        return incumbent.result(self.name, status, seed=seed, reason=reason, lower_bound_method="enumeration")

    @staticmethod
    def _search(terms: Terms, incumbent: Incumbent) -> str:
        """Run the search; the reason of infeasibility, empty if there is a schedule."""
        if not np.any(terms.relevant):
            incumbent.offer(Schedule.empty())
            return ""
        rows = build_rows(terms)
        plans = [build_plans(terms, rows, i) for i in range(terms.problem.arrays.num_devices)]
        reason = untrainable(terms, rows) or unaffordable(terms, plans)
        if reason:
            return reason
        check_combinations(plans)
        Search(terms, rows, plans, incumbent).run()
        if incumbent.schedule is None:
            return infeasibility(terms)
        incumbent.raise_lower_bound(incumbent.objective - BOUND_MARGIN * abs(incumbent.objective))
        incumbent.record("done")
        return ""
