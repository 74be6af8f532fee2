"""The files that are written from the task's keys, and the rest of the page that has their tables."""

from __future__ import annotations

import json
import re

import pytest

from engine.task.task import parse_task
from tests.support.tasks import DEFINITION, KEYS, refusal
from tools import task_docs


def test_the_files_are_what_the_keys_make():
    """After a change of a key: python -m tools.task_docs."""
    assert task_docs.SCHEMA.read_text() == task_docs.schema_text()
    text = task_docs.DOCUMENT.read_text()
    assert text == task_docs.with_tables(text)


def test_the_schemas_file_is_the_schema():
    assert json.loads(task_docs.schema_text()) == DEFINITION


COMPONENT = KEYS["model.components"]["additionalProperties"]


def test_the_tables_have_every_key_and_its_default():
    text = task_docs.DOCUMENT.read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]+)`|–) \|", text, re.MULTILINE)
    named = {f"model.components.NAME.{key}" for key in COMPONENT["properties"]}
    assert named < {name for name, _ in rows}
    rows = [row for row in rows if row[0] not in named]
    assert sorted(name for name, _ in rows) == sorted(path for path in KEYS if _has_row(KEYS[path]))
    assert {path: json.loads(default) for path, default in rows if default} == {
        path: part["default"] for path, part in KEYS.items() if "default" in part and _has_row(part)
    }


def _has_row(definition):
    return definition.get("type") != "object" or "propertyNames" in definition


@pytest.mark.parametrize(
    "key, allowed",
    [
        ("train_args.resolution", "an integer from 64, divisible by 8"),
        ("dataset.repeats", "an integer from 1 to 10000"),
        ("dataset.caption_dropout", "a number from 0 to 1"),
        ("train_args.huber_c", "a number greater than 0 and of at most 1e30"),
        ("train_args.adam_args.beta1", "a number from 0 and below 1"),
        ("validation.dataset.url", "null or an `http` or `https` address; an empty one counts as absent"),
        ("validation.prompts", "null or a list of 1 to 10 strings or objects"),
        ("lora.target_modules", "null, a list of at least 1 string or a regular expression"),
        ("lora.init_lora_weights", "true, false, `gaussian`, `loftq`"),
    ],
)
def test_what_is_allowed_is_told_in_words(key, allowed):
    (row,) = (line for line in task_docs.DOCUMENT.read_text().splitlines() if line.startswith(f"| `{key}` |"))
    assert row.endswith(f"| {allowed} |")


def test_the_examples_of_the_page_are_as_it_says():
    text = task_docs.DOCUMENT.read_text()
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert parse_task(blocks[0].encode(), source="docs")
    (wrong, message) = re.findall(r"```json\n([^`]*?)```\n\n```text\n([^`]*?)\n```", text)[-1]
    assert refusal(wrong.encode()) == message
