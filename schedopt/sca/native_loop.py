r"""Proximal SCA on a smooth program: monotone merit, and a KKT residual at the end (formulation 4a).

    v̂_m = argmin of the convex model at v_m (:mod:`schedopt.sca.native_step`),   v_{m+1} = v_m + s_m (v̂_m − v_m).

Step rules: ``adaptive`` takes a step, or the part of it that keeps a fair share of what the model promises; if none does, the curvature ω
of the rows that broke the promise is raised, at which the model becomes a majorant in the end. The convex halves count in full only where
the model proves too flat: they bound each product by itself, and along most steps the products that an upload gates cancel each other to
a tenth of that. Steps may be stretched (s > 1) and auxiliary variables recomputed from the tensors where that lowers the merit more.
``diminishing`` keeps the majorant (ω = 1) and s_{m+1} = s_m (1 − c s_m). In both, the merit never rises at fixed penalties: a step that
would raise it is not taken. Penalties are a multiple of the rows' multipliers, raised where a multiplier comes near; the price of
z − z² ≤ 0 grows once the relaxation has converged.

Between steps on the whole program come steps in which dormant variables stay (what an upload would use where nothing is uploaded, nine
tenths of all): see :mod:`schedopt.sca.working_set`. All merits and residuals are those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from schedopt.formulation.nlp import Program
from schedopt.problem import FloatArray, IntArray
from schedopt.sca.kkt import KktResidual, kkt_residual, least_multipliers
from schedopt.sca.native_settings import NativeRecord, NativeSettings
from schedopt.sca.native_step import Multipliers, Step, Subproblem
from schedopt.sca.working_set import WorkingSet, working_set

__all__ = ["REACHED", "WHOLE", "NativeLoop"]

#: Curvature beyond which a step is too short to mean anything, and untaken steps in a row after which a phase has stalled.
_MOST_CURVATURE, _STALL = 1e7, 15
#: An attempt of at least so many iterations goes on like a stalled one when three quarters of them are spent.
_LONG = 60
#: How often a stalled phase starts anew with fresh penalties, and its curvature then.
_RENEWALS, _RENEWED_CURVATURE = 2, 1e-2
#: Range of the adaptive curvature.
_LEAST_CURVATURE, _NOTICED_CURVATURE = 1e-6, 1e-3
#: Share of the promise that one row may miss before its curvature is raised, and the share that must be kept to take a step.
_ROW_SHARE, _FAIR_SHARE = 0.1, 0.05
#: Promises below this, relative to the merit, are within the accuracy of the backends.
_NOISE = 1e-7
#: Share of the promise at which curvature may fall.
_GOOD_SHARE = 0.6
#: Weight of the convex halves: shrinks by this factor after steps that keep this share, grows by that one after those below that share.
_HALF_SHRINK, _CLOSE_SHARE, _HALF_GROW, _POOR_SHARE, _LEAST_HALF = 1.5, 0.8, 2.0, 0.4, 0.02
#: A step that keeps less of the promise is halved, this often at most, while that helps.
_SHORT_SHARE, _HALVINGS = 0.3, 6
#: How a phase ends that has converged.
REACHED = "KKT residual reached"
#: Binaries this near to 0 or 1 are whole.
WHOLE = 1e-6
#: A row that is missed at this penalty cannot be met near where the iteration is.
_MOST_PENALTY = 1e5
#: Penalties are set from the multipliers after these steps of a phase, and later only raised.
_SETTLED = (2, 5)
#: Expected step of a variable that stays at a bound, relative to the others, and how near that is.
_STUCK, _AT_BOUND = 1e-3, 1e-6
#: Where steps are shorter than this, products are balanced by how far their factors moved: at least this share of the longest move; how
#: fast an earlier move fades.
_SHORT_STEP, _SLOW, _FORGET = 0.3, 0.03, 0.3
#: Steps that restoration or stretching propose may miss convex rows by this much.
_CONVEX_TOLERANCE = 1e-8
#: Violations of convex rows beyond what a backend leaves.
_MATERIAL = 1e-4
#: Steps on the working set between two on the whole program: at first and after dormant variables woke up, and at most.
_FEW_NARROW, _MOST_NARROW = 3, 16
#: Share of the gain of the last whole step that steps on the working set must keep up.
_NARROW_SHARE = 0.1
#: Backends tried in turn after the chosen one has failed numerically.
FALLBACKS = ("clarabel", "scs")
#: How often another backend may help out in a phase: an iterate that needs more is where the program itself is degenerate.
_MOST_HELP = 3


class NativeLoop:
    """The iteration on one program: ``point`` v, ``multipliers`` and ``residual`` of the last phase, ``history``, ``fallbacks``.

    ``restore(v)`` proposes a point with the same decisions and consistent auxiliary variables; ``on_iteration(record, point)`` sees every
    iteration and may raise to stop. ``dormant(v)``: variables that may stay as they are for a few steps from ``v``.
    """

    def __init__(
        self,
        program: Program,
        start: FloatArray,
        binaries: np.ndarray,
        settings: NativeSettings,
        *,
        restore: Callable[[FloatArray], FloatArray] | None = None,
        dormant: Callable[[FloatArray], IntArray] | None = None,
        on_iteration: Callable[[NativeRecord, FloatArray], None] | None = None,
    ) -> None:
        self.program, self.settings, self.restore, self.on_iteration = program, settings, restore, on_iteration
        self.dormant = dormant if settings.working_sets else None
        self.binaries = binaries
        self.history: list[NativeRecord] = []
        self.fallbacks: list[str] = []
        self.multipliers: Multipliers | None = None
        self.residual: KktResidual | None = None
        self.binary_rows = program.binary_rows
        self._subproblems: dict[bool, Subproblem] = {}
        self._use(exponential=settings.rate_cones and settings.backend != "ecos")
        self.penalty = np.where(self.is_binary, 0.0, 10.0)
        self.price = 0.0
        self._renew(start)

    def _use(self, *, exponential: bool) -> None:
        """Pose the subproblems with or without exponential cones."""
        if exponential not in self._subproblems:
            self._subproblems[exponential] = Subproblem(self.program, exponential=exponential)
        self.sub = self._subproblems[exponential]
        self.is_binary = np.array([name.startswith("binary") for name in self.sub.names], dtype=bool)

    def _renew(self, start: FloatArray) -> None:
        """A new phase from ``start``."""
        self.point = np.clip(start, self.program.lower, self.program.upper)
        self.multipliers = self.residual = None
        self.omega, self.helped, self.renewed = np.ones(self.sub.rows), 0, 0
        self.size, self.half_weight = np.ones(len(start)), 1.0
        self.prox, self.step_length, self.untaken, self.taken = self.settings.prox_weight, 1.0, 0, 0
        self._working: WorkingSet | None = None
        self._asleep = np.zeros(len(start), dtype=bool)
        self._narrow_left, self._narrow_steps, self._whole_gain = 0, _FEW_NARROW, 0.0
        #: after a stall: the halves count in full, and all steps are whole
        self.careful = False

    def fixed(self, point: FloatArray, also: np.ndarray | None = None) -> NativeLoop:
        """A loop from ``point`` with its binaries (and the variables ``also``) fixed as they are there; it shares the history."""
        program = self.program.holding(self.binaries, np.round(point))
        if also is not None:
            program = program.holding(also, point)
        loop = NativeLoop(program, point, self.binaries, self.settings, restore=self.restore, on_iteration=self.on_iteration)
        loop.history, loop.fallbacks = self.history, self.fallbacks
        return loop

    def phase(self, name: str, iterations: int) -> str:
        """Iterate until the residual is reached, nothing moves, or ``iterations``; why it ended.

        A long phase that has not converged by then spends its last third on a careful second try from where it began: another path, which
        mostly ends elsewhere. The better residual stays.
        """
        start, penalty, before = self.point, self.penalty, len(self.history)
        second = iterations >= _LONG
        self._renew(start)
        ended = self._attempt(name, 2 * iterations // 3 if second else iterations)
        if second and ended != REACHED and self.residual is not None:
            first = self.point, self.multipliers, self.residual, self.penalty, ended
            self.penalty = penalty
            self._renew(start)
            self.careful = True
            ended = self._attempt(name, iterations - (len(self.history) - before))
            if self.residual is None or self.residual.total > first[2].total:
                self.point, self.multipliers, self.residual, self.penalty, ended = first
        return ended + self._unmet()

    def _attempt(self, name: str, iterations: int) -> str:
        """Iterate from where a phase was renewed; point, multipliers and residual belong together."""
        ended = self._iterate(name, iterations)
        if ended != REACHED and self.multipliers is not None:
            # steps may have been stretched or shortened: what is reported belongs to where the phase ended
            self.multipliers = least_multipliers(self.program, self.point, self.multipliers)
            self.residual = kkt_residual(self.program, self.point, self.multipliers, ignore=self._ignored(name))
        return ended

    def _unmet(self) -> str:
        """What rows are missed although missing them costs the most it can."""
        missed = (self.sub.violations(self.point) > _MATERIAL) & (self.penalty >= _MOST_PENALTY)
        names = sorted({self.sub.names[k] for k in np.flatnonzero(missed)})
        return f"; from this start these rows cannot be met: {', '.join(names)}" if names else ""

    def _ignored(self, phase: str) -> np.ndarray | None:
        """Rows that are no part of what a phase solves."""
        return self.binary_rows if phase != "binary" else None

    def _iterate(self, name: str, iterations: int) -> str:
        for k in range(iterations):
            if name == "binary":
                self._raise_price()
            # what the last step leaves is reported for the whole
            narrow = self._working if self._narrow_left and k < iterations - 1 else None
            step, backend = self._step(narrow)
            if step is None and narrow is not None:
                narrow, self._narrow_left = None, 0
                step, backend = self._step(None)
            if step is None:
                return "no backend could solve the subproblem"
            self._moving = int(np.count_nonzero((self.sub if narrow is None else narrow.sub).program.free))
            point, multipliers, residual = self._measured(step, name)
            if residual.total <= self.settings.tolerance:
                self._record(name, point, residual, True, backend)
                self.point, self.multipliers, self.residual = point, multipliers, residual
                return REACHED
            self._accept(replace(step, multipliers=multipliers), name, residual, backend)
            self._choose_set(narrow, point, multipliers)
            slow = k + 1 == 3 * iterations // 4 and iterations >= _LONG
            if slow or self.untaken >= _STALL or self.omega.max() > _MOST_CURVATURE:
                if self.renewed == _RENEWALS or self.multipliers is None:
                    return "the merit could not be lowered any more"
                self._renew_penalties(self.multipliers)
        return "iteration limit"

    def _wanted_penalties(self, multipliers: Multipliers) -> FloatArray:
        """The penalties that fit ``multipliers``, shape (rows,)."""
        s = self.settings
        return np.minimum(s.penalty_factor * self.sub.multipliers_of_penalised(multipliers) + s.penalty_floor, _MOST_PENALTY)

    def _renew_penalties(self, multipliers: Multipliers) -> None:
        """A stalled or slow phase goes on carefully, with penalties of today's multipliers: some were raised for rows long met."""
        s = self.settings
        wanted = self._wanted_penalties(multipliers)
        self.penalty = np.where(self.is_binary, self.penalty, wanted)
        self.omega, self.size = np.full(self.sub.rows, _RENEWED_CURVATURE), np.ones(len(self.point))
        self.prox, self.untaken, self.renewed = s.prox_weight, 0, self.renewed + 1
        self.careful, self.half_weight, self._narrow_left = True, 1.0, 0

    def _measured(self, step: Step, phase: str) -> tuple[FloatArray, Multipliers, KktResidual]:
        """Point, multipliers and residual: of the step, or of the same with consistent auxiliary variables, whichever is smaller."""
        points = [step.point]
        if self.restore is not None:
            restored = self.restore(step.point)
            if self._convex_violation(restored) <= max(_CONVEX_TOLERANCE, self._convex_violation(step.point)):
                points.append(restored)
        multipliers = [least_multipliers(self.program, point, step.multipliers) for point in points]
        residuals = [kkt_residual(self.program, *pair, ignore=self._ignored(phase)) for pair in zip(points, multipliers, strict=True)]
        best = int(np.argmin([residual.total for residual in residuals]))
        return points[best], multipliers[best], residuals[best]

    def fractional(self) -> float:
        """Largest distance of a binary to 0 or 1."""
        z = self.point[self.binaries]
        return float(np.minimum(z, 1.0 - z).max(initial=0.0))

    def _raise_price(self) -> None:
        s = self.settings
        if self.price == 0.0:
            self.price = s.binary_price
        elif self.untaken == 0 and self.fractional() > WHOLE:
            self.price = min(self.price * s.binary_growth, s.binary_most)
        self.penalty[self.is_binary] = self.price

    def return_to(self, point: FloatArray, multipliers: Multipliers) -> None:
        """Back to an earlier point of the relaxation, where binaries have no price."""
        self.point, self.multipliers, self.price = point, multipliers, 0.0
        self.penalty = np.where(self.is_binary, 0.0, self.penalty)

    def go_on_with(self, point: FloatArray, frozen: np.ndarray, iterations: int) -> None:
        """A few steps from ``point`` in which the variables of the mask ``frozen`` stay; penalties and multipliers go on.

        For diving, whose points differ from the last one in a few binaries: no residual is reached, nor asked for.
        """
        self.point, self.untaken, self.prox = np.clip(point, self.program.lower, self.program.upper), 0, self.settings.prox_weight
        self.size, self.half_weight = np.ones(len(point)), 1.0
        for k in range(iterations):
            asleep = frozen.copy()
            if self.dormant is not None and k % (_FEW_NARROW + 1):
                asleep[self.dormant(self.point)] = True
            self._moving = int(np.count_nonzero(self.program.free & ~asleep))
            if self._moving == 0:
                return
            step, backend = self._step(working_set(self.sub, self.point, np.flatnonzero(asleep)))
            if step is None:
                return
            point, multipliers, residual = self._measured(step, "dive")
            self._accept(replace(step, multipliers=multipliers), "dive", residual, backend)
            if self.untaken > _FEW_NARROW:
                return

    def _choose_set(self, narrow: WorkingSet | None, point: FloatArray, multipliers: Multipliers) -> None:
        """Which variables may move in the next step, after one on ``narrow`` (or the whole) that proposed ``point``."""
        last = self.history[-1]
        gain = last.merit_before - last.merit_after if last.taken else 0.0
        if narrow is not None:
            # a step that gains little may want what is left out
            self._narrow_left = self._narrow_left - 1 if gain > _NARROW_SHARE * self._whole_gain else 0
            if kkt_residual(narrow.sub.program, point, multipliers, ignore=self.binary_rows).total <= self.settings.tolerance:
                self._narrow_left = 0
            return
        self._whole_gain = gain
        if self.dormant is not None and not self.careful and self.taken >= _SETTLED[0] and self.untaken == 0:
            asleep = np.zeros(len(self.point), dtype=bool)
            asleep[self.dormant(self.point)] = True
            if not np.any(self.program.free & ~asleep):
                return
            woken = np.any(self._asleep & ~asleep)
            self._narrow_steps = _FEW_NARROW if woken else min(2 * self._narrow_steps, _MOST_NARROW)
            self._asleep, self._narrow_left = asleep, self._narrow_steps
            self._working = working_set(self.sub, self.point, np.flatnonzero(asleep))

    def _step(self, narrow: WorkingSet | None) -> tuple[Step | None, str]:
        """The model's minimiser; another backend, and then a stronger convexity, is tried where one fails numerically."""
        v, s = self.point, self.settings
        sub, rows = (self.sub, np.arange(self.sub.rows)) if narrow is None else (narrow.sub, narrow.rows)
        penalty, omega = self.penalty[rows], self.omega[rows]
        weight = np.where(self.is_binary[rows], 0.0, penalty)
        half = None
        if s.surrogate == "halves" and self.multipliers is not None:
            half = np.sqrt(self.half_weight) * sub.convex_half(v, self.multipliers, self.size)
        # a second try with more convexity costs a fraction of what a first-order backend does
        tries = [(s.backend, 1.0), (s.backend, 10.0)]
        if self.helped < _MOST_HELP:
            tries += [(name, 1.0) for name in FALLBACKS if name != s.backend]
        for backend, stronger in tries:
            diagonal = stronger * (self.prox + sub.curvature(v, omega * weight, self.size))
            step = sub.solve(v, diagonal, penalty, half=half, backend=backend)
            if step is not None:
                if (backend, stronger) != tries[0]:
                    self.helped += backend != s.backend
                    how = backend if stronger == 1.0 else f"{backend} with {stronger:g} times the curvature"
                    self.fallbacks.append(f"iteration {len(self.history)}: {s.backend} failed, {how} solved")
                if narrow is not None and self.multipliers is not None:
                    step = narrow.widened(step, v, self.penalty, self.multipliers)
                return step, backend
        return None, s.backend

    def _accept(self, step: Step, phase: str, residual: KktResidual, backend: str) -> None:
        """Take the step, or the multiple of it that the rule says, if the merit falls; adapt curvature and penalties."""
        v, adaptive = self.point, self.settings.step_rule == "adaptive"
        before = self.sub.merit(v, self.penalty)
        promised = before - step.model
        mends = self._convex_violation(v) > _MATERIAL
        if mends:
            # the start lies outside the convex rows, which the merit does not know: the first step goes inside, whatever it costs
            point, after, taken = step.point, self.sub.merit(step.point, self.penalty), True
        elif adaptive:
            point, after = self._best_along(step, before, promised)
            taken = before - after >= _FAIR_SHARE * promised and after < before
            whole = (before - self.sub.merit(step.point, self.penalty)) / promised if promised > 0 else 0.0
            if not (self._adapt_half(whole) and taken):
                self._adapt_curvature(step, promised, (before - after) / promised if promised > 0 else 0.0, taken)
        else:
            point = v + self.step_length * (step.point - v)
            after = self.sub.merit(point, self.penalty)
            taken = after < before
            self.step_length *= 1.0 - self.settings.diminish * self.step_length
            if not taken:
                self.omega = self.omega * 4.0
        self._record("mend" if mends else phase, point, residual, taken, backend, before, after)
        self.untaken = 0 if taken else self.untaken + 1
        if taken:
            self.point, self.multipliers, self.residual = point, step.multipliers, residual
            self.taken += 1
            moved = np.abs(step.point - v)
            largest = float(moved.max())
            # far from the end, where steps are long, all variables are alike
            relative = np.maximum(moved / max(largest, 1e-300), _FORGET * self.size).clip(_SLOW, 1.0) if largest < _SHORT_STEP else 1.0
            size = np.where(self._at_bound(v) & self._at_bound(step.point), _STUCK, relative)
            self.size = np.where(self._asleep & (moved == 0.0), self.size, size)
            self._adapt_penalties(step.multipliers)

    def _best_along(self, step: Step, before: float, promised: float) -> tuple[FloatArray, float]:
        """The step, stretched, halved or restored where that lowers the merit more; all of them within the convex rows."""
        v, best = self.point, (step.point, self.sub.merit(step.point, self.penalty))
        limit = max(_CONVEX_TOLERANCE, self._convex_violation(step.point), self._convex_violation(v))
        for k in range(self.settings.doublings + 1):
            best, better = self._better(best, np.clip(v + 2.0**k * (step.point - v), self.program.lower, self.program.upper), limit)
            if not better and k > 0:
                break
        if before - best[1] < _SHORT_SHARE * promised:
            for k in range(1, _HALVINGS + 1):
                best, better = self._better(best, v + 0.5**k * (step.point - v), limit)
                if not better and best[1] < before:
                    break
        return best

    def _better(self, best: tuple[FloatArray, float], proposed: FloatArray, limit: float) -> tuple[tuple[FloatArray, float], bool]:
        """``best`` (point, merit) or, if lower, ``proposed`` as it is or restored, and whether that was so."""
        found = best
        for point in (proposed, *([] if self.restore is None else [self.restore(proposed)])):
            if self._convex_violation(point) <= limit:
                merit = self.sub.merit(point, self.penalty)
                found = (point, merit) if merit < found[1] else found
        return found, found is not best

    def _adapt_half(self, share: float) -> bool:
        """Set the weight of the convex halves by the ``share`` of the promise that the whole step keeps; True: they were too flat."""
        if self.careful or self.settings.surrogate != "halves" or self.multipliers is None:
            return False
        flat = share < _POOR_SHARE and self.half_weight < 1.0
        if share > _CLOSE_SHARE:
            self.half_weight = max(self.half_weight / _HALF_SHRINK, _LEAST_HALF)
        elif share < _POOR_SHARE:
            self.half_weight = min(self.half_weight * _HALF_GROW, 1.0)
        return flat

    def _convex_violation(self, v: FloatArray) -> float:
        """Largest violation of the rows that subproblems keep; not a number where a point is none."""
        p = self.program
        if not np.all(np.isfinite(v)):
            return np.inf
        bounds = max(float(np.max(p.lower - v)), float(np.max(v - p.upper)))
        equal = float(np.abs(p.convex_equalities.values(v)).max(initial=0.0))
        flat = np.ones(len(p.affine), dtype=bool)
        groups = [p.quotients.values(v)]
        if self.sub.exponential:
            groups.append(p.rates.values(v))
        else:
            flat[p.affine.exp_row] = False
        return max(bounds, equal, float(p.affine.values(v)[flat].max(initial=0.0)), *(float(g.max(initial=0.0)) for g in groups))

    def _adapt_curvature(self, step: Step, promised: float, share: float, taken: bool) -> None:
        """Rows that are missed by more than the model said get more curvature, all others less when the step was good."""
        if not taken and promised < _NOISE * max(1.0, abs(step.model)):
            # what the model promises drowns in the backend's accuracy: it is too curved to see further, not too flat to be trusted
            self.omega = np.maximum(self.omega / 30.0, _LEAST_CURVATURE)
            self.prox = max(self.prox / 30.0, 1e-2 * self.settings.least_prox)
            return
        if taken and share > _GOOD_SHARE:
            self.omega = np.maximum(self.omega / 3.0, _LEAST_CURVATURE)
        else:
            missed = self.penalty * (self.sub.violations(step.point) - step.slack)
            guilty = missed > min(_ROW_SHARE * promised, 0.5 * missed.max())
            raised = np.maximum(self.omega * (2.0 if taken else 4.0), _NOTICED_CURVATURE)
            self.omega = np.where(guilty, raised, self.omega)
        s = self.settings
        if taken and share > _GOOD_SHARE:
            self.prox = max(self.prox / 3.0, min(s.least_prox, s.prox_weight))
        elif not taken:
            self.prox = min(self.prox * 4.0, s.prox_weight)

    def _at_bound(self, v: FloatArray) -> np.ndarray:
        """Mask of the variables at one of their bounds."""
        return (v - self.program.lower < _AT_BOUND) | (self.program.upper - v < _AT_BOUND)

    def _adapt_penalties(self, multipliers: Multipliers) -> None:
        """Rows at a multiple of their multipliers: set while these settle, then only raised where one comes near its penalty."""
        s = self.settings
        wanted = self._wanted_penalties(multipliers)
        short = wanted - s.penalty_floor > 0.9 * s.penalty_factor * self.penalty
        renew = np.ones_like(short) if self.taken in _SETTLED else short
        self.penalty = np.where(renew & ~self.is_binary, wanted, self.penalty)

    def _record(
        self, phase: str, point: FloatArray, residual: KktResidual, taken: bool, backend: str,
        before: float | None = None, after: float | None = None,
    ) -> None:  # fmt: skip
        before = self.sub.merit(self.point, self.penalty) if before is None else before
        record = NativeRecord(
            iteration=len(self.history), phase=phase, merit_before=before,
            merit_after=self.sub.merit(point, self.penalty) if after is None else after, taken=taken,
            objective=self.program.objective(point), step_norm=float(np.abs(point - self.point).max()),
            infeasibility=float(self.sub.violations(point)[~self.is_binary].max(initial=0.0)), fractional=self.fractional(),
            residual=residual.total, curvature=float(self.omega.max()), backend=backend, variables=self._moving,
        )  # fmt: skip
        self.history.append(record)
        if self.on_iteration is not None:
            self.on_iteration(record, self.point if not taken else point)
