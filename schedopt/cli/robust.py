"""``--robust`` of ``schedopt solve``: the worst case is what is solved, the problem as given is what is delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schedopt.cli.output import number

if TYPE_CHECKING:
    from schedopt.problem import Problem
    from schedopt.result import SolveResult
    from schedopt.robust import Margins

__all__ = ["ROBUST_HELP", "Robust"]

ROBUST_HELP = (
    "Constants may be off: limits=SHARE (0.2 = 20 %) leaves room in the limits of frequency, power and energy; SHARE solves for the worst"
    " that all but smoothness can be, NAME=SHARE,... for that of a constant, physical or all. Every upload can then be made."
)


@dataclass(frozen=True)
class Robust:
    """Margins, and ``problem``, the worst case that they allow of a given one, with room in its limits."""

    margins: Margins
    problem: Problem

    @classmethod
    def of(cls, given: Problem, text: str) -> Robust:
        """From what the command line says. Raises :class:`~schedopt.errors.InputError` for margins that are none."""
        from schedopt.errors import InputError
        from schedopt.robust import Margins, worst_case

        try:
            margins = Margins.parse(text)
        except InputError as error:
            raise InputError(f"--robust {text}: {error}") from error
        return cls(margins, worst_case(given, margins))

    def as_given(self, given: Problem, result: SolveResult) -> SolveResult:
        """The result for the problem as given: its own objective, and nothing that was proven or measured on another problem."""
        from schedopt.objective import evaluate_objective
        from schedopt.robust import delivered

        if result.schedule is None:
            return result.replace(reason=f"in the worst case of {self.margins}: {result.reason or 'no feasible schedule was found'}")
        schedule = delivered(given, result.schedule, self.margins)
        objective = evaluate_objective(given, schedule).objective
        return result.replace(schedule=schedule, objective=objective, lower_bound=None, lower_bound_method=None, kkt_residual=None)

    def summary(self, result: SolveResult) -> dict[str, Any]:
        """What ``--json`` says of the worst case, of which ``result`` is."""
        return {
            "margins": vars(self.margins),
            "objective": result.objective,
            "lower_bound": result.lower_bound,
            "gap": result.gap,
            "lower_bound_method": result.lower_bound_method,
        }

    def line(self, result: SolveResult, bound_text: str) -> str:
        """What the table says of it; ``bound_text``: of its lower bound."""
        what = "worst case" if any(getattr(self.margins, name) for name in self.margins.names()) else "with room"
        return f"{what:<14}{number(result.objective)} with {self.margins}; lower bound {bound_text}"
