"""Variants of the solvers side by side: what they find, how well it converged, and where the time went."""
