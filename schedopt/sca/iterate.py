"""What a run of the native route leaves behind, so that anybody can recompute its KKT residual."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from schedopt.errors import InputError
from schedopt.formulation.native import build_native
from schedopt.formulation.nlp import Program
from schedopt.problem import FloatArray, Problem
from schedopt.sca.kkt import KktResidual, kkt_residual
from schedopt.sca.native_step import Multipliers

__all__ = ["NativeIterate"]


@dataclass(frozen=True)
class NativeIterate:
    """Points (scaled variables) with multipliers: where the relaxation ended, and the final one with whole binaries, if there is one.

    ``logs``: which form of the program; ``problem_digest``: of the problem it belongs to.
    """

    problem_digest: str
    logs: bool
    relaxed: FloatArray
    relaxed_multipliers: Multipliers
    final: FloatArray | None = None
    final_multipliers: Multipliers | None = None

    def residuals(self, problem: Problem) -> tuple[KktResidual, KktResidual | None]:
        """KKT residuals of the relaxation (0 ≤ z ≤ 1) and of the program with z − z² ≤ 0, from ``problem`` alone.

        Raises :class:`~schedopt.errors.InputError` if ``problem`` is another one, or arrays do not fit it.
        """
        if problem.digest != self.problem_digest:
            raise InputError(f"the iterate belongs to a problem with digest {self.problem_digest[:12]}, not {problem.digest[:12]}")
        program = build_native(problem, logs=self.logs).program
        self._check(program)
        binary = program.binary_rows
        relaxed = kkt_residual(program, self.relaxed, self.relaxed_multipliers, ignore=binary)
        if self.final is None or self.final_multipliers is None:
            return relaxed, None
        return relaxed, kkt_residual(program, self.final, self.final_multipliers)

    def _check(self, program: Program) -> None:
        """Every array must be as long as what it belongs to, and numbers."""
        lengths = {"relaxed": program.variables, "final": program.variables}
        for name, values in self.arrays().items():
            owner, _, rows = name.partition(".")
            wanted = len(getattr(program, rows)) if rows else lengths.get(owner)
            if wanted is None:
                continue
            numbers = np.issubdtype(values.dtype, np.floating) and values.shape == (wanted,) and np.all(np.isfinite(values))
            if not numbers:
                raise InputError(f"{name}: {values.shape} {values.dtype}; must be {wanted} finite numbers")

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for a file; :meth:`from_arrays` reads them back."""
        found = {"problem_digest": np.array(self.problem_digest), "logs": np.array(self.logs), "relaxed": self.relaxed}
        found |= {f"relaxed.{field.name}": getattr(self.relaxed_multipliers, field.name) for field in fields(Multipliers)}
        if self.final is not None and self.final_multipliers is not None:
            found["final"] = self.final
            found |= {f"final.{field.name}": getattr(self.final_multipliers, field.name) for field in fields(Multipliers)}
        return found

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> NativeIterate:
        """The iterate of :meth:`arrays`. Raises :class:`KeyError` if one is missing."""

        def multipliers(name: str) -> Multipliers:
            return Multipliers(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(Multipliers)})

        final = ("final" in arrays) or None
        return cls(
            problem_digest=str(arrays["problem_digest"]),
            logs=bool(arrays["logs"]),
            relaxed=arrays["relaxed"],
            relaxed_multipliers=multipliers("relaxed"),
            final=final and arrays["final"],
            final_multipliers=final and multipliers("final"),
        )
