"""How what is wrong with a task is said, and the verdict on any value against a reading of its own."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import fastjsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.canonical_json import canonical_json
from engine.core.errors import TaskError
from engine.task import schema
from engine.task.identity import canonical
from tests.support.json_values import json_values, plain
from tests.support.tasks import DEFINITION, KEYS, MINIMAL, problems, read, refusal, task_with

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("train_args.batchsize", "train_args.batch_size"),
        ("train_args.learningRate", "train_args.learning_rate"),
        ("train_args.num-train-steps", "train_args.num_train_steps"),
        ("Seed", "seed"),
        ("rank", "lora.rank"),
        ("lora_rank", "lora.rank"),
        ("learning_rate", "train_args.learning_rate"),
        ("train_args.seed", "validation.seed or seed"),
        ("train_args.multiplier", "train_args.timestep_bias.multiplier"),
        ("train_args.lr_warmup_steps", "train_args.lr_scheduler.lr_warmup_steps"),
        ("name", "model.name, dataset.name or validation.dataset.name"),
        ("validation.num_image", "validation.num_images"),
    ],
)
def test_an_unknown_key_names_the_nearest(path, meant):
    (problem,) = problems(task_with(path, 3))
    assert problem.endswith(f": got 3 for an unknown key, did you mean {meant}?")


def test_an_unknown_key_like_no_other_lists_what_there_is():
    (problem,) = problems(task_with("transforms.x", 3))
    known = "center_crop, random_flip, buckets"
    assert problem == f"transforms.x: got 3 for an unknown key, the known ones here are {known}"


def test_what_there_is_is_listed_once_for_each_object():
    found = problems(MINIMAL | {"train_args": {"foo": 1, "bar": 2, "lr": 3}, "zzz": 4, "qqq": 5})
    assert sum("the known ones here are learning_rate, " in problem for problem in found) == 1
    assert sum("the known ones here are model, " in problem for problem in found) == 1
    assert sum("not one of the keys listed before" in problem for problem in found) == 2
    assert not any("$schema" in problem for problem in found)


@pytest.mark.parametrize(
    ("path", "text", "advice"),
    [
        ("train_args.lr_scheduler", "cosine", ', write "lr_scheduler": {"lr_scheduler": "cosine"}'),
        ("train_args.lr_scheduler", "cosin", ' such as "lr_scheduler": {"lr_scheduler": "linear"}'),
        ("train_args.timestep_bias", "later", ', write "timestep_bias": {"strategy": "later"}'),
        ("model", "a/b", ', write "model": {"name": "a/b"}'),
        ("dataset", "images", ', write "dataset": {"name": "images"}'),
        ("validation", "a cat", ', write "validation": {"prompt": "a cat"}'),
        ("transforms", "flip", ""),
    ],
)
def test_a_text_for_an_object_is_answered_with_the_object(path, text, advice):
    (problem,) = problems(task_with(path, text))
    assert problem.startswith(f'{path}: got "{text}", expected an object') and problem.endswith(advice)
    if ", write " in advice:
        (value,) = json.loads(f"{{{advice.removeprefix(', write ')}}}").values()
        read(task_with(path, value))


def test_a_strange_key_stays_on_the_line():
    (problem,) = problems(MINIMAL | {"a\n\x1b[31m\u202e": 1})
    assert problem.startswith('["a\\n\\u001b[31m\\u202e"]: got 1 for an unknown key')


def test_all_problems_are_listed():
    task = {
        "model": {},
        "dataset": {"url": "x"},
        "train_args": {"batch_size": 1.0, "adam_args": {"beta1": 2}},
        "lora": {"target_modules": ["a", "", 3]},
        "sed": 1,
        "mixed_precision": "fp8",
    }
    assert {problem.split(": ")[0] for problem in problems(task)} == {
        "model.name",
        "dataset.url",
        "validation",
        "train_args.batch_size",
        "train_args.adam_args.beta1",
        "lora.target_modules[1]",
        "lora.target_modules[2]",
        "sed",
        "mixed_precision",
    }


def test_a_long_list_of_problems_is_cut():
    message = refusal(task_with("lora.target_modules", [0] * 500))
    assert message.startswith(
        "task.json: more than 100 problems: lora.target_modules[0]: got 0, expected a non-empty string; "
    )
    assert message.endswith("; lora.target_modules[99]: got 0, expected a non-empty string; …")


@pytest.mark.parametrize("member", [b'"a": 0', b'"%d": 0', b'"a%d": NaN'], ids=["twice", "unknown", "NaN"])
def test_a_hundred_thousand_problems_are_not_looked_at_one_by_one(member):
    """Each takes a look at the whole text, or at all known keys."""
    members = b",".join(member % index if b"%" in member else member for index in range(100_000))
    assert refusal(b"{" + members + b"}").startswith("task.json: more than 100 problems: ")


def test_long_values_are_shortened():
    message = refusal(task_with("seed", "x" * 10_000))
    assert len(message) < 200
    assert 'got "xxx' in message


STRINGS = {
    "http-url": st.sampled_from(["", "http://h", "https://h.org:8080/a.zip?b=c"]),
    "regular-expression": st.sampled_from(["to_k", r".*attn2\.to_[kqv]", "(?i)ü|[[a]"]),
}


def text(part: dict) -> st.SearchStrategy:
    characters = st.characters(codec="utf-8", exclude_characters="\0" if "pattern" in part else "")
    return st.text(characters, min_size=part.get("minLength", 0), max_size=20)


def values_of(part: dict) -> st.SearchStrategy:
    """Values that a definition accepts (but for a dataset's need of a name or a url)."""
    if "enum" in part:
        return st.sampled_from(part["enum"])
    kinds = [part["type"]] if isinstance(part["type"], str) else part["type"]
    low, high = part.get("minimum", 0), part.get("maximum", part.get("exclusiveMaximum"))
    step = part.get("multipleOf", 1)
    if "propertyNames" in part:
        names = st.from_regex(part["propertyNames"]["pattern"], fullmatch=True)
        return st.dictionaries(names, values_of(part["additionalProperties"]), max_size=2)
    kind_values = {
        "object": lambda: st.fixed_dictionaries(
            {key: values_of(part["properties"][key]) for key in part.get("required", [])},
            optional={
                key: values_of(item) for key, item in part["properties"].items() if key not in part.get("required", [])
            },
        ),
        "string": lambda: STRINGS[part["format"]] if "format" in part else text(part),
        "integer": lambda: st.integers(low // step, None if high is None else high // step).map(lambda i: i * step),
        "number": lambda: (
            st.floats(low, high, exclude_max=high is not None)
            | st.integers(math.ceil(low), None if high is None else math.floor(high))
        ),
        "boolean": st.booleans,
        "null": st.none,
        "array": lambda: st.lists(values_of(part["items"]), min_size=part.get("minItems", 0), max_size=3),
    }
    return st.one_of([kind_values[kind]() for kind in kinds])


NEARLY_TASKS = values_of(DEFINITION)
STOP_AT_FIRST = fastjsonschema.compile(DEFINITION, use_default=False, use_formats=False)


@st.composite
def broken_tasks(draw) -> object:
    """Mostly accepted tasks, some with anything at up to two places."""
    task = draw(NEARLY_TASKS)
    task["dataset"].setdefault("name", draw(st.sampled_from(["a/b", "", None])))
    for _ in range(draw(st.integers(0, 2))):
        part = task
        *parents, key = draw(st.sampled_from([*KEYS])).split(".")
        for parent in parents:
            part = part.setdefault(parent, {}) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[key] = draw(json_values)
    return task


def accepts(part: dict, value) -> bool:
    """An independent reading of the schema, with integers as strict as the task's."""
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "null": value is None,
    }
    wanted = part.get("type", list(kinds))
    rules = [any(kinds[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))]
    if "enum" in part:
        rules.append(any(type(value) is type(item) and value == item for item in part["enum"]))
    if kinds["number"]:
        rules += [
            value >= part.get("minimum", -math.inf),
            value <= part.get("maximum", math.inf),
            value > part.get("exclusiveMinimum", -math.inf),
            value < part.get("exclusiveMaximum", math.inf),
            "multipleOf" not in part or value % part["multipleOf"] == 0,
        ]
    if kinds["string"]:
        formats = {"http-url": schema.is_http_url, "regular-expression": schema.is_regular_expression}
        rules += [
            len(value) >= part.get("minLength", 0),
            "pattern" not in part or re.search(part["pattern"], value) is not None,
            "format" not in part or formats[part["format"]](value),
        ]
    if kinds["array"]:
        rules += [part.get("minItems", 0) <= len(value) <= part.get("maxItems", math.inf)]
        rules += [*(accepts(part.get("items", {}), item) for item in value)]
    if kinds["object"]:
        known = part.get("properties", {})
        rules += [
            set(part.get("required", [])) <= set(value),
            part.get("additionalProperties", True) or set(value) <= set(known),
            "propertyNames" not in part or all(re.search(part["propertyNames"]["pattern"], name) for name in value),
            *(accepts(part["additionalProperties"], item) for item in value.values() if "propertyNames" in part),
            *(accepts(known[key], item) for key, item in value.items() if key in known),
        ]
    for name, of in (("anyOf", any), ("allOf", all)):
        rules += [of(accepts(item, value) for item in part[name])] if name in part else []
    if "oneOf" in part:
        rules.append(sum(accepts(item, value) for item in part["oneOf"]) == 1)
    if "not" in part:
        rules.append(not accepts(part["not"], value))
    if "if" in part and accepts(part["if"], value):
        rules.append(accepts(part["then"], value))
    return all(rules)


@settings(max_examples=400, deadline=None)
@given(broken_tasks())
@example(task_with("train_args.batch_size", 1.0))
@example(task_with("train_args.resolution", 2**70 + 4))
@example(task_with("lora.init_lora_weights", 1))
def test_the_verdict_is_the_schemas(value):
    try:
        task = read(value)
    except TaskError:
        task = None
    assert (task is not None) == (plain(value) and accepts(DEFINITION, value))
    if task is None:
        return
    STOP_AT_FIRST(value)
    again = {"validation": {}, "train_args": {}} | canonical(task)
    environment = {
        "checkpoint": task.checkpoint,
        "dataloader_num_workers": task.dataloader_num_workers,
        "version": task.version,
    }
    # Memory, too, is where a task runs.
    for key in ("gradient_checkpointing", "offload"):
        again["train_args"] = again["train_args"] | {key: getattr(task.train_args, key)}
    # The rows of this file are prompts as soon as it is read.
    again["validation"] = again["validation"] | {"prompts_file": task.validation.prompts_file}
    assert read(canonical_json(again | environment)) == task
    assert hash(task) is not None


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.text().map(str.encode) | json_values.map(json.dumps).map(str.encode))
def test_any_bytes_end_in_a_task_or_a_refusal(data):
    try:
        read(data)
    except TaskError as error:
        assert str(error).isprintable()
