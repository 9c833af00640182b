"""Models: sizes of the literature, shapes they take, initial values, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fl_runtime import models
from fl_runtime.models import build_model, initial_parameters, model_names, num_parameters, register_model
from schedopt.errors import InputError


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("softmax", (1, 28, 28), 7_850),
        ("softmax", (13,), 140),
        ("mlp", (1, 28, 28), 199_210),
        ("mlp", (30,), 48_410),
        ("cnn", (1, 28, 28), 44_426),
        ("cnn", (3, 32, 32), 62_006),
        ("cnn", (1, 8, 8), 15_626),
        ("resnet", (3, 32, 32), 77_850),
    ],
)
def test_sizes(name: str, shape: tuple[int, ...], size: int) -> None:
    model = build_model(name, shape, 10)
    assert num_parameters(model) == size
    assert initial_parameters(model, 0).shape == (size,)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (2, 17, 5), (1, 28, 28), (3, 33, 40), (1, 1, 1)])
def test_images_of_any_size_give_logits(name: str, shape: tuple[int, ...]) -> None:
    assert build_model(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_convolutions_refuse_flat_features(name: str) -> None:
    with pytest.raises(InputError, match=rf"model '{name}' on features of shape \(13,\); must be \(channels, height, width\)"):
        build_model(name, (13,), 3)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("transformer", (4,), 2, "model = 'transformer'; must be one of softmax, mlp, cnn, resnet"),
        ("softmax", (4,), 1, "num_classes = 1; must be at least 2"),
        ("softmax", (), 2, r"shape of a sample = \(\); must have positive sides"),
        ("softmax", (0, 3), 2, r"shape of a sample = \(0, 3\)"),
    ],
)
def test_bad_input(name: str, shape: tuple[int, ...], classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, shape, classes)


@pytest.mark.parametrize("name", ["softmax", "mlp", "cnn", "resnet"])
def test_initial_values_are_a_function_of_the_seed(name: str) -> None:
    model = build_model(name, (1, 8, 8), 10)
    state = torch.get_rng_state()
    first, again, other = (initial_parameters(model, seed) for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)
    assert first.dtype == torch.float32 and not first.requires_grad
    assert torch.nn.utils.parameters_to_vector(model.parameters()).detach().equal(initial_parameters(model, 0))
    build_model(name, (1, 8, 8), 10)
    assert torch.get_rng_state().equal(state), "the global random state was touched"


def test_initial_values_follow_the_rule_of_torch() -> None:
    """Uniform in ±1/√fan_in, weights and biases: bounds, mean and variance of a large layer."""
    model = build_model("mlp", (784,), 10)
    weight = initial_parameters(model, 1)[: 784 * 200].double() * 784**0.5
    assert weight.abs().max() <= 1
    assert abs(float(weight.mean())) < 0.01
    assert abs(float(weight.var()) - 1 / 3) < 0.005
    bias = initial_parameters(model, 1)[784 * 200 : 784 * 200 + 200] * 784**0.5
    assert 0.9 < float(bias.abs().max()) <= 1


def test_normalisation_starts_as_the_identity() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    start = initial_parameters(model, 5)
    assert start[40:44].eq(1).all() and start[44:48].eq(0).all()


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert initial_parameters(model, 0).shape == (num_parameters(model),) == (15,)


def test_a_model_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_BUILDERS", dict(models._BUILDERS))
    register_model("tanh", lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, classes)))
    assert "tanh" in model_names()
    assert num_parameters(build_model("tanh", (4,), 3)) == 43
    with pytest.raises(InputError, match="model name = ''"):
        register_model("", lambda shape, classes: nn.Identity())
