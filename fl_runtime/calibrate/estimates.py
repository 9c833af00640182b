"""From series of measured values to the numbers of a problem file, each with an interval, a method and what stood there before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fl_runtime.calibrate.survey import Seen, Survey
from schedopt.problem import Problem

__all__ = ["DEVICE_CONSTANTS", "Estimate", "Known", "chosen_statistic", "task_estimates", "with_estimates"]

#: Constants of a device's task, as in the problem file.
DEVICE_CONSTANTS = ("gradient_variance", "dissimilarity", "gradient_drift")
#: Constants that the bound has squared: a mean of them is the root of the mean square.
SQUARED = ("dissimilarity", "gradient_drift")
#: A problem file wants a positive smoothness and a positive gap, and the theorem allows any larger one.
LEAST = 1e-12
#: Digits that are written.
DIGITS = 6


@dataclass(frozen=True)
class Estimate:
    """A constant: ``value`` goes into the file in place of ``before``; ``low`` to ``high`` is its interval.

    ``seen``: count, least, median, mean and largest of what was measured; ``method``: how, in words.
    """

    task: str
    device: str | None
    quantity: str
    value: float
    before: float
    low: float
    high: float
    method: str
    seen: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As in the report, without the names that lead to it."""
        return {name: value for name, value in asdict(self).items() if name not in ("task", "device", "quantity")}


@dataclass(frozen=True)
class Known:
    """What is known of a task beyond what was visited: β for all models (None: not known), and F*, with words for how."""

    smoothness: float | None
    least_loss: float
    least_loss_method: str


def chosen_statistic(problem: Problem, statistic: str) -> str:
    """What "auto" stands for: "max" where schedules of the problem can be certified, that is where the bound is the theorem's, else "mean".

    The theorem needs constants that hold wherever training goes; scaled terms were fitted to typical ones.
    """
    if statistic != "auto":
        return statistic
    objective = problem.objective
    proven = objective.participation != "horizon" and bool(np.all(objective.term_scale.as_array() >= 1))
    return "max" if proven else "mean"


def task_estimates(survey: Survey, known: Known, statistic: str) -> list[Estimate]:
    """All constants of a task, those of the task first. Drift is left out unless there is any, or "none" was asked for."""
    problem, task = survey.bench.problem, survey.bench.problem.tasks[survey.task]
    found = [_smoothness(survey, known, statistic), _gap(survey, known, statistic)]
    static = survey.bench.settings.drift.strip() == "none"
    if survey.drifts or static:
        found.append(_loss_drift(survey, statistic))
    for i in survey.devices:
        device = problem.devices[i]
        for quantity in DEVICE_CONSTANTS:
            if quantity == "gradient_drift" and not (survey.drifts or static):
                continue
            found.append(_of_device(survey, i, quantity, statistic, getattr(device.tasks[task.name], quantity)))
    return found


def with_estimates(problem: Problem, estimates: Sequence[Estimate]) -> Problem:
    """``problem`` with the values of ``estimates`` in it and everything else unchanged."""
    data = problem.to_dict()
    for e in estimates:
        entry = data["tasks"][problem.task_index[e.task]]
        if e.device is not None:
            entry = data["devices"][problem.device_index[e.device]]["tasks"][e.task]
        entry[e.quantity] = e.value
    return Problem.model_validate(data)


def _make(
    survey: Survey,
    device: int | None,
    quantity: str,
    value: float,
    before: float,
    ends: tuple[float, float],
    how: str,
    seen: Sequence[float],
) -> Estimate:
    problem = survey.bench.problem
    return Estimate(
        task=problem.tasks[survey.task].name,
        device=None if device is None else problem.devices[device].name,
        quantity=quantity,
        value=float(f"{value:.{DIGITS}g}"),
        before=before,
        low=ends[0],
        high=ends[1],
        method=how,
        seen=_summary(seen),
    )


def _summary(values: Sequence[float]) -> dict[str, float]:
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "least": float(np.min(values)),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "largest": float(np.max(values)),
    }


def _values(series: Sequence[Seen]) -> list[float]:
    return [entry.value for entry in series]


def _range(series: Sequence[Seen]) -> tuple[float, float]:
    """From the least to the largest value, or bootstrap limit, measured."""
    return min(entry.low for entry in series), max(entry.high for entry in series)


def _smoothness(survey: Survey, known: Known, statistic: str) -> Estimate:
    before = survey.bench.problem.tasks[survey.task].smoothness
    curvature, secants = (_values(survey.series[name, None]) for name in ("curvature", "secant"))
    ends = (min(curvature), max([*curvature, *secants]))
    if statistic == "mean":
        value, how = float(np.mean(curvature)), f"mean of {len(curvature)} points: a device's largest Hessian eigenvalue (Lanczos)"
    elif known.smoothness is not None:
        value, how = known.smoothness, "closed form for all models: ½ λ_max(E[xxᵀ])"
        ends = (ends[0], known.smoothness)
    else:
        value = ends[1]
        how = f"max of {len(curvature)} points (Lanczos) and {len(secants)} secants; the supremum may be larger"
    return _make(survey, None, "smoothness", max(value, LEAST), before, ends, how, [*curvature, *secants])


def _gap(survey: Survey, known: Known, statistic: str) -> Estimate:
    before = survey.bench.problem.tasks[survey.task].initial_gap
    first, seen = _values(survey.series["first_loss", None]), _values(survey.series["least_loss", None])
    value = (max(first) if statistic == "max" else float(np.mean(first))) - known.least_loss
    ends = (min(first) - min(seen), max(first) - known.least_loss)
    how = f"{statistic} of {len(first)} initial models, less {known.least_loss_method}"
    return _make(survey, None, "initial_gap", max(value, LEAST), before, ends, how, first)


def _loss_drift(survey: Survey, statistic: str) -> Estimate:
    before, series = survey.bench.problem.tasks[survey.task].loss_drift, survey.series["rise", None]
    if not series:
        return _make(survey, None, "loss_drift", 0.0, before, (0.0, 0.0), "the data do not change", [])
    rises = _values(series)
    value = max(rises) if statistic == "max" else float(np.mean(rises))
    how = f"{statistic} of {len(rises)}: rise of F from one slot's data to the next; at least 0"
    return _make(survey, None, "loss_drift", max(value, 0.0), before, _range(series), how, rises)


_METHODS = {
    "gradient_variance": "gradients of {samples}",
    "dissimilarity": "‖∇L_i − ∇F‖",
    "gradient_drift": "change of ∇L_i from one slot's data to the next",
}


def _of_device(survey: Survey, device: int, quantity: str, statistic: str, before: float) -> Estimate:
    series = survey.series[quantity, device]
    if not series:  # no drift, or none that was seen
        return _make(survey, device, quantity, 0.0, before, (0.0, 0.0), "the data do not change", [])
    values = np.array(_values(series))
    if statistic == "max":
        value, word = float(values.max()), "max"
    elif quantity in SQUARED:
        value, word = float(np.sqrt(np.mean(values**2))), "rms"
    else:
        value, word = float(values.mean()), "mean"
    samples = "single samples" if not survey.sampled else f"at most {survey.settings.samples} single samples"
    how = f"{word}: {_METHODS[quantity].format(samples=samples)}"
    return _make(survey, device, quantity, value, before, _range(series), how, values.tolist())
