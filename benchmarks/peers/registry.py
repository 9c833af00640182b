"""The registry of peers: which module each is, and which packages it needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class Peer:
    """A peer: ``module`` has its ``solve``; ``packages`` are what it imports, by their names both in Python and on the index."""

    name: str
    module: str
    packages: tuple[str, ...]
    what: str

    def missing(self) -> list[str]:
        """Packages that are not installed; nothing is imported to find out."""
        return [package for package in self.packages if find_spec(package) is None]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("scip", "benchmarks.peers.scip", ("pyscipopt",), "SCIP, spatial branch and bound on the full model"),
        Peer("bonmin", "benchmarks.peers.bonmin", ("casadi",), "Bonmin through CasADi, branch and bound on local optima"),
        Peer("ipopt_rounding", "benchmarks.peers.ipopt_rounding", ("casadi",), "Ipopt through CasADi on the relaxation, rounding, repair"),
        Peer("apopt", "benchmarks.peers.apopt", ("gekko",), "APOPT through GEKKO, branch and bound on local optima"),
        Peer("genetic", "benchmarks.peers.genetic", ("pymoo",), "genetic algorithm by pymoo, resources filled in by ours"),
        Peer("differential_evolution", "benchmarks.peers.evolution", ("scipy",), "SciPy's differential evolution, resources by ours"),
    )
}
