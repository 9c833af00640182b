r"""Problem P on the scheduling tensors, relaxed: the published route (formulation 4a) as a smooth program.

Per (device, task, slot g) there are the relaxed binaries R (received at instant g), U (uploaded at the end of slot g), the occupancy
Π of the slot, and the time a in slots since the reception of the assignment that runs in it,

    Π_g = Π_{g−1} − U_{g−1} + R_g,    a_g = Π_g + a_{g−1} (1 − R_g),    a_{−1} free,

so that a restarts with each reception, and waits where nothing runs. At a steady flow of fractional assignments a = Π/R, their mean
length. (With U_g a_g handed back at uploads instead, a would have to be zero where nothing runs; no assignment could then begin to first
order, and multipliers would grow without bound.) Besides there are e, B, f, p, W of an upload at the end of the slot, should there be
one. With y = e B, times T (compute) and S (send), rate r(W, p),

    T f ≥ c y,   S r ≥ M,   U (T_dl + T + S) ≤ τ U a,   E0 ≥ ½ κ c y f² + p S + p_rx T_dl,   E ≥ U E0,   Σ U W ≤ band,   Ψ H ≥ (8/3)(C + N).

Resources are those of an upload that may or may not happen, and U gates what they cost: were they zero without an upload, S r ≥ M U
would have no constraint qualification at U = 0 and its multipliers would grow without bound. All non-convexities are products of two
variables (and the exponential in A(e) with a proximal term): longer products go through auxiliary variables. At binary R, U the program
is P itself, T_stale and C2 included; ``z(1 − z) ≤ 0`` makes them binary.

With ``logs`` the monomials in e, B and f go through logarithms instead: e = exp(ε) and so on, so that U e B, f² and 1/B need fewer
products of three. Variables are scaled to about one; :attr:`NativeProblem.scale` gives the unit of each block.
"""

from __future__ import annotations

import numpy as np

from schedopt.formulation.native.bound_rows import bound_rows, error_rows
from schedopt.formulation.native.problem import TENSORS, NativeProblem
from schedopt.formulation.native.rows import binary_rows, cost_of, scheduling_rows, time_and_energy_rows
from schedopt.formulation.native.variables import Build, declare_variables
from schedopt.formulation.nlp import Program, RateRows, RowBuilder
from schedopt.problem import Problem

__all__ = ["TENSORS", "NativeProblem", "build_native"]


def build_native(problem: Problem, *, logs: bool = False) -> NativeProblem:
    """The relaxed program of ``problem`` (formulation 4a); ``logs``: batch, frequency and their monomials through logarithms.

    Aggregation by the rule ``mixing`` is scheduled as ``delta`` (formulation 2), as everywhere in the solvers.
    """
    build = Build(problem, logs)
    declare_variables(build)
    equalities, affine = RowBuilder(build.size), RowBuilder(build.size)
    hard, soft = RowBuilder(build.size), RowBuilder(build.size)
    scheduling_rows(build, equalities, affine, hard)
    time_and_energy_rows(build, affine, hard, soft)
    error_rows(build, equalities, hard, soft)
    quotients = bound_rows(build, equalities, affine, soft)
    cost, cost_scale = cost_of(build, affine)
    binary_rows(build, soft)
    none = np.zeros(0, dtype=np.int64)
    w, p, r = (build.blocks[name].ravel() for name in ("bandwidth", "power", "rate"))
    rates = RateRows(r, w, p, build.snr.ravel(), ("rate",) * len(r)) if len(r) else RateRows(none, none, none, none.astype(float), ())
    program = Program(
        cost=cost,
        lower=np.concatenate(build.lower),
        upper=np.concatenate(build.upper),
        convex_equalities=equalities.build(),
        affine=affine.build(),
        quotients=quotients,
        rates=rates,
        nonconvex_equalities=hard.build(),
        nonconvex_inequalities=soft.build(),
    )
    return NativeProblem(problem, program, build.device, build.task, build.blocks, build.scale, cost_scale, logs)
