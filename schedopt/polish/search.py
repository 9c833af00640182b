"""Local search by moves, and kicks out of its local optima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedopt.formulation.candidates import Candidates, best_paths, price
from schedopt.polish.joint import joint_moves
from schedopt.polish.moves import FEW_CANDIDATES, Move, apply_move, rows_of
from schedopt.polish.prices import marginal_prices
from schedopt.polish.single import single_moves
from schedopt.problem import Problem
from schedopt.state import Merit, State, reallocate

__all__ = ["kick", "polish"]


def polish(
    problem: Problem,
    candidates: Candidates,
    state: State,
    merit: Merit,
    *,
    max_rounds: int = 30,
    moves_per_round: int = 60,
    tolerance: float = 1e-7,
    joint: bool = False,
    seen: set[bytes] | None = None,
    on_improvement: Callable[[State], object] | None = None,
    on_move: Callable[[], None] | None = None,
) -> State:
    """Improve a schedule by local moves until a round finds none (relative ``tolerance``), or ``max_rounds``.

    ``joint``: where moves of one device find nothing, try two at once, if there are few candidates. ``seen``: schedules (without
    resources) that need no second look; grows. ``on_improvement(state)`` sees every better schedule, ``on_move()`` comes before every
    trial; both may raise to stop.
    """
    seen = set() if seen is None else seen
    searches = [single_moves, joint_moves] if joint and len(candidates) <= FEW_CANDIDATES else [single_moves]

    def tried(moves: list[Move]) -> State:
        best, value = state, merit(state)
        changed: set[int] = set()
        for move in moves:
            if changed.intersection(move.devices):
                continue
            if on_move is not None:
                on_move()
            new = apply_move(problem, best, move, seen)
            reached = np.inf if new is None else merit(new)
            if new is not None and reached < _improved(value, tolerance):
                best, value = new, reached
                changed.update(move.devices)
                if on_improvement is not None:
                    on_improvement(best)
        return best

    for _ in range(max_rounds):
        for search in searches:
            better = tried(search(problem, candidates, state, merit, moves_per_round))
            if better is not state:
                break
        if better is state:
            break
        state = better
    return state


def _improved(value: float, tolerance: float) -> float:
    """What counts as better than ``value``; anything finite is better than infinity."""
    return value - tolerance * abs(value) if np.isfinite(value) else value


def kick(problem: Problem, candidates: Candidates, state: State, merit: Merit, rng: np.random.Generator) -> State | None:
    """A state elsewhere: one to three devices re-planned at randomly distorted costs; None if it has no resources."""
    a = problem.arrays
    prices = marginal_prices(problem, state, merit)
    distorted = replace(prices, value=prices.value * np.exp(rng.normal(0.0, 0.5, prices.value.shape)))
    priced = price(candidates, distorted)
    cost = priced.cost * np.exp(rng.normal(0.0, 0.5, len(candidates)))
    paths = best_paths(candidates, cost)
    chosen = rng.choice(a.num_devices, size=min(a.num_devices, int(rng.integers(1, 4))), replace=False)
    columns = priced.columns.take(np.isin(priced.columns.candidate, paths.chosen))
    rows = rows_of(problem, candidates, columns)
    s = state.schedule
    merged = s.take(~np.isin(s.device, chosen)).concat(rows.take(np.isin(rows.device, chosen)))
    return reallocate(problem, merged, np.ones(len(merged), dtype=bool))
