"""Local moves on the exact objective: resize, add, drop, move, swap, and joint plans of two devices (formulation 4c).

At the marginal prices of a schedule, every candidate assignment has a best size and a cost; using it instead of whatever it overlaps on
its device is a move, and the difference of costs estimates its gain to first order. The most promising moves are tried on the exact
objective with re-allocated resources of the slots they touch, and kept if they improve it. "Resize" is a candidate in place of the
assignment with the same interval; "drop" needs no candidate.
"""

from schedopt.polish.prices import marginal_prices
from schedopt.polish.search import kick, polish

__all__ = ["kick", "marginal_prices", "polish"]
