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
from fl_runtime.training import crew as crew_module
from fl_runtime.training.crew import ProcessCrew
from fl_runtime.training.shared import Block
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
    assert trainer._ready is not None and trainer._ready.crew is not None
    return trainer._ready.crew


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
    expected = trainer.train(start, jobs)
    copies: list[int] = []
    copy = ProcessCrew._copy
    monkeypatch.setattr(ProcessCrew, "_copy", lambda self, job: copies.append(job.samples) or copy(self, job))  # type: ignore[func-returns-value]
    assert trainer.train(start, jobs).equal(expected) and not copies
    monkeypatch.setattr(_crew(trainer), "kept_bytes", 0)
    before = set(_crew(trainer)._held.blocks)
    trainer.train(start, others)
    assert copies == [job.samples for job in others]
    assert len(before - set(_crew(trainer)._held.blocks)) >= len(jobs)
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


def test_little_shared_memory_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1

    monkeypatch.setattr("fl_runtime.training.shared.os.path.isdir", lambda path: True)
    monkeypatch.setattr("fl_runtime.training.shared.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(SolverError, match="3 MiB of shared memory needed, 0 free in /dev/shm; use another path than 'processes'"):
        Block.make(3 * 2**20)


def test_a_model_that_cannot_be_sent() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda *arguments: None)
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=1) as trainer:
        with pytest.raises(InputError, match="path = 'processes': the model cannot be sent to another process"):
            trainer.train(initial_parameters(model, 1), make_jobs((6,), 3, SIZES))


def test_a_killed_worker_is_said_so_and_replaced(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES)
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=1) as trainer:
        expected = trainer.train(start, jobs)
        (process,) = _crew(trainer)._held.processes
        names = list(_crew(trainer)._held.blocks)
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SolverError, match=r"a worker process ended \(exit code -9\), .*use fewer workers") as caught:
            trainer.train(start, jobs)
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
        for name in names:
            with pytest.raises(FileNotFoundError):
                Block.open(name)
        assert trainer.train(start, jobs).equal(expected)
    assert not _alive(pid)


def test_a_worker_that_fails_says_why(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    start = initial_parameters(model, 1)
    jobs = make_jobs((6,), 3, SIZES)
    with LocalTrainer(model, learning_rate=0.1, path="processes", workers=1) as trainer:
        trainer.train(start, jobs)
        monkeypatch.setattr(crew_module, "Board", lambda block, parameters, rows: ("no board",))
        with pytest.raises(RuntimeError, match="AttributeError: 'tuple' object has no attribute 'block'"):
            trainer.train(start, jobs)
        assert not _crew(trainer)._held.processes


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and was not waited for still has a number
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


PROGRAM = """
import sys
import torch
from fl_runtime.models import build_model, initial_parameters
from fl_runtime.training import LocalJob, LocalTrainer

if __name__ == "__main__":
    model = build_model("softmax", (6,), 3)
    trainer = LocalTrainer(model, learning_rate=0.1, path="processes", workers=2)
    job = LocalJob(torch.zeros(9, 6), torch.zeros(9, dtype=torch.int64), 1, 3, (1,))
    trainer.train(initial_parameters(model, 0), [job])
    print(*(process.pid for process in trainer._ready.crew._held.processes), flush=True)
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
    assert len(workers) == 2
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
