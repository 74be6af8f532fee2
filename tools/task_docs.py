"""Write what follows from the task's keys: schema/task.schema.json, and the tables of keys in docs/task.md.

    python -m tools.task_docs

A table stands between `<!-- keys: OBJECT -->` and `<!-- end of keys -->`; `task` stands for the task's own keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from engine.task.definition import text_of
from engine.task.key import about_field
from engine.task.schema import Definition, words_of
from engine.task.task import Task, task_schema

ROOT: Final = Path(__file__).parents[1]
SCHEMA: Final = ROOT / "schema" / "task.schema.json"
DOCUMENT: Final = ROOT / "docs" / "task.md"

_TABLE: Final = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_HEAD: Final = "\n| key | default | meaning | allowed |\n| --- | --- | --- | --- |\n"
_WIDTH: Final = 100
"""Columns that a list or an object may have on one line of the schema."""


def main() -> None:
    """Write both files."""
    SCHEMA.write_text(schema_text())
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))


def schema_text() -> str:
    """Return the text of the schema's file."""
    return f"{_pretty(task_schema().definition)}\n"


def with_tables(document: str) -> str:
    """Return a Markdown document with its tables of keys written anew."""
    definitions = task_schema().definition["properties"]

    def table(found: re.Match[str]) -> str:
        name = found[2]
        rows = (
            _rows(Task, "", definitions) if name == "task" else _rows(*_object(name), definitions[name]["properties"])
        )
        return f"{found[1]}{_HEAD}{''.join(rows)}\n{found[3]}"

    return _TABLE.sub(table, document)


def _object(name: str) -> tuple[type, str]:
    """Return the dataclass of one of the task's objects, and what its keys' names begin with."""
    return get_type_hints(Task)[name], f"{name}."


def _rows(cls: type, prefix: str, definitions: Definition) -> Iterator[str]:
    """Yield a table's row for each key of a dataclass and of the objects in it; the task's own objects have tables."""
    hints = get_type_hints(cls)
    for part in fields(cls):
        definition, about = definitions[part.name], about_field(part)
        nested = next((kind for kind in _types(hints[part.name]) if is_dataclass(kind)), None)
        if definition.get("type") != "object" or "propertyNames" in definition:
            default = f"`{_scalar(definition['default'])}`" if "default" in definition else "–"
            allowed = _allowed(definition) + ("; an empty one counts as absent" if about.empty_is_absent else "")
            yield f"| `{prefix}{part.name}` | {default} | {text_of(about)} | {allowed} |\n"
        if isinstance(nested, type) and cls is not Task:
            inner, name = definition, f"{prefix}{part.name}."
            if "propertyNames" in definition:
                inner, name = definition["additionalProperties"], f"{name}NAME."
            elif "items" in definition:
                inner, name = definition["items"], f"{prefix}{part.name}[]."
            yield from _rows(nested, name, inner["properties"])


def _types(hint: Any) -> Iterator[Any]:
    """Yield a type and those in it, at any depth."""
    yield hint
    for inner in get_args(hint):
        yield from _types(inner)


def _allowed(definition: Definition) -> str:
    """Return the values that a key may have, for a table."""
    if "enum" in definition:
        return ", ".join(f"`{value}`" if isinstance(value, str) else _scalar(value) for value in definition["enum"])
    types = definition["type"] if isinstance(definition["type"], list) else [definition["type"]]
    if types == ["boolean"]:
        return "true, false"
    words = [_noun(kind, definition) for kind in sorted(types, key=lambda kind: kind != "null")]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _noun(kind: str, definition: Definition) -> str:
    if kind in ("integer", "number"):
        return f"{'an integer' if kind == 'integer' else 'a number'} {_bounds(definition)}"
    if kind == "array":
        least, most = definition["minItems"], definition.get("maxItems")
        more = " or objects" if "object" in definition["items"]["type"] else ""
        return f"a list of at least {least} string" if most is None else f"a list of {least} to {most} strings{more}"
    if words := words_of(definition) if kind == "string" else []:
        return ", ".join(f"`{word}`" for word in words)
    if kind == "string":
        formats = {"http-url": "an `http` or `https` address", "regular-expression": "a regular expression"}
        longest = f" of up to {definition['maxLength']:,} characters" if "maxLength" in definition else ""
        plain = "a non-empty string" if "minLength" in definition else f"a string{longest}"
        return formats.get(definition.get("format", ""), plain)
    return {"object": "an object"}.get(kind, kind)


def _bounds(definition: Definition) -> str:
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "greater than {}",
        "maximum": "to {}" if "minimum" in definition else "of at most {}",
        "exclusiveMaximum": "below {}",
    }
    found = [text.format(_scalar(definition[name])) for name, text in words.items() if name in definition]
    joined = " ".join(found) if "to " in found[-1] else " and ".join(found)
    return f"{joined}, divisible by {definition['multipleOf']}" if "multipleOf" in definition else joined


def _pretty(value: Any, indent: str = "") -> str:
    """Return indented JSON in which a short list, or a short object that defines no key, takes one line."""
    if not isinstance(value, dict | list):
        return _scalar(value)
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= _WIDTH and "title" not in line:
        return line
    inner = f"{indent}  "
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(value)
    items = value.values() if isinstance(value, dict) else value
    lines = ",\n".join(f"{inner}{name}{_pretty(item, inner)}" for name, item in zip(names, items, strict=True))
    return f"{'{' if isinstance(value, dict) else '['}\n{lines}\n{indent}{'}' if isinstance(value, dict) else ']'}"


def _scalar(value: object) -> str:
    """Return a value as JSON; numbers as short as a person writes them: `0.0001`, `1e-8`, `1`."""
    if isinstance(value, float):
        return re.sub(r"e([-+])0*", lambda sign: f"e{sign[1].replace('+', '')}", f"{value:.12g}")
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
