"""Files: the only library module that opens any.

Reading refuses at once, in one line, what is no regular file, too large, not UTF-8, not strict JSON or not what ``formats`` says; a
UTF-8 byte order mark is skipped, and gzip is recognised by content. Writing is whole or not at all (temporary file in the same
directory, fsync, rename), so that what was on disk stays there until the new file is complete; a name ending in ``.gz`` is gzipped.
What is no file on disk, a pipe, a device or an open file of this process (``/dev/stdout``, ``/dev/fd/3``), is written as a stream.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import secrets
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schedopt.errors import InputError
from schedopt.files import ScheduleFile, parse_problem, parse_schedule, schedule_to_dict
from schedopt.jsontext import dumps, parse_object, preview
from schedopt.objective import Evaluation
from schedopt.problem import PROBLEM_SCHEMA, Problem
from schedopt.result import SolveResult
from schedopt.schedule import SCHEDULE_SCHEMA, Schedule

if TYPE_CHECKING:
    from schedopt.sca.iterate import NativeIterate

__all__ = [
    "MAX_EXPANDED_BYTES",
    "MAX_FILE_BYTES",
    "ScheduleFile",
    "check_output",
    "descriptor_of",
    "is_stream",
    "load_any",
    "load_iterate",
    "load_problem",
    "load_schedule",
    "load_schedule_for",
    "problem_text",
    "read_bytes",
    "save_iterate",
    "save_problem",
    "save_schedule",
    "schedule_text",
    "write_bytes",
    "write_text",
]

#: A larger file on disk is refused unread.
MAX_FILE_BYTES = 64 * 2**20

#: A gzipped file may expand to this much.
MAX_EXPANDED_BYTES = 2**30

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 2**20
#: As many links as the system follows.
_MOST_LINKS = 40
#: Deflate makes at most this many bytes of one.
_MOST_EXPANSION = 1032

PathLike = str | os.PathLike[str]


def load_problem(path: PathLike) -> Problem:
    """Read ``problem.json`` (or ``.json.gz``).

    Raises :class:`~schedopt.errors.InputError` with one line: the file, where in it, which value, what is allowed.
    """
    with _naming(path):
        return parse_problem(_read_object(path))


def load_schedule(path: PathLike) -> ScheduleFile:
    """Read ``schedule.json`` (or ``.json.gz``); errors as :func:`load_problem`."""
    with _naming(path):
        return parse_schedule(_read_object(path))


def load_schedule_for(problem: Problem, path: PathLike, *, hint: str = "") -> Schedule:
    """The schedule of a file, for ``problem``, which may be another than the file's: devices and tasks are found by name.

    Raises :class:`~schedopt.errors.InputError` as :func:`load_schedule`, and if a name is missing (``hint``: what the message ends with) or
    an assignment ends beyond the horizon.
    """
    file = load_schedule(path)
    found = []
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("device", problem.devices, file.problem.devices),
        ("task", problem.tasks, file.problem.tasks),
    )
    for kind, wanted, given in pairs:
        index = {item.name: k for k, item in enumerate(wanted)}
        missing = [item.name for item in given if item.name not in index]
        if missing:
            raise InputError(f"{path}: {kind} {missing[0]!r} is not in the problem{hint}")
        found.append(np.array([index[item.name] for item in given]))
    schedule = file.schedule.replace(device=found[0][file.schedule.device], task=found[1][file.schedule.task])
    if len(schedule) and int(schedule.end.max()) > problem.arrays.slots:
        raise InputError(f"{path}: an assignment ends at instant {int(schedule.end.max())}; the problem has {problem.arrays.slots} slots")
    return schedule


def load_any(path: PathLike) -> Problem | ScheduleFile:
    """Read a problem or a schedule, whichever the file's ``schema`` says; errors as :func:`load_problem`."""
    with _naming(path):
        data = _read_object(path)
        schema = data.get("schema")
        if schema == PROBLEM_SCHEMA:
            return parse_problem(data)
        if schema == SCHEDULE_SCHEMA:
            return parse_schedule(data)
        stated = f"schema = {preview(schema)}" if "schema" in data else "schema: missing"
        raise InputError(f'{stated}; must be "{PROBLEM_SCHEMA}" or "{SCHEDULE_SCHEMA}"')


