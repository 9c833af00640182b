"""Layers with hand-derived gradients, for stacks of models: the parts of :mod:`fl_runtime.training.closed_form`.

Activations lie samples last, (n, features, B) or (n, channels, height, width, B) for n models and batches of B. Then a layer is one batched
matrix product per direction, windows of a convolution and of a pooling are copied and compared in long contiguous runs, and the weight
gradient goes straight into the weights: w <- w - η δ xᵀ is one product with accumulation. On a CPU that is about twice as fast as
autograd on a small convolutional network, see ``python -m benchmarks.runtime``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Flatten", "Flow", "Stacks", "Workspace", "flow_of"]


#: Outputs of a layer that are few, and samples of a batch that are few, see :class:`_Linear`.
SHORT, FEW = 32, 16


class Workspace:
    """Buffers by name, kept from step to step: asking the allocator for megabytes at every step costs as much as using them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[int, str], Tensor] = {}

    def take(self, owner: object, name: str, shape: Sequence[int]) -> Tensor:
        """A buffer of ``shape``, float32, content unspecified; the one returned before for this owner and name if it fits."""
        size = 1
        for side in shape:
            size *= side
        buffer = self._buffers.get((id(owner), name))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[id(owner), name] = torch.empty(size, device=self.device)
        return buffer[:size].view(*shape)

    def take_like(self, owner: object, name: str, values: Tensor) -> Tensor:
        """A buffer of the shape of ``values``, samples first in memory if they are there."""
        if values.is_contiguous() or values.dim() != 3:
            return self.take(owner, name, values.shape)
        return self.take(owner, name, values.mT.shape).mT

    def clear(self) -> None:
        """Let the memory go."""
        self._buffers.clear()


class Stacks:
    """Parameters of the stacked models and how a gradient enters them.

    ``values[k]``: (n, *shape) of parameter k; ``anchors[k]``: what it was at the start, towards which a step pulls it by the share ``pull``
    = η ρ of the distance. With ``gradients`` set, gradients are added there (times -η) instead: a step on a batch that
    is taken in pieces must not change the weights between the pieces.
    """

    def __init__(self, values: list[Tensor], anchors: list[Tensor], learning_rate: float, pull: float) -> None:
        self.values, self.anchors = values, anchors
        self.learning_rate, self.pull = learning_rate, pull
        self.gradients: list[Tensor] | None = None

    def first(self, count: int) -> Stacks:
        """The first ``count`` models, sharing memory."""
        return Stacks([value[:count] for value in self.values], self.anchors, self.learning_rate, self.pull)

    def collect(self) -> None:
        """Gather gradients apart from now on."""
        self.gradients = [torch.zeros_like(value) for value in self.values]

    def apply(self) -> None:
        """Enter the gradients gathered."""
        assert self.gradients is not None
        for k, gradient in enumerate(self.gradients):
            self._target(k, direct=True).add_(gradient)
        self.gradients = None

    def _target(self, k: int, direct: bool = False) -> Tensor:
        if self.gradients is not None and not direct:
            return self.gradients[k]
        if self.pull:
            self.values[k].lerp_(self.anchors[k].expand_as(self.values[k]), self.pull)
        return self.values[k]

    def descend(self, weight: int, bias: int | None, delta: Tensor, inputs: Tensor) -> None:
        """w <- w - η δ xᵀ and b <- b - η Σ δ, with δ (n, out, B) and x (n, in, B)."""
        target = self._target(weight).flatten(2)
        if delta.shape[2] == 1:  # an outer product, for which the batched matrix product is slow
            target.addcmul_(delta, inputs.mT, value=-self.learning_rate)
        else:
            target.baddbmm_(delta, inputs.mT, alpha=-self.learning_rate)
        if bias is not None:
            self._target(bias).sub_(delta.sum(-1), alpha=self.learning_rate)


