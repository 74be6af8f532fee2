"""Tasks as JSON, read and refused."""

from __future__ import annotations

import copy
import json

import pytest

from engine.core.errors import TaskError
from engine.task import schema
from engine.task.task import Task, parse_task, task_schema

DEFINITION = json.loads(json.dumps(task_schema().definition))
KEYS = {".".join(keys): part for keys, part in schema.properties(DEFINITION)}
"""Every key's definition by its dotted name."""
MINIMAL = {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "validation": {}, "train_args": {}}


def read(value) -> Task:
    return parse_task(value if isinstance(value, bytes) else json.dumps(value).encode(), source="task.json")


def refusal(value) -> str:
    with pytest.raises(TaskError) as caught:
        read(value)
    message = str(caught.value)
    assert message.startswith("task.json: ")
    assert message.isprintable()  # so one line, too
    return message


def problems(value) -> list[str]:
    """The problems of a refused task, without the source and the count."""
    _, count, listed = refusal(value).split(": ", 2)
    parts = listed.split("; ")
    assert count == ("1 problem" if len(parts) == 1 else f"{len(parts)} problems")
    return parts


def task_with(path: str, value) -> dict:
    """The minimal task with one key set; `...` removes it."""
    task = copy.deepcopy(MINIMAL)
    *parents, key = path.split(".")
    part = task
    for parent in parents:
        part = part.setdefault(parent, {})
    if value is ...:
        del part[key]
    else:
        part[key] = value
    return task