def problem_text(problem: Problem) -> str:
    """The text of ``problem.json``."""
    return dumps(problem.to_dict())


def schedule_text(problem: Problem, schedule: Schedule, result: SolveResult | None = None, *, evaluation: Evaluation | None = None) -> str:
    """The text of ``schedule.json``; arguments as :func:`~schedopt.files.schedule_to_dict`."""
    return dumps(schedule_to_dict(problem, schedule, result, evaluation=evaluation))


def save_problem(path: PathLike, problem: Problem) -> None:
    """Write ``problem.json``, gzipped if ``path`` ends in ``.gz``; errors as :func:`write_text`."""
    write_text(path, problem_text(problem))


def save_schedule(
    path: PathLike,
    problem: Problem,
    schedule: Schedule,
    result: SolveResult | None = None,
    *,
    evaluation: Evaluation | None = None,
) -> None:
    """Write ``schedule.json``, gzipped if ``path`` ends in ``.gz``; arguments as :func:`schedule_text`, errors as :func:`write_text`."""
    write_text(path, schedule_text(problem, schedule, result, evaluation=evaluation))


@contextmanager
def _naming(path: PathLike) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    name = os.fspath(path)
    try:
        if not name or "\0" in name:
            raise InputError("not a file name")
        yield
    except InputError as error:
        raise InputError(f"{name or repr(name)}: {error}") from error.__cause__
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from error
    except MemoryError:
        raise InputError(f"{name}: too large for the memory of this machine") from None


def _read_object(path: PathLike) -> dict[str, Any]:
    data: bytes | bytearray = _read_bytes(path)
    if data.startswith(_GZIP_MAGIC):
        data = _expand(data)
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = str(memoryview(data)[start:], "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {start + error.start} = 0x{data[start + error.start]:02x}: not UTF-8 text, hence not JSON") from None
    del data  # a large file need not be in memory twice
    return parse_object(text)


def _read_bytes(path: PathLike, most: int | None = None) -> bytes:
    """The bytes of a regular file of sensible size; whatever else ``path`` is (a pipe, a device) is not even opened."""
    most = MAX_FILE_BYTES if most is None else most
    _require_regular(os.stat(path))
    # opened without waiting and looked at again: what is at ``path`` may have changed in between
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        _require_regular(info)
        _require_size(info.st_size, most)
        # the stated size of some regular files (/proc) is wrong
        data = file.read(min(most, max(info.st_size, MAX_FILE_BYTES)) + 1)
    _require_size(len(data), most)
    return data


