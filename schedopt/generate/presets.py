"""Where problems start from: CPU classes, data sets with their models, and the objective of each regime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from schedopt.problem import TERMS

__all__ = ["CPU_CLASSES", "KNOWN_TASKS", "OBJECTIVES", "PRESETS", "CpuClass", "Mode", "Participation", "Preset", "Regime"]

#: practical: networks at customary learning rates; softmax: softmax regression at rates that train it well; both with scaled terms.
#: certified: softmax regression under the theorem as proven
Regime = Literal["practical", "softmax", "certified"]
Mode = Literal["weighted", "min_energy", "min_bound"]
Participation = Literal["instant", "horizon"] | dict[Literal["window"], int]


class CpuClass(NamedTuple):
    """A class of processors: frequency range in Hz, effective capacitance κ in J s²/cycle³, relative share of the devices."""

    freq_min_hz: float
    freq_max_hz: float
    capacitance: float
    share: float


#: κ between 1e-28 (JSAC'24a) and 2e-28 (FEDL, whose energy has the same factor ½); 0.3 GHz up to 1-2 GHz (FEDL); slow, normal and
#: fast devices 25/50/25 % (FedAST).
CPU_CLASSES = (
    CpuClass(3.0e8, 1.0e9, 1.0e-28, 0.25),
    CpuClass(3.0e8, 1.5e9, 1.5e-28, 0.5),
    CpuClass(3.0e8, 2.0e9, 2.0e-28, 0.25),
)


@dataclass(frozen=True)
class Preset:
    """Constants of a data set with a model; the names are those of the settings."""

    model: str
    model_bits: float
    cycles_per_sample: float
    learning_rate: float
    smoothness: float
    gradient_variance: float
    dissimilarity: float
    weight: float
    samples: int
    training_set: int
    initial_gap: float


def _presets(model: str, rows: Mapping[str, tuple[float, ...]]) -> dict[str, Preset]:
    fields = ("learning_rate", "smoothness", "gradient_variance", "dissimilarity", "initial_gap", "weight")
    presets = {}
    for name, row in rows.items():
        samples, training_set = _SIZES[name]
        bits, cycles = _COSTS[model][name]
        columns: dict[str, Any] = dict(zip(fields, row, strict=True))
        sizes: dict[str, Any] = {"samples": samples, "training_set": training_set, "model_bits": 32.0 * bits, "cycles_per_sample": cycles}
        presets[name] = Preset(model=model, **sizes, **columns)
    return presets


#: Samples a device (JSAC'24a: 1,200 of MNIST and Fashion-MNIST, 1,000 of CIFAR-10; of the small data sets about all there are among six
#: or seven), and samples of the whole training set (four fifths of what scikit-learn has).
_SIZES = {
    "mnist": (1200, 60_000),
    "fashion-mnist": (1200, 60_000),
    "cifar-10": (1000, 50_000),
    "svhn": (1000, 73_257),
    "digits": (220, 1437),
    "breast-cancer": (70, 455),
    "wine": (22, 142),
}

#: Parameters (each 32 bits, as in JSAC'24a), and cycles per sample: 24 per multiply-add of the forward and the backward pass (three times
#: the forward one), about JSAC'24a's 3e7.
_COSTS: dict[str, dict[str, tuple[int, float]]] = {
    "cnn": {"mnist": (44_426, 2.0e7), "fashion-mnist": (44_426, 2.0e7), "cifar-10": (62_006, 4.6e7), "svhn": (62_006, 4.6e7)},
    "mlp": {"digits": (55_210, 3.9e6), "breast-cancer": (46_802, 3.3e6), "wine": (43_603, 3.1e6)},
    "softmax": {
        "mnist": (7_850, 6.0e5),
        "fashion-mnist": (7_850, 6.0e5),
        "cifar-10": (30_730, 2.2e6),
        "svhn": (30_730, 2.2e6),
        "digits": (650, 4.6e4),
        "breast-cancer": (62, 4.3e3),
        "wine": (42, 2.8e3),
    },
}

# Constants were measured on standardized inputs. Of the CNN (LeNet-5) during 1,200 steps of batch 32 at rate 0.05, of the MLP (two hidden
# layers of 200) during 200 steps of batch 32 at rate 0.1 (means, of three seeds; dissimilarity is the mean over label distributions
# Dirichlet(0.3)); their initial gap is the loss ln C of a uniform guess among C classes, above a minimum of zero. Of softmax regression by
# `schedopt calibrate` on ten devices (six for the small data sets), Dirichlet(0.3), at the rates below: means along the runs ("softmax"),
# or what holds everywhere ("certified": smoothness is half the largest eigenvalue of the second moment of the inputs and a constant 1, on
# the worst device; of the rest the largest values). SVHN was not at hand: its rows are those of CIFAR-10, whose images have the same size.
# Columns: learning_rate, smoothness, gradient_variance, dissimilarity, initial_gap, weight.
PRESETS: dict[str, dict[str, Preset]] = {
    # learning rates: customary; FedAST takes 0.06 to 0.1, where the scaled local drift would allow two or three steps only
    "practical": _presets(
        "cnn",
        {
            "mnist": (0.05, 20.0, 120.0, 2.0, 2.303, 1.0),
            "fashion-mnist": (0.05, 30.0, 150.0, 3.3, 2.303, 1.0),
            "cifar-10": (0.03, 35.0, 160.0, 3.8, 2.303, 1.0),
            "svhn": (0.03, 35.0, 160.0, 3.8, 2.303, 1.0),
        },
    )
    # the first hundred steps of LeNet-5 on digits are a plateau, and the other two are not images
    | _presets(
        "mlp",
        {
            "digits": (0.1, 8.3, 30.0, 1.5, 2.303, 1.0),
            "breast-cancer": (0.1, 1.5, 2.3, 0.3, 0.6931, 1.0),
            "wine": (0.1, 2.0, 1.9, 0.37, 1.0986, 1.0),
        },
    ),
    # learning rates: twenty steps cover a few times the distance 1/smoothness. Bounds are in inverse proportion to them; weights in
    # proportion give every task the same say: with equal ones nearly all energy goes to the slowest
    "softmax": _presets(
        "softmax",
        {
            "mnist": (4.0e-3, 53.0, 380.0, 5.7, 2.44, 1.0),
            "fashion-mnist": (3.0e-3, 93.0, 440.0, 7.1, 2.32, 0.75),
            "cifar-10": (5.0e-4, 254.0, 2450.0, 5.6, 2.44, 0.125),
            "svhn": (5.0e-4, 254.0, 2450.0, 5.6, 2.44, 0.125),
            "digits": (2.0e-2, 7.3, 25.0, 1.7, 2.43, 5.0),
            "breast-cancer": (5.0e-2, 2.5, 3.5, 0.38, 0.99, 12.5),
            "wine": (1.0e-1, 1.9, 1.9, 0.55, 1.18, 25.0),
        },
    ),
    # learning rates: ten steps meet condition C1 (rate · smoothness · steps <= 1/20). Bounds grow with the smoothness; weights in
    # inverse proportion give every task the same say.
    "certified": _presets(
        "softmax",
        {
            "mnist": (3.0e-5, 162.0, 670.0, 8.8, 2.5, 1.0),
            "fashion-mnist": (2.3e-5, 215.0, 610.0, 9.2, 2.5, 0.75),
            "cifar-10": (6.8e-6, 730.0, 3000.0, 6.4, 2.6, 0.22),
            "svhn": (6.8e-6, 730.0, 3000.0, 6.4, 2.6, 0.22),
            "digits": (3.0e-4, 16.3, 58.0, 3.0, 2.6, 9.9),
            "breast-cancer": (7.5e-4, 6.64, 18.0, 0.75, 1.1, 24.0),
            "wine": (2.1e-3, 2.34, 8.8, 1.2, 1.3, 69.0),
        },
    ),
}

#: Tasks in the order in which they are taken unless names are given; further ones are called task4, task5, ... and repeat the presets.
KNOWN_TASKS = ("mnist", "fashion-mnist", "cifar-10", "svhn")

_SCALED: dict[str, Any] = {
    "energy_weight": 0.5,
    "participation": "horizon",
    "term_scale": {"opt": 1.0, "loss": 1.0, "part": 0.03, "data": 0.03, "local": 1e-5, "noise": 0.004, "stale": 1e-4},
    "enforce_conditions": False,
}
#: Objective of each regime. Scaled: formulation section 3, starting values for practical problems; certified: the theorem as proven.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "practical": _SCALED,
    "softmax": _SCALED,
    "certified": {
        "energy_weight": 1600.0,
        "participation": "instant",
        "term_scale": dict.fromkeys(TERMS, 1.0),
        "enforce_conditions": True,
    },
}
