"""Worker processes: started once, data sent once, chunks handed out as they become free."""

from __future__ import annotations

import os
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from fl_runtime.training.job import LocalJob
from fl_runtime.training.kernels import Recipe
from fl_runtime.training.shared import Block
from fl_runtime.training.worker import Board, Order, Piece, serve
from schedopt.errors import InputError, SolverError

__all__ = ["ProcessCrew"]

#: Bytes of data kept in shared memory for jobs to come, unless the caller says otherwise.
KEPT_BYTES = 2**31
#: Seconds a worker has to end by itself.
GRACE_S = 2.0


class _Held:
    """What must go when the crew goes, however that happens."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.connections: list[Connection] = []
        self.blocks: dict[str, Block] = {}

    def release(self) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        for block in self.blocks.values():
            block.close()
        self.processes, self.connections, self.blocks = [], [], {}


class ProcessCrew:
    """``workers`` processes with one torch thread each, for one recipe.

    Samples are copied into shared memory when a job first brings them and stay there, the least recently used leaving first beyond
    ``kept_bytes``; jobs with the same tensor objects share them.
    """

    def __init__(self, recipe: Recipe, workers: int, kept_bytes: int | None = None) -> None:
        self.recipe, self.workers = recipe, workers
        self.kept_bytes = KEPT_BYTES if kept_bytes is None else kept_bytes
        self._held = _Held()
        # also at the end of the interpreter
        self._finalizer = weakref.finalize(self, self._held.release)
        self._samples: OrderedDict[tuple[int, int], tuple[Tensor, Tensor, Block]] = OrderedDict()
        self._board: Block | None = None
        self._forget: list[list[str]] = []

    def train(self, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]) -> tuple[Tensor, int]:
        """Updates (n, P), and the fewest jobs that were trained at a time though more were asked for (0 if none were).

        Raises SolverError if a worker ends; the crew is then closed and the next call starts another.
        """
        if not self._held.processes:
            self._start()
        size = len(start)
        block = self._take_board(4 * size * (1 + len(jobs)))
        board = Board(block.name, size, len(jobs))
        block.tensor(torch.float32, 0, (size,)).copy_(start)
        pieces = self._pieces(jobs)
        try:
            fewest = self._hand_out(board, [[pieces[k] for k in chunk] for chunk in chunks])
        except BaseException:
            self.close()  # workers may be in the middle of something that nobody waits for
            raise
        return block.tensor(torch.float32, 4 * size, (len(jobs), size)).clone(), fewest

    def close(self) -> None:
        """End the processes and let their memory go."""
        self._samples.clear()
        self._board = None
        self._held.release()

    def _start(self) -> None:
        try:
            recipe = pickle.dumps(self.recipe)
        except Exception as error:
            raise InputError(f"path = 'processes': the model cannot be sent to another process ({error}); use another path") from error
        context = get_context("spawn")
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, recipe, os.getpid()), daemon=True)
            self._held.processes.append(process)
            self._held.connections.append(ours)
            process.start()
            theirs.close()
        self._forget = [[] for _ in range(self.workers)]

    def _hand_out(self, board: Board, chunks: Sequence[Sequence[Piece]]) -> int:
        connections = self._held.connections
        waiting = list(reversed(chunks))
        busy: dict[Connection, int] = {}
        fewest = 0
        for worker in range(min(self.workers, len(chunks))):
            busy[connections[worker]] = self._send(worker, board, waiting.pop())
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker = connections.index(ready)
                asked = busy.pop(ready)
                done = self._receive(worker)
                if done < asked:
                    fewest = min(done, fewest or done)
                if waiting:
                    busy[ready] = self._send(worker, board, waiting.pop())
        return fewest

    def _send(self, worker: int, board: Board, pieces: Sequence[Piece]) -> int:
        try:
            self._held.connections[worker].send(Order(board, pieces, self._forget[worker]))
        except OSError as error:
            raise self._ended(worker) from error
        self._forget[worker] = []
        return len(pieces)

    def _receive(self, worker: int) -> int:
        try:
            kind, content = self._held.connections[worker].recv()
        except (EOFError, OSError) as error:
            raise self._ended(worker) from error
        if kind == "failed":
            raise content
        return int(content)

    def _ended(self, worker: int) -> SolverError:
        process = self._held.processes[worker]
        process.join(GRACE_S)
        how = f"exit code {process.exitcode}" if process.exitcode is not None else "no exit code yet"
        return SolverError(f"a worker process ended ({how}), for want of memory as a rule; use fewer workers or another path")

    def _take_board(self, size: int) -> Block:
        if self._board is None or self._board.size < size:
            if self._board is not None:
                self._drop(self._board)
            self._board = self._keep(Block.make(size))
        return self._board

    def _pieces(self, jobs: Sequence[LocalJob]) -> list[Piece]:
        pieces = []
        used = set()
        for row, job in enumerate(jobs):
            key = id(job.features), id(job.labels)
            used.add(key)
            if key not in self._samples:
                self._samples[key] = job.features, job.labels, self._copy(job)
            self._samples.move_to_end(key)
            name = self._samples[key][2].name
            pieces.append(Piece(name, job.samples, tuple(job.features.shape[1:]), job.steps, job.batch, job.seed, row))
        total = sum(block.size for _, _, block in self._samples.values())
        for key in [key for key in self._samples if key not in used]:
            if total <= self.kept_bytes:
                break
            _, _, block = self._samples.pop(key)
            total -= block.size
            for forget in self._forget:
                forget.append(block.name)
            self._drop(block)
        return pieces

    def _copy(self, job: LocalJob) -> Block:
        """Labels, then features: the labels' eight bytes each come first for alignment."""
        block = self._keep(Block.make(8 * job.samples + 4 * job.features.numel()))
        block.tensor(torch.int64, 0, job.labels.shape).copy_(job.labels)
        block.tensor(torch.float32, 8 * job.samples, job.features.shape).copy_(job.features)
        return block

    def _keep(self, block: Block) -> Block:
        self._held.blocks[block.name] = block
        return block

    def _drop(self, block: Block) -> None:
        del self._held.blocks[block.name]
        block.close()
