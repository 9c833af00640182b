"""A progress bar for downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fl_runtime.datasets.fetch import Progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["download_bars"]


@contextmanager
def download_bars(console: Console | None = None) -> Iterator[Progress]:
    """A ``progress`` for :func:`~fl_runtime.datasets.load_dataset` that draws one bar per file, on stderr unless ``console`` is given.

    Nothing is drawn before something is downloaded.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
    tasks: dict[str, rich_progress.TaskID] = {}

    def tell(name: str, done: int, total: int | None) -> None:
        if not tasks:
            bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield tell
    finally:
        if tasks:
            bars.stop()
