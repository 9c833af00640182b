"""Formulations of the scheduling problem that solvers work on."""