class Flow(Protocol):
    """A layer: ``forward`` keeps what ``backward`` needs in ``context``; ``backward`` returns the gradient of the inputs, if wanted."""

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor: ...

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor: ...

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Shape of the output for inputs of ``shape`` (no batch axis), and numbers kept per sample."""


class Flatten:
    """(n, C, H, W, B) to (n, CHW, B)."""

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor:
        context[id(self)] = inputs
        return inputs.flatten(1, -2)

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor:
        return delta.reshape(context[id(self)].shape)

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        return (_product(shape),), 0


class _Relu:
    """max(x, 0), in place."""

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor:
        context[id(self)] = inputs.relu_()
        return inputs

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor:
        values = context[id(self)]
        return _passed(delta, values, work.take_like(self, "before", values))

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        return shape, _product(shape)


class _Linear:
    """W x + b.

    Matrix products of a few columns are several times slower in MKL than those of a few rows, and so are those whose number of columns
    is not a multiple of 16: hence samples are rows here, except in a short output of a batch that is not small.
    """

    def __init__(self, layer: nn.Linear, first: int) -> None:
        self.outputs = layer.out_features
        self.weight, self.bias = first, first + 1 if layer.bias is not None else None

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor:
        context[id(self)] = inputs
        weight = stacks.values[self.weight]
        if self.outputs < SHORT and inputs.shape[2] >= FEW:
            if self.bias is None:
                return torch.bmm(weight, inputs)
            return torch.baddbmm(stacks.values[self.bias].unsqueeze(2), weight, inputs)
        rows = inputs.mT.contiguous()
        if self.bias is None:
            return torch.bmm(rows, weight.mT).mT
        return torch.baddbmm(stacks.values[self.bias].unsqueeze(1), rows, weight.mT).mT

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor:
        before = torch.bmm(delta.mT.contiguous(), stacks.values[self.weight]).mT if wanted else delta
        stacks.descend(self.weight, self.bias, delta, context[id(self)])
        return before

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        return (self.outputs,), 2 * self.outputs


class _Convolution:
    """Stride 1, zero padding: one matrix product with the windows (n, C k k, H' W' B)."""

    def __init__(self, layer: nn.Conv2d, first: int) -> None:
        self.outputs, self.channels = layer.out_channels, layer.in_channels
        self.kernel: tuple[int, int] = (layer.kernel_size[0], layer.kernel_size[1])
        padding = layer.padding
        assert not isinstance(padding, str)
        self.padding: tuple[int, int] = (padding[0], padding[1])
        self.weight, self.bias = first, first + 1 if layer.bias is not None else None

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        return height + 2 * self.padding[0] - self.kernel[0] + 1, width + 2 * self.padding[1] - self.kernel[1] + 1

    def _padded(self, inputs: Tensor, work: Workspace) -> Tensor:
        rows, columns = self.padding
        if not rows and not columns:
            return inputs
        models, channels, height, width, batch = inputs.shape
        padded = work.take(self, "padded", (models, channels, height + 2 * rows, width + 2 * columns, batch)).zero_()
        padded[:, :, rows : rows + height, columns : columns + width] = inputs
        return padded

    def _windows(self, inputs: Tensor, work: Workspace) -> Tensor:
        models, channels, height, width, batch = inputs.shape
        high, wide = height - self.kernel[0] + 1, width - self.kernel[1] + 1
        model, channel, row, column, one = inputs.stride()
        shape = (models, channels, *self.kernel, high, wide, batch)
        windows = work.take(self, "windows", shape)
        windows.copy_(inputs.as_strided(shape, (model, channel, row, column, row, column, one)))
        return windows.view(models, -1, high * wide * batch)

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor:
        models, _, height, width, batch = inputs.shape
        high, wide = self._sides(height, width)
        windows = self._windows(self._padded(inputs, work), work)
        context[id(self)] = windows
        output = work.take(self, "output", (models, self.outputs, high * wide * batch))
        weight = stacks.values[self.weight].flatten(2)
        if self.bias is None:
            torch.bmm(weight, windows, out=output)
        else:
            torch.baddbmm(stacks.values[self.bias].unsqueeze(-1), weight, windows, out=output)
        return output.view(models, self.outputs, high, wide, batch)

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor:
        flat = delta.flatten(2)
        before = self._spread(stacks.values[self.weight].flatten(2), flat, delta.shape, work) if wanted else delta
        stacks.descend(self.weight, self.bias, flat, context[id(self)])
        return before

    def _spread(self, weight: Tensor, flat: Tensor, shape: torch.Size, work: Workspace) -> Tensor:
        """Gradient of the inputs: every window's gradient is added to where it was taken from, one axis after the other."""
        models, _, high, wide, batch = shape
        tall, broad = self.kernel
        windows = work.take(self, "spread", (models, weight.shape[2], flat.shape[2]))
        torch.bmm(weight.mT, flat, out=windows)
        parts = windows.view(models, self.channels, tall, broad, high, wide, batch)
        rows = work.take(self, "rows", (models, self.channels, tall, high, wide + broad - 1, batch)).zero_()
        for k in range(broad):
            rows[..., k : k + wide, :] += parts[:, :, :, k]
        total = work.take(self, "total", (models, self.channels, high + tall - 1, wide + broad - 1, batch)).zero_()
        for k in range(tall):
            total[:, :, k : k + high] += rows[:, :, k]
        border, edge = self.padding
        return total[:, :, border : total.shape[2] - border, edge : total.shape[3] - edge]

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        channels, height, width = shape
        high, wide = self._sides(height, width)
        windows = channels * self.kernel[0] * self.kernel[1] * high * wide
        return (self.outputs, high, wide), 2 * windows + 3 * self.outputs * high * wide


