"""Nodes of a proof: a box of (H, N) and limits on numbers of assignments."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from schedopt.ratio_search import Box

__all__ = ["Limit", "Node"]


@dataclass(frozen=True)
class Limit:
    """At most (``sign`` 1) or at least (``sign`` −1) ``count`` assignments among ``members``, a mask of candidates of shape (n,)."""

    members: np.ndarray
    sign: int
    count: int


@dataclass(order=True)
class Node:
    """``bound``: proven for every schedule of the node; ``box``: over the active tasks, None in mode min_energy."""

    bound: float
    number: int
    box: Box | None = field(compare=False)
    limits: tuple[Limit, ...] = field(default=(), compare=False)

    @property
    def forbidden(self) -> np.ndarray | None:
        """Candidates of which there must be none, as a mask; None if all are allowed."""
        masks = [limit.members for limit in self.limits if limit.sign > 0 and limit.count == 0]
        return np.any(masks, axis=0) if masks else None
