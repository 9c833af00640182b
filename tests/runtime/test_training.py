"""Paths of local training: against double precision computed apart, against one another, and what is promised around them."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training import PATHS, LocalJob, LocalTrainer
from fl_runtime.training.closed_form import ClosedFormKernel
from fl_runtime.training.job import Check, Data, Kernel
from fl_runtime.training.kernels import Recipe
from fl_runtime.training.layers import flow_of
from fl_runtime.training.limits import one_thread
from fl_runtime.training.plan import Footprint, plan_chunks
from schedopt.errors import InputError, SolverError

from .local import autograd_update, make_jobs, relative, softmax_update

#: Paths of one process; those of several are in test_processes.py.
HERE = ("sequential", "closed_form", "stacked", "threads")
#: (D, e, B): one of each extreme, several alike, B = D, B = 1, e = 1, and sizes on both sides of every branch.
SIZES = [(20, 3, 5), (20, 3, 5), (7, 1, 7), (33, 6, 1), (40, 2, 17), (50, 4, 40), (21, 5, 20), (20, 3, 6)]
#: Single precision against double over a few steps, for a smooth loss and for one with kinks, which rounding may cross.
SMOOTH, KINKED = 2e-5, 5e-3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two torch threads crawl where something else wants one of the cores."""
    with one_thread():
        yield


def train(model: nn.Module, start: Tensor, jobs: Sequence[LocalJob], path: str, **options: object) -> Tensor:
    settings: dict[str, object] = {"learning_rate": 0.05} | options
    with LocalTrainer(model, path=path, **settings) as trainer:  # type: ignore[arg-type]
        return trainer.train(start, jobs)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=7),
    features=st.integers(1, 40),
    classes=st.integers(2, 12),
    learning_rate=st.floats(1e-3, 0.5),
    prox=st.sampled_from([0.0, 0.01, 1.0]),
    path=st.sampled_from(HERE),
    workers=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_softmax_regression_against_the_formula(
    sizes: list[tuple[int, int, float]],
    features: int,
    classes: int,
    learning_rate: float,
    prox: float,
    path: str,
    workers: int,
    seed: int,
) -> None:
    jobs = make_jobs((features,), classes, [(d, e, max(1, round(share * d))) for d, e, share in sizes], seed)
    model = build_model("softmax", (features,), classes)
    start = initial_parameters(model, seed)
    found = train(model, start, jobs, path, learning_rate=learning_rate, prox=prox, workers=workers)
    for row, job in zip(found, jobs, strict=True):
        expected = softmax_update(start, job, classes, learning_rate, prox)
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-3, atol=1e-6 + 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prox", [0.0, 0.5])
@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize(("name", "shape"), [("softmax", (2, 3, 4)), ("mlp", (1, 5, 5)), ("cnn", (1, 9, 11)), ("resnet", (2, 6, 6))])
def test_every_model_and_path_against_double_precision(name: str, shape: tuple[int, ...], path: str, prox: float) -> None:
    if (name, path) == ("resnet", "closed_form"):
        pytest.skip("no hand-derived gradients for residual blocks")
    model = build_model(name, shape, 5)
    start = initial_parameters(model, 1)
    jobs = make_jobs(shape, 5, SIZES if name != "resnet" else SIZES[:4])
    expected = torch.stack([autograd_update(model, start, job, 0.05, prox) for job in jobs])
    found = train(model, start, jobs, path, prox=prox, workers=2)
    assert relative(found, expected) < (SMOOTH if name == "softmax" else KINKED)


ODD_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "no biases": (lambda: nn.Sequential(nn.Linear(6, 40, bias=False), nn.ReLU(), nn.Linear(40, 3, bias=False)), (6,)),
    "ReLU first": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)), (6,)),
    "two linear layers": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 33), nn.Linear(33, 3)), (2, 3)),
    "padding, odd sides": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), padding=(2, 1)),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(3, 2, 2, bias=False),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 6, 5),
    ),
    "ReLU and no pooling": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)), (1, 5, 5)),
}


