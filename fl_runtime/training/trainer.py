"""Local training of one task on many devices."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fl_runtime.training.crew import CrewLease, lease_crew
from fl_runtime.training.job import Check, Data, Kernel, LocalJob, check_jobs
from fl_runtime.training.kernels import KernelName, Recipe, has_closed_form, train_halving
from fl_runtime.training.layout import Layout
from fl_runtime.training.limits import default_workers, full_precision, is_out_of_memory, one_thread
from fl_runtime.training.measures import Measures
from fl_runtime.training.pace import Pace
from fl_runtime.training.plan import Footprint, plan_chunks
from fl_runtime.training.team import Task, ThreadTeam
from schedopt.errors import InputError, SchedOptError, SolverError

__all__ = ["PATHS", "LocalTrainer", "check_placement"]

#: Ways to train, "auto" first. The numbers of "closed_form" and "processes" are the same to the last bit where gradients are derived by
#: hand, and those of "sequential", "threads" and "processes" where they are not.
PATHS = ("auto", "sequential", "closed_form", "stacked", "threads", "processes")
#: Samples to compute with (steps times batch, over all jobs) below which waking other threads costs more than it saves.
WORTHWHILE = {"sequential": 64, "closed_form": 256, "stacked": 256}
#: Where path "auto" may compute.
THREADS, ALONE, PROCESSES = "threads", "alone", "processes"
#: Seconds of training after which "auto" starts processes: about what that costs.
CREW_AFTER_S = 3.0
#: What a step costs apart from its samples, in samples; only to compare calls of different jobs.
SAMPLES_OF_A_STEP = 8


class LocalTrainer:
    """All local jobs of one task that start from the same global model: w <- w - η [g(w) + ρ (w - w_start)].

    Parameters
    ----------
    model
        A function of its parameters alone, all of which are trained: no BatchNorm, no Dropout.
    learning_rate, prox
        η > 0 and ρ >= 0.
    device
        "cpu" or a CUDA device. There, data stay on the device from call to call as long as jobs bring the same tensor objects.
    path
        "sequential": one job after the other by autograd in one thread, the reference. "threads": the same in ``workers`` threads.
        "closed_form": hand-derived gradients, a few jobs at a time, in ``workers`` threads. "stacked": ``torch.func``, many jobs at a time.
        "processes": ``workers`` processes with hand-derived gradients where there are any, else autograd. "auto": the numbers of
        "closed_form" where it can be, else those of "sequential" on a CPU and of "stacked" on a GPU: a choice by the model and the device
        alone, so that a run repeats its numbers; ``chosen_path`` tells it once training has begun. Where they are computed on a CPU, by
        the calling thread, by threads or, after some seconds of training, by processes, is chosen by measuring.
    workers
        Threads or processes; default: the cores this process may use. CPU only.
    memory_bytes
        Most that the stacked jobs of all workers may hold (approximately); when memory fails nevertheless, stacks are halved. Default:
        what the caches of a CPU make best, half of what is free on a GPU.

    Not for use by two threads at once. Close it, or use it as a context manager, to end its threads and processes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        prox: float = 0.0,
        device: str | torch.device = "cpu",
        path: str = "auto",
        workers: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self.device = _device(device)
        _check(model, learning_rate, prox, path, workers, memory_bytes, self.device)
        self.path, self.learning_rate, self.prox = path, learning_rate, prox
        self.chosen_path: str | None = None if path == "auto" else path
        self.workers = default_workers() if workers is None else workers
        self.memory_bytes = memory_bytes
        self.model = copy.deepcopy(model).to(self.device)
        self.layout = Layout.of(model)
        self._team = ThreadTeam(self.workers if self.device.type == "cpu" else 1)
        self._measures = Measures(self.model, self.layout, self.device, self._team, memory_bytes)
        self._ready: _Ready | None = None

    def __enter__(self) -> LocalTrainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def train(self, start: Tensor, jobs: Sequence[LocalJob]) -> Tensor:
        """Updates w_end - w_start, (n, P) float32 on the trainer's device, in the order of ``jobs``.

        Raises InputError for jobs or parameters that do not fit the model, SolverError if memory does not suffice for one job alone or if
        a worker process ends.
        """
        self._check_flat(start)
        if not jobs:
            return torch.empty(0, self.layout.total, device=self.device)
        check_jobs(jobs)
        ready = self._prepare(jobs[0])
        ready.check_labels(jobs)
        start = start.detach().to(self.device, torch.float32).contiguous()
        with one_thread(), full_precision(self.device):
            chunks = plan_chunks(jobs, ready.footprint, self._spread())
            if self.path == "auto" and self.device.type == "cpu":
                return self._train_fastest(ready, start, jobs, chunks)
            if self.path == "processes":
                return ready.train_in_crew(start, jobs, chunks)
            return self._train_here(ready, start, jobs, chunks, alone=self.path == "sequential" or _is_small(ready, jobs))

    def evaluate(self, parameters: Tensor, features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of ``parameters`` (P,) on (n, *shape) features and (n,) labels."""
        self._check_flat(parameters)
        with one_thread(), full_precision(self.device):
            return self._measures.evaluate(parameters, features, labels)

    def gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient (P,) of the mean cross-entropy at ``parameters`` (P,)."""
        return self.loss_and_gradient(parameters, features, labels)[1]

    def loss_and_gradient(self, parameters: Tensor, features: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Mean cross-entropy at ``parameters`` (P,) and its gradient (P,): as dear as the gradient alone."""
        self._check_flat(parameters)
        with one_thread(), full_precision(self.device):
            return self._measures.loss_and_gradient(parameters, features, labels)

    def close(self) -> None:
        """End threads and processes and let the data go; a trainer that is used again starts them anew."""
        self._team.close()
        self._measures.clear()
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def _spread(self) -> int:
        return self.workers if self.device.type == "cpu" else 1

    def _check_flat(self, parameters: Tensor) -> None:
        if parameters.shape != (self.layout.total,):
            raise InputError(f"parameters of shape {tuple(parameters.shape)}; must be ({self.layout.total},) for this model")

    def _prepare(self, job: LocalJob) -> _Ready:
        shape = tuple(job.features.shape[1:])
        if self._ready is not None and self._ready.recipe.shape == shape:
            return self._ready
        if self._ready is not None:
            self._ready.close()
        classes = _classes(self.model, shape, self.device)
        closed = has_closed_form(self.model, shape)
        if self.path == "auto":
            self.chosen_path = _automatic(closed, self.device)
        path = self.chosen_path
        if path == "closed_form" and not closed:
            raise InputError("path = 'closed_form'; must be another one for a model that is no nn.Sequential of the known layers")
        names: dict[str, KernelName] = {"closed_form": "closed_form", "stacked": "stacked"}
        name = "closed_form" if path == "processes" and closed else names.get(path or "", "sequential")
        recipe = Recipe(name, self.model, shape, self.learning_rate, self.prox, self.device)
        self._ready = _Ready(recipe, classes, self.workers, self.memory_bytes)
        return self._ready

    def _train_fastest(self, ready: _Ready, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]) -> Tensor:
        """By the calling thread, by threads or by processes, whichever has been fastest: the numbers are the same."""
        if len(chunks) == 1 or _is_small(ready, jobs) or self.workers == 1:
            return self._train_here(ready, start, jobs, chunks, alone=True)
        ready.consider_crew()
        way = ready.pace.choose()
        begin = time.perf_counter()
        if way == PROCESSES:
            try:
                updates = ready.train_in_crew(start, jobs, chunks)
            except SchedOptError:
                ready.give_up_crew()  # no memory to share, or a worker that was killed: it goes without
                return self._train_here(ready, start, jobs, chunks, alone=False)
        else:
            updates = self._train_here(ready, start, jobs, chunks, alone=way == ALONE)
        ready.pace.record(way, sum(job.steps * (job.batch + SAMPLES_OF_A_STEP) for job in jobs), time.perf_counter() - begin)
        return updates

    def _train_here(
        self, ready: _Ready, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]], *, alone: bool
    ) -> Tensor:
        out = torch.empty(len(jobs), self.layout.total, device=self.device)
        data = [ready.samples(job) for job in jobs]
        done: list[tuple[int, int]] = []

        def task(chunk: tuple[int, ...]) -> Task:
            def run(worker: int, check: Check) -> None:
                rows = [jobs[k] for k in chunk], [data[k] for k in chunk], [out[k] for k in chunk]
                done.append((len(chunk), train_halving(ready.kernel(worker), start, *rows, check)))

            return run

        self._team.run([task(chunk) for chunk in chunks], alone=alone)
        ready.lower(min((trained for asked, trained in done if trained < asked), default=0))
        return out


def _is_small(ready: _Ready, jobs: Sequence[LocalJob]) -> bool:
    return sum(job.steps * job.batch for job in jobs) <= WORTHWHILE[ready.recipe.kernel]


class _Ready:
    """What training on samples of one shape needs, made at the first call."""

    def __init__(self, recipe: Recipe, classes: int, workers: int, memory_bytes: int | None) -> None:
        self.recipe, self.classes, self.workers = recipe, classes, workers
        self._checked: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        share = None if memory_bytes is None else memory_bytes // (workers if recipe.device.type == "cpu" else 1)
        self.footprint: Footprint | None = recipe.footprint(share)
        self.pace = Pace((THREADS, ALONE))
        self._lease: CrewLease | None = None
        self._crew_wanted = True
        self._kernels: dict[int, Kernel] = {}
        self._held: OrderedDict[tuple[int, int], tuple[Tensor, Tensor, Data]] = OrderedDict()

    def check_labels(self, jobs: Sequence[LocalJob]) -> None:
        """Raise InputError for a label that is no class of the model; labels seen before are not looked at again."""
        for number, job in enumerate(jobs):
            if self._checked.get(id(job.labels)) is job.labels:
                continue
            least, most = (int(value) for value in torch.aminmax(job.labels))
            if least < 0 or most >= self.classes:
                wrong = least if least < 0 else most
                raise InputError(f"jobs[{number}].labels: {wrong}; must be from 0 to {self.classes - 1}, the classes of the model")
            self._checked[id(job.labels)] = job.labels

    def kernel(self, worker: int) -> Kernel:
        """The kernel of a thread."""
        if worker not in self._kernels:
            self._kernels[worker] = self.recipe.make()
        return self._kernels[worker]

    def train_in_crew(self, start: Tensor, jobs: Sequence[LocalJob], chunks: Sequence[tuple[int, ...]]) -> Tensor:
        """Updates (n, P), made by worker processes."""
        updates, fewest = self._crew().train(start, jobs, chunks)
        self.lower(fewest)
        return updates

    def consider_crew(self) -> None:
        """Start processes once that may pay, and count them in as soon as they are there."""
        if not self._crew_wanted or PROCESSES in self.pace.ways or self.pace.seconds < CREW_AFTER_S:
            return
        try:
            crew = self._crew().crew
            crew.start()
            if crew.is_ready():
                self.pace.add(PROCESSES)
        except (SchedOptError, OSError):
            self.give_up_crew()

    def give_up_crew(self) -> None:
        """Do without processes from now on."""
        self._crew_wanted = False
        if PROCESSES in self.pace.ways:
            self.pace.drop(PROCESSES)
        self._close_lease()

    def _crew(self) -> CrewLease:
        if self._lease is None:
            self._lease = lease_crew(self.workers, self.recipe)
        return self._lease

    def _close_lease(self) -> None:
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def lower(self, fewest: int) -> None:
        """Stack no more than ``fewest`` jobs from now on, if memory did not suffice for more."""
        if fewest and self.footprint is not None:
            self.footprint = self.footprint.limited(fewest)

    def samples(self, job: LocalJob) -> Data:
        """The job's data on the device; on a GPU they are kept, the least recently used leaving first."""
        if self.recipe.device.type == "cpu":
            return job.features, job.labels
        key = id(job.features), id(job.labels)
        if key not in self._held:
            self._make_room(job)
            move: Callable[[Tensor], Tensor] = _mover(self.recipe.device)
            self._held[key] = job.features, job.labels, (move(job.features), move(job.labels))
        self._held.move_to_end(key)
        return self._held[key][2]

    def _make_room(self, job: LocalJob) -> None:
        free, total = torch.cuda.mem_get_info(self.recipe.device)
        needed = 4 * job.features.numel() + 8 * job.samples
        kept = sum(4 * features.numel() for features, _, _ in self._held.values())
        while self._held and (kept + needed > total // 4 or free < 2 * needed):
            features, _, _ = self._held.popitem(last=False)[1]
            kept -= 4 * features.numel()
            free += 4 * features.numel()

    def close(self) -> None:
        """End processes; let data and kernels go."""
        self._close_lease()
        self._kernels.clear()
        self._held.clear()


def _mover(device: torch.device) -> Callable[[Tensor], Tensor]:
    def move(values: Tensor) -> Tensor:
        # from pinned memory the copies of several jobs run while the next is prepared
        return values.pin_memory().to(device, non_blocking=True) if values.device.type == "cpu" else values.to(device)

    return move


def _classes(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    """Number of classes that ``model`` tells apart. Raises InputError if it does not take samples of ``shape``."""
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *shape, device=device))
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"samples of shape {shape}: the model does not take them ({str(error).splitlines()[0]})") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        raise InputError(f"samples of shape {shape}: the model must give logits of shape (batch, classes)")
    return logits.shape[1]


def _automatic(closed: bool, device: torch.device) -> str:
    if device.type == "cuda":
        return "stacked"
    return "closed_form" if closed else "threads"


def check_placement(device: str | torch.device, path: str) -> None:
    """Raise InputError unless ``path`` is one on ``device``, SolverError if there is no such device here."""
    kind = _device(device).type
    allowed = PATHS if kind == "cpu" else tuple(path for path in PATHS if path not in ("threads", "processes"))
    if path not in allowed:
        raise InputError(f"path = {path!r}; must be one of {', '.join(allowed)} on {kind}")


def _device(device: str | torch.device) -> torch.device:
    try:
        made = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device = {device!r}; must be 'cpu' or 'cuda'") from error
    if made.type not in ("cpu", "cuda"):
        raise InputError(f"device = {str(device)!r}; must be 'cpu' or 'cuda'")
    if made.type == "cuda" and not torch.cuda.is_available():
        raise SolverError("device = 'cuda': torch finds no GPU here; use 'cpu', or install a build of torch with CUDA")
    return made


def _check(
    model: nn.Module, learning_rate: float, prox: float, path: str, workers: int | None, memory_bytes: int | None, device: torch.device
) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate = {learning_rate}; must be positive and finite")
    if not (math.isfinite(prox) and prox >= 0):
        raise InputError(f"prox = {prox}; must be at least 0 and finite")
    check_placement(device, path)
    if workers is not None and workers < 1:
        raise InputError(f"workers = {workers}; must be at least 1")
    if memory_bytes is not None and memory_bytes < 1:
        raise InputError(f"memory_bytes = {memory_bytes}; must be at least 1")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise InputError(f"model: {type(module).__name__} keeps running statistics; must be GroupNorm or the like")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise InputError(f"model: {type(module).__name__} is random; must be left out")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(f"model: {name} is {parameter.dtype}; must be float32")
