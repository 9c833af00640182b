"""The published JSON Schemas (draft 2020-12) of both files, made from the models that read them, with a unit beside every quantity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from schedopt.files import ScheduleDocument
from schedopt.problem import Problem

__all__ = ["KINDS", "json_schema"]

#: What has a schema.
KINDS = ("problem", "schedule")

_MODELS: dict[str, type[BaseModel]] = {"problem": Problem, "schedule": ScheduleDocument}

#: Units by the suffix of a name, longest first.
_SUFFIX_UNITS = {"w_per_hz": "W/Hz", "bits": "bit", "bps": "bit/s", "hz": "Hz", "s": "s", "j": "J", "w": "W"}

#: Units of the quantities whose name does not say it.
_UNITS = {
    "energy_weight": "1/J",
    "capacitance": "J s^2/cycle^3",
    "cycles_per_sample": "cycle",
    "max_staleness": "slot",
    "slots": "slot",
    "start": "slot",
    "end": "slot",
    "samples": "sample",
    "batch": "sample",
    "min_batch": "sample",
}


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of ``kind``, ``"problem"`` or ``"schedule"``.

    It says what a schema can say: names, types and ranges. Relations between fields (unique names, gain lengths, weights that sum to
    one, references) are checked by the loader only. Quantities carry their unit under the annotation ``unit``.
    """
    schema = _MODELS[kind].model_json_schema(by_alias=True)
    for owner in _objects(schema):
        for name, entry in owner["properties"].items():
            entry.pop("title", None)  # pydantic's title repeats the name
            entry["title"] = name.replace("_", " ")
            if unit := unit_of(name):
                entry["unit"] = unit
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:schedopt:schema:{kind}:1",
        "title": f"schedopt {kind} file",
    }
    return head | {key: value for key, value in schema.items() if key != "title"}


def unit_of(name: str) -> str | None:
    """The unit of the quantity in field ``name``; None for names, counts and pure numbers."""
    if name in _UNITS:
        return _UNITS[name]
    return next((unit for suffix, unit in _SUFFIX_UNITS.items() if name.endswith(f"_{suffix}")), None)


def _objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (entry for entry in [schema, *schema.get("$defs", {}).values()] if "properties" in entry)
