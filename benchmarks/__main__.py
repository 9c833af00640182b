"""``python -m benchmarks``: run the cases, print tables, write JSON.

Exit codes: 0 every target reached; 1 a target missed; 2 bad usage or a problem file that cannot be read; 130 interrupted (what was
done is still printed and written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.arguments import INTERRUPTED, check_results_file, positive
from benchmarks.cases import CASES, DEFAULT, Case
from benchmarks.drivers import Settings, run_cases
from benchmarks.output import print_results, results_text
from schedopt.errors import InputError, SchedOptError
from schedopt.io import write_text

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmark cases.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"cases to run, of {', '.join(CASES)}; default: {', '.join(DEFAULT)}")
    parser.add_argument("--full", action="store_true", help="run every case")
    parser.add_argument("--seed", type=int, default=0, help="seed of the variants and solvers (default: 0)")
    parser.add_argument("--time-limit", type=positive, default=60.0, metavar="S", help="seconds of each certified solve (default: 60)")
    parser.add_argument("--variants", type=int, default=20, metavar="N", help="random variants of each tiny problem (default: 20)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def _chosen(names: Sequence[str], full: bool) -> list[Case]:
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise InputError(f"case = {unknown[0]!r}; must be one of {', '.join(CASES)}")
    return [CASES[name] for name in (CASES if full else names or DEFAULT)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; what the process returns."""
    options = _parser().parse_args(arguments)
    if options.seed < 0 or options.variants < 1:
        print("benchmarks: --seed must be at least 0 and --variants at least 1", file=sys.stderr)
        return 2
    settings = Settings(seed=options.seed, time_limit_s=options.time_limit, variants=options.variants)
    try:
        cases = _chosen(options.cases, options.full)
        check_results_file(options.output)
        results, interrupted = run_cases(cases, settings, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except SchedOptError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print_results(results, interrupted=interrupted)
    if options.output:
        write_text(options.output, results_text(results, settings, interrupted=interrupted))
    if interrupted:
        return INTERRUPTED
    return int(any(result.missed for result in results))


if __name__ == "__main__":
    sys.exit(main())