@pytest.mark.parametrize("name", ODD_MODELS)
def test_hand_derived_gradients_of_one_step(name: str) -> None:
    """The update of one step over -η is the gradient: here against autograd in double precision, to rounding."""
    make, shape = ODD_MODELS[name]
    model = make()
    start = initial_parameters(model, 3)
    jobs = make_jobs(shape, 3, [(30, 1, 30), (30, 1, 1), (30, 1, 17), (30, 1, 16)], seed=4)
    expected = torch.stack([autograd_update(model, start, job, 0.05, 0.0) for job in jobs])
    assert flow_of(model, shape) is not None
    assert relative(train(model, start, jobs, "closed_form", workers=1), expected) < SMOOTH


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_batches_taken_in_pieces(name: str) -> None:
    model = build_model(name, (1, 9, 9), 4)
    start = initial_parameters(model, 0)
    jobs = make_jobs((1, 9, 9), 4, [(40, 3, 40), (40, 2, 23)])
    expected = torch.stack([autograd_update(model, start, job, 0.05, 0.3) for job in jobs])
    kernel = ClosedFormKernel(model, (1, 9, 9), 0.05, 0.3, torch.device("cpu"))
    kernel.piece = 7
    found = torch.empty_like(start).repeat(2, 1)
    for row, job in zip(found, jobs, strict=True):
        kernel.train(start, [job], [(job.features, job.labels)], [row], lambda: None)
    assert relative(found, expected) < KINKED


