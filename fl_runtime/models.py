"""Models that tasks train: small ones, in plain PyTorch, under names that a problem file can give.

Every model maps features of shape (B, *shape) to logits of shape (B, classes), keeps no state but its parameters (no running statistics,
no dropout), and is thus a pure function of a flat parameter vector. :func:`register_model` adds one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from schedopt.errors import InputError

__all__ = ["build_model", "initial_parameters", "model_names", "num_parameters", "register_model"]

#: Builds a model from the shape of one sample and the number of classes.
Builder = Callable[[tuple[int, ...], int], nn.Module]

#: Width of each of the two hidden layers of "mlp".
HIDDEN = 200
#: Least side of an image that LeNet-5 can take; smaller ones get a border of zeros.
LENET_SIDE = 16
#: Channels of the three stages of "resnet", and channels per group of its normalisation.
STAGES, GROUP = (16, 32, 64), 4


def _softmax(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Softmax regression: one linear layer; convex."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def _mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two hidden layers of 200 with ReLU: 199,210 parameters on 784 features and 10 classes."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


def _image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError(f"model {name!r} on features of shape {shape}; must be (channels, height, width); or use 'softmax' or 'mlp'")
    return shape[0], shape[1], shape[2]


def _cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling: 44,426 parameters on 1x28x28, 62,006 on 3x32x32.

    Images of fewer than 16 pixels a side get a border of zeros inside the first convolution: 1x8x8 is taken as 1x16x16.
    """
    channels, *sides = _image_shape("cnn", shape)
    rows, columns = (max(0, math.ceil((LENET_SIDE - side) / 2)) for side in sides)
    height, width = (((side + 2 * border - 4) // 2 - 4) // 2 for side, border in zip(sides, (rows, columns), strict=True))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=(rows, columns)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


class _Block(nn.Module):
    """Basic residual block (He et al. 2016) with GroupNorm (Wu and He 2018), so that a batch of one is as good as any."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(outputs // GROUP, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(outputs // GROUP, outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """The block's output, (B, outputs, H / stride, W / stride)."""
        return torch.relu(self.body(features) + self.shortcut(features))


def _resnet(shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-8: three residual blocks of 16, 32 and 64 channels, GroupNorm, global average pooling; about 78,000 parameters."""
    channels, _, _ = _image_shape("resnet", shape)
    first, second, third = STAGES
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, 1, 1, bias=False),
        nn.GroupNorm(first // GROUP, first),
        nn.ReLU(),
        _Block(first, first, 1),
        _Block(first, second, 2),
        _Block(second, third, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, classes),
    )


_BUILDERS: dict[str, Builder] = {"softmax": _softmax, "mlp": _mlp, "cnn": _cnn, "resnet": _resnet}


def model_names() -> tuple[str, ...]:
    """Names of the registered models."""
    return tuple(_BUILDERS)


def register_model(name: str, builder: Builder) -> None:
    """Make ``builder(shape, num_classes) -> Module`` known as ``name``; a name that exists is replaced.

    The model must be a function of its parameters alone: no BatchNorm, no Dropout. Flatten, Linear and ReLU in one ``nn.Sequential`` are
    trained by hand-derived gradients, many devices at once; anything else by autograd.
    """
    if not name:
        raise InputError(f"model name = {name!r}; must not be empty")
    _BUILDERS[name] = builder


def build_model(name: str, shape: Sequence[int], num_classes: int) -> nn.Module:
    """Make the model ``name`` for samples of ``shape`` and ``num_classes`` classes, float32 on the CPU, parameters of seed 0.

    Raises :class:`~schedopt.errors.InputError` for an unknown name, fewer than two classes, and convolutions on flat features. The global
    random state is left as it was.
    """
    if name not in _BUILDERS:
        raise InputError(f"model = {name!r}; must be one of {', '.join(_BUILDERS)}")
    if num_classes < 2:
        raise InputError(f"num_classes = {num_classes}; must be at least 2")
    sides = tuple(int(side) for side in shape)
    if not sides or min(sides) < 1:
        raise InputError(f"shape of a sample = {sides}; must have positive sides")
    with torch.random.fork_rng(devices=[]):  # modules draw their first values from the global generator; they are overwritten below
        model = _BUILDERS[name](sides, num_classes)
    with torch.no_grad():
        nn.utils.vector_to_parameters(initial_parameters(model, 0), model.parameters())
    return model


def num_parameters(model: nn.Module) -> int:
    """Number of parameters P."""
    return sum(parameter.numel() for parameter in model.parameters())


def initial_parameters(model: nn.Module, seed: int) -> Tensor:
    """Flat parameters (P,), float32, drawn as ``torch.nn`` does but from a generator made of ``seed``.

    Weights and biases of linear and convolutional layers are uniform in ±1/√fan_in; other matrices likewise with fan_in = entries per
    row. Vectors of other layers (scale and shift of a normalisation) keep their constants.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied: counted once, as in model.parameters()
                continue
            seen.add(id(parameter))
            value = parameter.detach().cpu().to(torch.float32, copy=True)
            source = weight if isinstance(weight, Tensor) and name == "bias" else parameter
            if source.dim() > 1:
                bound = 1.0 / math.sqrt(source[0].numel())
                value.uniform_(-bound, bound, generator=generator)
            parts.append(value)
    return torch.cat([part.flatten() for part in parts])
