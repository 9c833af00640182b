"""Where problems start from: CPU classes, data sets with their models, and the objective of each regime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from schedopt.problem import TERMS

__all__ = ["CPU_CLASSES", "KNOWN_TASKS", "OBJECTIVES", "PRESETS", "CpuClass", "Mode", "Participation", "Preset", "Regime"]

Regime = Literal["practical", "certified"]
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
    fields = ("model_bits", "cycles_per_sample", "learning_rate", "smoothness", "gradient_variance", "dissimilarity", "weight")
    presets = {}
    for name, row in rows.items():
        samples, training_set, initial_gap = _SIZES[name]
        columns = dict(zip(fields, row, strict=True))
        presets[name] = Preset(model=model, samples=samples, training_set=training_set, initial_gap=initial_gap, **columns)
    return presets


#: Samples a device (JSAC'24a: 1,200 of MNIST and Fashion-MNIST, 1,000 of CIFAR-10; of the small data sets about all there are among six
#: or seven), samples of the whole training set (four fifths of what scikit-learn has), and the initial gap: the loss ln C of a uniform
#: guess among C classes, above a minimum of zero.
_SIZES = {
    "mnist": (1200, 60_000, 2.303),
    "fashion-mnist": (1200, 60_000, 2.303),
    "cifar-10": (1000, 50_000, 2.303),
    "svhn": (1000, 73_257, 2.303),
    "digits": (220, 1437, 2.303),
    "breast-cancer": (70, 455, 0.6931),
    "wine": (22, 142, 1.0986),
}

# Model bits are 32 per parameter (JSAC'24a). Cycles per sample are 24 per multiply-add of the forward and the backward pass (three
# times the forward one), about JSAC'24a's 3e7. Smoothness (largest curvature), gradient variance and dissimilarity were
# measured on the data: of the CNN (LeNet-5) during 1,200 steps of batch 32 at rate 0.05, of the MLP (two hidden layers of 200) during 200
# steps of batch 32 at rate 0.1 (means, of three seeds), of softmax regression at the start (where the smoothness, half the largest
# eigenvalue of the second moment of the inputs and a constant 1, is a bound); dissimilarity is the mean over label distributions
# Dirichlet(0.3). Inputs were standardized, but for softmax regression on images other than digits, where they were 0 to 1. SVHN was not
# at hand: its rows are those of CIFAR-10, whose images have the same size.
# Columns: model_bits, cycles_per_sample, learning_rate, smoothness, gradient_variance, dissimilarity, weight.
PRESETS: dict[str, dict[str, Preset]] = {
    # learning rates: customary; FedAST takes 0.06 to 0.1, where the scaled local drift would allow two or three steps only
    "practical": _presets(
        "cnn",
        {
            "mnist": (44_426 * 32, 2.0e7, 0.05, 20.0, 120.0, 2.0, 1.0),
            "fashion-mnist": (44_426 * 32, 2.0e7, 0.05, 30.0, 150.0, 3.3, 1.0),
            "cifar-10": (62_006 * 32, 4.6e7, 0.03, 35.0, 160.0, 3.8, 1.0),
            "svhn": (62_006 * 32, 4.6e7, 0.03, 35.0, 160.0, 3.8, 1.0),
        },
    )
    # the first hundred steps of LeNet-5 on digits are a plateau, and the other two are not images
    | _presets(
        "mlp",
        {
            "digits": (55_210 * 32, 3.9e6, 0.1, 8.3, 30.0, 1.5, 1.0),
            "breast-cancer": (46_802 * 32, 3.3e6, 0.1, 1.5, 2.3, 0.3, 1.0),
            "wine": (43_603 * 32, 3.1e6, 0.1, 2.0, 1.9, 0.37, 1.0),
        },
    ),
    # learning rates: ten steps meet condition C1 (rate · smoothness · steps <= 1/20). Bounds grow with the smoothness; weights in
    # inverse proportion give every task the same say.
    "certified": _presets(
        "softmax",
        {
            "mnist": (7_850 * 32, 6.0e5, 2.5e-4, 20.0, 79.0, 3.1, 1.0),
            "fashion-mnist": (7_850 * 32, 6.0e5, 9.0e-5, 55.6, 144.0, 4.9, 0.36),
            "cifar-10": (30_730 * 32, 2.2e6, 1.3e-5, 374.0, 798.0, 12.1, 0.054),
            "svhn": (30_730 * 32, 2.2e6, 1.3e-5, 374.0, 798.0, 12.1, 0.054),
            "digits": (650 * 32, 4.6e4, 3.0e-4, 16.3, 58.0, 3.0, 1.2),
            "breast-cancer": (62 * 32, 4.3e3, 7.5e-4, 6.64, 18.0, 0.75, 3.0),
            "wine": (42 * 32, 2.8e3, 2.1e-3, 2.34, 8.8, 1.2, 8.5),
        },
    ),
}

#: Tasks in the order in which they are taken unless names are given; further ones are called task4, task5, ... and repeat the presets.
KNOWN_TASKS = ("mnist", "fashion-mnist", "cifar-10", "svhn")

#: Objective of each regime. Practical: formulation section 3, starting values for practical problems; certified: the theorem as proven.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "practical": {
        "energy_weight": 0.5,
        "participation": "horizon",
        "term_scale": {"opt": 1.0, "loss": 1.0, "part": 0.03, "data": 0.03, "local": 1e-5, "noise": 0.004, "stale": 1e-4},
        "enforce_conditions": False,
    },
    "certified": {
        "energy_weight": 200.0,
        "participation": "instant",
        "term_scale": dict.fromkeys(TERMS, 1.0),
        "enforce_conditions": True,
    },
}
