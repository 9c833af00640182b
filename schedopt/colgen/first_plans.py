"""Plans to start column generation with: training is worth more and more until each task trains as much as its price supposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, fixed_terms
from schedopt.colgen.pool import SharedPool
from schedopt.colgen.workers import PlanRequest
from schedopt.errors import InfeasibleError
from schedopt.formulation.candidates import Prices
from schedopt.formulation.tables import Plans
from schedopt.objective import needed_tasks
from schedopt.problem import FloatArray, Problem
from schedopt.sca.pool import first_prices

__all__ = ["NEAR", "first_plans"]

#: Columns beside a device's plan that a pricing brings.
NEAR = 10
#: Rounds at most: prices of training grow by more than 10^15 in them.
_MOST_ROUNDS = 60
#: By what power of the band's demand over supply its price is raised.
_RAISE = 0.6


def first_plans(problem: Problem, ask: Callable[..., Sequence[Plans]], tick: Callable[[], None]) -> tuple[SharedPool, FloatArray]:
    """Columns of the plans that were best on the way, and H of the last ones, shape (J,).

    ``ask(*requests)`` prices; ``tick()`` may raise to stop. Raises InfeasibleError if a task that needs training gets none at any price.
    """
    a, fixed = problem.arrays, fixed_terms(problem.arrays)
    energy_mode = problem.objective.mode == "min_energy"
    needed = needed_tasks(problem)
    h = a.learning_rate * a.server_rate * a.max_steps * a.slots
    crossed, seen, raised = ~needed, ~needed, np.ones(a.slots)
    pool: SharedPool | None = None
    reached: np.ndarray = np.zeros(a.num_tasks)
    for _ in range(_MOST_ROUNDS):
        prices = first_prices(problem, h, 0.5 * fixed)
        request = PlanRequest(Prices(prices.energy, prices.bandwidth * raised, prices.value, prices.noise), near=NEAR)
        plans = ask(request)[0]
        tick()
        columns = plans.columns
        pool = SharedPool(plans.near) if pool is None else pool
        pool.add(plans.near)
        reached = np.bincount(columns.task, weights=columns.h, minlength=a.num_tasks)
        error = np.bincount(columns.task, weights=columns.error, minlength=a.num_tasks)
        crossed = crossed | (fixed + error <= a.target / FACTOR * reached if energy_mode else reached >= h)
        seen = seen | (reached > 0)
        if np.all(crossed):
            break
        demand = np.bincount(columns.end - 1, weights=columns.bandwidth_hz, minlength=a.slots) / a.bandwidth_hz
        raised = raised * np.clip(demand, 1.0, 100.0) ** _RAISE
        # far from paying at all, prices take long strides
        h = np.where(crossed, h, h * np.where(reached > 0.1 * h, 0.7, 0.4))
    assert pool is not None
    if not np.all(seen):
        name = problem.tasks[int(np.flatnonzero(~seen)[0])].name
        if energy_mode:
            raise InfeasibleError(f"task {name!r}: no assignment brings its bound nearer to the target at any energy; it is out of reach")
        raise InfeasibleError(f"task {name!r}: no assignment pays at any of the prices that were tried")
    return pool, np.where(reached > 0, reached, h)
