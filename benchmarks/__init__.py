"""Benchmarks: how good the solvers are and what they take, on a registry of cases. ``python -m benchmarks`` runs them."""