def test_equal_values_in_a_pooling_window_count_once() -> None:
    """Blank images give windows of equal numbers: the gradient goes to one of them, as in torch."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    start = initial_parameters(model, 0)
    (random_job,) = make_jobs((1, 6, 6), 3, [(12, 4, 5)])
    features = random_job.features.clone()
    features[:, :, :4] = 0.5
    job = LocalJob(features, random_job.labels, 4, 5, (1,))
    expected = autograd_update(model, start, job, 0.05, 0.0)
    for path in HERE:
        assert relative(train(model, start, [job], path)[0], expected) < SMOOTH, path


def test_numbers_left_over_in_buffers_do_not_matter() -> None:
    """A chunk whose padding lies where infinities lay before."""
    model = build_model("softmax", (4,), 3)
    start = initial_parameters(model, 0)
    wild = make_jobs((4,), 3, [(9, 1, 9)] * 2)
    for job in wild:
        job.features.fill_(float("inf"))
    jobs = make_jobs((4,), 3, [(10, 2, 9), (10, 2, 8)])
    with LocalTrainer(model, learning_rate=0.1, path="closed_form", workers=1) as trainer:
        expected = trainer.train(start, jobs)
        assert not trainer.train(start, wild).isfinite().all()
        assert trainer.train(start, jobs).equal(expected)


@pytest.mark.parametrize("path", HERE)
def test_order_and_company_of_jobs_do_not_matter(path: str) -> None:
    model = build_model("mlp", (12,), 4)
    start = initial_parameters(model, 2)
    jobs = make_jobs((12,), 4, SIZES)
    together = train(model, start, jobs, path, workers=2)
    order = list(range(len(jobs)))
    random.Random(1).shuffle(order)
    shuffled = train(model, start, [jobs[k] for k in order], path, workers=2)
    alone = torch.cat([train(model, start, [job], path) for job in jobs])
    assert relative(shuffled, together[order]) < KINKED
    assert relative(alone, together) < KINKED


@pytest.mark.parametrize("path", HERE)
def test_repeating_a_call_repeats_its_numbers(path: str) -> None:
    model = build_model("cnn", (1, 8, 8), 4)
    start = initial_parameters(model, 2)
    jobs = make_jobs((1, 8, 8), 4, SIZES)
    before = start.clone()
    with LocalTrainer(model, learning_rate=0.05, path=path, workers=2) as trainer:
        first, again = trainer.train(start, jobs), trainer.train(start, jobs)
    assert first.equal(again)
    assert start.equal(before)


def test_threads_do_not_change_a_bit() -> None:
    model = build_model("resnet", (1, 8, 8), 4)
    start = initial_parameters(model, 2)
    jobs = make_jobs((1, 8, 8), 4, SIZES[:4])
    assert train(model, start, jobs, "threads", workers=3).equal(train(model, start, jobs, "sequential"))


@pytest.mark.parametrize("memory", [1, 40_000, 10**9])
@pytest.mark.parametrize("path", ["closed_form", "stacked"])
def test_chunks_within_memory(path: str, memory: int) -> None:
    model = build_model("mlp", (12,), 4)
    start = initial_parameters(model, 2)
    jobs = make_jobs((12,), 4, SIZES)
    assert relative(train(model, start, jobs, path, memory_bytes=memory), train(model, start, jobs, "sequential")) < KINKED


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 60)), min_size=1, max_size=40),
    most=st.integers(1, 5000),
    workers=st.integers(1, 5),
    stack=st.none() | st.integers(1, 9),
)
def test_plan(sizes: list[tuple[int, int]], most: int, workers: int, stack: int | None) -> None:
    jobs = make_jobs((1,), 2, [(60, steps, batch) for steps, batch in sizes])
    footprint = Footprint(model=50, sample=3, most=most, stack=stack)
    chunks = plan_chunks(jobs, footprint, workers)
    assert sorted(k for chunk in chunks for k in chunk) == list(range(len(jobs)))
    for chunk in chunks:
        assert [jobs[k].steps for k in chunk] == sorted((jobs[k].steps for k in chunk), reverse=True)
        widest = max(jobs[k].batch for k in chunk)
        assert len(chunk) == 1 or len(chunk) * (50 + 3 * widest) <= most
        assert len(chunk) <= min(-(-len(jobs) // workers), stack or len(jobs))
        assert widest <= 1.25 * min(jobs[k].batch for k in chunk)
    assert plan_chunks(jobs, None, workers) == [(chunk[0],) for chunk in plan_chunks(jobs, None, workers)]


class _Tight:
    """A kernel that has memory for a few jobs only."""

    def __init__(self, kernel: Kernel, room: int, error: type[Exception], asked: list[int]) -> None:
        self.kernel, self.room, self.error, self.asked = kernel, room, error, asked

    def train(self, start: Tensor, jobs: Sequence[LocalJob], data: Sequence[Data], out: Sequence[Tensor], check: Check) -> None:
        self.asked.append(len(jobs))
        if len(jobs) > self.room:
            out[0].fill_(torch.nan)  # half done
            raise self.error("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        self.kernel.train(start, jobs, data, out, check)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("path", ["closed_form", "stacked"])
def test_stacks_are_halved_when_memory_fails(path: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("softmax", (6,), 3)
    start = initial_parameters(model, 0)
    jobs = make_jobs((6,), 3, [(10, 2, 5)] * 7)
    expected = train(model, start, jobs, path)
    asked: list[int] = []
    make = Recipe.make
    monkeypatch.setattr(Recipe, "footprint", lambda self, memory: Footprint(1, 1, 10**9))
    monkeypatch.setattr(Recipe, "make", lambda self: _Tight(make(self), 2, error, asked))
    with LocalTrainer(model, learning_rate=0.05, path=path, workers=1) as trainer:
        assert relative(trainer.train(start, jobs), expected) < SMOOTH
        assert max(asked) == 7
        asked.clear()
        assert relative(trainer.train(start, jobs), expected) < SMOOTH
        assert max(asked) <= 2, "what did not fit once is not tried again"


def test_one_job_that_does_not_fit_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("softmax", (6,), 3)
    make = Recipe.make
    monkeypatch.setattr(Recipe, "footprint", lambda self, memory: Footprint(1, 1, 10**9))
    monkeypatch.setattr(Recipe, "make", lambda self: _Tight(make(self), 0, MemoryError, []))
    with LocalTrainer(model, learning_rate=0.05, path="closed_form", workers=2) as trainer:
        with pytest.raises(SolverError, match="batch = 5: training one job does not fit into the memory of cpu; use") as caught:
            trainer.train(initial_parameters(model, 0), make_jobs((6,), 3, [(10, 2, 5)] * 5))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_kernel_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def train(self, *arguments: object) -> None:
            raise ZeroDivisionError("in a worker")

    model = build_model("softmax", (6,), 3)
    jobs = make_jobs((6,), 3, [(100, 9, 50)] * 6)
    with LocalTrainer(model, learning_rate=0.05, path="closed_form", workers=3) as trainer:
        expected = trainer.train(initial_parameters(model, 0), jobs)
        good = dict(trainer._ready._kernels)  # type: ignore[union-attr]
        trainer._ready._kernels.update(dict.fromkeys(range(3), Broken()))  # type: ignore[union-attr, arg-type]
        with pytest.raises(ZeroDivisionError, match="in a worker"):
            trainer.train(initial_parameters(model, 0), jobs)
        trainer._ready._kernels.clear()  # type: ignore[union-attr]
        trainer._ready._kernels.update(good)  # type: ignore[union-attr]
        assert trainer.train(initial_parameters(model, 0), jobs).equal(expected)


@pytest.mark.parametrize(("name", "path"), [("softmax", "closed_form"), ("cnn", "closed_form"), ("resnet", "threads")])
def test_auto_chooses_by_the_model(name: str, path: str) -> None:
    model = build_model(name, (1, 8, 8), 4)
    start = initial_parameters(model, 2)
    jobs = make_jobs((1, 8, 8), 4, SIZES[:3])
    with LocalTrainer(model, learning_rate=0.05) as trainer:
        assert trainer.chosen_path is None
        found = trainer.train(start, jobs)
        assert trainer.chosen_path == path
    assert found.equal(train(model, start, jobs, path))


@pytest.mark.parametrize("name", ["softmax", "cnn", "resnet"])
def test_evaluate_and_gradient_against_double_precision(name: str) -> None:
    model = build_model(name, (1, 8, 8), 4)
    start = initial_parameters(model, 2)
    (job,) = make_jobs((1, 8, 8), 4, [(101, 1, 1)])
    double = build_model(name, (1, 8, 8), 4).double()
    nn.utils.vector_to_parameters(start.double(), double.parameters())
    logits = double(job.features.double())
    loss = nn.functional.cross_entropy(logits, job.labels)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(double.parameters()))])
    for memory in (None, 1, 100_000):
        with LocalTrainer(model, learning_rate=0.1, memory_bytes=memory, workers=2) as trainer:
            found, accuracy = trainer.evaluate(start, job.features, job.labels)
            assert found == pytest.approx(float(loss.detach()), rel=1e-6)
            assert accuracy == float((logits.argmax(1) == job.labels).double().mean())
            assert relative(trainer.gradient(start, job.features, job.labels), expected) < 1e-5
            both = trainer.loss_and_gradient(start, job.features, job.labels)
            assert both[0] == pytest.approx(found, rel=1e-6)
            assert both[1].equal(trainer.gradient(start, job.features, job.labels))


@pytest.mark.parametrize(("workers", "memory", "most"), [(300, None, 1), (2, 1, 2)])
def test_measuring_copies_the_model_once(workers: int, memory: int | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a worker that has something to do, however many there are and however often one measures."""
    copied: list[object] = []
    whole = copy.deepcopy
    model = build_model("mlp", (6,), 3)
    (job,) = make_jobs((6,), 3, [(20, 1, 1)])
    expected = []
    for seed in range(4):
        with LocalTrainer(model, learning_rate=0.1) as fresh:
            expected.append(fresh.evaluate(initial_parameters(model, seed), job.features, job.labels)[0])
    with LocalTrainer(model, learning_rate=0.1, workers=workers, memory_bytes=memory) as trainer:
        monkeypatch.setattr(copy, "deepcopy", lambda thing: copied.append(thing) or whole(thing))
        found = [trainer.evaluate(initial_parameters(model, seed), job.features, job.labels)[0] for seed in range(4)]
        assert 1 <= len(copied) <= most and all(thing is trainer.model for thing in copied)
    assert found == pytest.approx(expected, rel=1e-6)


