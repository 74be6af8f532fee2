"""The schema that the dataclasses make."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

from engine.task.definition import definition, text_of
from engine.task.key import about, about_field, key
from engine.task.task import Task
from tests.support.tasks import DEFINITION, KEYS, MINIMAL, read


@dataclass(kw_only=True)
class Part:
    name: str = field(metadata=about("Name", "A [name](#names) or `b`.", minLength=1))


@dataclass(kw_only=True)
class Toy:
    size: int = key(3, "Size", "How large.", minimum=1)
    rate: float | None = key(None, "Rate", "**How** fast.", needs="size", exclusiveMinimum=0)
    words: tuple[str, ...] | str | None = key(None, "Words", "Some.", items={"minLength": 1})
    kind: Literal["a", "b"] | None = key(None, "Kind", "Which.", yields_to="size")
    start: bool | Literal["auto"] = key(True, "Start", "How.")
    count: Literal[1, 2] | None = key(None, "Count", "How many.")
    path: str = key("x", "Path", "Where.", empty_is_absent=True)
    part: Part | None = key(None, "Part", "An object or none.")
    both: Part = key(Part, "Both", "An object.", required=True)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("size", {"type": "integer", "minimum": 1, "default": 3, "description": "How large."}),
        (
            "rate",
            {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "default": None,
                "description": "How fast. It has no effect without size.",
            },
        ),
        (
            "words",
            {
                "type": ["array", "string", "null"],
                "items": {"type": "string", "minLength": 1},
                "default": None,
                "description": "Some.",
            },
        ),
        (
            "kind",
            {"enum": [None, "a", "b"], "default": None, "description": "Which. It has no effect if size is given."},
        ),
        ("start", {"enum": [True, False, "auto"], "default": True, "description": "How."}),
        # an enum alone accepts 1.0 and true for 1
        ("count", {"type": ["integer", "null"], "enum": [None, 1, 2], "default": None, "description": "How many."}),
        (
            "path",
            {"type": "string", "default": "x", "description": "Where. An empty string counts as absent."},
        ),
        (
            "part",
            {
                "type": ["object", "null"],
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"title": "Name", "description": "A name or b.", "type": "string", "minLength": 1}
                },
                "default": None,
                "description": "An object or none.",
            },
        ),
    ],
)
def test_a_key_follows_from_its_field(name, expected):
    assert definition(Toy)["properties"][name] == {"title": name.capitalize(), **expected}


def test_what_a_task_must_have_is_what_has_no_default_and_what_says_so():
    assert definition(Toy)["required"] == ["both"]
    assert "default" not in definition(Toy)["properties"]["both"]
    assert DEFINITION["required"] == list(MINIMAL)


def objects(cls: type) -> list[type]:
    """A dataclass and those of its keys, at any depth."""
    found = [cls]
    for part in dataclasses.fields(cls):
        nested = part.default_factory if dataclasses.is_dataclass(part.default_factory) else None
        found += objects(nested) if nested else []
    return found


@pytest.mark.parametrize("cls", objects(Task), ids=lambda cls: cls.__name__)
def test_keys_name_keys_of_their_own_object(cls):
    names = [part.name for part in dataclasses.fields(cls)]
    for part in dataclasses.fields(cls):
        about_it = about_field(part)
        assert {about_it.needs, about_it.yields_to} <= {None, *names}
        assert text_of(about_it).endswith(".") and about_it.title


def test_defaults_are_accepted_and_change_nothing():
    task = copy.deepcopy(MINIMAL)
    for path, part in KEYS.items():
        if "default" in part and part["default"] != {}:
            *parents, key = path.split(".")
            parent = task
            for name in parents:
                parent = None if parent is None else parent.setdefault(name, {})
            if parent is not None:  # what is null by default holds no keys
                parent.setdefault(key, part["default"])
    assert read(task) == read(MINIMAL)
