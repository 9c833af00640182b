"""``python -m benchmarks.theory``: real training of softmax regression beside Theorem 1 with the constants of the data.

Every run trains by a feasible schedule that meets C1 and C2, measures (1/H) Σ_g h_g ‖∇F_{g−1}(w^{g−1})‖² and compares it with Ψ, whose
constants are computed from the data on the run's path, and every term of Ψ with what it was. Exit codes: 0 the theorem holds in every
run; 1 it is violated; 2 bad usage; 4 something is missing; 130 interrupted (what was done is still printed and written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from benchmarks.arguments import at_least
from benchmarks.output import run_and_deliver
from benchmarks.theory.runs import Run, full_set, load_source, measure, short_set
from benchmarks.theory.table import print_runs, results_text

__all__ = ["main"]

CONSTANTS = ("smoothness", "initial_gap", "loss_drift", "gradient_variance", "dissimilarity", "gradient_drift")


def _factor(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    if name not in CONSTANTS:
        raise argparse.ArgumentTypeError(f"{text}; must be NAME=FACTOR with a name of {', '.join(CONSTANTS)}")
    return name, float(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.theory", description="Compare real training with Theorem 1.")
    parser.add_argument("--full", action="store_true", help="every setting with every other (360 runs a seed) instead of 37")
    parser.add_argument("--seed", type=at_least(0), default=0, help="first seed of data, schedules and batches (default: 0)")
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="seeds (default: 1)")
    name = "multiply a constant, to see whether a wrong one is noticed"
    parser.add_argument("--understate", type=_factor, action="append", default=[], metavar="NAME=FACTOR", help=name)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; what the process returns."""
    options = _parser().parse_args(arguments)
    understate = dict(options.understate)
    sources: list[str] = []

    def results() -> Iterator[Run]:
        name, source = load_source()
        sources.append(source)
        chosen = full_set if options.full else short_set
        settings = [setting for seed in range(options.seed, options.seed + options.seeds) for setting in chosen(seed)]
        for number, setting in enumerate(settings):
            print(f"{number + 1}/{len(settings)}: {setting}", file=sys.stderr, flush=True)
            yield measure(setting, name, understate)

    def deliver(runs: list[Run], interrupted: bool) -> tuple[str, bool]:
        print_runs(runs, sources[0])
        return results_text(runs, sources[0], understate, interrupted=interrupted), any(run.violations for run in runs)

    return run_and_deliver("theory", options.output, results, deliver)


if __name__ == "__main__":
    sys.exit(main())
