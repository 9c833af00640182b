"""What is known of a task for all models: β and a lower bound of F*, of softmax regression from the data, else next to nothing."""

from __future__ import annotations

from torch import nn

from fl_runtime.calibrate.estimates import Known
from fl_runtime.calibrate.pilots import PilotBench
from fl_runtime.constants import SoftmaxTask, least_loss

__all__ = ["is_softmax_regression", "known_of"]

#: F* is sought as long as it may be more than this share of F_0, where the samples take no more bytes than this in double precision:
#: of larger data a minute's iterations prove nothing.
WORTH, MOST_BYTES, ITERATIONS = 0.02, 32 * 2**20, 2000

_ZERO = "F* = 0"


def is_softmax_regression(model: nn.Module) -> bool:
    """Whether ``model`` is one linear layer with a constant, whose loss is convex."""
    layers = list(model.children())
    if not isinstance(model, nn.Sequential) or len(layers) != 2:
        return False
    flat, linear = layers
    return isinstance(flat, nn.Flatten) and isinstance(linear, nn.Linear) and linear.bias is not None


def known_of(bench: PilotBench, task: int, first_loss: float) -> Known:
    """β for all models and F*; ``first_loss``: F_0(w^0), to judge whether F* matters."""
    if not is_softmax_regression(bench.trainers[task].model):
        return Known(None, 0.0, _ZERO)
    a = bench.problem.arrays
    losses = SoftmaxTask(bench.data[task], a.aggregation_weight[:, task], a.slots)
    size = sum(bench.data[task].sizes) * (int(bench.data[task].dataset.train_features[0].size) + 1) * 8
    if size > MOST_BYTES:
        return Known(losses.smoothness, 0.0, f"{_ZERO} (the data are too many to look for a larger one)")
    least = least_loss(losses, a.slots - 1, WORTH * first_loss, iterations=ITERATIONS)
    if least == 0.0:
        return Known(losses.smoothness, 0.0, f"{_ZERO} (nothing larger proven)")
    return Known(losses.smoothness, least, f"F* = {least:.4g} (proven by duality)")
