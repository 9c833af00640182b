"""Peers: general-purpose optimisers on the full problem P, side by side with our solvers. ``python -m benchmarks.peers`` runs them.

Each peer is one file with one function ``solve(problem, *, time_limit_s, seed) -> Schedule | None``, run in a child process
(:mod:`benchmarks.peers.runner`) and judged by our exact evaluator and validator alone. The algebraic peers share one model
(:mod:`benchmarks.peers.model`), so that all are given the same problem.
"""
