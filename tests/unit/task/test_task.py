"""The task: what is read, what is refused and how that is said."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

import fastjsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core import json_reader
from engine.core.errors import TaskError
from engine.task import aliases, schema
from engine.task.task import SCHEMA, HeldOutDataset, Task, canonical, canonical_json, parse_task, task_schema

ROOT = Path(__file__).parents[3]
DEFINITION = json.loads(SCHEMA.read_bytes())
KEYS = {".".join(keys): part for keys, part in schema.properties(DEFINITION)}
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


# What is accepted


def test_the_minimal_task_has_the_defaults():
    task = read(MINIMAL)
    assert (task.model.revision, task.dataset.image_column, task.train_args.lr_scheduler.lr_warmup_steps) == (
        "main",
        "image",
        500,
    )
    assert task.train_args.adam_args.epsilon == 1e-8
    assert task.lora.init_lora_weights is True


@pytest.mark.parametrize("path", sorted((ROOT / "examples/tasks").glob("*.json")), ids=lambda path: path.name)
def test_examples_are_tasks(path):
    assert parse_task(path.read_bytes(), source=str(path))


def test_every_key_reaches_the_task():
    task = read((ROOT / "examples/tasks/client.json").read_bytes())
    assert task.model.variant == "fp16"
    assert task.dataset.url == "https://example.org/GivF5FBMdJVr6xHT7hi2aE7vH55wVjrtKLpRc2E86icJ"
    assert (task.train_args.num_train_steps, task.train_args.max_train_steps) == (100, 15000)
    assert (task.train_args.lr_scheduler.lr_scheduler, task.lora.rank, task.seed) == ("cosine", 4, 1337)
    assert task.lora.target_modules == ("to_k", "to_q", "to_v", "to_out.0")


@pytest.mark.parametrize("path", ["model.revision", "dataset.url", "dataset.config_name", "checkpoint"])
def test_an_empty_string_counts_as_absent(path):
    assert read(task_with(path, "")) == read(MINIMAL)


def test_an_empty_dataset_name_leaves_the_url():
    task = read(MINIMAL | {"dataset": {"name": "", "url": "http://h/x"}})
    assert (task.dataset.name, task.dataset.url) == (None, "http://h/x")


@pytest.mark.parametrize(
    "given",
    [{"fraction": 0.25}, {"fraction": 0.25, "name": "", "url": "", "split": "", "config_name": ""}],
)
def test_held_out_images_have_one_source(given):
    task = read(task_with("validation.dataset", given))
    assert task.validation.dataset == HeldOutDataset(fraction=0.25)
    assert canonical(task)["validation"] == {"dataset": {"fraction": 0.25}}
    assert read(task_with("validation.dataset", None)).validation.dataset is None


def test_the_number_of_held_out_images_is_bounded():
    for wrong in (0, 1001):
        (problem,) = problems(task_with("validation.dataset", {"split": "test", "max_images": wrong}))
        assert problem.startswith(
            f"validation.dataset.max_images: got {wrong}, expected an integer of at least 1 and at"
        )


def test_an_empty_prompt_is_a_prompt():
    assert read(task_with("validation.prompt", "")).validation.prompt == ""


@pytest.mark.parametrize(
    ("path", "value", "got"),
    [
        ("train_args.learning_rate", 1, 1.0),
        ("train_args.noise_offset", -0.0, 0.0),
        ("train_args.max_grad_norm", -0.0, 0.0),
        ("train_args.snr_gamma", 5, 5.0),
        ("train_args.adam_args.beta1", 0, 0.0),
    ],
)
def test_numbers_have_one_form(path, value, got):
    task = read(task_with(path, value))
    item = typing.cast(object, task)
    for key in path.split("."):
        item = getattr(item, key)
    assert type(item) is float
    assert (item, math.copysign(1, item)) == (got, 1)


def test_seeds_have_no_upper_bound():
    assert read(task_with("seed", 2**64)).seed == 2**64


@pytest.mark.parametrize("url", ["http://h", "HTTPS://h:8080/a b?c#d", "https://u:p@[::1]/x", "https://пример.org/ü"])
def test_http_addresses_are_accepted(url):
    assert read(task_with("dataset.url", url)).dataset.url == url


# What is refused: the text

UNREADABLE = [
    (b"", "line 1, column 1: the text is empty, expected an object { … }"),
    (b" \n ", "line 1, column 1: the text is empty, expected an object { … }"),
    (b"/task/task.json", "line 1, column 1: expected an object { … }, found /task/task.json"),
    (b"\xef\xbb\xbf{}", "line 1, column 1: a byte order mark, save the text as UTF-8 without BOM"),
    (b"\xff\xfe{\x00", "line 1, column 1: the text is UTF-16, save it as UTF-8 without BOM"),
    ('{"é": "'.encode() + b"\xff", "line 1, column 8: byte 0xff is not UTF-8, save the text as UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "line 1, column 8: byte 0xed is not UTF-8, save the text as UTF-8"),
    (b'{"a": 1,\n}', "line 1, column 8: a trailing comma, remove it before }"),
    (b'{"a": [1, 2 ,]}', "line 1, column 13: a trailing comma, remove it before ]"),
    (b'{\n"a": 1, // x\n}', "line 2, column 9: expected a key in double quotes, found a comment, which JSON does not"),
    (b'{"a": /* x */ 1}', "line 1, column 7: expected a value, found a comment, which JSON does not have: remove it"),
    (b"# x\n{}", "line 1, column 1: expected an object { … }, found a comment, which JSON does not have: remove it"),
    (b"{'a': 1}", "line 1, column 2: expected a key in double quotes, found 'a'"),
    (b"{\"a\": 'b'}", "line 1, column 7: found 'b', strings take double quotes"),
    (b"{a: 1}", "line 1, column 2: expected a key in double quotes, found a"),
    (b'{"a": True}', "line 1, column 7: found True, write true"),
    (b'{"a": None}', "line 1, column 7: found None, write null"),
    (b'{"a": 01}', "line 1, column 7: expected a value, found 01"),
    (b'{"a": +1}', "line 1, column 7: expected a value, found +1"),
    (b'{"a": .5}', "line 1, column 7: expected a value, found .5"),
    (b'{"a": 1_000}', "line 1, column 7: expected a value, found 1_000"),
    (b'{"a": }', "line 1, column 7: expected a value, found }"),
    (b"[1,,2]", "line 1, column 4: expected a value, found ,"),
    (b"[,1]", "line 1, column 2: expected a value, found ,"),
    (b'{"a" 1}', 'line 1, column 6: expected ":" after the key "a", found 1'),
    (b'{"a": 1 "b": 2}', 'line 1, column 9: expected "," or "}", found "b"'),
    (b'{"a": 1} {', "line 1, column 10: expected the end of the text, found {"),
    (b'{"a": [1, 2', "line 1, column 12: the text ends before the ] that closes line 1, column 7"),
    (b'{"a": 1,', "line 1, column 9: expected a key in double quotes, found the end of the text"),
    (b'{"a": "x', "line 1, column 7: a string that does not end"),
    (b'{"a": "x\n"}', "line 1, column 9: a line break in a string, write \\n for one or add the closing quote"),
    (b'{"a": "x\t"}', "line 1, column 9: a control character in a string, write \\u0009"),
    (b'{"a": "C:\\x"}', "line 1, column 10: unknown escape \\x in a string"),
    (b"[" * 100_000, "line 1, column 102: nested more than 100 levels deep"),
    (b'{"a":' * 100_000, "line 1, column 506: nested more than 100 levels deep"),
    (b'{"a": "\xe2\x80\xa8\x1b"}', "line 1, column 9: a control character in a string, write \\u001b"),
]


@pytest.mark.parametrize(("data", "message"), UNREADABLE, ids=lambda value: repr(value)[:30])
def test_unreadable_text_is_refused_with_its_place(data, message):
    (problem,) = problems(data)
    assert problem.startswith(message)


NOTED = [
    (b'{"seed": 1, "seed": 2}', "seed: the key appears twice, also at line 1, column 2 (line 1, column 13)"),
    (b'{"lora": {"rank": 4,\n "rank": 4}}', "lora.rank: the key appears twice, also at line 1, column 11 (line 2,"),
    (b'{"seed": NaN}', "seed: got NaN, expected a finite number (line 1, column 10)"),
    (b'{"seed": Infinity}', "seed: got Infinity, expected a finite number (line 1, column 10)"),
    (b'{"lora": {"target_modules": ["a", -Infinity]}}', "lora.target_modules[1]: got -Infinity, expected a finite"),
    (b'{"seed": 1e999}', "seed: got 1e999, expected a number within the range of a 64-bit float (line 1, column 10)"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "seed: got 999"),
    (b'{"train_args": {"learning_rate": 1' + b"0" * 400 + b"}}", "train_args.learning_rate: got 1000"),
    (b'{"checkpoint": "\\ud800"}', 'checkpoint: got "\\ud800", which holds half of a surrogate pair, write the char'),
    (b'{"\\udc00": 1}', 'got "\\udc00", which holds half of a surrogate pair, write the character itself (line 1, c'),
]


@pytest.mark.parametrize(("data", "message"), NOTED, ids=lambda value: repr(value)[:30])
def test_what_does_not_hide_the_rest_is_listed_with_it(data, message):
    listed = problems(data)
    assert listed[0].startswith(message)
    assert "model: missing, expected an object with name" in listed


def test_a_surrogate_pair_is_one_character():
    assert read(task_with("validation.prompt", "🙂")).validation.prompt == "🙂"
    assert b"\\ud83d\\ude42" in json.dumps("🙂").encode()  # this is what was read


# What is refused: the values

REFUSED = [
    ("model", ..., "missing, expected an object with name"),
    ("dataset", ..., "missing, expected an object with name or url"),
    ("validation", ..., "missing, expected an object"),
    ("train_args", ..., "missing, expected an object"),
    ("model", "a/b", 'got "a/b", expected an object with name'),
    ("train_args", [], "got [], expected an object"),
    ("lora", None, "got null, expected an object"),
    ("model.name", ..., "missing, expected a non-empty string"),
    ("model.name", "", 'got "", expected a non-empty string'),
    ("model.name", "a\0", 'got "a\\u0000", expected a non-empty string matching ^[^\\u0000]*$'),
    ("model.variant", "fp32", 'got "fp32", expected null, "fp16" or "bf16"'),
    ("model.revision", None, "got null, expected a string"),
    ("dataset.name", 5, "got 5, expected a string or null"),
    ("dataset.url", "ftp://h/x", 'got "ftp://h/x", expected an http or https address or null'),
    ("dataset.url", "h/x.zip", 'got "h/x.zip", expected an http or https address or null'),
    ("dataset.url", "http:///x", 'got "http:///x", expected an http or https address or null'),
    ("dataset.url", "http://h:99999/", 'got "http://h:99999/", expected an http or https address or null'),
    ("dataset.url", "http://[h/", 'got "http://[h/", expected an http or https address or null'),
    ("dataset.url", "http://h\\@i/", r'got "http://h\\@i/", expected an http or https address or null'),
    ("dataset.url", "http://h/\n", 'got "http://h/\\n", expected an http or https address or null'),
    ("dataset.image_column", None, "got null, expected a string"),
    ("validation.prompt", ["a"], 'got ["a"], expected a string or null'),
    ("validation.num_images", 0, "got 0, expected an integer of at least 1 and at most 10"),
    ("validation.num_images", 11, "got 11, expected an integer of at least 1 and at most 10"),
    ("validation.prompts", [], "got [], expected a non-empty list of at most 10 or null"),
    (
        "validation.prompts",
        ["a"] * 11,
        f"got {json.dumps(['a'] * 11)}, expected a non-empty list of at most 10 or null",
    ),
    ("validation.prompts", "a cat", 'got "a cat", expected a non-empty list of at most 10 or null'),
    ("validation.guidance_scale", -1, "got -1, expected a number of at least 0 and at most 100"),
    ("validation.guidance_scale", 1e30, "got 1e+30, expected a number of at least 0 and at most 100"),
    ("validation.num_inference_steps", 0, "got 0, expected an integer of at least 1 and at most 500"),
    ("validation.num_inference_steps", 501, "got 501, expected an integer of at least 1 and at most 500"),
    ("validation.seed", 2**32, "got 4294967296, expected an integer of at least 0 and at most 4294967295 or null"),
    ("validation.negative_prompt", 1, "got 1, expected a string or null"),
    ("validation.every_n_steps", 0, "got 0, expected an integer of at least 1 or null"),
    ("validation.every_n_epochs", 0, "got 0, expected an integer of at least 1 or null"),
    ("validation.dataset", "d", 'got "d", expected an object with exactly one of name, url, split or fraction or null'),
    ("validation.dataset", {}, "got {}, expected an object with exactly one of name, url, split or fraction or null"),
    (
        "validation.dataset",
        {"name": "d", "split": "test"},
        'got {"name": "d", "split": "test"}, expected an object with',
    ),
    (
        "validation.dataset",
        {"name": "", "fraction": None},
        'got {"name": "", "fraction": null}, expected an object with',
    ),
    (
        "validation.dataset",
        {"max_images": 5},
        'got {"max_images": 5}, expected an object with exactly one of name, url',
    ),
    ("validation.dataset.fraction", 0, "got 0, expected a number greater than 0 and below 1 or null"),
    ("validation.dataset.fraction", 1, "got 1, expected a number greater than 0 and below 1 or null"),
    ("validation.dataset.url", "h/x", 'got "h/x", expected an http or https address or null'),
    ("validation.every_n_epochs", 0.5, "got 0.5, expected an integer of at least 1 or null"),
    ("train_args.learning_rate", 0, "got 0, expected a number greater than 0"),
    ("train_args.learning_rate", True, "got true, expected a number greater than 0"),
    ("train_args.learning_rate", "1e-4", 'got "1e-4", expected a number greater than 0'),
    ("train_args.batch_size", 0, "got 0, expected an integer of at least 1"),
    ("train_args.batch_size", 1.0, "got 1.0, expected an integer of at least 1 (write 1)"),
    ("train_args.batch_size", 1.5, "got 1.5, expected an integer of at least 1"),
    ("train_args.batch_size", True, "got true, expected an integer of at least 1"),
    ("train_args.batch_size", None, "got null, expected an integer of at least 1"),
    ("train_args.gradient_accumulation_steps", 0, "got 0, expected an integer of at least 1"),
    ("train_args.prediction_type", "sample", 'got "sample", expected null, "epsilon" or "v_prediction"'),
    ("train_args.max_grad_norm", -1, "got -1, expected a number of at least 0"),
    ("train_args.num_train_epochs", 0, "got 0, expected an integer of at least 1"),
    ("train_args.num_train_steps", 0, "got 0, expected an integer of at least 1 or null"),
    ("train_args.num_train_steps", 100.0, "got 100.0, expected an integer of at least 1 or null (write 100)"),
    ("train_args.max_train_epochs", 0, "got 0, expected an integer of at least 1"),
    ("train_args.max_train_steps", -5, "got -5, expected an integer of at least 1 or null"),
    ("train_args.scale_lr", 1, "got 1, expected true or false"),
    ("train_args.resolution", 56, "got 56, expected an integer of at least 64 and divisible by 8"),
    ("train_args.resolution", 516, "got 516, expected an integer of at least 64 and divisible by 8"),
    ("train_args.resolution", 512.0, "got 512.0, expected an integer of at least 64 and divisible by 8 (write 512)"),
    ("train_args.noise_offset", -0.1, "got -0.1, expected a number of at least 0"),
    ("train_args.snr_gamma", 0, "got 0, expected a number greater than 0 or null"),
    ("train_args.gradient_checkpointing", 1, 'got 1, expected "auto", true or false'),
    ("train_args.gradient_checkpointing", None, 'got null, expected "auto", true or false'),
    ("train_args.lr_scheduler", "cosine", 'got "cosine", expected an object'),
    ("train_args.lr_scheduler.lr_scheduler", "cos", 'got "cos", expected "linear", "cosine", "cosine_with_restarts"'),
    ("train_args.lr_scheduler.lr_warmup_steps", -1, "got -1, expected an integer of at least 0"),
    ("train_args.adam_args.beta1", 1, "got 1, expected a number of at least 0 and below 1"),
    ("train_args.adam_args.beta2", -0.1, "got -0.1, expected a number of at least 0 and below 1"),
    ("train_args.adam_args.weight_decay", -1, "got -1, expected a number of at least 0"),
    ("train_args.adam_args.epsilon", 0, "got 0, expected a number greater than 0"),
    ("train_args.adam_args.epsilon", -0.0, "got -0.0, expected a number greater than 0"),
    ("lora.rank", 0, "got 0, expected an integer of at least 1"),
    ("lora.init_lora_weights", 1, 'got 1, expected true, false, "gaussian" or "loftq"'),
    ("lora.init_lora_weights", "pissa", 'got "pissa", expected true, false, "gaussian" or "loftq"'),
    ("lora.target_modules", [], "got [], expected a non-empty list, a regular expression or null"),
    ("lora.target_modules", "", 'got "", expected a non-empty list, a regular expression or null'),
    ("lora.target_modules", "(", 'got "(", expected a non-empty list, a regular expression or null'),
    ("lora.target_modules", "a{99999999999}", 'got "a{99999999999}", expected a non-empty list, a regular expression'),
    ("lora.target_modules", {}, "got {}, expected a non-empty list, a regular expression or null"),
    ("transforms.center_crop", 0, "got 0, expected true or false"),
    ("dataloader_num_workers", -1, "got -1, expected an integer of at least 0"),
    ("mixed_precision", "fp32", 'got "fp32", expected "no", "fp16" or "bf16"'),
    ("seed", -1, "got -1, expected an integer of at least 0"),
    ("seed", "1", 'got "1", expected an integer of at least 0'),
    ("checkpoint", 1, "got 1, expected a string or null"),
    ("version", "2", 'got "2", expected "1.0.0", "2.0.0"'),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=lambda value: repr(value)[:40])
def test_a_value_is_refused_by_its_path(path, value, message):
    (problem,) = problems(task_with(path, value))
    assert problem.startswith(f"{path}: {message}")


@pytest.mark.parametrize(("dataset"), [{}, {"name": None}, {"name": "", "url": ""}, {"config_name": "x"}])
def test_a_dataset_needs_a_name_or_a_url(dataset):
    (problem,) = problems(MINIMAL | {"dataset": dataset})
    assert problem == f"dataset: got {json.dumps(dataset)}, expected an object with name or url"


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
        ("train_args.beta1", "train_args.adam_args.beta1"),
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
    assert sum("none of those listed here before" in problem for problem in found) == 2
    assert not any("$schema" in problem for problem in found)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("train_args.lr", "train_args.learning_rate"),
        ("train_args.steps", "train_args.max_train_steps or train_args.num_train_steps"),
        ("epochs", "train_args.max_train_epochs or train_args.num_train_epochs"),
        ("train_args.train_batch_size", "train_args.batch_size"),
        ("network_dim", "lora.rank"),
        ("lora.network_alpha", "lora.alpha"),
        ("lora.R", "lora.rank"),
    ],
)
def test_other_trainers_names_get_ours(path, meant):
    (problem,) = problems(task_with(path, 3))
    assert problem.endswith(f": got 3 for an unknown key, did you mean {meant}?")


def test_a_key_that_there_is_none_for_says_what_to_do():
    (problem,) = problems(task_with("dataset.caption_extension", ".txt"))
    assert "unknown key, no key is needed: captions are read from NAME.txt or NAME.caption" in problem


def test_aliases_are_of_keys_that_there_are_and_of_no_others():
    last = {path.rpartition(".")[2] for path in KEYS}
    for alias, meant in aliases.ALIASES.items():
        assert set(meant) <= set(KEYS), alias
        assert alias not in last, f"{alias} is found by itself"
    assert not set(aliases.NOT_KEYS) & (last | set(aliases.ALIASES))
    # one problem ends where the next begins
    assert not any("; " in advice for advice in aliases.NOT_KEYS.values())


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


def test_the_schema_may_be_named_and_changes_nothing():
    named = MINIMAL | {"$schema": "https://example.org/task.schema.json"}
    assert read(named) == read(MINIMAL) and canonical(read(named)) == canonical(read(MINIMAL))
    assert problems(MINIMAL | {"$schema": 3}) == ["$schema: got 3, expected a string"]


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


# The whole of it

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(""),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from([*KEYS]), inner, max_size=4)
    ),
    max_leaves=8,
)


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
    kind_values = {
        "object": lambda: st.fixed_dictionaries(
            {key: values_of(part["properties"][key]) for key in part.get("required", [])},
            optional={
                key: values_of(item) for key, item in part["properties"].items() if key not in part.get("required", [])
            },
        ),
        "string": lambda: STRINGS[part["format"]] if "format" in part else text(part),
        "integer": lambda: st.integers(low // step, None if high is None else high // step).map(lambda i: i * step),
        "number": lambda: st.floats(low, high, exclude_max=high is not None) | st.integers(low, high),
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
            "pattern" not in part or "\0" not in value,
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
            *(accepts(known[key], item) for key, item in value.items() if key in known),
        ]
    if "anyOf" in part:
        rules.append(any(accepts(item, value) for item in part["anyOf"]))
    if "oneOf" in part:
        rules.append(sum(accepts(item, value) for item in part["oneOf"]) == 1)
    if "not" in part:
        rules.append(not accepts(part["not"], value))
    if "if" in part and accepts(part["if"], value):
        rules.append(accepts(part["then"], value))
    return all(rules)


def plain(value) -> bool:
    """Whether the reader has nothing to say about a value: finite numbers, whole characters."""
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


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
    again["train_args"] = again["train_args"] | {"gradient_checkpointing": task.train_args.gradient_checkpointing}
    assert read(canonical_json(again | environment)) == task
    assert hash(task) is not None


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_the_reader_reads_what_json_writes(value):
    text = json.dumps(value, ensure_ascii=False)
    read_value, found = json_reader.parse(text.encode())
    assert bool(found) == (not plain(value))
    if not found:
        assert json.dumps(read_value, ensure_ascii=False) == text


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_the_reader_accepts_no_more_than_json(data):
    text = json.dumps(data.draw(json_values), indent=data.draw(st.sampled_from([None, 1])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        inserted = data.draw(st.sampled_from(["", *',:"{}[]\\\n\t 01-.eE/#', "NaN", "null", "\xa0", "\ufeff", "'"]))
        text = text[:place] + inserted + text[place + data.draw(st.integers(0, 2)) :]
    value, found = json_reader.parse(text.encode())
    if not found:
        assert json.loads(text) == value
    elif any(re.match(r"line \d+, column \d+: ", problem.message) for problem in found) and "nested" not in str(found):
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.text().map(str.encode) | json_values.map(json.dumps).map(str.encode))
def test_any_bytes_end_in_a_task_or_a_refusal(data):
    try:
        read(data)
    except TaskError as error:
        assert str(error).isprintable()


# Schema, dataclasses and documentation are one


def fields_of(cls: type, path: str = "") -> dict[str, tuple[object, dataclasses.Field]]:
    """Every field of the dataclasses by its path, with its type."""
    result: dict[str, tuple[object, dataclasses.Field]] = {}
    hints = typing.get_type_hints(cls)
    for part in dataclasses.fields(cls):
        result[path + part.name] = (hints[part.name], part)
        for hint in (hints[part.name], *typing.get_args(hints[part.name])):  # it may be one or null
            if dataclasses.is_dataclass(hint):
                result |= fields_of(hint, f"{path}{part.name}.")
    return result


def json_types(hint) -> tuple[set[str], set[object]]:
    """A type's JSON types and its literals."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [json_types(item) for item in typing.get_args(hint)]
        return set().union(*(kinds for kinds, _ in parts)), set().union(*(literals for _, literals in parts))
    if typing.get_origin(hint) is typing.Literal:
        return set(), set(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        assert typing.get_args(hint) == (str, ...)
        return {"array"}, set()
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {"object" if dataclasses.is_dataclass(hint) else names[hint]}, set()


FIELDS = fields_of(Task)


def test_schema_and_dataclasses_have_the_same_keys():
    assert list(KEYS) == list(FIELDS)


@pytest.mark.parametrize("path", list(KEYS))
def test_schema_and_dataclasses_agree(path):
    part, (hint, field) = KEYS[path], FIELDS[path]
    kinds, literals = json_types(hint)
    if "enum" in part:
        wanted = literals | ({None} if "null" in kinds else set()) | ({True, False} if "boolean" in kinds else set())
        assert set(part["enum"]) == wanted
    else:
        assert set([part["type"]] if isinstance(part["type"], str) else part["type"]) == kinds
        assert not literals
    required = path in MINIMAL or path == "model.name"
    assert ("default" not in part) == required
    if "object" in kinds:
        assert part.get("default", {}) == (None if "null" in kinds else {})
        assert part["additionalProperties"] is False
    elif not required:
        assert (part["default"], type(part["default"]) is bool) == (field.default, type(field.default) is bool)
    assert part["title"]
    assert part["description"].endswith(".")


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


def test_the_documentation_has_every_key():
    text = (ROOT / "docs/task.md").read_text()
    rows = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    leaves = {path for path, part in KEYS.items() if part.get("type") != "object"}
    assert rows == leaves


def test_the_documentation_tells_defaults_and_errors_as_they_are():
    text = (ROOT / "docs/task.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]+)`|–) \|", text, re.MULTILINE)
    assert {path: json.loads(default) for path, default in rows if default} == {
        path: part["default"] for path, part in KEYS.items() if part.get("default", {}) != {}
    }
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert parse_task(blocks[0].encode(), source="docs")
    (wrong, message) = re.findall(r"```json\n([^`]*?)```\n\n```text\n([^`]*?)\n```", text)[-1]
    assert refusal(wrong.encode()) == message


# Canonical form and paths


def test_canonical_leaves_out_defaults_and_where_it_runs():
    task = task_with("train_args.resolution", 512) | {
        "checkpoint": "x",
        "dataloader_num_workers": 3,
        "version": "3.0.0",
    }
    assert canonical(read(task)) == {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}}
    assert "train_args" not in canonical(read(task_with("train_args.gradient_checkpointing", True)))
    task = task_with("lora.target_modules", ["to_k"])
    assert canonical(read(task))["lora"] == {"target_modules": ["to_k"]}


