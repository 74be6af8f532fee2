"""Generate the task's JSON Schema from its dataclasses.

`schema/task.schema.json` is this schema as a file, for editors and clients; `python -m tools.task_docs` writes it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from engine.task.key import About, about_field, default_of
from engine.task.keys.patterns import FOLDER_NAME
from engine.task.schema import SCHEMA_KEY, Definition

_TYPES: Final[dict[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    types.NoneType: "null",
}


def _given(name: str, *empty: str | None) -> Definition:
    """Return the definition of an object that has the key `name`, with a value other than those in `empty`."""
    return {"required": [name], "properties": {name: {"not": {"enum": list(empty)}}}}


_RULES: Final[dict[str, Definition]] = {
    "dataset": {"anyOf": [_given("name", None, ""), _given("url", None, "")]},
    "validation": {
        "if": {"required": ["prompts"], "properties": {"prompts": {"type": "array"}}},
        "then": {"properties": {"prompt": {"type": "null", "$comment": "null beside prompts"}}},
        "allOf": [
            {
                "if": _given("prompts_file", None, ""),
                "then": {
                    "properties": {
                        name: {"type": "null", "$comment": "null beside prompts_file"} for name in ("prompt", "prompts")
                    }
                },
            }
        ],
    },
    "validation.dataset": {
        "oneOf": [
            {"type": "null"},
            *({"type": "object", **_given(name, None, "")} for name in ("name", "url", "split")),
            {"type": "object", **_given("fraction", None)},
        ]
    },
}
"""Rules about several keys of one object. A `$comment` is the text for "expected …" in messages."""


def definition(task: type) -> Definition:
    """Return the JSON Schema (draft-07) of the dataclass `Task`."""
    schema_key = {
        "title": "Schema",
        "description": "The location of this schema, for editors that check the task with it. It has no effect.",
        "type": "string",
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "task.schema.json",
        "title": "Training task",
        "description": "One task: train a LoRA, or a whole Stable Diffusion model, for some steps of a whole training.",
        "type": "object",
        **_object(task, "", first={SCHEMA_KEY: schema_key}),
    }


def _object(cls: type, path: str, *, first: Definition | None = None) -> Definition:
    """Return the definition of an object: its keys, the required ones, and the rules about several keys."""
    hints = get_type_hints(cls)
    parts = fields(cls)
    required = [part.name for part in parts if about_field(part).required or default_of(part) is MISSING]
    return {
        **({"required": required} if required else {}),
        "additionalProperties": False,
        **_RULES.get(path, {}),
        "properties": {
            **(first or {}),
            **{part.name: _key(part, hints[part.name], f"{path}.{part.name}".lstrip(".")) for part in parts},
        },
    }


def _key(part: Field[Any], hint: Any, path: str) -> Definition:
    """Return the definition of one key; `path` is its dotted name."""
    about = about_field(part)
    kinds = _alternatives(hint)
    result = {"title": about.title, "description": _description(about), **_values(kinds), **about.rules}
    nested = next((kind for kind in kinds if is_dataclass(kind)), None)
    if isinstance(nested, type):
        result |= _object(nested, path)
    mapped = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is Mapping), None)
    if mapped is not None:
        result |= {"propertyNames": {"pattern": FOLDER_NAME}, "additionalProperties": _mapped(mapped, path)}
    if "items" in result:
        result["items"] = _items(kinds, path, result["items"])
    if part.default is not MISSING:
        result["default"] = part.default
    elif part.default_factory is not MISSING and not about.required:
        result["default"] = {}
    return result


def _items(kinds: tuple[Any, ...], path: str, rules: Definition) -> Definition:
    """Return the definition of a list's items: strings, or strings and objects."""
    inner = [one for kind in kinds if get_origin(kind) is tuple for one in _alternatives(get_args(kind)[0])]
    cls = next((one for one in inner if is_dataclass(one)), None)
    if not isinstance(cls, type):
        return {"type": "string", **rules}
    return {"type": ["string", "object"], **rules, **_object(cls, f"{path}[]")}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of which a value may be."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _mapped(cls: type, path: str) -> Definition:
    """Return the definition of each value in an object whose keys are names."""
    return {"type": "object", **_object(cls, f"{path}.*")}


def _values(kinds: tuple[Any, ...]) -> Definition:
    """Return `type`, `enum` or both for a key whose value has one of these types."""
    literals = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    names = [_name(kind) for kind in kinds if get_origin(kind) is not Literal]
    if not literals:
        return {"type": names[0] if len(names) == 1 else names}
    if float in kinds:  # words beside numbers; an enum would have no numbers
        return {"type": ["string", *names], "pattern": f"^({'|'.join(literals)})$"}
    values: list[Any] = [None] if types.NoneType in kinds else []
    for kind in kinds:
        values += [True, False] if kind is bool else get_args(kind) if get_origin(kind) is Literal else []
    if all(type(value) is int for value in literals):  # an enum alone accepts 75.0 as 75
        return {"type": ["integer", *names] if names else "integer", "enum": values}
    return {"enum": values}


def _name(kind: Any) -> str:
    """Return JSON Schema's name of a type."""
    return "array" if get_origin(kind) is tuple else _TYPES.get(kind, "object")


def text_of(about: About) -> str:
    """Return a key's text in Markdown, with the key of the same object that decides whether it has an effect."""
    needs = f" It has no effect without `{about.needs}`." if about.needs else ""
    return f"{about.text}{needs}" + (f" It has no effect if `{about.yields_to}` is given." if about.yields_to else "")


def _description(about: About) -> str:
    """Return a key's text without Markdown."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text_of(about)).replace("`", "").replace("**", "")
    return f"{text} An empty string counts as absent." if about.empty_is_absent else text
