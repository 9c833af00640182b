"""``python -m benchmarks.studies STUDY``: one study, gone on with where an earlier run of it stopped.

Exit codes: 0 done; 2 bad usage; 4 something is missing; 130 interrupted (what was done is kept and shown).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from threadpoolctl import threadpool_limits

from benchmarks.arguments import INTERRUPTED, at_least, check_results_file, positive
from benchmarks.studies.frame import Options, Study, run_items, show
from schedopt.errors import InputError, SchedOptError

__all__ = ["STUDIES", "get_study", "main"]

#: in the order of the README; each a module with its ``STUDY``
STUDIES = ("misestimation", "importance", "heterogeneity", "drift", "start", "scale")
RESULTS = Path(__file__).resolve().parent.parent / "results"


def get_study(name: str) -> Study:
    """The study called ``name``. Raises :class:`~schedopt.errors.InputError` that lists the names if there is none."""
    if name not in STUDIES:
        raise InputError(f"study = {name!r}; must be one of {', '.join(STUDIES)}")
    return import_module(f"benchmarks.studies.{name}").STUDY


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}; must be NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description="Run a study.")
    parser.add_argument("study", metavar="STUDY", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--short", action="store_true", help="few points and seeds")
    parser.add_argument("--seeds", type=at_least(1), metavar="N", help="seeds (default: the study's)")
    parser.add_argument("--time-limit", type=positive, metavar="S", help="seconds of a solve (default: the study's)")
    parser.add_argument("--problems", nargs="+", default=[], metavar="NAME", help="problems, where the study takes some")
    only = "measure only items with these values (NAME=VALUE ...); a name given twice means either"
    parser.add_argument("--only", nargs="+", type=_named, default=[], metavar="NAME=VALUE", help=only)
    parser.add_argument("-o", "--output", metavar="FILE", help="results, kept after every item (default: benchmarks/results/STUDY.json)")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the picture here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; what the process returns."""
    options = _parser().parse_args(arguments)
    try:
        study = get_study(options.study)
        if options.plot and not _has_matplotlib():
            raise InputError("--plot: needs matplotlib; pip install 'schedopt[report]'")
        output = options.output or str(RESULTS / f"study_{study.name}{'_short' if options.short else ''}.json")
        check_results_file(output)
        if options.fresh:
            Path(output).unlink(missing_ok=True)
        chosen = Options(options.short, options.seeds, options.time_limit, tuple(options.problems), tuple(options.only))
        with threadpool_limits(1):
            records, interrupted = run_items(study, chosen, output, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except SchedOptError as error:
        print(f"studies: {error}", file=sys.stderr)
        return error.exit_code
    show(study, records, picture=options.plot)
    return INTERRUPTED if interrupted else 0


def _has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


if __name__ == "__main__":
    sys.exit(main())
