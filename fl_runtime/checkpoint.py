"""Checkpoints: written whole or not at all, loaded without running anything that is in them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from schedopt.errors import InputError
from schedopt.io import read_bytes, write_bytes

__all__ = ["load_checkpoint", "save_checkpoint"]

_SCHEMA = "schedopt.checkpoint/1"
#: In front of the content stands its SHA-256: torch would not notice every bit that flipped.
_DIGEST_BYTES = 32
#: A larger file is refused unread.
_MOST_BYTES = 2**36


def save_checkpoint(path: str | os.PathLike[str], identity: str, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, texts, lists, dicts) for the run that ``identity`` tells from all others.

    Raises :class:`~schedopt.errors.InputError` if the file cannot be written; what was there is then still there.
    """
    buffer = io.BytesIO()
    torch.save({"schema": _SCHEMA, "identity": identity, "state": dict(state)}, buffer)
    data = buffer.getvalue()
    write_bytes(path, hashlib.sha256(data).digest() + data)


def load_checkpoint(path: str | os.PathLike[str], identity: str) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote for the run that ``identity`` tells from all others.

    Raises :class:`~schedopt.errors.InputError` for a file that cannot be read, is none of ours, or is of a run other than ``identity``.
    """
    content = read_bytes(path, most=_MOST_BYTES)
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        raise InputError(f"{os.fspath(path)}: not a checkpoint of schedopt, or damaged; remove it to start anew")
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{os.fspath(path)}: not a checkpoint of schedopt, or damaged; remove it to start anew") from None
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
        raise InputError(f"{os.fspath(path)}: not a checkpoint of schedopt ({_SCHEMA})")
    if found.get("identity") != identity:
        raise InputError(
            f"{os.fspath(path)}: is the checkpoint of another run (schedule, seed, data, models, options and versions must be the same);"
            " remove it to start anew, or keep this run's in another file (--checkpoint)"
        )
    state: dict[str, Any] = found["state"]
    return state
