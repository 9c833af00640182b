"""A genetic algorithm by pymoo (tournaments, simulated binary crossover, polynomial mutation) on :mod:`benchmarks.peers.genome`.

Frequency, power and bandwidth are not in the genome: our allocation fills them in, which the peer would not have by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import ElementwiseProblem
from pymoo.optimize import minimize

from benchmarks.peers import channel
from benchmarks.peers.genome import Genome, TimeUp
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["solve"]

POPULATION = 80
GENERATIONS = 1_000_000


class _Genes(ElementwiseProblem):
    """The genome as a problem of pymoo."""

    def __init__(self, genome: Genome) -> None:
        super().__init__(n_var=genome.length, n_obj=1, xl=0.0, xu=1.0)
        self.genome = genome

    def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        out["F"] = self.genome.merit(x)


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """The best schedule of all generations within the time."""
    genome = Genome(problem, time_limit_s)
    try:
        minimize(_Genes(genome), GA(pop_size=POPULATION), ("n_gen", GENERATIONS), seed=seed, copy_algorithm=False)
    except TimeUp:
        pass
    channel.remark(f"{genome.evaluations} evaluations of {genome.length} genes")
    return genome.best
