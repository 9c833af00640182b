"""What is wrong with a file's data, in one line: pydantic's list of errors as a sentence with path, value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from schedopt.jsontext import PathPart, join_path, preview
from schedopt.windows import WINDOW_TAG

__all__ = ["describe_validation_error"]

#: Errors of our own whose message already starts with a path, relative to the place that raised them.
_WITH_PATH = {"consistency", "freq_range", "bool_field"}

_ALLOWED: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "literal_error": lambda c: f"must be {c['expected']}",
    "string_type": lambda c: "must be a string",
    "string_too_short": lambda c: "must not be empty",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "tuple_type": lambda c: "must be a list",
    "list_type": lambda c: "must be a list",
    "dict_type": lambda c: "must be an object",
    "model_type": lambda c: "must be an object",
    "bool_type": lambda c: "must be true or false",
    "finite_number": lambda c: "must be a finite number",
    "too_short": lambda c: f"must have at least {c['min_length']} entry",
    "too_long": lambda c: f"must have {c['max_length']} entries",
}


@dataclass(frozen=True)
class _Problem:
    """One error, its place resolved in the data; ``tag`` names the branch of a union that it speaks for."""

    kind: str
    parts: tuple[PathPart, ...]
    value: Any
    error: dict[str, Any]
    tag: str | None


def describe_validation_error(error: ValidationError, data: Any, model: type[BaseModel]) -> str:
    """The first problem of ``data`` against ``model`` in one line, with the number of the others.

    ``error`` is what ``model.model_validate(data)`` raised. Unknown keys come first, because a misspelt key is also a missing one.
    """
    found = [_resolve(entry, data) for entry in error.errors(include_url=False)]
    found = _one_branch(item for item in found if not _is_echo(item))
    found.sort(key=lambda item: item.kind != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _sentence(found[0], model) + more


def _resolve(error: dict[str, Any] | Any, data: Any) -> _Problem:
    """Follow pydantic's location through the data: what cannot be followed is the name of a union's branch."""
    parts: list[PathPart] = []
    value, tag = data, None
    for k, part in enumerate(error["loc"]):
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            parts.append(part)
        elif error["type"] == "missing" and k == len(error["loc"]) - 1:
            parts.append(part)
        elif part != "[key]":
            tag = str(part)
    return _Problem(error["type"], tuple(parts), value, error, tag)


def _is_echo(item: _Problem) -> bool:
    """Pydantic also calls a list too short when its entries are wrong; that says nothing new."""
    return item.kind == "too_short" and len(item.value) >= item.error["ctx"]["min_length"]


def _one_branch(items: Iterable[_Problem]) -> list[_Problem]:
    """One error instead of one for each branch of a union of a number and a list of numbers (the other unions know their branch)."""
    kept: dict[Any, _Problem] = {}
    for k, item in enumerate(items):
        wrong_type = item.kind == "tuple_type" or (item.kind == "number" and not (item.tag or "").startswith("tuple"))
        if item.tag in (None, WINDOW_TAG) or not wrong_type:
            kept[k] = item
        elif isinstance(item.value, bool) or not isinstance(item.value, (list, int, float)):
            kept[item.parts] = replace(item, kind="number_or_list")
        # else void: the complaint of the other branch, that a list is no number or a number no list
    return list(kept.values())


def _sentence(item: _Problem, model: type[BaseModel]) -> str:
    where, message = join_path(item.parts), item.error["msg"]
    if item.kind in _WITH_PATH:
        return f"{where}.{message}" if where else message
    if item.kind == "missing":
        return f"{where}: missing"
    if item.kind == "extra_forbidden":
        return f"{where}: unknown key; {_allowed_keys(model, item.parts)}"
    if item.kind == "number_or_list":
        return f"{where} = {preview(item.value)}; must be a number or a list of numbers"
    if "[key]" in item.error["loc"]:
        where, item = f"{join_path(item.parts[:-1])} has a key", replace(item, value=item.parts[-1])
    allowed = _ALLOWED.get(item.kind)
    said = allowed(item.error.get("ctx", {})) if allowed else message.replace("Input should be", "must be")
    return f"{where or 'top level'} = {preview(item.value)}; {said}"


def _allowed_keys(model: type[BaseModel], parts: tuple[PathPart, ...]) -> str:
    owner: Any = model
    for part in parts[:-1]:
        owner = _step(owner, part)
    keys = [field.alias or name for name, field in owner.model_fields.items()]
    close = difflib.get_close_matches(str(parts[-1]), keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(keys)}"


def _step(owner: Any, part: PathPart) -> Any:
    """The model of the value at ``part`` inside a value of model ``owner``."""
    fields = {field.alias or name: field.annotation for name, field in owner.model_fields.items()} if _is_model(owner) else {}
    annotation = fields[part] if fields else get_args(owner)[-1 if get_origin(owner) is dict else 0]
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
