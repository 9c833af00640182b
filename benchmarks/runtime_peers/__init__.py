"""Our training beside simulators of federated learning on one workload. ``python -m benchmarks.runtime_peers`` runs them.

Each peer is one file with one function ``run(task, gate)`` that trains the task by the peer's own simulator, as its users would write it,
in a child process of its own (:mod:`benchmarks.runtime_peers.runner`); the gate (:mod:`benchmarks.runtime_peers.gate`) holds it between
two rounds, so that samples of all peers are taken in turn while each keeps its state.
"""
