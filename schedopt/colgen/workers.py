"""Pricing on several cores or machines: shards of devices, each with a worker that keeps its tables.

:class:`Workers` is the one code path; where its workers live is an *engine*: the calling process, processes of this machine, or a Ray
cluster (the extra ``ray``). Shards are the same whatever the engine, and so are the answers.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import cpu_count, get_context
from typing import Any, Protocol, TypeVar

from schedopt.errors import SolverError
from schedopt.formulation.candidates import Prices
from schedopt.formulation.tables import Plans, PlanTables
from schedopt.problem import FloatArray, Problem

__all__ = [
    "Engine",
    "PlanRequest",
    "ProcessEngine",
    "RayEngine",
    "SerialEngine",
    "Workers",
    "default_workers",
    "make_engine",
    "map_parallel",
]

_T = TypeVar("_T")

#: Fewer devices than this per shard are not worth a process.
MIN_DEVICES = 100
#: Seconds after which a cluster that does not answer is taken to be absent.
_CONNECT_S = 10.0


@dataclass(frozen=True)
class PlanRequest:
    """One pricing: see :meth:`schedopt.formulation.tables.PlanTables.plans`."""

    prices: Prices
    fee: FloatArray | None = None
    task: int | None = None
    near: int = 0


class _Shard:
    """What a worker holds."""

    def __init__(self, problem: Problem, first: int, last: int) -> None:
        self.tables = PlanTables(problem, first, last)

    def plans(self, requests: Sequence[PlanRequest]) -> list[Plans]:
        """Answers to all requests for the shard's devices."""
        return [self.tables.plans(r.prices, fee=r.fee, task=r.task, near=r.near) for r in requests]


class Engine(Protocol):
    """Where workers live: ``start`` makes one worker per shard, ``ask`` has all of them answer, ``run`` maps a function, ``close``."""

    def start(self, problem: Problem, shards: Sequence[tuple[int, int]]) -> None: ...

    def ask(self, requests: Sequence[PlanRequest]) -> list[list[Plans]]: ...

    def run(self, function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]]) -> list[_T]: ...

    def close(self) -> None: ...


class SerialEngine:
    """All work in the calling process."""

    def start(self, problem: Problem, shards: Sequence[tuple[int, int]]) -> None:
        """Make the shards."""
        self._shards = [_Shard(problem, first, last) for first, last in shards]

    def ask(self, requests: Sequence[PlanRequest]) -> list[list[Plans]]:
        """Answers, shard by shard."""
        return [shard.plans(requests) for shard in self._shards]

    def run(self, function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]]) -> list[_T]:
        """``function(*a)`` for each ``a``."""
        return [function(*a) for a in arguments]

    def close(self) -> None:
        """Nothing is held."""


_here: _Shard | None = None


def _start_here(problem: Problem, first: int, last: int) -> None:
    global _here
    # Ctrl-C is the calling process's to handle: it ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _here = _Shard(problem, first, last)


def _ask_here(requests: Sequence[PlanRequest]) -> list[Plans]:
    assert _here is not None
    return _here.plans(requests)


