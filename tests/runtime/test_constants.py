"""Constants of softmax regression by finite differences and brute force, and Theorem 1 against real training with them.

``python -m benchmarks.theory`` does the same at length, on MNIST.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.theory import __main__ as command
from benchmarks.theory import runs as theory
from benchmarks.theory.runs import Run, Setting, compare, execute, full_set, measure, short_set
from fl_runtime.constants import SoftmaxTask, bounds_everywhere, constants_on_path, cross_entropy, least_loss
from fl_runtime.datasets import make_dataset
from fl_runtime.device_data import make_task_data
from fl_runtime.drift import DriftSpec
from fl_runtime.errors import DataError
from fl_runtime.replay import Replay, realised_terms, replay
from schedopt.bounds.async_schedule import aggregate
from schedopt.generate import GenerateSettings, generate_problem
from schedopt.problem import Problem

CLASSES, FEATURES, SLOTS, SIZES = 3, 4, 6, (5, 9, 1, 14)
Array = NDArray[np.float64]


def tiny_task(drift: str = "", *, seed: int = 0, spread: float = 1.0) -> SoftmaxTask:
    """Four devices, one with a single sample; labels that have little to do with the features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, 60)
    features = rng.normal(size=(60, FEATURES)) + spread * np.eye(CLASSES, FEATURES)[labels]
    dataset = make_dataset("tiny", features, labels, features[:3], labels[:3], source="random numbers", num_classes=CLASSES)
    data = make_task_data(dataset, SIZES, drift=DriftSpec.parse(drift), slots=SLOTS, seed=seed)
    return SoftmaxTask(data, np.array(SIZES) / sum(SIZES), SLOTS)


def random_models(count: int, seed: int = 1) -> Array:
    """Models of all sizes: from equal probabilities to certainty."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(np.log(0.01), np.log(30.0), count))
    return scale[:, None, None] * rng.normal(size=(count, CLASSES, FEATURES + 1))


def sample_gradients(task: SoftmaxTask, device: int, instant: int, model: Array) -> Array:
    """Gradients (D, C·P) of single samples, by central differences of the losses."""
    held, step = task.samples(device, instant), 1e-6
    columns = []
    for k in range(model.size):
        change = np.zeros(model.size)
        change[k] = step
        ends = [cross_entropy(held.x, held.labels, model + sign * change.reshape(model.shape))[0] for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=1)


def hessian(task: SoftmaxTask, device: int, instant: int, model: Array) -> Array:
    held = task.samples(device, instant)
    residual = cross_entropy(held.x, held.labels, model)[1]
    p = residual + np.eye(CLASSES)[held.labels]
    curvature = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
    size = model.size
    return np.einsum("ncd,np,nq->cpdq", curvature, held.x, held.x).reshape(size, size) / len(held.x)


# --- losses and gradients -------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_model_of_the_runtime() -> None:
    """The order of flat parameters, and the features: against torch's own loss."""
    torch = pytest.importorskip("torch")
    from fl_runtime.models import build_model, initial_parameters

    task = tiny_task()
    model = build_model("softmax", (FEATURES,), CLASSES)
    flat = initial_parameters(model, 5)
    torch.nn.utils.vector_to_parameters(flat, model.parameters())
    features, labels = task.data.samples(3, 2)
    loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(features.copy())), torch.from_numpy(labels.copy()))
    loss.backward()
    local = task.local(3, 2, task.model(flat.double().numpy()))
    assert local.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    weight, bias = (parameter.grad.numpy() for parameter in model.parameters())
    np.testing.assert_allclose(local.gradient, np.concatenate([weight, bias[:, None]], axis=1), rtol=1e-4, atol=1e-6)


def test_gradient_and_variance_by_finite_differences() -> None:
    task = tiny_task("labels:0.3")
    for model in random_models(5):
        for device in task.devices:
            single = sample_gradients(task, device, 3, model)
            local = task.local(device, 3, model)
            np.testing.assert_allclose(local.gradient.ravel(), single.mean(axis=0), rtol=1e-5, atol=1e-7)
            variance = single.var(axis=0, ddof=1).sum() if len(single) > 1 else 0.0
            assert local.variance == pytest.approx(variance, rel=1e-5, abs=1e-8)
    overall = task.mean(task.gradients(3, model))
    losses = [task.loss(3, model + sign * 1e-6 * overall) for sign in (1, -1)]
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float((overall**2).sum()), rel=1e-5)