def test_canonical_json_is_one_form():
    assert canonical_json({"b": 1.0, "a": ["é", None]}) == '{"a":["é",null],"b":1.0}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(math.nan)


def test_the_task_needs_no_heavy_library():
    code = "import sys, engine.task.task; print([m for m in ('torch', 'numpy', 'fastjsonschema') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_schema_is_compiled_once():
    assert task_schema() is task_schema()


# Validation


def test_images_go_round_the_prompts():
    def prompts(**validation):
        return read(MINIMAL | {"validation": validation}).validation.given_prompts

    assert prompts() is None and prompts(prompts=None, num_images=2) is None
    assert prompts(prompt="a", num_images=2) == ["a", "a"] and prompts(prompt="") == [""] * 4
    assert prompts(prompts=["a", "b", "c"]) == ["a", "b", "c", "a"]
    assert prompts(prompts=["a", "b", "c"], num_images=1) == ["a", "b", "c"]
    assert prompts(prompts=list("abcdef")) == list("abcdef")
    assert prompts(prompts=[""], num_images=1, prompt=None) == [""]


def test_one_prompt_or_several():
    both = {"prompt": "a", "prompts": ["b"], "num_images": 0}
    assert problems(MINIMAL | {"validation": both}) == [
        "validation.num_images: got 0, expected an integer of at least 1 and at most 10",
        'validation.prompt: got "a", expected null beside prompts',
    ]
    assert read(MINIMAL | {"validation": {"prompt": "a", "prompts": None}}).validation.prompts is None


@pytest.mark.parametrize(
    "value", [{"prompts": None}, {"guidance_scale": 7.5}, {"num_inference_steps": 30}, {"seed": None}]
)
def test_validation_at_its_defaults_is_no_other_task(value):
    assert canonical(read(MINIMAL | {"validation": value})) == canonical(read(MINIMAL))
