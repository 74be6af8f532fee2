"""Check a value against a JSON Schema and describe each problem in one line.

fastjsonschema finds the problems; this module writes the messages.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from engine.core.json_reader import MAX_PROBLEMS, Problem, Real, child
from engine.core.messages import as_json
from engine.core.patterns import compiled
from engine.task.aliases import ALIASES, NOT_KEYS

Definition = dict[str, Any]

SCHEMA_KEY: Final = "$schema"
"""The key of a document that names its schema, for editors. It is not a key of the task."""

_TYPES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_PATH: Final = re.compile(r"[\w$.\[\]]*", re.ASCII)
"""Paths of keys of the schema, of list indexes, and of names as `propertyNames` allows them."""
_BOUNDS = {
    "minimum": "of at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "greater than {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "divisible by {}",
}


def is_http_url(text: str) -> bool:
    """Return whether `text` is an http or https URL with a host, or empty, which means no URL."""
    if any(c < " " or c == "\x7f" for c in text):  # urlsplit drops some of these silently
        return False
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError if it is not a number below 65536
    except ValueError:
        return False
    # Programs disagree about which part of a URL with a backslash is the host.
    return text == "" or (parts.scheme in ("http", "https") and bool(parts.hostname) and "\\" not in parts.netloc)


def is_regular_expression(text: str) -> bool:
    """Return whether Python's `re` compiles `text`, within bounded time."""
    return not isinstance(compiled(text), str)


_FORMATS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "http-url": ("an http or https address", is_http_url),
    "regular-expression": ("a regular expression", is_regular_expression),
}


class Schema:
    """A compiled JSON Schema."""

    def __init__(self, definition: Definition) -> None:
        import fastjsonschema

        self.definition = definition
        self._errors = fastjsonschema.JsonSchemaValuesException
        # use_default would write defaults into the value, but only into existing objects; fast_fail would stop at the
        # first problem.
        self._validate: Callable[[object], object] = fastjsonschema.compile(
            self.definition,
            formats={name: check for name, (_, check) in _FORMATS.items()},
            use_default=False,
            fast_fail=False,
        )

    def problems(self, value: object) -> list[Problem]:
        """Return the problems of a value that `json_reader.parse` has read, at most one for each path.

        There are at most `MAX_PROBLEMS` + 1 of them.
        """
        try:
            self._validate(value)
        except self._errors as error:
            found: dict[str, Problem] = {}
            listed: set[str] = set()
            errors = [each for each in error.errors if _PATH.fullmatch(each.name)]  # others have a refused name in them
            for problem in itertools.chain.from_iterable(self._worded(each, listed) for each in errors):
                found.setdefault(problem.path, problem)
                if len(found) > MAX_PROBLEMS:
                    break
            return list(found.values())
        return []

    def _worded(self, error: Any, listed: set[str]) -> Iterator[Problem]:
        """Yield the problems of one error; `listed` collects the paths of objects whose keys a message lists."""
        # the name is built from keys of the schema, list indexes and names under `propertyNames`
        path = error.name.removeprefix("data").removeprefix(".")
        value, definition = error.value, error.definition
        if error.rule == "propertyNames":
            yield from _foreign_names(path, value, definition["propertyNames"]["pattern"])
        elif error.rule == "required":
            for key in definition["required"]:
                if key not in value:
                    yield Problem(child(path, key), f"missing, expected {expected(definition['properties'][key])}")
        elif error.rule == "additionalProperties":
            for key in value:
                if key not in definition["properties"]:
                    advice = self._advice(path, key, definition["properties"], listed)
                    yield Problem(child(path, key), f"got {as_json(value[key])} for an unknown key, {advice}")
        elif not (isinstance(value, float) and not math.isfinite(value)):  # the reader has reported it
            yield Problem(path, f"got {as_json(value)}, expected {expected(definition)}{_hint(error)}")

    def _advice(self, path: str, key: str, siblings: Collection[str], listed: set[str]) -> str:
        """Return advice on an unknown key.

        It names a key of the same object with a similar name, a key of another object with this name, or the equivalent
        of another trainer's key; otherwise, once for each object, it lists the object's keys.
        """
        wanted = key[:100].lower().replace("-", "_")
        everywhere = [".".join(keys) for keys, _ in properties(self.definition)]
        elsewhere = [dotted for dotted in everywhere if f".{dotted}".endswith(f".{wanted}")]
        near = [child(path, name) for name in difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.7)]
        if wanted in NOT_KEYS:
            return NOT_KEYS[wanted]
        foreign = list(ALIASES.get(wanted, ()))
        far = difflib.get_close_matches(wanted, everywhere, n=1, cutoff=0.7)
        meant = near if wanted in siblings else elsewhere or foreign or near or far
        if meant:
            return f"did you mean {_either(meant)}?"
        if path in listed:
            return "which is not one of the keys listed before"
        listed.add(path)
        return f"the known ones here are {', '.join(name for name in siblings if name != SCHEMA_KEY)}"


