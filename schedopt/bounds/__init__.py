"""Convergence bounds: each evaluates a schedule on a problem, one theorem per file."""
