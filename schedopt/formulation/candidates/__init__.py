r"""Candidate assignments, their best resources at given prices, and the best plan of every device (formulation 4b).

At prices of energy, bandwidth, aggregation weight h and noise, a candidate assignment s = (device, task, start, end) costs

    min over e, y = eB, T_ul, W of   −π h(e) + ρ n(e, y) + ξ E(y, T_ul, W) + ν W,

where n(e, y) = F(e) + K(e)·e/y collects the terms of Theorem 1 that are sums over assignments. For each e this is convex: y and W have
closed forms, and one root in T_ul remains. The cheapest plan of a device is then a shortest path over instants. Everything is
vectorised over candidates, steps and devices. Tested in ``tests/test_candidates.py`` against brute force.
"""
from schedopt.formulation.candidates.columns import Columns, ParallelArrays, Prices, Resources, make_columns, price_columns
from schedopt.formulation.candidates.listing import Candidates, build_candidates, candidates_among, check_size, step_grid, steps_limit
from schedopt.formulation.candidates.paths import Paths, backward_values, best_paths, chosen_spans, forward_values, least_regret
from schedopt.formulation.candidates.pricing import Priced, least_compute_costs, price

__all__ = [
    "Candidates",
    "Columns",
    "ParallelArrays",
    "Paths",
    "Priced",
    "Prices",
    "Resources",
    "backward_values",
    "best_paths",
    "build_candidates",
    "candidates_among",
    "check_size",
    "chosen_spans",
    "forward_values",
    "least_compute_costs",
    "least_regret",
    "make_columns",
    "price",
    "price_columns",
    "step_grid",
    "steps_limit",
]