def test_evaluate_takes_smaller_pieces_when_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("softmax", (6,), 3)
    start = initial_parameters(model, 0)
    (job,) = make_jobs((6,), 3, [(50, 1, 1)])
    with LocalTrainer(model, learning_rate=0.1) as trainer:
        expected = trainer.evaluate(start, job.features, job.labels)
        whole = nn.Sequential(*build_model("softmax", (6,), 3)).forward

        def tight(features: Tensor) -> Tensor:
            if len(features) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return whole(features)

        monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, features: tight(features))
        assert trainer.evaluate(start, job.features, job.labels) == pytest.approx(expected)
        monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, features: tight(features.repeat(4, 1)))
        with pytest.raises(SolverError, match="one sample does not fit into the memory of cpu"):
            trainer.evaluate(start, job.features, job.labels)


def test_nothing_global_is_left_changed() -> None:
    model = build_model("cnn", (1, 8, 8), 4)
    values = [parameter.detach().clone() for parameter in model.parameters()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]  # noqa: NPY002
    for path in HERE:
        train(model, initial_parameters(model, 5), make_jobs((1, 8, 8), 4, SIZES[:3]), path, workers=2)
    assert torch.get_rng_state().equal(state) and torch.get_num_threads() == threads
    assert np.random.get_state()[1].tobytes() == numpy_state  # type: ignore[index, union-attr]  # noqa: NPY002
    assert all(value.equal(parameter) for value, parameter in zip(values, model.parameters(), strict=True))


