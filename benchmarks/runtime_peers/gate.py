"""Between two rounds a peer passes the gate: there it waits until it is told to go on, and there its rounds are timed.

Lines of JSON go both ways. To the child: {"rounds": how many to go on for, "loss": whether to compute it then} or {"stop": true}. From the
child: {"ready": true, "threads": of torch, "loss": before training}, then for each order {"seconds", "steps": taken by all clients,
"loss": number or null}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

__all__ = ["Gate", "Link"]


class Link(Protocol):
    """Processes of one peer that pass their gates together; only the ``leader`` speaks with us."""

    leader: bool

    def share(self, order: dict[str, Any] | None) -> dict[str, Any]:
        """The leader's order, in every process."""

    def total(self, steps: int) -> int:
        """Sum over all processes."""


class Gate:
    """``loss`` judges parameters (P,); ``leave`` ends the process: frameworks must not be able to catch it."""

    def __init__(self, orders: TextIO, answers: TextIO, loss: Callable[[Tensor], float], leave: Callable[[], None]) -> None:
        self._orders, self._answers, self._loss, self._leave = orders, answers, loss, leave
        self._left = self._steps = 0
        self._began = 0.0
        self._judge = False
        #: What the peer has to say about how it runs; in the table.
        self.remark = ""
        #: For peers that are several processes.
        self.link: Link | None = None

    def ready(self, parameters: Callable[[], Tensor]) -> None:
        """Say that the first round could begin, and wait for the order."""
        self._answer({"ready": True, "threads": torch.get_num_threads(), "loss": self._loss(parameters()), "remark": self.remark})
        self._wait()

    def after_round(self, steps: int, parameters: Callable[[], Tensor]) -> None:
        """A round is over, in which all clients together took ``steps`` steps; waits if it was the last that was ordered."""
        self._steps += steps
        self._left -= 1
        if self._left:
            return
        seconds = time.perf_counter() - self._began
        taken = self.link.total(self._steps) if self.link else self._steps
        loss = self._loss(parameters()) if self._judge else None
        self._answer({"seconds": seconds, "steps": taken, "loss": loss})
        self._wait()

    def _answer(self, data: dict[str, Any]) -> None:
        if self.link and not self.link.leader:
            return
        self._answers.write(json.dumps(data) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        order = None if self.link and not self.link.leader else self._read()
        order = self.link.share(order) if self.link else order
        if not order or "rounds" not in order:
            self._leave()
            return
        self._left, self._judge, self._steps = order["rounds"], bool(order.get("loss")), 0
        self._began = time.perf_counter()

    def _read(self) -> dict[str, Any]:
        """The next order; to stop if nobody is there any more."""
        line = self._orders.readline()
        return json.loads(line) if line.strip() else {"stop": True}
