"""``python -m benchmarks.runtime``: client-local-steps per second of every path of the trainer against an ordinary PyTorch loop.

The common workload (100 clients of 600 MNIST images, 20 a round, 10 local steps of batch 32) by every path, or with ``--grid`` path
"auto" in many settings. Exit codes: 0 every target reached; 1 a target missed; 2 bad usage; 4 something is missing; 130 interrupted
(what was done is still printed and written).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence

from benchmarks.arguments import at_least
from benchmarks.output import run_and_deliver
from benchmarks.runtime.measure import Case, measure, ways_of
from benchmarks.runtime.table import missed, print_cases, results_text
from benchmarks.runtime.workload import Setting, Workload, load_workload
from fl_runtime.models import model_names
from fl_runtime.training import PATHS

__all__ = ["main"]

MODELS = ("softmax", "mlp", "cnn")
#: Of --grid: clients a round, steps, batch.
GRID = ((1, 2, 20, 100), (1, 10), (1, 32, 256))
#: Local steps of batch 32 in a round of --grid beyond which fewer samples are taken.
LONG = 100
#: Samples computed with in a round of --grid, at most: the rest would take minutes each.
MOST = 60_000
#: Seconds that "auto" gets to find its way on the common workload: it starts processes after three.
WARM_S = 8.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime", description="Time local training, path by path.")
    names = ", ".join(model_names())
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(model_names()), metavar="MODEL", help=f"of {names}")
    paths = [path for path in PATHS if path != "sequential"]
    parser.add_argument("--paths", nargs="+", default=["sequential", *paths], choices=list(PATHS), metavar="PATH", help="default: all")
    sampling = "samples of each way, of about half a second (default: 10)"
    parser.add_argument("--samples", type=at_least(1), default=10, metavar="N", help=sampling)
    threaded = "also the plain loop with torch's own threads, which crawls on a busy machine"
    parser.add_argument("--torch-threads", action="store_true", help=threaded)
    waiting = "before a sample, wait at most so long for a quiet machine (default: 0)"
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help=waiting)
    parser.add_argument("--grid", action="store_true", help='path "auto" in many settings instead of every path in one')
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def _cases(options: argparse.Namespace, workload: Workload) -> Iterator[Case]:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for model in options.models:
        if not options.grid:
            ways = ways_of(model, options.paths)
            yield measure(
                model,
                Setting(),
                workload,
                ways,
                options.samples,
                wait_s=options.wait,
                threaded=options.torch_threads,
                warm_s=WARM_S,
                tell=tell,
            )
            continue
        for clients, steps, batch in itertools.product(*GRID):
            setting = Setting(clients, steps, batch)
            if setting.total * batch > MOST:
                continue
            samples = options.samples if setting.total * batch <= LONG * 32 else max(3, options.samples // 3)
            tell(f"{model}, {setting}")
            yield measure(model, setting, workload, ["auto"], samples, wait_s=options.wait, threaded=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; what the process returns."""
    options = _parser().parse_args(arguments)
    loaded: list[Workload] = []

    def results() -> Iterator[Case]:
        loaded.append(load_workload())
        yield from _cases(options, loaded[0])

    def deliver(cases: list[Case], interrupted: bool) -> tuple[str, bool]:
        lines, source = missed(cases, common=not options.grid), loaded[0].source
        print_cases(cases, source, lines, grid=options.grid)
        return results_text(cases, source, lines, interrupted=interrupted), bool(lines)

    return run_and_deliver("runtime", options.output, results, deliver)


if __name__ == "__main__":
    sys.exit(main())