def test_no_jobs_no_rows() -> None:
    model = build_model("softmax", (6,), 3)
    with LocalTrainer(model, learning_rate=0.1) as trainer:
        assert trainer.train(initial_parameters(model, 0), []).shape == (0, 21)


def test_samples_of_another_shape_in_a_later_call() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    start = initial_parameters(model, 0)
    with LocalTrainer(model, learning_rate=0.1) as trainer:
        for shape in ((12,), (3, 4), (1, 2, 6)):
            (job,) = make_jobs(shape, 3, [(10, 2, 4)])
            assert relative(trainer.train(start, [job])[0], autograd_update(model, start, job, 0.1, 0.0)) < SMOOTH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0; must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate = nan; must be"),
        ({"prox": -1.0}, "prox = -1.0; must be at least 0"),
        ({"path": "fast"}, f"path = 'fast'; must be one of {', '.join(PATHS)} on cpu"),
        ({"workers": 0}, "workers = 0; must be at least 1"),
        ({"memory_bytes": 0}, "memory_bytes = 0; must be at least 1"),
        ({"device": "abacus"}, "device = 'abacus'; must be 'cpu' or 'cuda'"),
        ({"device": "meta"}, "device = 'meta'; must be 'cpu' or 'cuda'"),
        ({"model": nn.Sequential(nn.BatchNorm1d(3))}, "model: BatchNorm1d keeps running statistics"),
        ({"model": nn.Sequential(nn.Dropout(0.5))}, "model: Dropout is random"),
        ({"model": nn.Linear(2, 2).double()}, "model: weight is torch.float64; must be float32"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"model": nn.Linear(2, 2), "learning_rate": 0.1} | change
    with pytest.raises(InputError, match=message):
        LocalTrainer(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4, 2).double()}, r"features = torch.float64 of shape \(4, 2\); must be float32"),
        ({"features": torch.zeros(0, 2)}, r"features = torch.float32 of shape \(0, 2\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels = torch.int64 of shape \(3,\); must be int64 \(4,\)"),
        ({"labels": torch.zeros(4)}, "labels = torch.float32"),
        ({"steps": 0}, "steps = 0; must be at least 1"),
        ({"batch": 0}, "batch = 0; must be from 1 to the 4 samples"),
        ({"batch": 5}, "batch = 5; must be from 1 to the 4 samples"),
        ({"seed": ()}, r"seed = \(\); must be"),
        ({"seed": (1, -2)}, r"seed = \(1, -2\); must be"),
    ],
)
def test_jobs_that_cannot_be(change: dict[str, object], message: str) -> None:
    samples = {"features": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.int64)}
    options: dict[str, object] = {**samples, "steps": 1, "batch": 2, "seed": (0,)}
    with pytest.raises(InputError, match=message):
        LocalJob(**(options | change))  # type: ignore[arg-type]


