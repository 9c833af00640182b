"""Worker processes: started once for all trainers, data sent once, chunks handed out as workers become free."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle

import torch
from torch import Tensor

from fl_runtime.training.job import LocalJob
from fl_runtime.training.kernels import Recipe
from fl_runtime.training.store import Store
from fl_runtime.training.worker import Forget, NewBlock, NewRecipe, Order, Piece
from schedopt.errors import InputError, SolverError

__all__ = ["CrewLease", "lease_crew"]

#: Seconds a worker has to end by itself.
GRACE_S = 2.0
#: A worker is a fresh interpreter that never runs the program's own script.
PROGRAM = "import sys; sys.path[:] = {path!r}; from fl_runtime.training.worker import serve; serve({descriptor}, {parent})"


@dataclass
class _Worker:
    """A worker process as seen from here: what it has been sent, and what it is to forget."""

    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    blocks: set[int] = field(default_factory=set)
    recipes: set[int] = field(default_factory=set)

    @classmethod
    def start(cls) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            program = PROGRAM.format(path=sys.path, descriptor=theirs.fileno(), parent=os.getpid())
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C on a terminal would reach it before it can ignore that
            )
        return cls(process, Connection(ours.detach()))

    def send(self, message: object) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise self.ended() from error

    def receive(self) -> object:
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.ended() from error

    def ended(self) -> SolverError:
        try:
            code = f"exit code {self.process.wait(GRACE_S)}"
        except subprocess.TimeoutExpired:
            code = "still there, but not listening"
        return SolverError(f"a worker process ended ({code}), for want of memory as a rule; use fewer workers or another path")

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()  # it holds nothing that would need to be put in order
        self.process.wait()


class _Held:
    """What must go when a crew goes, however that happens."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.owner = os.getpid()

    def release(self) -> None:
        if os.getpid() == self.owner:  # a forked copy of this process must leave them alone
            for worker in self.workers:
                worker.stop()
        self.workers = []


class ProcessCrew:
    """``workers`` processes with one torch thread each; may be used by several threads, one after the other."""

    def __init__(self, workers: int) -> None:
        if not hasattr(socket, "socketpair") or sys.platform == "win32":
            raise InputError("path = 'processes'; must be another one on this system")
        self.workers = workers
        self.store = Store(self._forget_block)
        self._held = _Held()
        self._finalizer = weakref.finalize(self, self._held.release)  # also at the end of the interpreter
        self._lock = threading.Lock()
        self._board: int | None = None

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [worker.process.pid for worker in self._held.workers]

    def start(self) -> None:
        """Start the processes, if they are not there, without waiting for them."""
        if not self._held.workers:
            for _ in range(self.workers):
                self._held.workers.append(_Worker.start())

    def is_ready(self) -> bool:
        """Whether all processes have started."""
        for worker in self._held.workers:
            if not worker.ready and worker.connection.poll():
                worker.receive()
                worker.ready = True
        return bool(self._held.workers) and all(worker.ready for worker in self._held.workers)

    def train(
        self, number: int, recipe: bytes, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, int]:
        """Updates (n, P), and the fewest jobs that were trained at a time though more were asked for (0 if none were).

        Raises SolverError if a worker ends; the crew is then closed and the next call starts another.
        """
        with self._lock:
            self.start()
            try:
                for worker in self._held.workers:
                    if not worker.ready:
                        worker.receive()
                        worker.ready = True
                return self._train(number, recipe, start, jobs, chunks)
            except BaseException:
                self.close()  # workers may be in the middle of something that nobody waits for
                raise

    def forget(self, recipe: int) -> None:
        """Let the workers drop a recipe."""
        for worker in self._held.workers:
            if recipe in worker.recipes:
                worker.recipes.discard(recipe)
                try:
                    worker.connection.send(Forget(recipes=(recipe,)))
                except OSError:
                    pass  # it has ended, which whoever needs it next is told

    def close(self) -> None:
        """End the processes and let their memory go."""
        self._held.release()
        self.store.close()
        self._board = None

    def _train(
        self, number: int, recipe: bytes, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, int]:
        size = len(start)
        board = self._take_board(4 * size * (1 + len(jobs)))
        block, _ = self.store.block(board)
        block.tensor(torch.float32, 0, (size,)).copy_(start)
        pieces = [
            Piece(place.block, place.offset, job.samples, tuple(job.features.shape[1:]), job.steps, job.batch, job.seed, row)
            for row, (job, place) in enumerate(zip(jobs, self.store.place(jobs), strict=True))
        ]
        orders = [Order(number, board, size, [pieces[k] for k in chunk]) for chunk in chunks]
        fewest = self._hand_out(orders, recipe)
        return block.tensor(torch.float32, 4 * size, (len(jobs), size)).clone(), fewest

    def _hand_out(self, orders: Sequence[Order], recipe: bytes) -> int:
        waiting = list(reversed(orders))
        workers = {worker.connection: worker for worker in self._held.workers}
        asked: dict[Connection, deque[int]] = {connection: deque() for connection in workers}
        fewest = 0

        def give(connection: Connection) -> None:
            if waiting:
                order = waiting.pop()
                self._send(workers[connection], order, recipe)
                asked[connection].append(len(order.pieces))

        for connection in [*workers, *workers]:  # one more than it works on, so that it need not wait for the next
            give(connection)
        while busy := [connection for connection, sizes in asked.items() if sizes]:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                done, size = _result(workers[ready].receive()), asked[ready].popleft()
                if done < size:
                    fewest = min(done, fewest or done)
                give(ready)
        return fewest

    def _send(self, worker: _Worker, order: Order, recipe: bytes) -> None:
        if order.recipe not in worker.recipes:
            worker.send(NewRecipe(order.recipe, recipe))
            worker.recipes.add(order.recipe)
        for number in sorted({order.board, *(piece.block for piece in order.pieces)} - worker.blocks):
            block, descriptor = self.store.block(number)
            worker.send(NewBlock(number, block.size))
            try:
                send_handle(worker.connection, descriptor, worker.process.pid)
            except OSError as error:
                raise worker.ended() from error
            worker.blocks.add(number)
        worker.send(order)

    def _take_board(self, size: int) -> int:
        if self._board is not None and self.store.block(self._board)[0].size < size:
            self.store.drop(self._board)
            self._board = None
        if self._board is None:
            self._board = self.store.new_block(size)
        return self._board

    def _forget_block(self, number: int) -> None:
        for worker in self._held.workers:
            if number in worker.blocks:
                worker.blocks.discard(number)
                worker.send(Forget(blocks=(number,)))


