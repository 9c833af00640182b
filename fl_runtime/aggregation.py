"""Merge rules of the server: how updates that are due at one instant change the global model (formulation section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schedopt.errors import InputError

__all__ = ["MERGE_RULES", "Arrival", "merge_rule"]


@dataclass(frozen=True)
class Arrival:
    """An update that is due: ``start`` w^a and ``update`` w_end − w^a, both (P,); ``weight`` λ; ``staleness`` κ = b − 1 − a."""

    start: Tensor
    update: Tensor
    weight: float
    staleness: int


#: model (P,), arrivals, server rate α -> new model (P,)
MergeRule = Callable[[Tensor, Sequence[Arrival], float], Tensor]


def _stack(arrivals: Sequence[Arrival], values: list[Tensor], rate: float, like: Tensor) -> Tensor:
    """Σ_s α λ_s v_s."""
    weights = torch.tensor([rate * arrival.weight for arrival in arrivals], dtype=like.dtype, device=like.device)
    return weights @ torch.stack(values)


def _delta(model: Tensor, arrivals: Sequence[Arrival], rate: float) -> Tensor:
    """w^g = w^{g−1} + Σ_s α λ_s (w_s^end − w^{a_s}); full synchronous participation at α = 1 is FedAvg."""
    return model + _stack(arrivals, [arrival.update for arrival in arrivals], rate, model)


def _mixing(model: Tensor, arrivals: Sequence[Arrival], rate: float) -> Tensor:
    """w^g = (1 − α Σ λ_s) w^{g−1} + α Σ λ_s w_s^end (FedAsync)."""
    kept = 1.0 - rate * sum(arrival.weight for arrival in arrivals)
    return kept * model + _stack(arrivals, [arrival.start + arrival.update for arrival in arrivals], rate, model)


#: Names as in the problem file's ``aggregation``.
MERGE_RULES: dict[str, MergeRule] = {"delta": _delta, "mixing": _mixing}


def merge_rule(name: str) -> MergeRule:
    """The rule called ``name``. Raises :class:`~schedopt.errors.InputError` for an unknown one."""
    if name not in MERGE_RULES:
        raise InputError(f"aggregation = {name!r}; must be one of {', '.join(MERGE_RULES)}")
    return MERGE_RULES[name]
