"""Ctrl-C and SIGTERM: a command ends with one line and its own exit code, and what a long solve has found is still written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "interruptible", "terminable"]


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

    def hold(self, *outputs: str | None) -> None:
        """Ignore signals from now on, while ``outputs`` are written; unless one is a pipe or a device, which may make us wait for ever."""
        from schedopt.io import is_stream

        self.armed = any(path is not None and is_stream(path) for path in outputs)


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


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does until the end of the block, unless somebody handles or ignores it already."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