class ProcessEngine:
    """One process per shard on this machine."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pools: list[ProcessPoolExecutor] = []

    def start(self, problem: Problem, shards: Sequence[tuple[int, int]]) -> None:
        """Start the processes; each makes its tables at its first request."""
        context = get_context("spawn")
        for first, last in shards:
            self._pools.append(ProcessPoolExecutor(1, context, _start_here, (problem, first, last)))

    def ask(self, requests: Sequence[PlanRequest]) -> list[list[Plans]]:
        """Answers of all shards, in their order."""
        return _results([pool.submit(_ask_here, requests) for pool in self._pools])

    def run(self, function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]]) -> list[_T]:
        """``function(*a)`` for each ``a`` (picklable), in a pool of its own."""
        with ProcessPoolExecutor(self.processes, get_context("spawn")) as pool:
            return _results([pool.submit(function, *a) for a in arguments])

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._pools = []


def _results(futures: Sequence[Future[_T]]) -> list[_T]:
    try:
        return [future.result() for future in futures]
    except (OSError, RuntimeError) as error:  # BrokenProcessPool is a RuntimeError: a worker was killed, for want of memory as a rule
        raise SolverError(f"a worker process ended: {error or type(error).__name__}; try fewer workers") from error


def _call(function: Callable[..., _T], *arguments: Any) -> _T:
    return function(*arguments)


def _check_reachable(address: str) -> None:
    """Raise SolverError if nothing listens at ``host:port`` (with or without ray://): Ray itself tries for minutes."""
    host, _, port = address.rpartition("//")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise SolverError(f"no Ray cluster at {address!r}: {error.strerror or error}") from error


class RayEngine:
    """Workers on a Ray cluster: ``address`` as in ``ray.init`` ("local" starts a small cluster on this machine)."""

    def __init__(self, address: str, workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise SolverError("workers on Ray need the package ray: pip install 'schedopt[ray]'") from error
        self._ray = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False} if address == "local" else {}
            if not local:
                _check_reachable(address)
            try:
                ray.init(address=address, logging_level="ERROR", **local)  # type: ignore[arg-type]  # names do too
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise SolverError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
        self._actors: list[Any] = []

    def start(self, problem: Problem, shards: Sequence[tuple[int, int]]) -> None:
        """One actor per shard."""
        shared, actor = self._ray.put(problem), self._ray.remote(num_cpus=1)(_Shard)
        self._actors = [actor.remote(shared, first, last) for first, last in shards]

    def ask(self, requests: Sequence[PlanRequest]) -> list[list[Plans]]:
        """Answers of all actors, in the order of their shards."""
        shared = self._ray.put(list(requests))
        return self._get([actor.plans.remote(shared) for actor in self._actors])

    def run(self, function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]]) -> list[_T]:
        """``function(*a)`` for each ``a``, as Ray tasks of one core each."""
        task = self._ray.remote(num_cpus=1)(_call)
        return self._get([task.remote(function, *a) for a in arguments])

    def _get(self, references: list[Any]) -> list[Any]:
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayError as error:
            raise SolverError(f"a Ray worker failed: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._mine:
            self._ray.shutdown()


def make_engine(workers: int, address: str = "") -> Engine:
    """Engine with ``workers`` workers: Ray at ``address`` if given, processes if more than one, else the calling process.

    Raises :class:`~schedopt.errors.SolverError` if Ray is asked for and missing, or not reachable.
    """
    if address:
        return RayEngine(address, workers)
    return ProcessEngine(workers) if workers > 1 else SerialEngine()


def default_workers(num_devices: int) -> int:
    """Cores of this machine, as far as there are devices enough for each."""
    return max(1, min(cpu_count(), num_devices // MIN_DEVICES))


def map_parallel(
    function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]], *, workers: int = 1, address: str = ""
) -> list[_T]:
    """``function(*a)`` for each ``a`` on ``workers`` processes, or on the Ray cluster at ``address``: a multi-start, say."""
    engine = make_engine(workers, address)
    try:
        return engine.run(function, arguments)
    finally:
        engine.close()


class Workers:
    """Pricing of all devices of a problem; a context manager, which ends the workers."""

    def __init__(self, problem: Problem, *, workers: int = 1, address: str = "") -> None:
        devices = problem.arrays.num_devices
        count = max(1, min(workers, devices))
        edges = [devices * k // count for k in range(count + 1)]
        self._engine = make_engine(count, address)
        self._engine.start(problem, list(zip(edges[:-1], edges[1:], strict=True)))

    def plans(self, *requests: PlanRequest) -> list[Plans]:
        """Best plans of all devices for each request."""
        answers = self._engine.ask(requests)
        return [Plans.join([shard[k] for shard in answers]) for k in range(len(requests))]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
