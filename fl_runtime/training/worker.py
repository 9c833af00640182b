"""What a worker process does: keep the models and data it was given, train what it is asked to.

It is started with the number of a socket, and lives until that closes or the process that started it is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import torch

from fl_runtime.training.job import Data, Kernel, LocalJob
from fl_runtime.training.kernels import Recipe, train_halving
from fl_runtime.training.limits import tune_malloc
from fl_runtime.training.shared import Block
from schedopt.errors import InputError, SchedOptError

__all__ = ["READY", "Forget", "NewBlock", "NewRecipe", "Order", "Piece", "serve"]

#: What a worker says when it has started.
READY = "ready"


@dataclass(frozen=True)
class NewBlock:
    """A block of shared memory, whose descriptor follows."""

    number: int
    size: int


@dataclass(frozen=True)
class NewRecipe:
    """A pickled :class:`~fl_runtime.training.kernels.Recipe`."""

    number: int
    recipe: bytes


@dataclass(frozen=True)
class Forget:
    """Blocks and recipes that are no longer needed."""

    blocks: Sequence[int] = ()
    recipes: Sequence[int] = ()


@dataclass(frozen=True)
class Piece:
    """One job in words: block and byte where its labels and then its features lie, sizes, steps, batch, seed, and the row of its update."""

    block: int
    offset: int
    samples: int
    shape: tuple[int, ...]
    steps: int
    batch: int
    seed: tuple[int, ...]
    row: int


@dataclass(frozen=True)
class Order:
    """A chunk to train by a recipe. The block ``board`` holds the start (P,) and then the updates (n, P)."""

    recipe: int
    board: int
    parameters: int
    pieces: Sequence[Piece]


@dataclass
class _Worker:
    """Kernels and data of one process."""

    parent: int
    recipes: dict[int, bytes] = field(default_factory=dict)
    kernels: dict[int, Kernel] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)

    def check(self) -> None:
        """End if the process that gave the work is gone."""
        if os.getppid() != self.parent:
            os._exit(1)

    def obey(self, order: Order) -> int:
        """Train a chunk; the number of jobs trained at a time."""
        kernel = self._kernel(order.recipe)
        board, size = self.blocks[order.board], order.parameters
        start = board.tensor(torch.float32, 0, (size,))
        out = [board.tensor(torch.float32, 4 * size * (1 + piece.row), (size,)) for piece in order.pieces]
        data = [self._samples(piece) for piece in order.pieces]
        jobs = [LocalJob(*samples, piece.steps, piece.batch, piece.seed) for piece, samples in zip(order.pieces, data, strict=True)]
        return train_halving(kernel, start, jobs, data, out, self.check)

    def forget(self, what: Forget) -> None:
        for number in what.blocks:
            self.blocks.pop(number).close()
        for number in what.recipes:
            self.recipes.pop(number, None)
            self.kernels.pop(number, None)

    def _kernel(self, number: int) -> Kernel:
        if number not in self.kernels:
            try:
                recipe = pickle.loads(self.recipes[number])
            except Exception as error:  # whatever the model's class is made of
                advice = "define it in a module, or use another path"
                raise InputError(f"path = 'processes': the model cannot be made in another process ({error}); {advice}") from error
            assert isinstance(recipe, Recipe)
            self.kernels[number] = recipe.make()
        return self.kernels[number]

    def _samples(self, piece: Piece) -> Data:
        block = self.blocks[piece.block]
        labels = block.tensor(torch.int64, piece.offset, (piece.samples,))
        return block.tensor(torch.float32, piece.offset + 8 * piece.samples, (piece.samples, *piece.shape)), labels


def serve(descriptor: int, parent: int) -> None:
    """Do what comes through the socket; an order is answered by ("done", jobs at a time) or ("failed", error)."""
    # Ctrl-C is the calling process's to handle: it ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tune_malloc()
    torch.set_num_threads(1)
    worker = _Worker(parent)
    connection = Connection(descriptor)
    try:
        connection.send(READY)
        while True:
            _do(worker, connection, connection.recv())
    except (EOFError, OSError):
        return


def _do(worker: _Worker, connection: Connection, message: object) -> None:
    if isinstance(message, NewBlock):
        descriptor = recv_handle(connection)
        worker.blocks[message.number] = Block.open(descriptor, message.size)
        os.close(descriptor)
    elif isinstance(message, NewRecipe):
        worker.recipes[message.number] = message.recipe
    elif isinstance(message, Forget):
        worker.forget(message)
    elif isinstance(message, Order):
        connection.send(_answer(worker, message))


def _answer(worker: _Worker, order: Order) -> tuple[str, object]:
    try:
        return "done", worker.obey(order)
    except SchedOptError as error:
        return "failed", error
    except Exception as error:  # told to the process that asked: it knows what to do about it
        return "failed", RuntimeError(f"{type(error).__name__}: {error}")
