"""Which of several ways to compute the same numbers is the fastest here and now."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

__all__ = ["Pace"]

#: Calls of a way that are remembered; seconds of them that are enough to know it by.
REMEMBERED, ENOUGH_S = 3, 1.0
#: After this many calls the way that was not used for longest gets another chance: neighbours come and go.
AGAIN = 50


class Pace:
    """Tries each way a few times, then uses the fastest, and looks at the others now and then.

    For ways whose results are equal to the last bit only: what it chooses depends on the clock.
    """

    def __init__(self, ways: Sequence[str]) -> None:
        self._speeds: dict[str, deque[float]] = {}
        self._seconds: dict[str, float] = {}
        self._last_used: dict[str, int] = {}
        self._calls = 0
        for way in ways:
            self.add(way)

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways there are to choose from."""
        return tuple(self._speeds)

    @property
    def seconds(self) -> float:
        """Seconds of all calls."""
        return sum(self._seconds.values())

    def add(self, way: str) -> None:
        """Another way, to be tried at the next calls."""
        self._speeds[way] = deque(maxlen=REMEMBERED)
        self._seconds[way] = 0.0
        self._last_used[way] = self._calls

    def drop(self, way: str) -> None:
        """A way that turned out not to work."""
        del self._speeds[way], self._seconds[way], self._last_used[way]

    def choose(self) -> str:
        """The way to use now."""
        for way, speeds in self._speeds.items():
            if not speeds or (len(speeds) < REMEMBERED and self._seconds[way] < ENOUGH_S):
                return way
        oldest = min(self._speeds, key=lambda way: self._last_used[way])
        if self._calls - self._last_used[oldest] >= AGAIN:
            return oldest
        return max(self._speeds, key=lambda way: statistics.median(self._speeds[way]))

    def record(self, way: str, work: float, seconds: float) -> None:
        """``work`` was done in ``seconds``."""
        self._calls += 1
        self._last_used[way] = self._calls
        self._speeds[way].append(work / max(seconds, 1e-9))
        self._seconds[way] += seconds
