"""JSON text in and out, stricter than the standard library: no file is opened here.

Reading refuses what JSON does not have or what would change silently (NaN, 1e400, 1e-400, a key given twice, half a surrogate pair) and
says where. Writing puts each small object and each list of numbers on a line of its own, and floats so that they read back exactly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from schedopt.errors import InputError

__all__ = ["PathPart", "dumps", "join_path", "parse_object", "plain", "preview"]

#: An object key or a list index.
PathPart = str | int

#: A value is not quoted in a message beyond this many characters.
PREVIEW_LENGTH = 60

#: An object without nested objects stays on one line up to this many characters.
INLINE_LENGTH = 240

#: A number with a digit other than 0 before its exponent.
_NOT_ZERO = re.compile(r"[-0.]*[1-9]")
_PLAIN_KEY = re.compile(r"[^\W\d][\w-]*")
#: An escape of half a surrogate pair without its other half (an escaped backslash before it is only a false alarm).
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(value: Any) -> Any:
    """``value`` as JSON has it: NumPy values become Python's, numbers that JSON lacks (infinite, undefined) become null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def join_path(parts: tuple[PathPart, ...] | list[PathPart]) -> str:
    """``("devices", 3, "freq_hz", 0)`` as ``devices[3].freq_hz[0]``; keys that are no plain word are quoted in brackets."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{_shorten(json.dumps(part))}]"
    return text


def preview(value: Any) -> str:
    """A value as it stands in the file, cut short: what a message quotes."""
    if isinstance(value, _Unreadable):
        return _shorten(value.text)
    if isinstance(value, dict):
        return f"an object with {len(value)} key{'s' * (len(value) != 1)}" if value else "{}"
    if isinstance(value, (list, tuple)):
        short = len(value) <= 4 and not any(isinstance(entry, (dict, list, tuple)) for entry in value)
        return f"[{', '.join(preview(entry) for entry in value)}]" if short else f"a list of length {len(value)}"
    if isinstance(value, str):  # a long string is cut before it is quoted, lest quoting a megabyte take its time
        return _shorten(json.dumps(value[: PREVIEW_LENGTH + 1], ensure_ascii=False))
    return _shorten(json.dumps(value, default=str))


def _shorten(text: str) -> str:
    return text if len(text) <= PREVIEW_LENGTH else text[: PREVIEW_LENGTH - 3] + "..."


class _Unreadable:
    """A number that JSON does not have or that no float can hold; stands in the tree until its path is known."""

    def __init__(self, text: str, allowed: str) -> None:
        self.text, self.allowed = text, allowed


class _Reader:
    """Hooks of the decoder; what they refuse is only marked, since a hook does not know where it is."""

    def __init__(self) -> None:
        self.unreadable = False
        #: objects with a key given twice, by identity, kept alive by the values
        self.duplicates: dict[int, tuple[dict[str, Any], str]] = {}

    def mark(self, text: str, allowed: str = "must be a finite number") -> _Unreadable:
        self.unreadable = True
        return _Unreadable(text, allowed)

    def floating(self, text: str) -> Any:
        value = float(text)
        if value == 0 and _NOT_ZERO.match(text):
            return self.mark(text, "must be 0 or at least 5e-324 in size (smaller numbers would be read as 0)")
        return value if math.isfinite(value) else self.mark(text)

    def integer(self, text: str) -> Any:
        # float() first: int() refuses thousands of digits with an error of its own
        return int(text) if len(text) < 300 or math.isfinite(float(text)) else self.mark(text)

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            self.duplicates[id(result)] = (result, twice)
        return result


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is.

    Raises :class:`~schedopt.errors.InputError` with the line and column, or the path and the value, of what is wrong: text that is
    not JSON, another top level than an object, NaN or infinite numbers, keys given twice, strings that are not Unicode.
    """
    reader = _Reader()
    try:
        data = json.loads(
            text,
            object_pairs_hook=reader.object,
            parse_float=reader.floating,
            parse_int=reader.integer,
            parse_constant=reader.mark,
        )
    except json.JSONDecodeError as error:
        raise InputError(_syntax_message(text, error)) from None
    except RecursionError:
        raise InputError("not a sensible file: lists or objects are nested too deeply") from None
    if not isinstance(data, dict):
        raise InputError(f"top level is {preview(data)}; must be a JSON object")
    if reader.unreadable or reader.duplicates or _SURROGATE_ESCAPE.search(text):
        _refuse_marked(data, reader)
    return data


def _syntax_message(text: str, error: json.JSONDecodeError) -> str:
    if not text.strip(" \t\r\n"):  # what JSON takes for blank
        return "empty; must be a JSON object"
    ends = " (the file ends too early)" if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string") else ""
    return f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}{ends}"


def _refuse_marked(data: dict[str, Any], reader: _Reader) -> None:
    for parts, value in _walk(data):
        where = join_path(parts)
        if isinstance(value, _Unreadable):
            raise InputError(f"{where} = {preview(value)}; {value.allowed}")
        if id(value) in reader.duplicates:
            path = join_path([*parts, reader.duplicates[id(value)][1]])
            raise InputError(f"{path}: key given more than once in one object; keys must be unique")
        texts = value if isinstance(value, dict) else [value] if isinstance(value, str) else []
        if any(_SURROGATE.search(text) for text in texts):
            raise InputError(f"{where or 'top level'}: text with half a surrogate pair; must be valid Unicode")


def _walk(data: Any) -> Iterator[tuple[tuple[PathPart, ...], Any]]:
    """Every value with its path in the order of the file; iterative, since nesting may be deep."""
    stack: list[tuple[tuple[PathPart, ...], Any]] = [((), data)]
    while stack:
        parts, value = stack.pop()
        yield parts, value
        children: list[tuple[PathPart, Any]] = []
        if isinstance(value, dict):
            children = list(value.items())
        elif isinstance(value, list):
            children = list(enumerate(value))
        stack.extend(((*parts, key), child) for key, child in reversed(children))


def dumps(value: Any) -> str:
    """Indented JSON ending in a newline; lists of scalars and small flat objects take one line each.

    Raises ``ValueError`` on NaN and infinities, which JSON does not have.
    """
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    return "".join(_layout(value, "", encode)) + "\n"


def _layout(value: Any, indent: str, encode: Callable[[Any], str]) -> Iterator[str]:
    nested = isinstance(value, (dict, list)) and value
    if not nested or _is_flat(value):
        text = encode(value)
        if not isinstance(value, dict) or len(text) <= INLINE_LENGTH:
            yield text
            return
    inner = indent + "  "
    is_object = isinstance(value, dict)
    for k, entry in enumerate(value):
        yield ("{" if is_object else "[") if k == 0 else ","
        yield f"\n{inner}"
        if is_object:
            yield f"{encode(entry)}: "
        yield from _layout(value[entry] if is_object else entry, inner, encode)
    yield f"\n{indent}" + ("}" if is_object else "]")


def _is_flat(value: dict[str, Any] | list[Any]) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return not any(isinstance(entry, (dict, list)) for entry in entries)
