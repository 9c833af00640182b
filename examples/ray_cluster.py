"""Solve a large problem with pricing and a multi-start on a Ray cluster.

    pip install 'schedopt[ray]'
    python examples/ray_cluster.py problem.json.gz                      # two workers on this machine
    python examples/ray_cluster.py problem.json.gz --address auto       # on a node of a running cluster (ray start --head)
    python examples/ray_cluster.py problem.json.gz --address ray://head-node:10001 --workers 64

The command line does the first half too: schedopt solve problem.json.gz --solver column_generation --set ray=auto --set workers=64
"""

from __future__ import annotations

import argparse

from schedopt.colgen.workers import map_parallel
from schedopt.io import load_problem
from schedopt.registry import solve
from schedopt.solvers.base import SolverSettings


def one_start(path: str, seed: int) -> tuple[float, int]:
    """Objective that the default solver's search reaches from one seed; runs on a worker, which must be able to read ``path``."""
    result = solve(load_problem(path), seed=seed, settings=SolverSettings(time_limit_s=60.0))
    return result.objective, seed


def main() -> None:
    """Solve with pricing on the cluster; with --starts, several seeds of the default solver there, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem")
    parser.add_argument("--address", default="local", help='as in ray.init; "local" starts a small cluster here')
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--starts", type=int, default=0, help="seeds of the default solver to try beside it")
    options = parser.parse_args()
    switches = {"ray": options.address, "workers": str(options.workers)}
    result = solve(load_problem(options.problem), solver="column_generation", settings=SolverSettings(switches=switches))
    print(f"column_generation: objective {result.objective:.6g}, proven lower bound {result.lower_bound}, {result.wall_s:.1f} s")
    if options.starts:
        arguments = [(options.problem, seed) for seed in range(options.starts)]
        best, seed = min(map_parallel(one_start, arguments, workers=options.workers, address=options.address))
        print(f"best of {options.starts} starts: objective {best:.6g} with seed {seed}")


if __name__ == "__main__":
    main()
