"""Differential evolution of SciPy on :mod:`benchmarks.peers.genome`.

Frequency, power and bandwidth are not in the genome: our allocation fills them in, which the peer would not have by itself.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import differential_evolution

from benchmarks.peers import channel
from benchmarks.peers.genome import Genome, TimeUp
from schedopt.problem import Problem
from schedopt.schedule import Schedule

__all__ = ["solve"]

#: SciPy's own choice, 15 members per gene, would be thousands: none would see a second generation.
POPULATION = 60
GENERATIONS = 1_000_000


def solve(problem: Problem, *, time_limit_s: float, seed: int) -> Schedule | None:
    """The best schedule of all generations within the time (SciPy's default strategy, no polishing by a local method)."""
    genome = Genome(problem, time_limit_s)
    rng = np.random.default_rng(seed)
    try:
        differential_evolution(
            genome.merit,
            [(0.0, 1.0)] * genome.length,
            init=rng.random((POPULATION, genome.length)),
            maxiter=GENERATIONS,
            tol=0.0,
            polish=False,
            rng=rng,
        )
    except TimeUp:
        pass
    channel.remark(f"{genome.evaluations} evaluations of {genome.length} genes")
    return genome.best