class _Pool:
    """Maximum over windows of 2x2, stride 2; among equals the first counts, as in ``torch.nn.functional.max_pool2d``."""

    def forward(self, inputs: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace) -> Tensor:
        context[id(self)] = inputs
        a, b, c, d = _corners(inputs)
        upper, lower, largest = (work.take(self, name, a.shape) for name in ("upper", "lower", "largest"))
        torch.maximum(a, b, out=upper)
        torch.maximum(c, d, out=lower)
        return torch.maximum(upper, lower, out=largest)

    def backward(self, delta: Tensor, stacks: Stacks, context: dict[int, Tensor], work: Workspace, wanted: bool) -> Tensor:
        inputs = context[id(self)]
        before = work.take(self, "before", inputs.shape)
        if inputs.shape[2] % 2 or inputs.shape[3] % 2:
            before.zero_()
        upper, lower, ahead, gain, rest = (work.take(self, name, delta.shape) for name in ("upper", "lower", "ahead", "gain", "rest"))
        # where the second of two is the larger it gets the gradient; the first gets the rest
        torch.sub(lower, upper, out=ahead)
        down, up = _passed(delta, ahead, gain), torch.sub(delta, gain, out=rest)
        a, b, c, d = _corners(inputs)
        into = _corners(before)
        for part, first, second, left, right in ((up, a, b, *into[:2]), (down, c, d, *into[2:])):
            torch.sub(second, first, out=ahead)
            _passed(part, ahead, right)
            torch.sub(part, right, out=left)
        return before

    def floats(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        channels, height, width = shape
        return (channels, height // 2, width // 2), 2 * _product(shape)


def _corners(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four members of every window, in the order in which they are compared: (n, C, H / 2, W / 2, B) each."""
    height, width = images.shape[2] // 2 * 2, images.shape[3] // 2 * 2
    top, bottom = images[:, :, 0:height:2], images[:, :, 1:height:2]
    return top[:, :, :, 0:width:2], top[:, :, :, 1:width:2], bottom[:, :, :, 0:width:2], bottom[:, :, :, 1:width:2]


def _passed(delta: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """``delta`` where ``values`` > 0, else 0: comparing and multiplying takes several times as long."""
    torch.ops.aten.threshold_backward.grad_input(delta, values, 0, grad_input=out)
    return out


def _product(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def flow_of(model: nn.Module, shape: tuple[int, ...]) -> list[Flow] | None:
    """The layers of ``model`` for samples of ``shape``, with hand-derived gradients.

    None unless the model is a sequence of such layers, on inputs of the right shape, that ends in a linear one.
    """
    if type(model) is not nn.Sequential or not len(model) or type(model[-1]) is not nn.Linear:
        return None
    if len(list(model.parameters())) != sum(len(list(layer.parameters())) for layer in model):
        return None  # tied parameters
    layers: list[Flow] = []
    first = 0
    for layer in model:
        made = _layer(layer, first, shape)
        if made is None:
            return None
        layers.append(made)
        shape, _ = made.floats(shape)
        first += len(list(layer.parameters()))
    return _pooled_first(layers)


def _layer(layer: nn.Module, first: int, shape: tuple[int, ...]) -> Flow | None:
    # exact types: a subclass may do something else
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return Flatten()
    if type(layer) is nn.ReLU:
        return _Relu()
    if type(layer) is nn.Linear and len(shape) == 1:
        return _Linear(layer, first)
    if type(layer) is nn.Conv2d and len(shape) == 3 and _is_plain(layer):
        return _Convolution(layer, first)
    if type(layer) is nn.MaxPool2d and len(shape) == 3 and _is_halving(layer):
        return _Pool()
    return None


def _is_plain(layer: nn.Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_halving(layer: nn.MaxPool2d) -> bool:
    sizes = layer.kernel_size in (2, (2, 2)) and layer.stride in (2, (2, 2)) and layer.padding in (0, (0, 0))
    return sizes and layer.dilation in (1, (1, 1)) and not layer.ceil_mode and not layer.return_indices


def _pooled_first(layers: list[Flow]) -> list[Flow]:
    """The same function with every ReLU behind the pooling that followed it: a quarter of the numbers to clip."""
    ordered = list(layers)
    for k in range(len(ordered) - 1):
        if isinstance(ordered[k], _Relu) and isinstance(ordered[k + 1], _Pool):
            ordered[k], ordered[k + 1] = ordered[k + 1], ordered[k]
    return ordered
