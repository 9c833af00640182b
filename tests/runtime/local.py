"""Local updates computed apart from the package: what the paths of the trainer are compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fl_runtime.training import LocalJob
from fl_runtime.training.batches import draw_batches


def make_jobs(
    shape: tuple[int, ...], classes: int, sizes: Sequence[tuple[int, int, int]], seed: int = 0
) -> list[LocalJob]:
    """Jobs of (D, e, B) on random samples."""
    generator = torch.Generator().manual_seed(seed)
    return [
        LocalJob(
            torch.randn(samples, *shape, generator=generator),
            torch.randint(0, classes, (samples,), generator=generator),
            steps,
            batch,
            (seed, 7, number),
        )
        for number, (samples, steps, batch) in enumerate(sizes)
    ]


def softmax_update(start: Tensor, job: LocalJob, classes: int, learning_rate: float, prox: float) -> np.ndarray:
    """Update (P,) of softmax regression in double precision, gradients by the textbook formula (p - y) xᵀ."""
    features = job.features.flatten(1).double().numpy()
    labels = job.labels.numpy()
    width = features.shape[1]
    flat = start.double().numpy()
    anchor, shift = flat[: classes * width].reshape(classes, width), flat[classes * width :]
    weight, bias = anchor.copy(), shift.copy()
    for chosen in draw_batches(job.seed, job.steps, job.batch, job.samples):
        x, y = features[chosen], labels[chosen]
        logits = x @ weight.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(y)), y] -= 1
        weight, bias = (
            weight - learning_rate * (shares.T @ x / len(y) + prox * (weight - anchor)),
            bias - learning_rate * (shares.mean(axis=0) + prox * (bias - shift)),
        )
    return np.concatenate([(weight - anchor).ravel(), bias - shift])


def autograd_update(model: nn.Module, start: Tensor, job: LocalJob, learning_rate: float, prox: float) -> Tensor:
    """Update (P,) by an ordinary loop in double precision: module, loss with its proximal term, torch.optim.SGD."""
    double = copy.deepcopy(model).double()
    anchor = start.double()
    nn.utils.vector_to_parameters(anchor.clone(), double.parameters())
    optimiser = torch.optim.SGD(double.parameters(), lr=learning_rate)
    for chosen in draw_batches(job.seed, job.steps, job.batch, job.samples):
        loss = nn.functional.cross_entropy(double(job.features[chosen].double()), job.labels[chosen])
        distance = nn.utils.parameters_to_vector(double.parameters()) - anchor
        optimiser.zero_grad()
        (loss + prox / 2 * distance.square().sum()).backward()
        optimiser.step()
    return nn.utils.parameters_to_vector(double.parameters()).detach() - anchor


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest distance of a row from what is expected, relative to the latter's length."""
    error = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    return float(error.max())
