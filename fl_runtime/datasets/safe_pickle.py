"""Pickles of plain data and uint8 arrays, read without trust.

A pickle is a program. Here it may only build dicts, lists, tuples, strings, numbers and NumPy arrays: the three globals that arrays
need are answered by inert stand-ins (so NumPy's own unpickling code never sees the file), every other global is refused, and before
anything runs the instructions are checked one by one, so that none of them can ask for more memory or time than the file's size warrants.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_runtime.errors import DataError

__all__ = ["array_of", "load_plain_pickle"]

#: A pickle's memory has no higher address: the table is allocated up to the highest one used.
_MOST_MEMO = 2**20

_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD"}
_ALLOWED = _CONTAINERS | {
    "PROTO", "FRAME", "STOP", "MARK", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",  # no larger numbers: as keys they could all share one hash
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip


def load_plain_pickle(data: bytes) -> Any:
    """The object in a pickle of any protocol; strings of Python 2 become bytes, arrays of unsigned bytes become uint8 arrays.

    Raises :class:`~fl_runtime.errors.DataError` for anything damaged or that would do more than build plain data.
    """
    try:
        _check_instructions(data)
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError:
        raise
    except MemoryError:
        raise DataError("damaged pickle: asks for more memory than there is") from None
    except Exception as error:  # unpickling what is damaged raises nearly anything
        raise DataError(f"damaged pickle ({type(error).__name__})") from None


def _check_instructions(data: bytes) -> None:
    """Refuse what plain data never need: other instructions, far memory addresses, and containers that are named twice.

    Without the last, a few bytes could make nested tuples that take for ever to hash.
    """
    memo: dict[int, str] = {}
    before, end = "", 0
    for operation, given, position in pickletools.genops(data):
        name, argument = operation.name, given if isinstance(given, int) else -1
        if name not in _ALLOWED:
            raise DataError(f"pickle instruction {name}; must only build plain data")
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not 0 <= argument <= _MOST_MEMO:
                raise DataError(f"damaged pickle: memory address {argument}")
            memo[argument] = before
        elif name == "MEMOIZE":
            memo[len(memo)] = before
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if memo.get(argument, "MARK") in _CONTAINERS | {"MARK"}:
                raise DataError("pickle that uses one container in several places; must be plain data")
            name = memo[argument]
        before, end = name, position or 0
    if end + 1 != len(data):
        raise DataError(f"{len(data) - end - 1:,} bytes after the end of the pickle")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise DataError(f"pickle that asks for {_shown(module)}.{_shown(name)}; only numpy arrays of plain data are read")
        return found


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 60 else repr(name[:60])


class _StandIn:
    """In place of a global: it can be called, and nothing else can be done to it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise DataError("pickle that changes what it asked for; must only build plain data")


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order, fields and the like: unsigned bytes have none."""


class _Array:
    """In place of an array: takes the state that NumPy writes, (version, shape, type, Fortran order, bytes), and checks it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError("damaged pickle: an array without its state")
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or dtype.code not in (b"u1", "u1", b"|u1", "|u1"):
            raise DataError("pickle with an array of another type than uint8")
        if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 2**40 for size in shape) or len(shape) > 4:
            raise DataError("damaged pickle: an array without a shape")
        if not isinstance(content, bytes) or len(content) != int(np.prod([*shape, 1], dtype=object)):
            raise DataError("damaged pickle: an array's bytes are not as many as its shape says")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise DataError("damaged pickle: bytes in an unknown encoding")
    return text.encode("latin1")


def _refuse(*_: Any) -> None:
    raise DataError("pickle that calls numpy.ndarray; must only build plain data")


_STAND_INS: dict[tuple[str, str], _StandIn] = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(lambda *_: _Array()),
    ("numpy", "ndarray"): _StandIn(_refuse),  # only named, as an argument
    ("numpy", "dtype"): _StandIn(lambda code=None, *_: _Dtype(code)),
    ("_codecs", "encode"): _StandIn(_encode),
}


def array_of(value: Any) -> NDArray[np.uint8] | None:
    """The array that :func:`load_plain_pickle` found at some place, or None if there is something else."""
    return value.value if isinstance(value, _Array) else None
