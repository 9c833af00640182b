"""The registry of what is timed: which module each is, what it needs, and in which ways it is run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["OURS", "PEERS", "PLAIN", "Mode", "Peer"]


@dataclass(frozen=True)
class Mode:
    """A way to run a peer. ``one_thread``: of torch in each process, else what torch takes by itself; ``parallel``: the peer's own
    processes, threads or actors, one per core."""

    name: str
    one_thread: bool = True
    parallel: bool = False


@dataclass(frozen=True)
class Peer:
    """``module`` has ``run(task, gate)``; ``packages``: names in Python; ``install``: what pip is to be told; ``remark``: what we had to
    do for it."""

    name: str
    module: str
    modes: tuple[Mode, ...]
    packages: tuple[str, ...] = ()
    install: str = ""
    remark: str = ""

    def missing(self) -> list[str]:
        """Packages that are not installed; nothing is imported to find out."""
        return [package for package in self.packages if find_spec(package) is None]

    @property
    def version(self) -> str | None:
        """Version of the first package, if it is installed."""
        try:
            return version(self.packages[0]) if self.packages else None
        except PackageNotFoundError:
            return None


_THREADS, _ONE = Mode("torch's threads", one_thread=False), Mode("1 thread")
_HERE = "benchmarks.runtime_peers"

OURS = Peer("ours", f"{_HERE}.ours", (Mode("auto", one_thread=False),))
PLAIN = Peer("plain loop", f"{_HERE}.plain", (_ONE,))
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("pfl", f"{_HERE}.with_pfl", (_THREADS, _ONE, Mode("processes", parallel=True)), ("pfl",), "pfl"),
        Peer(
            "flgo",
            f"{_HERE}.with_flgo",
            (_THREADS, _ONE, Mode("parallel threads", parallel=True)),
            ("flgo",),
            "flgo",
        ),
        Peer("fedlab", f"{_HERE}.with_fedlab", (_THREADS, _ONE), ("fedlab",), "fedlab"),
        Peer(
            "flower",
            f"{_HERE}.with_flower",
            (Mode("defaults", one_thread=False), Mode("an actor a core", parallel=True)),
            ("flwr", "ray"),
            "flwr[simulation]",
        ),
    )
}