def test_samples_are_told_apart_over_time() -> None:
    task = tiny_task("arrivals:0.5@3")
    assert [task.unchanged(g) for g in range(SLOTS - 1)] == [False] * (SLOTS - 1)
    assert task.samples(0, 0) is task.samples(0, 4)
    assert all(tiny_task().unchanged(g) for g in range(SLOTS - 1))


# --- constants ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", ["", "labels:0.3", "rotation:20"])
def test_smoothness_is_the_largest_curvature(drift: str) -> None:
    task = tiny_task(drift)

    def largest(model: Array) -> float:
        return max(float(np.linalg.eigvalsh(hessian(task, i, g, model))[-1]) for i in task.devices for g in range(SLOTS))

    assert max(largest(model) for model in random_models(10)) <= task.smoothness * (1 + 1e-12)
    # it is reached where two classes share the probability at every sample
    shared = np.zeros((CLASSES, FEATURES + 1))
    shared[:2, -1] = 50.0
    assert largest(shared) == pytest.approx(task.smoothness, rel=1e-12)


@pytest.mark.parametrize("drift", ["", "labels:0.3", "arrivals:0.2", "rotation:20", "labels:0.2,rotation:5@1"])
def test_bounds_everywhere_hold_at_random_models(drift: str) -> None:
    task = tiny_task(drift)
    first, h_total = random_models(1)[0] / 10, 0.3
    bounds = bounds_everywhere(task, first, h_total)
    longest = max(float(np.sqrt(task.samples(i, g).square.max())) for i in task.devices for g in range(SLOTS))
    radius = np.linalg.norm(first) + np.sqrt(2) * longest * h_total
    seen = {name: np.zeros(len(SIZES)) for name in ("gradient_variance", "dissimilarity", "gradient_drift")}
    rise = 0.0
    for model in random_models(150):
        before = None
        inside = model * min(1.0, radius / np.linalg.norm(model))
        for g in range(SLOTS):
            local = [task.local(i, g, model) for i in task.devices]
            now = np.stack([entry.gradient for entry in local])
            found = {
                "gradient_variance": np.array([entry.variance for entry in local]),
                "dissimilarity": np.linalg.norm(now - task.mean(now), axis=(1, 2)),
                "gradient_drift": np.zeros(len(SIZES)) if before is None else np.linalg.norm(now - before, axis=(1, 2)),
            }
            seen = {name: np.maximum(seen[name], value) for name, value in found.items()}
            before = now
            if g:
                rise = max(rise, task.loss(g, inside) - task.loss(g - 1, inside))
    for name, value in seen.items():
        assert np.all(value <= getattr(bounds, name) * (1 + 1e-12) + 1e-15), name
    assert rise <= bounds.loss_drift
    # none of them says nothing: random models come within a factor of a few
    assert np.all(seen["gradient_variance"][[0, 1, 3]] > 0.1 * bounds.gradient_variance[[0, 1, 3]])
    assert bounds.gradient_variance[2] == 0.0  # its only sample is its batch
    assert np.all(seen["dissimilarity"] > 0.1 * bounds.dissimilarity)
    if not drift:
        assert not bounds.gradient_drift.any() and bounds.loss_drift == 0.0
    else:
        assert seen["gradient_drift"].max() > 0.05 * bounds.gradient_drift.max()


def test_least_loss_is_below_every_loss_and_near_the_least() -> None:
    task = tiny_task("labels:0.2", spread=0.5)
    shape = (CLASSES, FEATURES + 1)
    for g in (0, SLOTS - 1):
        found = minimize(lambda w, g=g: task.loss(g, w.reshape(shape)), np.zeros(shape).ravel(), method="BFGS")
        bound = least_loss(task, g, worth=0.0)
        assert 0.3 < bound <= found.fun * (1 + 1e-12)
        assert bound == pytest.approx(found.fun, rel=1e-4)
        assert least_loss(task, g, worth=1.0) == 0.0


def test_least_loss_of_samples_that_can_be_told_apart_is_zero() -> None:
    assert least_loss(tiny_task(spread=30.0), 0, worth=0.01) == 0.0


def test_constants_are_put_into_the_problem() -> None:
    problem = generate_problem(GenerateSettings(devices=4, tasks=2, slots=SLOTS, holder_fraction=0.5))
    task = tiny_task("labels:0.3")
    bounds = bounds_everywhere(task, random_models(1)[0], 0.1)
    arrays, before = bounds.put_into(problem, 1).arrays, problem.arrays
    assert arrays.smoothness[1] == bounds.smoothness and arrays.smoothness[0] == before.smoothness[0]
    held = before.has_data[:, 1]
    assert not held.all()
    for name in ("gradient_variance", "dissimilarity", "gradient_drift"):
        np.testing.assert_array_equal(getattr(arrays, name)[:, 1], np.where(held, getattr(bounds, name), 0.0))
        np.testing.assert_array_equal(getattr(arrays, name)[:, 0], getattr(before, name)[:, 0])
    assert replace(bounds, initial_gap=0.0).put_into(problem, 1).arrays.initial_gap[1] > 0


