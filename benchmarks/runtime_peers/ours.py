"""Our runtime: ``LocalTrainer`` with path "auto" and the merge rule of FedAvg, as ``schedopt simulate`` has them."""

from __future__ import annotations

from itertools import count

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import LEARNING_RATE, Task
from fl_runtime.aggregation import Arrival, merge_rule
from fl_runtime.models import initial_parameters
from fl_runtime.training import LocalTrainer

__all__ = ["run"]


def run(task: Task, gate: Gate) -> None:
    """Train round after round."""
    model = task.model()
    merge = merge_rule("delta")
    with LocalTrainer(model, learning_rate=LEARNING_RATE) as trainer:
        parameters = initial_parameters(model, 0)
        gate.ready(lambda: parameters)
        for number in count():
            jobs = task.workload.jobs(task.setting, number)
            updates = trainer.train(parameters, jobs)
            arrivals = [Arrival(parameters, update, 1 / len(jobs), 0) for update in updates]
            parameters = merge(parameters, arrivals, 1.0)
            gate.after_round(sum(job.steps for job in jobs), lambda now=parameters: now)
