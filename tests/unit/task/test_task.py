"""The task: what is read, what is refused and how that is said."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from engine.task.identity import canonical
from engine.task.task import Component, HeldOutDataset, parse_task, task_schema
from tests.support.tasks import MINIMAL, problems, read, task_with

ROOT = Path(__file__).parents[3]


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


def test_the_schema_may_be_named_and_changes_nothing():
    named = MINIMAL | {"$schema": "https://example.org/task.schema.json"}
    assert read(named) == read(MINIMAL) and canonical(read(named)) == canonical(read(MINIMAL))
    assert problems(MINIMAL | {"$schema": 3}) == ["$schema: got 3, expected a string"]


def test_the_task_needs_no_heavy_library():
    code = "import sys, engine.task.task; print([m for m in ('torch', 'numpy', 'fastjsonschema') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_schema_is_compiled_once():
    assert task_schema() is task_schema()


class TestComponents:
    """Objects under names that the schema does not list (`model.components`)."""

    def test_they_are_read_in_the_order_of_their_names(self):
        named = {"vae": {"name": "a/vae", "subfolder": ""}, "text_encoder": {"name": "./t", "revision": "v2"}}
        found = read(task_with("model.components", named)).model.components
        assert [*found.items()] == [
            ("text_encoder", Component(name="./t", revision="v2")),
            ("vae", Component(name="a/vae")),
        ]

    def test_none_leaves_no_trace_and_one_its_own_keys(self):
        assert canonical(read(task_with("model.components", {}))) == canonical(read(MINIMAL))
        named = {"vae": {"name": "a/vae", "variant": None, "revision": "main"}}
        assert canonical(read(task_with("model.components", named)))["model"]["components"] == {
            "vae": {"name": "a/vae"}
        }

    @pytest.mark.parametrize(
        "components, expected",
        [
            ({"vae": {}}, "model.components.vae.name: missing, expected a non-empty string"),
            ({"vae": "a/b"}, 'model.components.vae: got "a/b", expected an object with name'),
            ({"vae": {"name": "a/b", "file": 1}}, "model.components.vae.file: got 1 for an unknown key, the known"),
            ({"vae": {"name": "a\0b"}}, "model.components.vae.name: got"),
            ({"../vae": {"name": 3}}, 'model.components["../vae"]: expected the name of a folder in the base model'),
            ({"a\n.b": "x"}, "model.components["),
            ({"x" * 200: {"name": "a"}}, 'model.components["xxx'),
            ([], "model.components: got [], expected an object"),
        ],
    )
    def test_what_is_refused(self, components, expected):
        found = problems(task_with("model.components", components))
        assert len(found) == 1 and found[0].startswith(expected) and "\n" not in found[0] and len(found[0]) < 300
