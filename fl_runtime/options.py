"""Options that the runtime's commands share: which data and models, where and how to train. torch is imported when settings are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from schedopt.cli.options import WholeNumber
from schedopt.errors import InputError

if TYPE_CHECKING:
    from fl_runtime.settings import SimulateSettings
    from schedopt.problem import Problem

__all__ = ["by_task", "data_options", "settings_from", "training_options"]

Function = TypeVar("Function", bound=Callable[..., Any])

_option = click.option
_DATA = (
    _option("--data-dir", metavar="DIR", type=click.Path(), help="Where data sets are; else SCHEDOPT_DATA_DIR, the cache, a download."),
    _option("--partition", default="dirichlet:0.3", show_default=True, metavar="KIND", help="iid, dirichlet:A, shards:K, size[:SIGMA]."),
    _option("--drift", default="", metavar="RATES", help="KIND:RATE[@DEVICE],... per slot; kinds labels, arrivals, rotation."),
    _option("--dataset", "datasets", multiple=True, metavar="[TASK=]NAME", help="Data set in place of the problem's; may be repeated."),
    _option("--model", "models", multiple=True, metavar="[TASK=]NAME", help="Model in place of the problem's; may be repeated."),
    _option("--accept-incomplete", is_flag=True, help="Take data sets that are knowingly incomplete."),
    _option("--no-download", is_flag=True, help="Never touch the network."),
)
_TRAINING = (
    _option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."),
    _option("--path", "path", default="auto", show_default=True, metavar="NAME", help="How devices are trained; see the README."),
    _option("--workers", type=WholeNumber(1), metavar="N", help="Threads or processes on a CPU; at most its cores.  [default: its cores]"),
)


def data_options(function: Function) -> Function:
    """``--data-dir --partition --drift --dataset --model --accept-incomplete --no-download``."""
    for option in reversed(_DATA):
        function = option(function)
    return function


def training_options(function: Function) -> Function:
    """``--device --path --workers``."""
    for option in reversed(_TRAINING):
        function = option(function)
    return function


def settings_from(options: Mapping[str, Any], problem: Problem, **more: Any) -> SimulateSettings:
    """What the options above say of ``problem``; ``more``: the other settings. What is wrong is told before torch is imported.

    Raises :class:`~schedopt.errors.InputError` for options that do not go with the problem, ``ImportError`` if the device is to be found
    out and there is no torch.
    """
    from fl_runtime.settings import SimulateSettings

    settings = SimulateSettings(
        partition=options["partition"],
        drift=options["drift"],
        device=options["device"],
        path=options["path"],
        workers=options["workers"],
        datasets=by_task("--dataset", options["datasets"]),
        models=by_task("--model", options["models"]),
        data_dir=options["data_dir"],
        accept_incomplete=options["accept_incomplete"],
        download=not options["no_download"],
        **more,
    )
    settings.check(problem)
    if settings.device != "auto":
        return settings
    import torch

    return replace(settings, device="cuda" if torch.cuda.is_available() else "cpu")


def by_task(option: str, choices: tuple[str, ...]) -> dict[str, str]:
    """``[TASK=]NAME`` texts as a dict; the key "" stands for all tasks that are not named."""
    found: dict[str, str] = {}
    for choice in choices:
        task, equals, name = choice.rpartition("=")
        if not name or (equals and not task):
            raise InputError(f"{option} {choice}: must be NAME or TASK=NAME")
        if task in found:
            raise InputError(f"{option} {choice}: {f'task {task!r}' if task else 'all tasks'} is given more than once")
        found[task] = name
    return found
