"""CPU cycles that one sample of one SGD step costs, timed on this machine."""

from __future__ import annotations

import copy
import re
import time
from pathlib import Path

import numpy as np
import torch

from fl_runtime.calibrate.pilots import PilotBench
from fl_runtime.training import LocalJob, LocalTrainer
from schedopt.errors import InputError

__all__ = ["BATCHES", "cycles_per_sample", "cpu_frequency_hz"]

#: Mini-batches that are timed; what goes into the file is timed at the middle one.
BATCHES = (8, 32, 128)
#: A measurement takes at least this long; the least of so many counts, for nothing but other programs makes a step longer.
SECONDS, REPEATS = 0.1, 3

_FREQUENCY_FILES = (Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),)
_CPUINFO = Path("/proc/cpuinfo")


def cpu_frequency_hz() -> float:
    """The frequency that the system tells of the first CPU, in Hz. Raises :class:`~schedopt.errors.InputError` where it tells none."""
    for path in _FREQUENCY_FILES:
        try:
            return 1e3 * float(path.read_text())
        except (OSError, ValueError):
            continue
    try:
        found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _CPUINFO.read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise InputError("--time-cycles: this system does not tell the frequency of its CPU; give it by --cpu-hz")
    return float(found[1]) * 1e6


def cycles_per_sample(bench: PilotBench, task: int, cpu_hz: float) -> dict[int, float]:
    """Cycles a sample of local SGD (forward, backward, update; autograd in one thread) by mini-batch: seconds times ``cpu_hz``.

    Batches that exceed the largest device's data are cut to them.
    """
    data, device = bench.data[task], int(np.argmax(bench.data[task].sizes))
    arrays = data.samples(device, 0)
    features, labels = torch.from_numpy(arrays[0].copy()), torch.from_numpy(arrays[1].copy())
    rate = bench.problem.tasks[task].learning_rate
    found = {}
    model = copy.deepcopy(bench.trainers[task].model).cpu()
    with LocalTrainer(model, learning_rate=rate, path="sequential", workers=1) as trainer:
        start = bench.initial_model(task, bench.seed).cpu()
        for batch in sorted({min(size, len(labels)) for size in BATCHES}):

            def seconds(steps: int, batch: int = batch) -> float:
                job = LocalJob(features, labels, steps, batch, (0,))
                begun = time.perf_counter()
                trainer.train(start, [job])
                return time.perf_counter() - begun

            seconds(1)  # what is made at the first call
            steps = max(1, round(10 * SECONDS / max(seconds(10), 1e-6)))
            found[batch] = min(seconds(steps) for _ in range(REPEATS)) / (steps * batch) * cpu_hz
    return found
