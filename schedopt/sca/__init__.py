"""Successive convex approximation: surrogates, the restricted convex master, and the loop."""
