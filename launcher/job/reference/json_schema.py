"""The JSON Schema of a job file, for editors: types, choices, ranges, defaults and the text of every key."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from launcher.job.explain import is_section
from launcher.job.reference.key_reference import Key, keys, texts_of
from launcher.job.reference.key_table import SECTIONS
from train.config import MOST, POSITIVE, Range

FILE = "job.schema.json"
"""Its name among the templates of an installation."""
_TEXT = ["string", "number", "boolean"]
"""What a job accepts where it has a text, as load.wants_text has it: `name: 007`."""


def schema() -> dict[str, Any]:
    """The schema, in the draft that editors' YAML language servers know."""
    properties: dict[str, Any] = {}
    for key in keys().values():
        if not key.section:
            properties[key.last] = _described(key)
            continue
        section = properties.setdefault(
            key.section,
            {
                "title": SECTIONS[key.section][0],
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {},
            },
        )
        section["properties"][key.last] = _described(key)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "zlaunch job",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": properties,
    }


def text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _described(key: Key) -> dict[str, Any]:
    described = {"title": key.label, "description": key.text}
    string = _TEXT if key.kind in (str, str | None) or key.name in ("env", "slurm.sbatch") else "string"
    return {**described, **_accepting(key.kind, key.range, string), "default": msgspec.to_builtins(key.default)}


def _accepting(kind: Any, accepted: Range | None, string: Any = "string") -> dict[str, Any]:
    """The part of the schema that says which values a type accepts, with its numbers in a range."""
    if kind in (int, float):
        return {"type": "integer" if kind is int else "number", **_bounds(accepted)}
    if kind is Any:
        return {}
    if kind is str:
        return {"type": string}
    if kind is bool:
        return {"type": "boolean"}
    if kind is type(None):
        return {"type": "null"}
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return {"enum": list(arguments)}
    if get_origin(kind) is Annotated:
        return {"type": "string", "pattern": kind.__metadata__[0].pattern}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _accepting(arguments[0], None)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _accepting(arguments[1], None, string)}
    if is_section(kind):
        return _section(kind)
    options = [_accepting(one, accepted, string) for one in arguments]
    enums = [one for one in options if set(one) == {"enum"}]
    if len(enums) > 1:
        options = [one for one in options if one not in enums]
        options.append({"enum": [value for one in enums for value in one["enum"]]})
    return {"anyOf": options}


def _section(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """An entry of a list, such as a source of records."""
    fields, texts = msgspec.structs.fields(kind), texts_of(kind)
    properties = {
        info.name: {
            "description": texts.get(info.name, ""),
            **_accepting(info.type, POSITIVE if info.type is float else Range(1)),
        }
        for info in fields
    }
    required = [info.name for info in fields if info.required]
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _bounds(accepted: Range | None) -> dict[str, float]:
    if accepted is None:
        return {}
    high = accepted.high if accepted.high < math.inf else MOST
    low = "exclusiveMinimum" if accepted.above else "minimum"
    return {low: accepted.low, "maximum" if high < MOST else "exclusiveMaximum": high}
