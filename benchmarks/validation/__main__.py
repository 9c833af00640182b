"""``python -m benchmarks.validation``: does the bound steer training? Many schedules are trained; guides are compared with outcomes.

Every run is a line of JSON in the file of ``--runs``; runs that are there are not repeated, so that a study can be stopped and continued.
With ``--decide`` cells are calibrated instead, and what is optimised under the calibration is compared with what is under plain H.
The tables are of all its runs, with ``--analyse`` of those alone that are there. Exit codes: 0 every target reached; 1 a target missed;
2 bad usage; 4 something is missing; 130 interrupted (what was done is still printed and written).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.arguments import at_least, positive
from benchmarks.output import run_and_deliver
from benchmarks.validation.decisions import DecisionResult, Kept, decide
from benchmarks.validation.decisions_table import deliver_decisions
from benchmarks.validation.ground import MODELS, PARTITIONS, RATIOS, Cell, Ground, cells, make_ground
from benchmarks.validation.guides import judge, of_cells
from benchmarks.validation.plot import check_plot, save_pictures
from benchmarks.validation.runs import Record, key_of, open_to_add, read_records, record_of
from benchmarks.validation.schedules import Named, factor_schedules, optimised_schedules, random_schedules
from benchmarks.validation.table import missed, print_results, results_text
from fl_runtime.calibrate.term_choice import LEAST_RUNS
from fl_runtime.datasets import dataset_names
from fl_runtime.training.limits import one_thread
from schedopt.errors import InputError
from schedopt.jsontext import plain
from schedopt.objective import evaluate_objective
from schedopt.schedule import Schedule

__all__ = ["main"]

#: data sets where none are named
DATA = ("mnist", "fashion-mnist")
#: the short set: regimes and partition of softmax regression on the first data set, and random schedules of each
SHORT = (4.0, 10.0), ("dirichlet:0.1",), 30


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description="Compare guides with training.")
    parser.add_argument("--runs", metavar="FILE", help="one line of JSON per run; it is added to (default: nothing is kept)")
    parser.add_argument("--short", action="store_true", help="softmax regression on MNIST in two regimes; a few minutes")
    parser.add_argument("--analyse", action="store_true", help="train nothing; tables of the runs in FILE")
    parser.add_argument(
        "--decide", metavar="FILE", help="calibrate cells, and test schedules optimised under that; FILE keeps what is done"
    )
    told = "of the solver in the tournament and the test of --decide, in seconds (default: 10 30)"
    parser.add_argument("--limits", nargs=2, type=at_least(1), default=(10, 30), metavar=("S", "T"), help=told)
    told = "of the tournament of --decide, at most (default: 96)"
    parser.add_argument("--tournament-runs", type=at_least(LEAST_RUNS), default=96, metavar="N", help=told)
    parser.add_argument("--test-seeds", type=at_least(1), default=10, metavar="N", help="of the test in --decide (default: 10)")
    parser.add_argument("--data", nargs="+", choices=dataset_names(), default=None, metavar="NAME", help="default: mnist fashion-mnist")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=None, metavar="MODEL", help="default: all")
    parser.add_argument("--ratios", nargs="+", type=positive, default=None, metavar="R", help="eta beta e at most (default: 0.05 0.6 4 10)")
    parser.add_argument("--partitions", nargs="+", default=None, metavar="P", help="default: dirichlet:0.1 dirichlet:0.3 dirichlet:10")
    parser.add_argument("--drift", default="", help="change of the data, as of simulate, e.g. labels:0.02 (default: none)")
    parser.add_argument("--schedules", type=at_least(1), default=None, metavar="N", help="random schedules of a cell (default: 40)")
    parser.add_argument("--no-factors", action="store_true", help="leave out schedules in which one thing varies")
    parser.add_argument("--no-optimised", action="store_true", help="leave out optimised schedules")
    parser.add_argument("--seeds", type=at_least(1), default=2, help="of initial models and mini-batches (default: 2)")
    told = "seed of devices, shares of data and random schedules (default: 0, that of the figures in docs/validation.md)"
    parser.add_argument("--draw", type=at_least(0), default=0, help=told)
    parser.add_argument("--jobs", type=at_least(1), default=1, help="processes (default: 1)")
    parser.add_argument("--accept-incomplete", action="store_true", help="take an incomplete CIFAR-10")
    parser.add_argument("--plot", metavar="FOLDER", help="draw pictures into this folder")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the results here as JSON")
    return parser


def _chosen(options: argparse.Namespace) -> list[Cell]:
    ratios, partitions, _ = SHORT if options.short else (RATIOS, PARTITIONS, 0)
    data = options.data or (["mnist"] if options.short else list(DATA))
    models = options.models or (["softmax"] if options.short else list(MODELS))
    return list(cells(data, models, options.ratios or list(ratios), options.partitions or list(partitions), options.drift, options.draw))


def _schedules(options: argparse.Namespace, ground: Ground, done: set[str]) -> Iterator[tuple[str, Schedule]]:
    """Schedules of a cell that some seed has not been trained by yet."""
    problem = ground.problem
    count = options.schedules or (SHORT[2] if options.short else 40)
    random = [(named, named.make()) for named in random_schedules(problem, count, ground.cell.draw)]
    energies = np.array([evaluate_objective(problem, schedule).energy_j for _, schedule in random])
    made: Iterable[Named] = chain(
        () if options.no_factors else factor_schedules(problem),
        () if options.no_optimised else optimised_schedules(problem, energies),
    )
    yield from ((named.name, schedule) for named, schedule in random)
    for named in made:
        if any(_key(ground.cell, named.name, seed) not in done for seed in range(options.seeds)):
            yield named.name, named.make()


def _key(cell: Cell, name: str, seed: int) -> str:
    return key_of({"cell": cell.to_dict(), "schedule": name, "seed": seed})


def _cell_runs(options: argparse.Namespace, done: set[str], cell: Cell) -> Iterator[Record]:
    """The runs of a cell that are still to do."""
    with one_thread(), threadpool_limits(1):  # several threads on matrices as small as these wait for one another
        ground = make_ground(cell, options.accept_incomplete)
        for name, schedule in _schedules(options, ground, done):
            if len(schedule) == 0:
                continue
            for seed in range(options.seeds):
                if _key(cell, name, seed) not in done:
                    yield record_of(ground, name, schedule, seed)


def _all_of_cell(options: argparse.Namespace, done: set[str], cell: Cell) -> list[Record]:
    return list(_cell_runs(options, done, cell))


def _new_runs(options: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    chosen = _chosen(options)
    if options.jobs == 1:
        for number, cell in enumerate(chosen):
            print(f"{number + 1}/{len(chosen)}: {cell}", file=sys.stderr, flush=True)
            yield from _cell_runs(options, done, cell)
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(partial(_all_of_cell, options, done), chosen):
            yield from found


def _decisions(options: argparse.Namespace) -> Iterator[DecisionResult]:
    """Cells calibrated and tested; runs of ``--runs`` are not repeated."""
    records = {key_of(record): record for record in (read_records(Path(options.runs)) if options.runs else ())}
    limits = float(options.limits[0]), float(options.limits[1])
    kept, count, chosen = Kept(Path(options.decide)), options.schedules or 40, _chosen(options)
    for number, cell in enumerate(chosen):
        print(f"{number + 1}/{len(chosen)}: {cell}", file=sys.stderr, flush=True)
        with one_thread(), threadpool_limits(1):
            ground = make_ground(cell, options.accept_incomplete)
            yield decide(ground, records, kept, schedules=count, seeds=options.test_seeds, runs=options.tournament_runs, limits_s=limits)


def _results(options: argparse.Namespace) -> Iterator[Record]:
    known = list(read_records(Path(options.runs))) if options.runs else []
    yield from known
    if options.analyse:
        return
    done = {key_of(record) for record in known}
    if options.runs is None:
        yield from _new_runs(options, done)
        return
    with open_to_add(Path(options.runs)) as file:
        for record in _new_runs(options, done):
            file.write(json.dumps(plain(record), allow_nan=False) + "\n")
            file.flush()
            yield record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; what the process returns."""
    options = _parser().parse_args(arguments)

    def results() -> Iterator[Record]:
        if options.plot:
            check_plot()
        if options.analyse and not (options.runs and Path(options.runs).is_file()):
            raise InputError(f"--analyse: --runs = {options.runs}; must be a file of runs")
        yield from _results(options)

    if options.decide:
        return run_and_deliver("validation", options.output, lambda: _decisions(options), deliver_decisions)

    def deliver(records: list[Record], interrupted: bool) -> tuple[str, bool]:
        found = [judge(cell, mine) for cell, mine in of_cells(records).items()]
        judged = [result for result in found if result is not None]
        lines = missed(judged)
        print_results(judged, records, lines)
        if options.plot and judged:
            save_pictures(options.plot, judged)
        return results_text(judged, records, lines, interrupted=interrupted), bool(lines)

    return run_and_deliver("validation", options.output, results, deliver)


if __name__ == "__main__":
    sys.exit(main())
