"""The one place that runs conic solvers: backends by name, their settings, licences, and what their statuses mean."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from schedopt.errors import InputError, SolverError

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["BACKENDS", "check_backend", "mosek_licence_problem", "solve_conic"]

#: Settings of each backend; accuracies are what its method reaches reliably on our masters.
BACKENDS: dict[str, dict[str, Any]] = {
    "clarabel": {},
    "ecos": {"abstol": 1e-9, "reltol": 1e-9, "feastol": 1e-9, "max_iters": 200},
    "scs": {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 50_000, "time_limit_secs": 20.0},
    "mosek": {},
}

_ECOS_INTERRUPTED = -4

_REMEDIES = {
    "ecos": "pip install 'schedopt[ecos]' (GPL-3; no wheels for Python 3.13)",
    "mosek": "pip install 'schedopt[mosek]' and a licence (https://www.mosek.com)",
}


def mosek_licence_problem() -> str | None:
    """Why MOSEK cannot be used although installed, or None if an optimisation succeeds (an empty problem is solved)."""
    import mosek

    try:
        with mosek.Env() as env, env.Task(0, 0) as task:
            task.optimize()
    except mosek.MosekException as error:
        return " ".join(str(error).split())
    return None


def check_backend(name: str) -> None:
    """Raise InputError for an unknown backend, SolverError for one that is not installed or not licensed."""
    if name not in BACKENDS:
        raise InputError(f"backend = {name!r}; must be one of {', '.join(BACKENDS)}")
    if find_spec(name) is None:
        raise SolverError(f"backend {name} is not installed; {_REMEDIES.get(name, f'pip install {name}')}, or use --backend clarabel")
    if name == "mosek" and (problem := mosek_licence_problem()):
        raise SolverError(f"backend mosek has no usable licence ({problem}); set MOSEKLM_LICENSE_FILE, or use --backend clarabel")


def _solve_listening(problem: cp.Problem, solver: str, options: dict[str, Any]) -> None:
    """Solve with SCS or ECOS. They catch Ctrl-C themselves while they run, and only their own answer tells of it."""
    data, chain, inverse = problem.get_problem_data(solver, solver_opts=options)
    answer = chain.solve_via_data(problem, data, solver_opts=options)
    info = answer.get("info", {}) if isinstance(answer, dict) else {}
    if "interrupted" in str(info.get("status", "")).lower() or info.get("exitFlag") == _ECOS_INTERRUPTED:
        raise KeyboardInterrupt
    problem.unpack_results(answer, chain, inverse)


def solve_conic(problem: cp.Problem, backend: str) -> bool:
    """Solve in place; True if the solver reports an optimum, False if it says infeasible, inaccurate beyond use, or fails.

    An answer of reduced accuracy counts as an answer: whoever uses it checks it against exact formulas.
    """
    import cvxpy as cp

    solver = backend.upper()
    with warnings.catch_warnings():
        # inaccurate answers are announced as warnings; here the status says so
        warnings.simplefilter("ignore")
        try:
            if backend in ("scs", "ecos"):
                _solve_listening(problem, solver, BACKENDS[backend])
            else:
                problem.solve(solver=solver, **BACKENDS[backend])
        except (cp.error.SolverError, ArithmeticError, RuntimeError, ValueError):
            # failures of the libraries beneath come in all of these
            return False
    return problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
