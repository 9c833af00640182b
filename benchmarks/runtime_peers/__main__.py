"""``python -m benchmarks.runtime_peers``: local steps per second of our training and of federated-learning simulators, side by side.

The common workload (100 clients of 600 MNIST images, 20 a round, 10 local steps of batch 32). Exit codes: 0 twice as fast as the fastest
peer for every model; 1 not so; 2 bad usage; 4 something is missing, such as every peer; 130 interrupted (what was done is still printed
and written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.arguments import at_least, positive
from benchmarks.output import run_and_deliver
from benchmarks.runtime.workload import load_workload
from benchmarks.runtime_peers.compare import Case, Limits, Way, compare
from benchmarks.runtime_peers.registry import PEERS
from benchmarks.runtime_peers.table import missed, print_cases, results_text
from benchmarks.runtime_peers.task import Task
from fl_runtime.models import model_names

__all__ = ["main"]

MODELS = ("softmax", "mlp", "cnn")
#: What is returned if no peer ran.
MISSING = 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime_peers", description="Compare training with FL simulators.")
    names = ", ".join(model_names())
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(model_names()), metavar="MODEL", help=f"of {names}")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--samples", type=at_least(1), default=8, metavar="N", help="samples of each way, of about a second (default: 8)")
    limit = "seconds for a peer to start, or for one answer (default: 180)"
    parser.add_argument("--time-limit", type=positive, default=180.0, metavar="S", help=limit)
    threads = "leave out the ways with torch's own threads, which crawl on a busy machine"
    parser.add_argument("--no-torch-threads", action="store_true", help=threads)
    waiting = "before a sample, wait at most so long for a quiet machine (default: 0)"
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help=waiting)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; what the process returns."""
    options = _parser().parse_args(arguments)
    limits = Limits(options.samples, limit_s=options.time_limit, wait_s=options.wait)
    peers = [PEERS[name] for name in options.peers]
    if options.no_torch_threads:
        peers = [replace(peer, modes=tuple(mode for mode in peer.modes if mode.one_thread)) for peer in peers]
    rivals: list[Way] = []

    def results() -> Iterator[Case]:
        for model in options.models:
            case = compare(Task(model), peers, limits, tell=_tell)
            yield case
            if case.interrupted:
                raise KeyboardInterrupt

    def deliver(cases: list[Case], interrupted: bool) -> tuple[str, bool]:
        rivals.extend(case.fastest for case in cases if case.fastest)
        lines, source = missed(cases), load_workload(1, 1).source
        print_cases(cases, source, lines)
        return results_text(cases, source, lines, interrupted=interrupted), bool(lines)

    code = run_and_deliver("runtime_peers", options.output, results, deliver)
    return code if rivals or code else MISSING


if __name__ == "__main__":
    sys.exit(main())
