"""``python -m benchmarks.peers``: our solvers and general-purpose optimisers on the same small problems, side by side.

Exit codes: 0 done, whatever the peers did; 2 bad usage or a problem that cannot be used; 130 interrupted (what was done is still
printed and written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.arguments import INTERRUPTED, check_results_file, load_named, positive
from benchmarks.peers.model import require_weighted
from benchmarks.peers.registry import PEERS
from benchmarks.peers.table import Settings, compare, print_comparison, results_text
from schedopt.errors import SchedOptError
from schedopt.io import write_text
from schedopt.problem import Problem

__all__ = ["main"]

DEFAULT = ("tiny_2dev_1task", "tiny_3dev_2task", "small_4dev_2task")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare with general-purpose optimisers.")
    names = f"names in problems/ or files; default: {' '.join(DEFAULT)}"
    parser.add_argument("--problems", nargs="+", default=list(DEFAULT), metavar="NAME", help=names)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--time-limit", type=positive, default=60.0, metavar="S", help="seconds of each solver (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every solver (default: 0)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def _load(name: str) -> Problem:
    problem = load_named(name)
    require_weighted(problem)
    return problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; what the process returns."""
    options = _parser().parse_args(arguments)
    if options.seed < 0:
        print("peers: --seed must be at least 0", file=sys.stderr)
        return 2
    settings = Settings(options.time_limit, options.seed, tuple(options.peers))
    try:
        problems = [_load(name) for name in options.problems]
        check_results_file(options.output)
        results, interrupted = compare(problems, settings, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except SchedOptError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    print_comparison(results)
    if options.output:
        write_text(options.output, results_text(results, settings, interrupted=interrupted))
    return INTERRUPTED if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
