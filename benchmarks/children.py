"""Child processes that are leaders of process groups: how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

__all__ = ["kill_group", "last_words"]


def kill_group(leader: int) -> None:
    """Kill whatever is left of the process group of ``leader``."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left


def last_words(code: int, errors: Path) -> str:
    """How a child that crashed ended, in one line: its exit code or signal, and the last line of its standard error."""
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "no output"
    if code >= 0:
        return f"exit code {code}: {last}"
    try:
        return f"{signal.Signals(-code).name}: {last}"
    except ValueError:
        return f"signal {-code}: {last}"