# --- real training --------------------------------------------------------------------------------------------------------------

DRIFTING = Setting("dirichlet:0.3", "labels:0.05", "random", "C1+C2", "8", slots=12, seed=1)
#: near the optimum at the largest steps: little but T_opt
DESCENT = Setting("iid", "none", "synchronous", "C1+C2", "full", slots=120)


@pytest.fixture(scope="module")
def drifting() -> tuple[Replay, float, float]:
    return execute(DRIFTING, "digits")


@pytest.fixture(scope="module")
def descent() -> tuple[Replay, float, float]:
    return execute(DESCENT, "digits")


def longest_step(run: Replay) -> float:
    return max(float(np.linalg.norm(after - before)) for before, after in pairwise(run.models))


def test_replay_makes_the_steps_of_the_engine(drifting: tuple[Replay, float, float]) -> None:
    run = drifting[0]
    step = longest_step(run)
    assert len(run.models) == DRIFTING.slots + 1
    assert run.schedule.staleness.max() >= 3
    assert run.error() < 1e-4 * step
    other = replace(run, uploads=[*run.uploads[1:], run.uploads[0]])
    assert other.error() > 0.05 * step


def test_path_constants_hold_where_the_proof_asks(drifting: tuple[Replay, float, float]) -> None:
    run = drifting[0]
    task, models = run.task, run.models
    found = constants_on_path(task, models, run.schedule, run.variance)
    slack = 1 + 1e-12
    used = {"part": 0.0, "drift": 0.0}
    for i, a, b in zip(run.schedule.device, run.schedule.start, run.schedule.end, strict=True):
        for g in (int(a), int(b) - 1):
            gradients = task.gradients(g, models[g])
            apart = float(np.linalg.norm(gradients[i] - task.mean(gradients)))
            assert apart <= found.dissimilarity[i] * slack
            used["part"] = max(used["part"], apart / found.dissimilarity[i])
        over_time = np.stack([task.gradients(k, models[b - 1]) for k in range(a, b)])
        for device, most in enumerate(np.linalg.norm(np.diff(over_time, axis=0), axis=(2, 3)).max(axis=0, initial=0.0)):
            assert most <= found.gradient_drift[device] * slack
            used["drift"] = max(used["drift"], most / found.gradient_drift[device])
    # and are reached there
    assert used["part"] == pytest.approx(1.0)
    assert used["drift"] > 0.9
    rises = [task.loss(g, models[g]) - task.loss(g - 1, models[g]) for g in range(1, DRIFTING.slots)]
    assert found.loss_drift == pytest.approx(max(rises))
    assert max(rises) > 0


def test_everything_on_the_path_is_within_the_bounds_everywhere(drifting: tuple[Replay, float, float]) -> None:
    run = drifting[0]
    path = constants_on_path(run.task, run.models, run.schedule, run.variance)
    everywhere = bounds_everywhere(run.task, run.models[0], float(aggregate(run.problem.arrays, run.schedule).h_total[0]))
    for name, value in vars(path).items():
        assert np.all(value <= np.asarray(getattr(everywhere, name)) * (1 + 1e-12)), name


@pytest.mark.parametrize("name", ["drifting", "descent"])
def test_theorem_holds(name: str, request: pytest.FixtureRequest) -> None:
    """Ψ and the sharper Ψ with the constants of the path, Ψ with bounds that hold everywhere, terms, the descent inequality."""
    setting = {"drifting": DRIFTING, "descent": DESCENT}[name]
    run = compare(setting, *request.getfixturevalue(name))
    assert run.violations == []
    assert run.certified
    assert 1 < run.ratio < 200
    assert run.bound < run.everywhere
    assert sum(run.terms.values()) == pytest.approx(run.bound)


def test_theorem_holds_with_a_proximal_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """ηρ = 0.5: the last of four steps counts eight times as much as the first."""
    plain = theory._with_smoothness

    def proximal(setting: Setting, problem: Problem, smoothness: float) -> Problem:
        data = plain(setting, problem, smoothness).to_dict()
        data["tasks"][0]["prox"] = 0.5 / data["tasks"][0]["learning_rate"]
        return Problem.model_validate(data)

    monkeypatch.setattr(theory, "_with_smoothness", proximal)
    run, *values = execute(replace(DRIFTING, slots=8), "digits")
    assert run.problem.tasks[0].prox > 0
    assert run.schedule.steps.max() == theory.STEPS
    assert compare(DRIFTING, run, *values).violations == []
    # that the replay knows of it is seen: without it, it goes elsewhere
    data = run.problem.to_dict()
    data["tasks"][0]["prox"] = 0.0
    without = Problem.model_validate(data)
    other = replay(without, run.schedule, run.task, run.models, DRIFTING.seed)
    assert run.error() < 1e-4 * longest_step(run)
    assert other.error() > 1e-2 * longest_step(run)


