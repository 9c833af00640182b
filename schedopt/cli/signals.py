"""Ctrl-C and SIGTERM during a long solve: the best schedule is still written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "interruptible"]


class Interrupts:
    """Turns signals into ``KeyboardInterrupt`` while ``armed``; ignores them otherwise (while the file is written)."""

    def __init__(self) -> None:
        self.armed = True
        self.count = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.armed:
            return
        self.count += 1
        # the second one would hit the solver while it hands over its best schedule; a third means it
        if self.count != 2:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM with an :class:`Interrupts` until the end of the block."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only there can Python handle signals
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
