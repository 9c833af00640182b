"""Theorem 1 against reality: measured gradient norms of real training beside the bound, term by term."""
