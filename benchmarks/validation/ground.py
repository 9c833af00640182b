"""Where schedules are compared: data on devices, a model, a problem with measured constants and a step size that is a regime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl_runtime.calibrate.geometry import LossGeometry
from fl_runtime.datasets import Dataset, load_dataset, make_dataset
from fl_runtime.device_data import TaskData, make_task_data
from fl_runtime.drift import DriftSpec
from fl_runtime.models import build_model, initial_parameters, num_parameters
from fl_runtime.partition import PartitionSpec
from fl_runtime.task_run import DATA_STREAM, MODEL_STREAM, seed_of
from fl_runtime.training import LocalJob, LocalTrainer
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import FloatArray, Problem

__all__ = ["DEVICES", "MODELS", "PARTITIONS", "RATIOS", "SLOTS", "STEPS", "Cell", "Ground", "cells", "make_ground"]

DEVICES, SLOTS, SAMPLES, STEPS, STALENESS = 10, 40, 400, 10, 5
#: what is used of a data set
TRAIN, TEST = 12_000, 1_000
#: regimes: η β e at the most steps; the first meets C1
RATIOS = (0.05, 0.6, 4.0, 10.0)
MODELS = ("softmax", "mlp", "cnn")
PARTITIONS = ("dirichlet:0.1", "dirichlet:0.3", "dirichlet:10")
#: cycles per sample: no batch gives way to time
CYCLES = 5.0e5
#: constants are averages over so many points, each so many steps of so large a batch after the last, and over so many samples a device
POINTS, STRIDE, BATCH, SINGLES, CURVED = 4, 100, 32, 48, 1_000
GAP_STREAM = 99


@dataclass(frozen=True)
class Cell:
    """What schedules are compared in; ``ratio`` is η β e at the most steps, ``draw`` the seed of devices, shares of data and schedules."""

    data: str
    model: str
    ratio: float
    partition: str
    drift: str = ""
    draw: int = 0

    def __str__(self) -> str:
        more = (f", drift {self.drift}" if self.drift else "") + (f", draw {self.draw}" if self.draw else "")
        return f"{self.data}, {self.model}, eta beta e {self.ratio:g}, {self.partition}{more}"

    def to_dict(self) -> dict[str, Any]:
        """As in a record."""
        data = asdict(self)
        return data if self.draw else {name: value for name, value in data.items() if name != "draw"}


def cells(data: list[str], models: list[str], ratios: list[float], partitions: list[str], drift: str = "", draw: int = 0) -> Iterator[Cell]:
    """Every one with every other; the cells that share constants follow one another."""
    for name, model, partition, ratio in product(data, models, partitions, ratios):
        yield Cell(name, model, ratio, partition, drift, draw)


@dataclass(frozen=True)
class Constants:
    """β, F_0(w^0) and, of shape (I,), V and δ: over the points of a short training β is the largest curvature, V and δ² are means."""

    smoothness: float
    gap: float
    variance: FloatArray
    dissimilarity: FloatArray


@dataclass(frozen=True)
class Ground:
    """A cell ready for runs."""

    cell: Cell
    problem: Problem
    data: TaskData
    model: nn.Module


def make_ground(cell: Cell, accept_incomplete: bool = False) -> Ground:
    """Data, model and problem of a cell. Raises :class:`~fl_runtime.errors.DataError` for data that are not there."""
    problem, data, model, constants = _measured(cell.data, cell.model, cell.partition, cell.drift, cell.draw, accept_incomplete)
    entry = problem.to_dict()
    task = entry["tasks"][0]
    bits = 32.0 * num_parameters(model)
    task |= {"smoothness": constants.smoothness, "learning_rate": cell.ratio / (constants.smoothness * STEPS)}
    task |= {"initial_gap": constants.gap, "model_bits": bits}
    for i, device in enumerate(entry["devices"]):
        pair = device["tasks"]["task"]
        pair |= {"gradient_variance": float(constants.variance[i]), "dissimilarity": float(constants.dissimilarity[i])}
    # models of all sizes take about the same time and energy to send: what is compared is training
    entry["spectrum"]["bandwidth_hz"] *= max(1.0, bits / 2.5e5)
    for device in entry["devices"]:
        device["downlink_bps"] *= max(1.0, bits / 2.5e5)
    return Ground(cell, Problem.model_validate(entry), data, model)


@lru_cache(maxsize=1)
def _dataset(name: str, accept_incomplete: bool) -> Dataset:
    here = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = os.environ.get("SCHEDOPT_DATA_DIR") or (here if here.is_dir() else None)
    whole = load_dataset(name, data_dir=folder, download=False, accept_incomplete=accept_incomplete)
    train, test = whole.train_features[:TRAIN], whole.test_features[:TEST]
    labels = whole.train_labels[:TRAIN], whole.test_labels[:TEST]
    return make_dataset(name, train, labels[0], test, labels[1], source=whole.source, num_classes=whole.num_classes)


@lru_cache(maxsize=1)
def _measured(
    data: str, model: str, partition: str, drift: str, draw: int, accept_incomplete: bool
) -> tuple[Problem, TaskData, nn.Module, Constants]:
    dataset = _dataset(data, accept_incomplete)
    samples = min(SAMPLES, len(dataset.train_labels) // (2 * DEVICES))
    settings = GenerateSettings(
        name="validation", devices=DEVICES, tasks=1, task_names=("task",), slots=SLOTS, total_samples=samples * DEVICES, size_dirichlet=4.0,
        max_steps=STEPS, max_staleness=STALENESS, cycles_per_sample=CYCLES, gradient_drift=0.5 if drift else 0.0, drift_spread=0.0,
    )  # fmt: skip
    problem = generate_problem(settings, seed=draw)
    sizes = [int(n) for n in problem.arrays.samples[:, 0]]
    specs = PartitionSpec.parse(partition), DriftSpec.parse(drift)
    held = make_task_data(dataset, sizes, *specs, slots=SLOTS, seed=seed_of(draw, DATA_STREAM, 0))
    net = build_model(model, dataset.shape, dataset.num_classes)
    return problem, held, net, _constants(held, net, problem.arrays.aggregation_weight[:, 0])


def _constants(data: TaskData, net: nn.Module, weight: FloatArray) -> Constants:
    """The constants along a short training on all devices' data together."""
    rng = np.random.default_rng(GAP_STREAM)
    parts = [_tensors(data, i) for i in range(DEVICES)]
    features, labels = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    some = torch.from_numpy(rng.choice(len(labels), min(CURVED, len(labels)), replace=False))
    geometry, w = LossGeometry(net, torch.device("cpu")), initial_parameters(net, seed_of(0, MODEL_STREAM, 0))
    direction = rng.standard_normal(len(w))

    def curvature(at: Tensor) -> float:
        return geometry.largest_curvature(at, features[some], labels[some], direction)[0]

    beta, share = curvature(w), torch.tensor(weight)
    spread, apart = [], []
    with LocalTrainer(net, learning_rate=0.5 / max(beta, 0.5), workers=1) as trainer:
        gap = trainer.evaluate(w, features, labels)[0]
        for point in range(POINTS):
            slopes = torch.stack([trainer.gradient(w, x, y).double() for x, y in parts])
            apart.append((slopes - share @ slopes).norm(dim=1).numpy())
            spread.append([_variance(geometry, w, x, y, rng) for x, y in parts])
            beta = max(beta, curvature(w)) if point else beta
            w = w + trainer.train(w, [LocalJob(features, labels, STRIDE, BATCH, (GAP_STREAM, point))])[0]
    return Constants(beta, gap, np.mean(spread, axis=0), np.sqrt(np.mean(np.square(apart), axis=0)))


def _tensors(data: TaskData, device: int) -> tuple[Tensor, Tensor]:
    features, labels = data.samples(device, 0)
    return torch.from_numpy(features.copy()), torch.from_numpy(labels.copy())


def _variance(geometry: LossGeometry, w: Tensor, features: Tensor, labels: Tensor, rng: np.random.Generator) -> float:
    some = torch.from_numpy(rng.choice(len(labels), min(SINGLES, len(labels)), replace=False))
    return float(geometry.squared_distances(w, features[some], labels[some]).sum()) / max(len(some) - 1, 1)
