"""Local moves on the exact objective: resize, add, drop, move, swap (formulation 4c).

At the marginal prices of a schedule, every candidate assignment has a best size and a cost; using it instead of whatever it overlaps on
its device is a move, and the difference of costs estimates its gain to first order. The most promising moves are tried on the exact
objective with re-allocated resources of the slots they touch, and kept if they improve it. "Resize" is a candidate in place of the
assignment with the same interval; "drop" needs no candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schedopt.bounds.async_schedule import FACTOR, STALE_FACTOR, aggregate
from schedopt.formulation.candidates import (
    Candidates,
    Columns,
    Priced,
    Prices,
    best_paths,
    make_columns,
    price,
    price_columns,
)
from schedopt.formulation.resources import marginal_bandwidth_value
from schedopt.problem import TERMS, FloatArray, IntArray, Problem
from schedopt.sca.master import horizon_weight
from schedopt.sca.surrogates import fixed_terms
from schedopt.schedule import Schedule
from schedopt.state import Merit, State, reallocate

__all__ = ["kick", "marginal_prices", "polish"]

#: Below this many candidates every one can be tried, at several sizes.
_FEW_CANDIDATES = 400
_NEAR_MISS = 0.02


def marginal_prices(problem: Problem, state: State, merit: Merit) -> Prices:
    """First-order prices of energy, bandwidth, h and errors at a schedule (gradients of the objective).

    Limits of the mode count at the relaxation's prices, and at the penalty's where a target is missed.
    """
    a, mode = problem.arrays, problem.objective.mode
    scale = dict(zip(TERMS, a.term_scale, strict=True))
    sums = aggregate(a, state.schedule)
    bound = state.evaluation.bound
    # a task that is never trained is priced as if it had a small share of the others' training
    trained = sums.h_total > 0
    h = np.where(trained, sums.h_total, 1e-3 * (float(sums.h_total.max(initial=0.0)) or 1.0))
    w = FACTOR * a.weight
    noise = w / h
    total_terms = np.where(trained, np.where(trained, bound.total, 0.0) * h / FACTOR, fixed_terms(a))
    value = noise * total_terms / h
    energy = {"weighted": problem.objective.energy_weight, "min_energy": 1.0, "min_bound": merit.energy_price / merit.factor}[mode]
    if mode == "min_energy":
        missed = merit.target_misses(state.evaluation) > 0
        noise = np.where(np.isfinite(a.target), merit.target_price * np.where(missed, 1.0, 1.0 / merit.factor), 0.0)
        value = noise * np.where(np.isfinite(a.target), a.target, 0.0) / FACTOR
    worth = np.broadcast_to(value, a.has_data.shape)
    if problem.objective.participation == "horizon":
        off = sums.h_device - a.aggregation_weight * sums.h_total
        sign = np.sign(off) * a.dissimilarity
        distance = (np.abs(off) * a.dissimilarity).sum(axis=0)
        slope = 2.0 * distance / h * (sign - (sign * a.aggregation_weight).sum(axis=0)) - distance**2 / h**2
        # the first device of an untrained task is all of H: d = Σ_k |1[k = i] − λ_k| δ_k h
        share = a.aggregation_weight * a.dissimilarity
        alone = share.sum(axis=0) + a.dissimilarity - 2.0 * share
        slope = np.where(trained, slope, alone**2)
        worth = worth - noise * 2.0 * scale["part"] * slope
    stale = (noise * scale["stale"] * STALE_FACTOR * a.smoothness**2)[:, None]
    bandwidth = energy * marginal_bandwidth_value(a, state.schedule)
    return Prices(
        energy=np.full(a.num_devices, max(energy, 1e-12)),
        bandwidth=bandwidth,
        value=worth,
        noise=noise,
        span_h=stale * sums.noise_instant,
        instant_noise=stale * sums.stale_span,
    )


@dataclass(frozen=True)
class _Move:
    """Replace what a device does in [start, end) by the given rows (possibly none); ``gain`` is the estimated improvement."""

    device: int
    start: int
    end: int
    insert: Schedule
    gain: float


@dataclass(frozen=True)
class _Ledger:
    """What each of some columns costs and brings: resource cost at the prices, energy, h and scaled error terms."""

    task: IntArray
    resource: FloatArray
    energy: FloatArray
    h: FloatArray
    error: FloatArray


def _ledger(candidates: Candidates, columns: Columns, prices: Prices) -> _Ledger:
    bare = replace(prices, value=np.zeros_like(prices.value), noise=np.zeros_like(prices.noise), span_h=None, instant_noise=None)
    task = candidates.task[columns.candidate]
    return _Ledger(task, price_columns(candidates, columns, bare), columns.energy_j, columns.h, columns.error)


def _current_columns(candidates: Candidates, state: State) -> Columns:
    s = state.schedule
    index = candidates.find(s.device, s.task, s.start, s.end)
    return make_columns(candidates.take(index), index, s.steps, s.steps * s.batch, state.evaluation.physics.upload_s, s.bandwidth_hz)


@dataclass(frozen=True)
class _Estimator:
    """Estimated improvement of the merit by moves that each change one device's plan.

    Exact in H and N (participation included) and in the penalties; first order in the band's price; staleness terms stay as they are.
    """

    problem: Problem
    state: State
    merit: Merit
    now: _Ledger

    def __call__(self, new: _Ledger, device: IntArray, freed: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Gains of inserting the new columns on ``device`` in place of what ``freed`` sums over; shape of the columns."""
        mode = self.problem.objective.mode
        change_h, change_n = self._changes(new, freed)
        h, n, h_device = self._aggregates()
        after_h = np.maximum(h + change_h, 0.0)
        part = self._participation(after_h, h_device, device, change_h) - self._participation(h[None, :], h_device, device[:1] * 0, None)
        after_n = np.maximum(n + change_n + part, 0.0)
        gain = freed(self.now.resource) - new.resource
        fixed = fixed_terms(self.problem.arrays)
        if mode == "min_energy":
            return gain - self._target_penalty(after_h, after_n + fixed)
        w = FACTOR * self.problem.arrays.weight
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.where(w > 0, w * (fixed + n) / h, 0.0)
            after = np.where(w > 0, w * (fixed + after_n) / after_h, 0.0)
        ratio = np.where(np.isfinite(before).all(), before.sum(), 1e30) - np.where(np.isfinite(after), after, 1e30).sum(axis=1)
        if mode == "min_bound":
            # resources carry energy at the limit's price: replace it by the excess over the limit
            miss, weight = self.merit.energy_miss(self.state.evaluation), self.merit.energy_price
            energy = new.energy - freed(self.now.energy)
            gain = -weight * (np.maximum(miss + energy, 0.0) - max(miss, 0.0)) + gain / self.merit.factor * 1e-3
        return gain + ratio

    def _changes(self, new: _Ledger, freed: Callable[[FloatArray], FloatArray]) -> tuple[FloatArray, FloatArray]:
        tasks = np.arange(self.problem.arrays.num_tasks)
        mine = new.task[:, None] == tasks
        gone_h = np.stack([freed(np.where(self.now.task == j, self.now.h, 0.0)) for j in tasks], axis=1)
        gone_n = np.stack([freed(np.where(self.now.task == j, self.now.error, 0.0)) for j in tasks], axis=1)
        return mine * new.h[:, None] - gone_h, mine * new.error[:, None] - gone_n

    def _aggregates(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """H, N (shape (J,)) and h per device (I, J) of the present schedule."""
        bound = self.state.evaluation.bound
        h = bound.extra["h_total"].astype(float)
        total = np.where(h > 0, bound.total, 0.0) * h / FACTOR
        n = np.where(h > 0, np.maximum(total - fixed_terms(self.problem.arrays), 0.0), 0.0)
        return h, n, aggregate(self.problem.arrays, self.state.schedule).h_device

    def _participation(self, h: FloatArray, h_device: FloatArray, device: IntArray, change: FloatArray | None) -> FloatArray:
        """2c d²/H after a change of h of one device in each row, shape (rows, J); zero unless judged over the horizon."""
        a, weight = self.problem.arrays, horizon_weight(self.problem)
        if weight == 0.0:
            return np.zeros(h.shape)
        result = np.zeros(h.shape)
        for j in range(a.num_tasks):
            delta, share = a.dissimilarity[:, j], a.aggregation_weight[:, j]
            off = h_device[None, :, j] - share * h[:, j, None]
            if change is not None:
                off[np.arange(len(h)), device] += change[:, j]
            d = np.abs(off) @ delta
            result[:, j] = weight * np.divide(d**2, h[:, j], out=np.zeros(len(h)), where=h[:, j] > 0)
        return result

    def _target_penalty(self, h: FloatArray, total: FloatArray) -> FloatArray:
        target = self.problem.arrays.target
        use = np.isfinite(target)
        before = self.merit.target_misses(self.state.evaluation)[use]
        after = total[:, use] - target[use] * h[:, use] / FACTOR
        return (np.maximum(after, 0.0) - np.maximum(before, 0.0)) @ self.merit.target_price[use]


def _rows(problem: Problem, candidates: Candidates, columns: Columns) -> Schedule:
    """Assignments of columns with whole batches; resources not yet set."""
    a, k = problem.arrays, columns.candidate
    i, j = candidates.device[k], candidates.task[k]
    batch = np.clip(np.round(columns.work / columns.steps), a.min_batch[j], a.samples[i, j])
    zero = np.zeros(len(k))
    return Schedule(i, j, candidates.start[k], candidates.end[k], columns.steps, batch, zero, zero, zero)


def _moves(problem: Problem, candidates: Candidates, state: State, merit: Merit, most: int) -> list[_Move]:
    """The ``most`` single insertions of largest estimated gain, the best drops, and a new plan for every device; best first.

    Sizes are proposed at the marginal prices and, where few candidates make that cheap, also at halved and doubled worth of h.
    """
    prices = marginal_prices(problem, state, merit)
    now = _ledger(candidates, _current_columns(candidates, state), prices)
    estimate = _Estimator(problem, state, merit, now)
    moves: list[_Move] = []
    for factor in (1.0, 0.4, 2.5) if len(candidates) <= _FEW_CANDIDATES else (1.0,):
        priced = price(candidates, replace(prices, value=prices.value * factor))
        moves += _insertions(problem, candidates, state.schedule, estimate, priced, prices, most)
        if factor == 1.0:
            moves += _plans(problem, candidates, state.schedule, _current_costs(candidates, state, prices), priced)
    moves += _drops(problem, state.schedule, estimate, max(1, most // 4))
    return sorted(moves, key=lambda move: -move.gain)


def _current_costs(candidates: Candidates, state: State, prices: Prices) -> FloatArray:
    return price_columns(candidates, _current_columns(candidates, state), prices)


def _insertions(
    problem: Problem, candidates: Candidates, s: Schedule, estimate: _Estimator, priced: Priced, prices: Prices, most: int
) -> list[_Move]:
    a, columns, k = problem.arrays, priced.columns, priced.columns.candidate
    device, start, end = candidates.device[k], candidates.start[k], candidates.end[k]

    def freed(values: FloatArray) -> FloatArray:
        return _overlapped(a.num_devices, a.slots, s, values, device, start, end)

    gain = estimate(_ledger(candidates, columns, prices), device, freed)
    order = np.argsort(-gain, kind="stable")
    # estimates leave out how the band is shared anew: with few candidates, near misses are tried too
    least = -_NEAR_MISS * abs(estimate.merit(estimate.state)) if len(candidates) <= _FEW_CANDIDATES else 0.0
    order = order[gain[order] > least][:most]
    rows = _rows(problem, candidates, columns.take(order))
    return [_Move(int(device[o]), int(start[o]), int(end[o]), rows.take([m]), float(gain[o])) for m, o in enumerate(order)]


def _drops(problem: Problem, s: Schedule, estimate: _Estimator, most: int) -> list[_Move]:
    """The assignments that seem least worth their cost; the best few are tried whatever the sign of the estimate."""
    nothing = _Ledger(np.full(len(s), -1), *(np.zeros(len(s)) for _ in range(4)))
    gain = estimate(nothing, s.device, lambda values: values)
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > -0.2 * np.median(np.abs(gain))][:most] if len(s) else order
    return [_Move(int(s.device[o]), int(s.start[o]), int(s.end[o]), Schedule.empty(), float(gain[o])) for o in order]


def _plans(problem: Problem, candidates: Candidates, s: Schedule, cost: FloatArray, priced: Priced) -> list[_Move]:
    """The cheapest whole plan of every device whose present plan is dearer."""
    a = problem.arrays
    paths = best_paths(candidates, priced.cost)
    gain = np.bincount(s.device, weights=cost, minlength=a.num_devices) - paths.value
    chosen = priced.columns.take(np.isin(priced.columns.candidate, paths.chosen))
    rows = _rows(problem, candidates, chosen)
    devices = np.flatnonzero(gain > 0)
    return [_Move(int(i), 0, a.slots, rows.take(rows.device == i), float(gain[i])) for i in devices]


def _overlapped(devices: int, slots: int, s: Schedule, values: FloatArray, device: IntArray, start: IntArray, end: IntArray) -> FloatArray:
    """Σ of the values of a device's assignments that overlap [start, end), for each query."""
    begins, ends = np.zeros((devices, slots + 1)), np.zeros((devices, slots + 1))
    np.add.at(begins, (s.device, s.start), values)
    np.add.at(ends, (s.device, s.end), values)
    begun, ended = np.cumsum(begins, axis=1), np.cumsum(ends, axis=1)
    # those that begin before the end, less those that have ended by the start
    return begun[device, end - 1] - ended[device, start]


def _apply(problem: Problem, state: State, move: _Move, seen: set[bytes]) -> State | None:
    """The schedule after ``move``, with the resources of the touched slots re-allocated; None if that is impossible or was seen."""
    s = state.schedule
    hit = (s.device == move.device) & (s.start < move.end) & (s.end > move.start)
    touched = np.concatenate([s.end[hit], move.insert.end])
    merged = s.take(~hit).concat(move.insert)
    key = _skeleton(merged)
    if key in seen:
        return None
    seen.add(key)
    return reallocate(problem, merged, np.isin(merged.end, touched))


def _improved(value: float, tolerance: float) -> float:
    """What counts as better than ``value``; anything finite is better than infinity."""
    return value - tolerance * abs(value) if np.isfinite(value) else value


def _skeleton(s: Schedule) -> bytes:
    """What a schedule is apart from its resources."""
    rows = np.stack([s.device, s.task, s.start, s.end, s.steps.astype(np.int64), s.batch.astype(np.int64)], axis=1)
    return np.ascontiguousarray(rows[np.lexsort(rows.T)]).tobytes()


def polish(
    problem: Problem,
    candidates: Candidates,
    state: State,
    merit: Merit,
    *,
    max_rounds: int = 30,
    moves_per_round: int = 60,
    tolerance: float = 1e-7,
    seen: set[bytes] | None = None,
    on_improvement: Callable[[State], None] | None = None,
    on_move: Callable[[], None] | None = None,
) -> State:
    """Improve a schedule by local moves until a round finds none (relative ``tolerance``), or ``max_rounds``.

    ``seen``: schedules (without resources) that need no second look; grows. ``on_improvement(state)`` sees every better schedule,
    ``on_move()`` comes before every trial; both may raise to stop.
    """
    value = merit(state)
    seen = set() if seen is None else seen
    for _ in range(max_rounds):
        before = value
        changed: set[int] = set()
        for move in _moves(problem, candidates, state, merit, moves_per_round):
            if move.device in changed:
                continue
            if on_move is not None:
                on_move()
            new = _apply(problem, state, move, seen)
            reached = np.inf if new is None else merit(new)
            if new is not None and reached < _improved(value, tolerance):
                state, value = new, reached
                changed.add(move.device)
                if on_improvement is not None:
                    on_improvement(state)
        if not value < _improved(before, tolerance):
            break
    return state


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
    rows = _rows(problem, candidates, columns)
    s = state.schedule
    merged = s.take(~np.isin(s.device, chosen)).concat(rows.take(np.isin(rows.device, chosen)))
    return reallocate(problem, merged, np.ones(len(merged), dtype=bool))
