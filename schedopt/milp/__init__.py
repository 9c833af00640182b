"""The problem over a finite list of columns as a mixed-integer linear program, solved to proven optimality with HiGHS.

:func:`best_combination` is the whole of it for callers that have columns; :func:`grid_columns` makes good ones at the prices of a
relaxation.
"""

from schedopt.milp.exact import Combination
from schedopt.milp.grid import grid_columns, nearest_columns, share_columns, whole_columns
from schedopt.milp.search import LEAST_GAP, CombinationSearch, Proof, best_combination

__all__ = [
    "LEAST_GAP",
    "Combination",
    "CombinationSearch",
    "Proof",
    "best_combination",
    "grid_columns",
    "nearest_columns",
    "share_columns",
    "whole_columns",
]
