"""What a worker process does: keep the data it was told of, train what it is asked to."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from fl_runtime.training.job import Data, Kernel, LocalJob
from fl_runtime.training.kernels import Recipe, train_halving
from fl_runtime.training.limits import tune_malloc
from fl_runtime.training.shared import Block
from schedopt.errors import SchedOptError

__all__ = ["Board", "Order", "Piece", "serve"]


@dataclass(frozen=True)
class Piece:
    """One job in words: where its data lie, its sizes, steps, batch and seed, and the row its update goes to."""

    block: str
    samples: int
    shape: tuple[int, ...]
    steps: int
    batch: int
    seed: tuple[int, ...]
    row: int


@dataclass(frozen=True)
class Board:
    """Shared block that holds the start (P,) and then the updates (n, P)."""

    block: str
    parameters: int
    rows: int


@dataclass(frozen=True)
class Order:
    """A chunk to train, and blocks that are no longer needed."""

    board: Board
    pieces: Sequence[Piece]
    forget: Sequence[str] = ()


class _Worker:
    """Kernel and data of one process."""

    def __init__(self, recipe: Recipe, parent: int) -> None:
        self.kernel: Kernel = recipe.make()
        self.parent = parent
        self.data: dict[str, tuple[Block, Data]] = {}
        self.board: tuple[str, Block] | None = None

    def check(self) -> None:
        """End if the process that gave the work is gone."""
        if os.getppid() != self.parent:
            os._exit(1)

    def obey(self, order: Order) -> int:
        """Train a chunk; the number of jobs trained at a time."""
        for name in order.forget:
            self._forget(name)
        if self.board is None or self.board[0] != order.board.block:
            if self.board is not None:
                self.board[1].close()
            self.board = order.board.block, Block.open(order.board.block)
        size = order.board.parameters
        start = self.board[1].tensor(torch.float32, 0, (size,))
        rows = self.board[1].tensor(torch.float32, 4 * size, (order.board.rows, size))
        data = [self._samples(piece) for piece in order.pieces]
        jobs = [
            LocalJob(features, labels, piece.steps, piece.batch, piece.seed)
            for piece, (features, labels) in zip(order.pieces, data, strict=True)
        ]
        return train_halving(self.kernel, start, jobs, data, [rows[piece.row] for piece in order.pieces], self.check)

    def _samples(self, piece: Piece) -> Data:
        if piece.block not in self.data:
            block = Block.open(piece.block)
            features = block.tensor(torch.float32, 8 * piece.samples, (piece.samples, *piece.shape))
            self.data[piece.block] = block, (features, block.tensor(torch.int64, 0, (piece.samples,)))
        return self.data[piece.block][1]

    def _forget(self, name: str) -> None:
        if name in self.data:
            block = self.data.pop(name)[0]
            block.close()


def serve(connection: Connection, recipe: bytes, parent: int) -> None:
    """Answer orders with ("done", jobs at a time) or ("failed", error) until the connection ends; ``recipe``: a pickled Recipe."""
    # Ctrl-C is the calling process's to handle: it ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tune_malloc()
    torch.set_num_threads(1)
    worker = _Worker(pickle.loads(recipe), parent)
    while True:
        try:
            order = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, object] = ("done", worker.obey(order))
        except SchedOptError as error:
            answer = ("failed", error)
        except Exception as error:  # told to the process that asked: it knows what to do about it
            answer = ("failed", RuntimeError(f"{type(error).__name__}: {error}"))
        try:
            connection.send(answer)
        except OSError:
            return
