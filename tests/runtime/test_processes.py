"""Worker processes: the same numbers, one clear error when one is killed, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training import LocalTrainer
from fl_runtime.training import trainer as trainer_module
from fl_runtime.training.crew import ProcessCrew
from fl_runtime.training.shared import Block
from fl_runtime.training.store import Store
from schedopt.errors import InputError, SolverError

from .local import make_jobs, softmax_update

SIZES = [(20, 3, 5), (7, 1, 7), (33, 6, 1), (40, 2, 17), (20, 3, 5)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model("softmax", (6,), 3)


@pytest.fixture(scope="module")
def trainer(model: nn.Module) -> Iterator[LocalTrainer]:
    """Processes take seconds to start: one set for all tests that leave it as it was."""
    with LocalTrainer(model, learning_rate=0.1, prox=0.2, path="processes", workers=2) as made:
        yield made


def _crew(trainer: LocalTrainer) -> ProcessCrew:
    assert trainer._ready is not None
    return trainer._ready._crew().crew


def test_same_numbers_as_in_this_process(model: nn.Module, trainer: LocalTrainer) -> None:
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES)
    found = trainer.train(start, jobs)
    with LocalTrainer(model, learning_rate=0.1, prox=0.2, path="closed_form", workers=2) as here:
        assert found.equal(here.train(start, jobs))
    expected = softmax_update(start, jobs[0], 3, 0.1, 0.2)
    assert torch.from_numpy(expected).sub(found[0]).abs().max() < 1e-5


def test_data_are_sent_once_and_let_go(model: nn.Module, trainer: LocalTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    start = initial_parameters(model, 1)
    jobs, others = make_jobs((6,), 3, SIZES, seed=1), make_jobs((6,), 3, SIZES, seed=2)
    monkeypatch.setattr("fl_runtime.training.store.BLOCK_BYTES", 1000)  # a block holds one or two of these jobs
    store = _crew(trainer).store
    monkeypatch.setattr(store, "_next", 0 if not store._shelves else store._next + 1)  # what is filled so far stays as it is
    copies: list[int] = []
    copy = Store._copy
    monkeypatch.setattr(Store, "_copy", lambda self, job: copies.append(job.samples) or copy(self, job))  # type: ignore[func-returns-value]
    expected = trainer.train(start, jobs)
    assert copies == [job.samples for job in jobs]
    assert trainer.train(start, jobs).equal(expected) and len(copies) == len(jobs)
    monkeypatch.setattr(store, "kept_bytes", 0)
    held = set(store._shelves)
    trainer.train(start, others)
    assert len(held - set(store._shelves)) >= 2
    copies.clear()
    assert trainer.train(start, jobs).equal(expected)
    assert copies == [job.samples for job in jobs]


def test_more_jobs_than_before(model: nn.Module, trainer: LocalTrainer) -> None:
    """The shared block for starts and updates grows."""
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES * 20)
    found = trainer.train(start, jobs)
    assert found.shape == (100, 21)
    assert found[:5].allclose(trainer.train(start, jobs[:5]), atol=1e-6)


def test_trainers_share_their_processes(trainer: LocalTrainer) -> None:
    model = build_model("mlp", (6,), 4)
    jobs = make_jobs((6,), 4, SIZES)
    start = initial_parameters(model, 1)
    trainer.train(torch.zeros(21), make_jobs((6,), 3, SIZES))
    pids = _crew(trainer).pids
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=2) as other:
        found = other.train(start, jobs)
        assert _crew(other) is _crew(trainer)
    assert _crew(trainer).pids == pids and all(map(_alive, pids))
    with LocalTrainer(model, learning_rate=0.1, path="closed_form", workers=2) as here:
        assert found.equal(here.train(start, jobs))


def test_memory_that_cannot_be_had_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(SolverError, match="3 MiB of shared memory cannot be had .No space left on device.; use another path"):
        Block.make(3 * 2**20)


def test_a_model_that_cannot_be_sent() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda *arguments: None)
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=1) as trainer:
        with pytest.raises(InputError, match="path = 'processes': the model cannot be sent to another process"):
            trainer.train(initial_parameters(model, 1), make_jobs((6,), 3, SIZES))


def test_a_killed_worker_is_said_so_and_replaced(model: nn.Module) -> None:
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES)
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=1) as trainer:
        expected = trainer.train(start, jobs)
        (pid,) = _crew(trainer).pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SolverError, match=r"a worker process ended \(exit code -9\), .*use fewer workers") as caught:
            trainer.train(start, jobs)
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
        assert not _alive(pid) and not _crew(trainer).pids
        assert trainer.train(start, jobs).equal(expected)
        (pid,) = _crew(trainer).pids
    assert not _alive(pid)


def test_a_worker_that_fails_says_why(model: nn.Module, trainer: LocalTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make_jobs((6,), 3, SIZES)
    expected = trainer.train(torch.zeros(21), jobs)
    with monkeypatch.context() as patch:
        patch.setattr(trainer._ready._crew(), "_recipe", b"no recipe")  # type: ignore[union-attr]
        patch.setattr(trainer._ready._crew(), "_number", -1)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="the model cannot be made in another process .*; define it in a module"):
            trainer.train(torch.zeros(21), jobs)
    assert trainer.train(torch.zeros(21), jobs).equal(expected)


def test_auto_comes_to_processes_and_does_without(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it uses, numbers stay the same; a worker that is killed is no reason to stop."""
    monkeypatch.setattr(trainer_module, "CREW_AFTER_S", 0.0)
    monkeypatch.setitem(trainer_module.WORTHWHILE, "closed_form", 0)
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES)
    with LocalTrainer(model, learning_rate=0.1, workers=2) as trainer:
        expected = trainer.train(start, jobs)
        assert trainer._ready is not None
        deadline = time.monotonic() + 60
        while "processes" not in trainer._ready.pace.ways:
            assert trainer.train(start, jobs).equal(expected)
            assert time.monotonic() < deadline
        monkeypatch.setattr(trainer._ready.pace, "choose", lambda: "processes")
        assert trainer.train(start, jobs).equal(expected)
        assert trainer.chosen_path == "closed_form"
        os.kill(_crew(trainer).pids[0], signal.SIGKILL)
        assert trainer.train(start, jobs).equal(expected)
        monkeypatch.undo()
        assert trainer.train(start, jobs).equal(expected)
        assert trainer._ready.pace.ways == ("threads", "alone")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and was not waited for still has a number
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