def properties(definition: Definition, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Definition]]:
    """Yield the path and the definition of every key of a schema, at any depth, an object before its own keys.

    The key `SCHEMA_KEY` is left out.
    """
    for key, part in definition.get("properties", {}).items():
        if key == SCHEMA_KEY:
            continue
        yield (*keys, key), part
        yield from properties(part, (*keys, key))


def expected(definition: Definition) -> str:
    """Return the expected value of a definition in words: `an integer of at least 64 and divisible by 8`."""
    if "$comment" in definition:
        return str(definition["$comment"])
    if "enum" in definition:
        return _either([as_json(value) for value in definition["enum"]])
    types = definition["type"]
    return _either([_noun(kind, definition) for kind in ([types] if isinstance(types, str) else types)])


def _noun(kind: str, definition: Definition) -> str:
    if kind in ("integer", "number"):
        bounds = [phrase.format(definition[key]) for key, phrase in _BOUNDS.items() if key in definition]
        return " ".join([_TYPES[kind], " and ".join(bounds)]).rstrip()
    if kind == "string":
        return _string_noun(definition)
    if kind == "array":
        longest = f" of at most {definition['maxItems']}" if "maxItems" in definition else ""
        return ("a non-empty list" if "minItems" in definition else "a list") + longest
    if kind == "object":
        required = ", ".join(definition.get("required", ()))
        required = required or _either([branch["required"][0] for branch in definition.get("anyOf", ())])
        if "oneOf" in definition:  # one of the branches may be null
            keys = [branch["required"][0] for branch in definition["oneOf"] if "required" in branch]
            required = f"exactly one of {_either(keys)}"
        return f"an object with {required}" if required else "an object"
    return _TYPES[kind]


def words_of(definition: Definition) -> list[str]:
    """Return the words that a string may be, as `definition` writes them where a number is allowed, too."""
    listed = re.fullmatch(r"\^\(([a-z_|]+)\)\$", definition.get("pattern", ""))
    return listed[1].split("|") if listed else []


def _string_noun(definition: Definition) -> str:
    if words := words_of(definition):
        return _either([as_json(word) for word in words])
    if "format" in definition:
        return _FORMATS[definition["format"]][0]
    return "a non-empty string" if "minLength" in definition else "a string"


def _foreign_names(path: str, value: Mapping[str, Any], pattern: str) -> Iterator[Problem]:
    """Yield a problem for each key of an object that does not match the pattern of its keys."""
    for key in value:
        if not re.fullmatch(pattern, key):
            yield Problem(child(path, key), "expected the name of a folder in the base model, such as vae")


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _hint(error: Any) -> str:
    """Return an addition to `expected`: the pattern, the maximal length, or that `1.0` must be written as `1`."""
    if error.rule == "format" and error.definition["format"] == "regular-expression":
        return f": it {compiled(error.value)}"
    if error.rule == "type" and isinstance(error.value, str) and "object" in error.definition["type"]:
        return _as_object(error.name.rpartition(".")[2], error.value, error.definition)
    if error.rule == "pattern" and not words_of(error.definition):
        return f" matching {error.definition['pattern']}"
    if error.rule == "maxLength":
        return f", of at most {error.definition['maxLength']:,} characters"
    if isinstance(error.value, Real) and "integer" in error.definition.get("type", ()) and error.value % 1 == 0:
        return f" (write {as_json(int(error.value))})"
    return ""


def _as_object(name: str, text: str, definition: Definition) -> str:
    """Return how to write the object `name`, if `text` was given in its place."""
    parts = definition.get("properties", {})
    for key, part in parts.items():
        takes_text = "string" in part.get("type", ()) and "enum" not in part
        if text in part.get("enum", ()) or takes_text:
            return f", write {as_json(name)}: {{{as_json(key)}: {as_json(text)}}}"
    choices = parts.get(name, {}).get("enum")
    return f" such as {as_json(name)}: {{{as_json(name)}: {as_json(choices[0])}}}" if choices else ""
