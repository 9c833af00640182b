"""Proofs by branching: nodes are boxes of (H, N) with limits on numbers of assignments, bounded by Lagrangian prices of their own.

``pricing`` bounds the cost of every candidate at any prices from tables, ``program`` is a node's linear program, whose duals are those
prices, ``multipliers`` turns them into a bound that holds whatever the program's accuracy, ``tree`` is the search, and ``branching``
says where a node is split.
"""

from schedopt.proof.tree import ProofTree

__all__ = ["ProofTree"]
