"""Gradients of single samples and the curvature of a loss, for any model, in bounded memory.

By ``torch.func``: gradients of single samples are mapped over pieces of the samples; products of the Hessian with vectors are the
derivative of the gradient, and Lanczos iterations (ARPACK) find its largest eigenvalue from these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional

from fl_runtime.training.layout import Layout
from fl_runtime.training.limits import full_precision, one_thread
from fl_runtime.training.stacked import activation_floats
from schedopt.problem import FloatArray

__all__ = ["LossGeometry"]

#: Bytes of the gradients of single samples that are held at a time on a CPU and on a GPU (small pieces stay in the caches of a CPU).
GRADIENT_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}
#: Bytes of what is kept for Hessian products, and copies of all activations that these are.
GRAPH_BYTES, GRAPH_COPIES = 256 * 2**20, 6
#: Lanczos: relative accuracy, vectors kept, restarts.
ACCURACY, VECTORS, RESTARTS = 0.01, 8, 40

_Product = Callable[[Tensor], Tensor]


class LossGeometry:
    """First and second derivatives of the mean cross-entropy of a model; parameters are flat (P,), float32.

    ``gradient_bytes``, ``graph_bytes``: most that single gradients, and activations for Hessian products, may take (at least one sample).
    """

    def __init__(
        self, model: nn.Module, device: torch.device, *, gradient_bytes: int | None = None, graph_bytes: int = GRAPH_BYTES
    ) -> None:
        self.model, self.layout, self.device = copy.deepcopy(model).to(device).requires_grad_(False), Layout.of(model), device
        self._gradient_bytes = GRADIENT_BYTES[device.type] if gradient_bytes is None else gradient_bytes
        self._graph_bytes = graph_bytes
        self._floats: dict[tuple[int, ...], int] = {}

    def loss(self, parameters: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        named = dict(zip(self.layout.names, self.layout.views(parameters), strict=True))
        return functional.cross_entropy(functional_call(self.model, named, (features,)), labels)

    def squared_distances(self, parameters: Tensor, features: Tensor, labels: Tensor) -> FloatArray:
        """‖∇ℓ_n − ∇L‖² of every sample n, shape (n,); L is their mean loss."""
        with one_thread(), full_precision(self.device):
            parameters, features, labels = parameters.to(self.device), features.to(self.device), labels.to(self.device)
            mean = sum(len(y) / len(labels) * grad(self.loss)(parameters, x, y) for x, y in self._pieces(features, labels))
            if len(labels) == 1:
                return np.zeros(1)

            def of_sample(x: Tensor, y: Tensor) -> Tensor:
                return (grad(self.loss)(parameters, x[None], y[None]) - mean).square().sum()

            held = max(1, self._gradient_bytes // (4 * self.layout.total))
            found = vmap(of_sample, chunk_size=min(held, len(labels)))(features, labels)
            return found.double().cpu().numpy()

    def largest_curvature(self, parameters: Tensor, features: Tensor, labels: Tensor, start: FloatArray) -> tuple[float, FloatArray]:
        """Spectral norm of the Hessian (the eigenvalue of largest size), and its eigenvector (P,).

        ``start`` (P,): where Lanczos iterations begin; the nearer to the eigenvector, the fewer. What is found is never too large (but
        for rounding): it is the size of a Rayleigh quotient.
        """
        with one_thread(), full_precision(self.device):
            parameters = parameters.to(self.device)
            product = self._product(parameters, features.to(self.device), labels.to(self.device))
            best: list[Any] = [0.0, np.asarray(start, float)]

            def multiply(vector: FloatArray) -> FloatArray:
                # torch, which computes in one thread here: those of BLAS wait for one another on vectors of this size
                flat = torch.from_numpy(np.ravel(vector))
                scale = float(flat.norm())
                if scale == 0.0:
                    return np.zeros(len(flat))
                unit = flat / scale
                image = product(unit.to(self.device, torch.float32)).to("cpu", torch.float64)
                quotient = abs(float(unit @ image))
                if quotient > best[0]:
                    best[:] = quotient, unit.numpy()
                return (scale * image).numpy()

            return _extreme(multiply, self.layout.total, best)

    def _product(self, parameters: Tensor, features: Tensor, labels: Tensor) -> _Product:
        """v -> Hessian v. What the product needs of the activations is kept if memory allows, else made anew each time."""

        def of_piece(x: Tensor, y: Tensor) -> _Product:
            # the Hessian is symmetric: the transposed derivative of the gradient is as good
            pull = vjp(lambda w: grad(self.loss)(w, x, y), parameters)[1]
            return lambda v: pull(v)[0].detach()

        pieces = self._pieces(features, labels)
        if len(pieces) == 1:
            return of_piece(*pieces[0])
        return lambda v: sum((len(y) / len(labels) * of_piece(x, y)(v) for x, y in pieces), torch.zeros_like(v))

    def _pieces(self, features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Samples in pieces whose activations fit into memory."""
        shape = tuple(features.shape[1:])
        if shape not in self._floats:
            self._floats[shape] = activation_floats(self.model, shape, self.device) + features[0].numel()
        size = max(1, self._graph_bytes // (4 * GRAPH_COPIES * self._floats[shape]))
        return list(zip(features.split(size), labels.split(size), strict=True))


def _extreme(multiply: Callable[[FloatArray], FloatArray], size: int, best: list[Any]) -> tuple[float, FloatArray]:
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    try:
        value, vector = eigsh(operator, k=1, which="LM", ncv=min(size, VECTORS), tol=ACCURACY, v0=best[1], maxiter=RESTARTS)
    except ArpackNoConvergence as error:
        value, vector = error.eigenvalues, error.eigenvectors
    except ArpackError:  # a Hessian of zeros
        value, vector = np.zeros(0), np.zeros((size, 0))
    if len(value) and abs(value[0]) > best[0]:
        return abs(float(value[0])), vector[:, 0]
    return best[0], best[1]