@pytest.mark.parametrize(("constant", "factor"), [("initial_gap", 0.1), ("dissimilarity", 0.0)])
def test_a_constant_that_is_too_small_is_noticed(constant: str, factor: float, descent: tuple[Replay, float, float]) -> None:
    """Else the comparison would show nothing."""
    violations = compare(DESCENT, *descent, {constant: factor}).violations
    assert violations
    if constant == "initial_gap":
        assert any("measured" in line and "exceeds sharp" in line for line in violations)


def test_without_noise_and_drift_nothing_is_left_of_these_terms(descent: tuple[Replay, float, float]) -> None:
    run, measured, _ = descent
    terms = realised_terms(run)
    assert terms.loss == 0 and terms.data == 0 and terms.stale == 0
    assert terms.noise < 1e-8 * terms.opt
    assert terms.squares / aggregate(run.problem.arrays, run.schedule).h_total[0] == pytest.approx(measured, rel=1e-4)
    assert 0 < terms.slack < terms.opt


def test_the_parts_of_an_error_make_up_the_step(drifting: tuple[Replay, float, float]) -> None:
    """Mini-batch noise is what is left of a step: it must vanish with it where batches are full, and be as large as N_g says else."""
    run = drifting[0]
    terms, sums = realised_terms(run), aggregate(run.problem.arrays, run.schedule)
    path = constants_on_path(run.task, run.models, run.schedule, run.variance).put_into(run.problem)
    promised = float(run.task.smoothness * aggregate(path.arrays, run.schedule).noise_instant.sum())
    assert 0.3 < terms.noise / promised < 1.3
    assert terms.slack > 0
    assert np.isfinite(sums.h_total).all()


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_short_set_has_everything_with_everything_in_pairs() -> None:
    short = list(short_set())
    assert len(short) == len(set(short)) >= 24
    assert len(set(full_set())) == 360
    for field, values in (("partition", theory.PARTITIONS), ("drift", theory.DRIFTS), ("schedule", theory.SCHEDULES)):
        for level in theory.LEVELS:
            assert {getattr(s, field) for s in short if s.level == level} == set(values)
    assert {(s.level, s.batch) for s in short} == {(level, batch) for level in theory.LEVELS for batch in theory.BATCHES}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [replace(DRIFTING, slots=6), Setting("iid", "none", "round robin", "small", "full", slots=6)]
    monkeypatch.setattr(command, "short_set", lambda seed: settings)
    monkeypatch.setattr(command, "load_source", lambda: ("digits", "digits"))
    output = tmp_path / "theory.json"
    assert command.main(["-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 runs agree with the theorem" in printed
    assert "violated" not in printed
    data = json.loads(output.read_text())
    assert data["schema"] == "schedopt.theory-benchmark/1"
    assert [run["violations"] for run in data["runs"]] == [[], []]
    assert data["runs"][0]["ratio"] == pytest.approx(data["runs"][0]["bound"] / data["runs"][0]["measured"])
    assert command.main(["--understate", "initial_gap=0.0001", "--understate", "loss_drift=0"]) == 1
    assert "violated: " in capsys.readouterr().out


def test_command_keeps_what_was_done_when_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Setting] = []

    def stopped(setting: Setting, *rest: object) -> Run:
        calls.append(setting)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return measure(replace(DRIFTING, slots=6), "digits")

    monkeypatch.setattr(command, "measure", stopped)
    monkeypatch.setattr(command, "load_source", lambda: ("digits", "digits"))
    assert command.main([]) == 130
    assert "1 of 1 runs agree" in capsys.readouterr().out


@pytest.mark.parametrize("factor", ["smoothness", "nothing=1", "smoothness=x"])
def test_command_refuses_factors_of_nothing(factor: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--understate", factor])
    assert stopped.value.code == 2
    assert "understate" in capsys.readouterr().err


def test_digits_stand_in_for_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise DataError("not here")

    monkeypatch.setattr(theory, "load_dataset", absent)
    name, words = theory.load_source()
    assert name == "digits"
    assert "MNIST not found" in words
