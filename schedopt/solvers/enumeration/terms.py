"""The mode of a problem in the terms of the search: what counts, what it is worth, and which limits there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedopt.bounds.async_schedule import FACTOR
from schedopt.problem import TERMS, FloatArray, Problem

__all__ = ["Terms", "read_terms"]


@dataclass(frozen=True)
class Terms:
    """What the search needs of problem and objective.

    ``relevant``: tasks that count (weight > 0, or a target in mode min_energy), (J,); ``weight`` γ_j, zero in mode min_energy, (J,);
    ``energy_weight``: ξ of the search, see :func:`read_terms`; ``target`` ε_j, +inf where there is none; ``total_energy``: limit of mode
    min_bound, in J; ``max_energy``: more than any schedule can spend, in J.
    """

    problem: Problem
    relevant: np.ndarray
    weight: FloatArray
    energy_weight: float
    target: FloatArray
    total_energy: float
    max_energy: float

    @property
    def has_targets(self) -> bool:
        """Whether some task has a target."""
        return bool(np.any(np.isfinite(self.target)))

    @property
    def has_total_energy(self) -> bool:
        """Whether the energy of all is limited."""
        return bool(np.isfinite(self.total_energy))

    @property
    def scale(self) -> dict[str, float]:
        """Multiplier c_k of each term."""
        return dict(zip(TERMS, self.problem.arrays.term_scale, strict=True))

    def numerators(self, h: FloatArray) -> FloatArray:
        """The part of Σ_k c_k T_k that depends on h_ij = Σ_s h_s only: T_opt, T_loss and T_part; h (n, I, J) -> (n, J)."""
        a, scale = self.problem.arrays, self.scale
        total = h.sum(axis=1)
        if self.problem.objective.participation == "instant":
            part = (2.0 * h * a.dissimilarity**2).sum(axis=1)
        else:
            imbalance = (np.abs(h - a.aggregation_weight * total[:, None, :]) * a.dissimilarity).sum(axis=1)
            part = np.divide(2.0 * imbalance**2, total, out=np.zeros_like(total), where=total > 0)
        return scale["opt"] * a.initial_gap + scale["loss"] * (a.slots - 1) * a.loss_drift + scale["part"] * part


def read_terms(problem: Problem) -> Terms:
    """Read the mode.

    Where energy has no price (mode min_bound, or ξ = 0) the search uses a tiny one, 1e-12 of what any objective has at least: it makes
    the least energy the tie-breaker and moves the optimum by less than the tolerances.
    """
    a, objective = problem.arrays, problem.objective
    power = a.max_power_w + a.receive_power_w + 0.5 * a.capacitance * a.freq_max_hz**3
    total = np.inf
    if objective.mode == "min_bound" and objective.total_energy_j is not None:
        total = objective.total_energy_j
    max_energy = min(total, float(np.minimum(power * a.slots * a.slot_s, a.energy_budget_j).sum()))
    if objective.mode == "min_energy":
        target = a.target
        return Terms(problem, np.isfinite(target), np.zeros(a.num_tasks), 1.0, target, total, max_energy)
    free = np.full(a.num_tasks, np.inf)
    weight = objective.energy_weight if objective.mode == "weighted" else 0.0
    most = a.slots * (a.learning_rate * a.max_steps * a.server_weight).sum(axis=0)
    floor = float((a.weight * FACTOR * a.term_scale[0] * a.initial_gap / np.maximum(most, 1e-300)).sum())
    return Terms(problem, a.weight > 0, a.weight, max(weight, 1e-12 * max(floor, 1e-6) / max_energy), free, total, max_energy)
