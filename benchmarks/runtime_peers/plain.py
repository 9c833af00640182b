"""What one writes without a framework: the loop of :func:`benchmarks.runtime.workload.plain_round` and a mean."""

from __future__ import annotations

from itertools import count

from benchmarks.runtime.workload import plain_round
from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import Task
from fl_runtime.models import initial_parameters

__all__ = ["run"]


def run(task: Task, gate: Gate) -> None:
    """Train round after round."""
    model = task.model()
    parameters = initial_parameters(model, 0)
    gate.ready(lambda: parameters)
    for number in count():
        jobs = task.workload.jobs(task.setting, number)
        parameters = parameters + plain_round(model, parameters, jobs).mean(0)
        gate.after_round(sum(job.steps for job in jobs), lambda now=parameters: now)
