"""What a peer may say while it runs: incumbents, a bound it claims, a remark. Outside a child process nobody listens."""

from __future__ import annotations

import math
from typing import Protocol

from schedopt.schedule import Schedule

__all__ = ["Listener", "claim_bound", "listen", "offer", "remark"]


class Listener(Protocol):
    """Who hears what a peer says."""

    def offer(self, schedule: Schedule) -> None:
        """A schedule was found."""

    def claim_bound(self, bound: float) -> None:
        """The peer says that no schedule has an objective below ``bound``."""

    def remark(self, text: str) -> None:
        """One line on how the peer ended."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Hear from now on what the peer of this process says."""
    global _listener
    _listener = listener


def offer(schedule: Schedule) -> None:
    """Hand over a schedule that was found, so that it survives whatever happens to the peer."""
    if _listener is not None:
        _listener.offer(schedule)


def claim_bound(bound: float) -> None:
    """State a lower bound on the objective; what is not finite is no bound."""
    if _listener is not None and math.isfinite(bound) and abs(bound) < 1e19:
        _listener.claim_bound(float(bound))


def remark(text: str) -> None:
    """Say in one line how the peer ended."""
    if _listener is not None:
        _listener.remark(" ".join(text.split()))