PROGRAM = """
import signal
import sys
import torch
from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training import LocalJob, LocalTrainer

if __name__ == "__main__":
    # what runs in the background of a shell ignores Ctrl-C, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model = build_model("softmax", (6,), 3)
    trainer = LocalTrainer(model, learning_rate=0.1, path="processes", workers=1)
    job = LocalJob(torch.zeros(9, 6), torch.zeros(9, dtype=torch.int64), 1, 3, (1,))
    trainer.train(initial_parameters(model, 0), [job])
    print(*trainer._ready._crew().crew.pids, flush=True)
    if sys.argv[1] == "exit":
        sys.exit(0)  # without closing the trainer
    long = LocalJob(job.features, job.labels, 10**6, 1, (1,))
    trainer.train(initial_parameters(model, 0), [long] * 4)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
@pytest.mark.parametrize("end", ["exit", "interrupt", "kill"])
def test_no_process_outlives_the_program(end: str, tmp_path: Path) -> None:
    """Left by sys.exit, by Ctrl-C while training and by SIGKILL while training."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    program = subprocess.Popen(
        [sys.executable, str(script), end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 1
    if end != "exit":
        time.sleep(0.3)
        program.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == {"exit": 0, "interrupt": -signal.SIGINT, "kill": -signal.SIGKILL}[end]
    if end == "exit":
        assert errors == ""
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker process is still there"
        time.sleep(0.05)
