"""The end of a proof for tiny problems: enumerate what is left, so that the certificate closes (:mod:`schedopt.solvers.enumeration`)."""

from __future__ import annotations

import numpy as np

from schedopt.errors import InputError
from schedopt.problem import Problem
from schedopt.result import SolveStatus
from schedopt.solvers.base import Incumbent, SolverSettings, refusal
from schedopt.solvers.enumeration import Enumeration, count_plans
from schedopt.solvers.enumeration.sizes import check_counts

__all__ = ["EXHAUST_METHOD", "exhaust", "is_tiny"]

EXHAUST_METHOD = "enumeration of all plans"
#: Joint plans up to which enumeration takes seconds (10^8 took 0.3 to 5 s on one core).
_MOST_JOINT_PLANS = 1e9


def is_tiny(problem: Problem) -> bool:
    """Whether all joint plans can be enumerated within seconds."""
    if refusal(Enumeration(), problem) is not None:
        return False
    try:
        check_counts(problem)
    except InputError:
        return False
    return float(np.prod(count_plans(problem), dtype=float)) <= _MOST_JOINT_PLANS


def exhaust(problem: Problem, held: Incumbent) -> bool:
    """Enumerate ``problem`` in the time that ``held`` has left; schedule and bound go to ``held``. True if the optimum is proven.

    Raises KeyboardInterrupt when interrupted, after handing over what is known. False if there are too many combinations after all.
    """
    try:
        found = Enumeration().solve(problem, settings=SolverSettings(time_limit_s=held.left_s))
    except InputError:
        return False
    if found.schedule is not None:
        held.offer(found.schedule)
    if found.lower_bound is not None:
        held.raise_lower_bound(found.lower_bound)
    if found.interrupted:
        raise KeyboardInterrupt
    return found.status is SolveStatus.SOLVED