def test_calls_that_do_not_fit_the_model() -> None:
    model = build_model("resnet", (1, 8, 8), 3)
    start = initial_parameters(model, 0)
    jobs = make_jobs((1, 8, 8), 3, [(4, 1, 2)]) + make_jobs((1, 9, 9), 3, [(4, 1, 2)])
    with LocalTrainer(model, learning_rate=0.1) as trainer:
        with pytest.raises(InputError, match=r"parameters of shape \(5,\); must be \(77107,\)"):
            trainer.train(torch.zeros(5), jobs)
        with pytest.raises(InputError, match=r"jobs\[1\].features: samples of shape \(1, 9, 9\); must be \(1, 8, 8\) as in jobs\[0\]"):
            trainer.train(start, jobs)
        with pytest.raises(InputError, match="4 samples with 3 labels"):
            trainer.evaluate(start, jobs[0].features, jobs[0].labels[:3])
    with LocalTrainer(model, learning_rate=0.1, path="closed_form") as trainer:
        with pytest.raises(InputError, match="path = 'closed_form'; must be another one"):
            trainer.train(start, jobs[:1])


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((6,), 3, r"jobs\[1\].labels: 3; must be from 0 to 2, the classes of the model"),
        ((6,), -100, r"jobs\[1\].labels: -100; must be from 0 to 2"),
        ((7,), 0, r"samples of shape \(7,\): the model does not take them \(mat1 and mat2"),
    ],
)
@pytest.mark.parametrize("path", HERE)
def test_data_that_do_not_fit_the_model(path: str, shape: tuple[int, ...], label: int, message: str) -> None:
    jobs = make_jobs(shape, 3, [(4, 1, 2)] * 2)
    jobs[1].labels[2] = label
    with pytest.raises(InputError, match=message) as caught:
        train(build_model("softmax", (6,), 3), torch.zeros(21), jobs, path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_missing_gpu_is_said_so() -> None:
    with pytest.raises(SolverError, match="torch finds no GPU here; use 'cpu'"):
        LocalTrainer(nn.Linear(2, 2), learning_rate=0.1, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("path", ["auto", "sequential", "closed_form", "stacked"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "cnn"])
def test_gpu_against_double_precision(name: str, path: str) -> None:
    model = build_model(name, (1, 9, 11), 5)
    start = initial_parameters(model, 1)
    jobs = make_jobs((1, 9, 11), 5, SIZES)
    expected = torch.stack([autograd_update(model, start, job, 0.05, 0.1) for job in jobs])
    with LocalTrainer(model, learning_rate=0.05, prox=0.1, path=path, device="cuda") as trainer:
        found = trainer.train(start, jobs)
        assert found.device.type == "cuda"
        assert relative(found.cpu(), expected) < KINKED
        assert relative(trainer.train(start, jobs).cpu(), expected) < KINKED
        loss, _ = trainer.evaluate(start, jobs[0].features, jobs[0].labels)
        assert loss > 0
        assert trainer.gradient(start, jobs[0].features, jobs[0].labels).device.type == "cuda"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores a process may use")
def test_workers_are_the_cores_of_this_process() -> None:
    assert LocalTrainer(nn.Linear(2, 2), learning_rate=0.1).workers == len(os.sched_getaffinity(0))
