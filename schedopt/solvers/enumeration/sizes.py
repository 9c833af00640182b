"""How much there is to enumerate, and what is refused as too much before time is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schedopt.errors import InputError
from schedopt.problem import Problem
from schedopt.solvers.enumeration.plans import Plans
from schedopt.solvers.enumeration.rows import most_steps
from schedopt.solvers.enumeration.terms import read_terms

__all__ = ["MAX_DEVICE_PLANS", "MAX_JOINT_PLANS", "check_combinations", "check_counts", "count_plans"]

#: Largest number of plans (assignments with steps) of one device, of joint plans, of combinations of keys, and of batches of a pair.
MAX_DEVICE_PLANS = 30_000
MAX_JOINT_PLANS = 10**12
MAX_COMBINATIONS = 20_000_000
MAX_BATCHES = 256


def count_plans(problem: Problem) -> list[int]:
    """Number of plans of each device: sets of disjoint assignments with their steps."""
    terms, a = read_terms(problem), problem.arrays
    counts = []
    for i in range(a.num_devices):
        ways = [1] + [0] * a.slots
        choices = [(j, most_steps(terms, j)) for j in range(a.num_tasks) if terms.relevant[j] and a.server_weight[i, j] > 0]
        for g in range(1, a.slots + 1):
            lengths = ((n, steps) for n in range(1, g + 1) for j, steps in choices if n - 1 <= a.max_staleness[j])
            ways[g] = ways[g - 1] + sum(steps * ways[g - n] for n, steps in lengths)
        counts.append(ways[a.slots])
    return counts


def check_counts(problem: Problem) -> None:
    """Refuse a problem with more plans or batches than can be enumerated."""
    a = problem.arrays
    counts = count_plans(problem)
    joint = float(np.prod(counts, dtype=float))
    batches = int((a.samples - a.min_batch + 1)[a.has_data].max())
    advice = "use another solver, or a smaller problem (devices, slots, max_staleness, max_steps, samples)"
    if joint > MAX_JOINT_PLANS:
        raise InputError(f"solver enumeration: {joint:.4g} joint plans; the limit is {MAX_JOINT_PLANS:.4g}; {advice}")
    if max(counts) > MAX_DEVICE_PLANS:
        name = problem.devices[int(np.argmax(counts))].name
        raise InputError(f"solver enumeration: {max(counts)} plans of device {name}; the limit is {MAX_DEVICE_PLANS}; {advice}")
    if batches > MAX_BATCHES:
        raise InputError(f"solver enumeration: {batches} batch sizes of a device and task; the limit is {MAX_BATCHES}; {advice}")


def check_combinations(plans: Sequence[Plans]) -> None:
    """Refuse plans with more combinations of keys than can be compared."""
    combinations = float(np.prod([len(plan.h) for plan in plans], dtype=float))
    if combinations > MAX_COMBINATIONS:
        raise InputError(
            f"solver enumeration: {combinations:.4g} combinations of plans to compare; the limit is {MAX_COMBINATIONS:.4g}; "
            "use another solver, or fewer devices, slots or steps"
        )
