"""Worker threads of this process, each computing with one torch thread.

Torch lets go of the interpreter's lock while it computes, so that threads do as well as processes wherever a step is more than a few
small operations, and they share the data. The calling thread is one of the workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

__all__ = ["Stopped", "ThreadTeam"]

#: Does one piece of work as the worker of a number from 0; calls ``check`` often, which raises Stopped when others have failed.
Task = Callable[[int, Callable[[], None]], None]


class Stopped(Exception):
    """The work was called off."""


class ThreadTeam:
    """``workers`` threads, the calling one included, that share tasks; not for use by two threads at once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Task], *, alone: bool = False) -> None:
        """Do all tasks, in their order as workers become free; raises what a task raised first.

        ``alone``: by the calling thread only.
        """
        stop = threading.Event()
        waiting = iter(tasks)
        lock = threading.Lock()

        def check() -> None:
            if stop.is_set():
                raise Stopped

        def work(worker: int) -> None:
            while not stop.is_set():
                with lock:
                    task = next(waiting, None)
                if task is None:
                    return
                try:
                    task(worker, check)
                except Stopped:
                    return
                except BaseException:
                    stop.set()
                    raise

        helpers = 0 if alone else min(self.workers, len(tasks)) - 1
        futures = [self._threads().submit(work, 1 + k) for k in range(helpers)]
        try:
            work(0)
        finally:
            # the helpers still hold what the caller gave: whatever happens here, they end first
            _wait(futures, stop)
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            number = self.workers - 1
            self._pool = ThreadPoolExecutor(number, "fl_runtime")
            # the number of torch threads is a thread's own, but setting it also sets the default of threads to come
            before = torch.get_num_threads()
            met = threading.Barrier(number + 1)
            for _ in range(number):
                self._pool.submit(_become_single, met)
            met.wait()
            torch.set_num_threads(before)
        return self._pool


def _become_single(met: threading.Barrier) -> None:
    torch.set_num_threads(1)
    met.wait()


def _wait(futures: Sequence[Future[None]], stop: threading.Event) -> None:
    try:
        for future in futures:
            future.exception()
    except BaseException:  # Ctrl-C while waiting
        stop.set()
        for future in futures:
            future.exception()
        raise