def _result(answer: object) -> int:
    assert isinstance(answer, tuple)
    kind, content = answer
    if kind == "failed":
        raise content
    return int(content)


class CrewLease:
    """A trainer's part in a crew that all trainers with as many workers share; the last to close it ends the processes."""

    def __init__(self, crew: ProcessCrew, number: int, recipe: Recipe) -> None:
        self.crew, self._number = crew, number
        try:
            self._recipe = pickle.dumps(recipe)
        except Exception as error:  # whatever the model is made of
            raise InputError(f"path = 'processes': the model cannot be sent to another process ({error}); use another path") from error

    def train(self, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]) -> tuple[Tensor, int]:
        """See :meth:`ProcessCrew.train`."""
        return self.crew.train(self._number, self._recipe, start, jobs, chunks)

    def close(self) -> None:
        """Give the part back."""
        with _registry:
            users = _users.get(self.crew.workers)
            if users is None or self._number not in users[1]:
                return
            users[1].discard(self._number)
            if users[1]:
                self.crew.forget(self._number)
            else:
                del _users[self.crew.workers]
                self.crew.close()


_registry = threading.Lock()
#: Crews by number of workers, each with the numbers of its leases.
_users: dict[int, tuple[ProcessCrew, set[int]]] = {}
_last = 0


def lease_crew(workers: int, recipe: Recipe) -> CrewLease:
    """Join the crew of ``workers`` processes, which start when they are first needed."""
    global _last
    with _registry:
        crew, leases = _users[workers] if workers in _users else (ProcessCrew(workers), set[int]())
        _last += 1
        lease = CrewLease(crew, _last, recipe)
        leases.add(_last)
        _users[workers] = crew, leases
        weakref.finalize(lease, _forgotten, workers, _last)
        return lease


def _forgotten(workers: int, number: int) -> None:
    """A trainer went without closing its lease."""
    if workers in _users:
        crew, leases = _users[workers]
        leases.discard(number)
        if not leases:
            del _users[workers]
            crew.close()
