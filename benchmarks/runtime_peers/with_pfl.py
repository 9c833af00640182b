"""pfl (Apple): ``FederatedAveraging`` on a ``SimulatedBackend``, with its own local training.

It has no shuffling: a client's steps see its first samples, in the same order every round. ``parallel`` is pfl under torchrun, one
process a core; we start them with the variables that torchrun sets.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn

from benchmarks.runtime_peers.gate import Gate
from benchmarks.runtime_peers.task import LEARNING_RATE, Task

__all__ = ["run"]

ENDLESS = 10**9


class _Module(nn.Module):
    """The model as pfl wants it, with a loss; counts the steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.taken = model, 0

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """What a step descends on."""
        self.taken += 1
        return nn.functional.cross_entropy(self.model(features), labels)

    def metrics(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        """Nothing is evaluated, except in the first round, which pfl insists on."""
        return {"samples": len(labels)}

    def vector(self) -> Tensor:
        """The parameters."""
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def steps(self) -> int:
        """Steps since the last call."""
        taken, self.taken = self.taken, 0
        return taken


class _Ranks:
    """The link of processes in a group of ``torch.distributed``."""

    def __init__(self) -> None:
        self.leader = distributed.get_rank() == 0

    def share(self, order: dict[str, Any] | None) -> dict[str, Any]:
        """What the first process has."""
        orders = [order]
        distributed.broadcast_object_list(orders)
        return orders[0] or {}

    def total(self, steps: int) -> int:
        """Sum over the processes."""
        sums = torch.tensor([steps])
        distributed.all_reduce(sums)
        return int(sums)


def _launch(task: Task) -> None:
    """Become the first of several processes and start the others; they end with us, as all are in one group."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(task.workers), "TORCHELASTIC_RUN_ID": "peer"}
    command = [sys.executable, "-m", "benchmarks.runtime_peers.child", __name__, task.to_json()]
    for rank in range(1, task.workers):
        environment = os.environ | ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.environ.update(ranks | {"RANK": "0", "LOCAL_RANK": "0"})


def run(task: Task, gate: Gate) -> None:
    """Train by ``FederatedAveraging.run``."""
    if task.workers > 1:
        _launch(task)
    # pfl makes its group of processes when it is imported
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Passing(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            gate.after_round(module.steps(), module.vector)
            return False, Metrics()

    module = _Module(task.model())
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    pairs = zip(task.workload.features, task.workload.labels, strict=True)
    users = [PyTorchTensorDataset(pair, user_id=str(k)) for k, pair in enumerate(pairs)]
    dataset = FederatedDataset(lambda user: users[user], get_user_sampler("minimize_reuse", list(range(len(users)))))
    rounds = NNAlgorithmParams(ENDLESS, evaluation_frequency=ENDLESS, train_cohort_size=task.per_round, val_cohort_size=0)
    local = NNTrainHyperParams(task.batch, None, LEARNING_RATE, local_num_steps=task.steps)
    if distributed.is_initialized():
        gate.link = _Ranks()
    gate.ready(module.vector)
    algorithm, backend = FederatedAveraging(), SimulatedBackend(dataset, dataset)
    algorithm.run(rounds, backend, model, local, callbacks=[Passing()], send_metrics_to_platform=False)
