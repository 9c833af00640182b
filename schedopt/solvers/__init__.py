"""Solvers: one file a variant, all behind the protocol of :mod:`schedopt.solvers.base`."""
