"""``python -m benchmarks.runtime_peers.child MODULE TASK``: trains a task by the peer of MODULE, as it is told through standard input.

Not for people: :mod:`benchmarks.runtime_peers.runner` starts it. What the peer prints goes to standard error; the real standard output
has the answers of the gate alone.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import torch

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import Task

__all__ = ["main"]


def main() -> None:
    """Train until told to stop; errors of the peer end the process with a traceback."""
    module, text = sys.argv[1:3]
    sys.argv = sys.argv[:1]  # FLGo reads its options there
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    task = Task.from_json(text)
    if task.one_thread:
        torch.set_num_threads(1)
    import_module(module).run(task, Gate(orders, answers, task.loss, lambda: os._exit(0)))
    raise RuntimeError("the simulator ended by itself")


if __name__ == "__main__":
    main()