def _require_regular(info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise InputError("is a directory; must be a file")
    if not stat.S_ISREG(info.st_mode):
        raise InputError("not a regular file (a pipe, a device or a socket); must be a file")


def _require_size(size: int, most: int) -> None:
    if size > most:
        stated = f"{size:,} bytes ({size / 2**20:.1f} MiB)"
        raise InputError(f"{stated}; must be at most {most // 2**20} MiB (larger schedules can be gzipped)")


def _expand(data: bytes | bytearray) -> bytearray:
    """Decompress, never beyond the limit."""
    # the trailer states the size (modulo 4 GiB), so an honest bomb is refused before it is expanded; a size that no gzip file of this
    # length can have is no trailer but the middle of a damaged file
    stated = int.from_bytes(data[-4:], "little")
    if stated <= _MOST_EXPANSION * len(data):
        _require_expanded(stated, "is stated to expand")
    result = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(_CHUNK):
                result += chunk
                _require_expanded(len(result), "expands")
    except EOFError:
        raise InputError("damaged gzip file: it ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"damaged gzip file: {error}") from None
    return result


def _require_expanded(size: int, verb: str) -> None:
    if size > MAX_EXPANDED_BYTES:
        raise InputError(f"gzip: {verb} to {size / 2**20:,.0f} MiB or more; must be at most {MAX_EXPANDED_BYTES // 2**20:,} MiB")


def check_output(path: PathLike, *, inputs: tuple[PathLike, ...] = (), streams: bool = True) -> None:
    """Refuse now a ``path`` that :func:`write_text` could not write later, or that is one of the ``inputs``.

    Without ``streams`` it must be a file on disk, which can be read again. Raises :class:`~schedopt.errors.InputError`.
    """
    with _naming(path):
        if is_stream(path):
            if not streams:
                raise InputError("is a pipe or a device; must be a file")
            _check_stream(path)
            return
        target = _target(path)
        if target.exists() and any(os.path.exists(other) and os.path.samefile(target, other) for other in inputs):
            raise InputError("is the input; the output must be another file")
        probe = _temporary(target)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, gzipped if ``path`` ends in ``.gz``; the file is whole or, after an error, as it was.

    A link is followed; the mode of an existing file is kept. Streams (:func:`is_stream`) are written to. Raises
    :class:`~schedopt.errors.InputError`.
    """
    with _naming(path):
        data = text.encode()
        _put(path, _compress(data) if os.fspath(path).endswith(".gz") else data)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write ``data`` as it is; whole or not at all, streams and errors as :func:`write_text`."""
    with _naming(path):
        _put(path, data)


def is_stream(path: PathLike) -> bool:
    """Whether ``path`` is written as a stream instead of replaced: a pipe, a character device, an open file of this process."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def descriptor_of(path: PathLike) -> int | None:
    """The number of the open file that ``path`` names, as ``/dev/stdout``, ``/dev/fd/3`` and links to them do; None for other names."""
    name = os.fspath(path)
    if "\0" in name:
        return None
    for _ in range(_MOST_LINKS):
        folder, base = os.path.split(os.path.abspath(name))
        folder = os.path.realpath(folder)
        if base.isdecimal() and folder in ("/dev/fd", os.path.realpath("/proc/self/fd")):
            return int(base)
        if not os.path.islink(name):
            return None
        name = os.path.join(folder, os.readlink(name))
    return None


def read_bytes(path: PathLike, *, most: int | None = None) -> bytes:
    """What is in a regular file of at most ``most`` bytes (None: :data:`MAX_FILE_BYTES`). Raises :class:`~schedopt.errors.InputError`."""
    with _naming(path):
        return _read_bytes(path, most)


def save_iterate(path: PathLike, iterate: NativeIterate) -> None:
    """Write what a run of the native route leaves behind (``.npz``), whole or not at all. Raises :class:`~schedopt.errors.InputError`."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = iterate.arrays()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


#: What NumPy and zipfile raise at files that are not what they seem.
_DAMAGED = (
    ValueError, KeyError, OSError, EOFError, TypeError, NotImplementedError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def load_iterate(path: PathLike) -> NativeIterate:
    """Read what :func:`save_iterate` wrote. Raises :class:`~schedopt.errors.InputError`."""
    from schedopt.sca.iterate import NativeIterate

    with _naming(path):
        try:
            with np.load(io.BytesIO(_read_bytes(path)), allow_pickle=False) as arrays:
                return NativeIterate.from_arrays(dict(arrays))
        except _DAMAGED:
            raise InputError("not a file that --save-iterate wrote") from None


def _check_stream(path: PathLike) -> None:
    """Raise OSError unless the stream can be written to; a pipe is not opened before it is needed, for that waits for a reader."""
    number = descriptor_of(path)
    if number is not None:
        os.write(number, b"")
    elif not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError("is write-protected")


def _put(path: PathLike, data: bytes) -> None:
    if not is_stream(path):
        _replace(_target(path), data)
        return
    number = descriptor_of(path)
    # by its number: opened anew by its name, a file that a shell redirected into would be written from its beginning
    with open(path, "wb") if number is None else os.fdopen(os.dup(number), "wb") as stream:
        stream.write(data)


def _target(path: PathLike) -> Path:
    """The file that is really written: links followed, and refused unless it is absent or a regular file one may write."""
    target = Path(os.path.realpath(path))
    try:
        info = target.stat()
    except FileNotFoundError:
        if os.fspath(path).endswith(os.sep):
            raise InputError("is a directory; must be a file") from None
        if not target.parent.is_dir():
            raise InputError(f"no such directory: {target.parent}") from None
        return target
    _require_regular(info)
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError("is write-protected")
    return target


def _compress(data: bytes) -> bytes:
    buffer = io.BytesIO()
    # neither a time nor a file name inside: the same text gives the same bytes
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def _replace(target: Path, data: bytes) -> None:
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            if target.exists() and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C included: leave no litter
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _temporary(target: Path) -> Path:
    return target.with_name(f".schedopt-{secrets.token_hex(8)}.tmp")


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable, where directories can be opened at all."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
