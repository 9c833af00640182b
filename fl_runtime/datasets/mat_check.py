"""MATLAB 5 files looked through before SciPy reads them.

``scipy.io.loadmat`` trusts the numbers in a file's headers: a damaged one can end the whole process. So they are checked first: each
variable must be a plain array of real numbers whose sizes add up. Layout: MathWorks, "MAT-File Format", chapter 1, level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

from fl_runtime.errors import DataError

__all__ = ["check_numeric_mat"]

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6

#: Bytes of one number, by the type code of a data element; other codes are no numbers.
_ITEM_SIZE = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
#: Classes of numeric arrays: double .. uint64.
_NUMERIC = range(6, 16)
#: Enough for everything in front of an array's numbers.
_HEAD = 512


@dataclass
class _Reader:
    """Data elements of one variable, one after the other; ``order`` is the byte order as :mod:`struct` writes it."""

    head: bytes
    order: str
    position: int = 0

    def element(self) -> tuple[int, int, bytes]:
        """Type, number of bytes, and the bytes as far as they are in the head."""
        first, size = self._numbers()
        if first >> 16:  # small format: size and type share a word, at most four bytes follow
            kind, size, start = first & 0xFFFF, first >> 16, self.position + 4
            if size > 4:
                raise DataError("damaged MATLAB file: a small element of more than four bytes")
            self.position += 8
        else:
            kind, start = first, self.position + 8
            self.position = start + -(-size // 8) * 8
        return kind, size, self.head[start : start + size]

    def _numbers(self) -> tuple[int, int]:
        if len(self.head) < self.position + 8:
            raise DataError("damaged MATLAB file: a variable ends too early")
        return struct.unpack_from(f"{self.order}II", self.head, self.position)


def check_numeric_mat(data: bytes) -> None:
    """Raise :class:`~fl_runtime.errors.DataError` unless ``data`` is a MATLAB 5 file of real numeric arrays whose headers are sound."""
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise DataError("not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    if struct.unpack_from(f"{order}H", data, 124)[0] != 0x0100:
        raise DataError("not a MATLAB 5 file")
    position = _HEADER
    while position < len(data):
        if len(data) < position + 8:
            raise DataError("damaged MATLAB file: it ends too early")
        kind, size = struct.unpack_from(f"{order}II", data, position)
        end = position + 8 + size
        if end > len(data):
            raise DataError("damaged MATLAB file: it ends too early")
        _check_variable(_head(kind, data[position:end]), order)
        position = end


def _head(kind: int, element: bytes) -> bytes:
    """The first bytes of a variable, decompressed if need be, its own tag included."""
    if kind == _MATRIX:
        return element
    if kind != _COMPRESSED:
        raise DataError(f"damaged MATLAB file: holds an element of type {kind}")
    try:
        return zlib.decompressobj().decompress(element[8:], _HEAD)
    except zlib.error:
        raise DataError("damaged MATLAB file: a variable cannot be decompressed") from None


def _check_variable(head: bytes, order: str) -> None:
    kind, total = struct.unpack_from(f"{order}II", head.ljust(8, b"\0"))
    if kind != _MATRIX:
        raise DataError("damaged MATLAB file: a variable that is no array")
    reader = _Reader(head, order, 8)
    kind, size, flags = reader.element()
    if (kind, size) != (_UINT32, 8) or len(flags) != 8:
        raise DataError("damaged MATLAB file: an array without flags")
    kind, size, dimensions = reader.element()
    if kind != _INT32 or size % 4 or not 8 <= size <= 32 or len(dimensions) != size:
        raise DataError("damaged MATLAB file: an array without a shape")
    shape = struct.unpack(f"{order}{size // 4}i", dimensions)
    kind, size, name = reader.element()
    if kind != _INT8 or size > 63 or len(name) != size or not name.isascii():
        raise DataError("damaged MATLAB file: an array without a name")
    word = struct.unpack_from(f"{order}I", flags)[0]
    if word & 0xFF not in _NUMERIC or word & 0x0800:
        raise DataError(f"{name.decode()[:63]!r} is no array of real numbers")
    kind, size, _ = reader.element()
    if min(shape) < 0 or kind not in _ITEM_SIZE or size != math.prod(shape) * _ITEM_SIZE[kind] or reader.position > 8 + total + 8:
        raise DataError(f"damaged MATLAB file: {name.decode()[:63]!r} has another size than its shape says")
