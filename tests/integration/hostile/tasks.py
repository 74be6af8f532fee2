"""Tasks from strangers: text that is hardly JSON, numbers beyond all bounds, and what takes for ever to look at."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from typing import Any

from tests.integration.hostile.case import MIB, Case, Cases


def text(change: Callable[[bytes], bytes], code: int, *words: str, **options: Any) -> Case:
    """The task's text as it would be, changed."""
    return Case(make=lambda place: {"raw": change}, code=code, words=words, **options)


def seed(value: bytes, *words: str, **options: Any) -> Case:
    """Any text in place of a number."""
    return text(lambda data: data.replace(b'"seed": 7', b'"seed": ' + value), 2, *words, **options)


def asks(changes: Mapping[str, Any], code: int, *words: str, **options: Any) -> Case:
    return Case(make=lambda place: changes, code=code, words=words, **options)


def more(member: bytes) -> Callable[[bytes], bytes]:
    """One more member of the task's object."""
    return lambda data: b"{" + member + b"," + data[1:]


def keys(count: int) -> bytes:
    return b",".join(b'"a":0' for _ in range(count))


CASES: Cases = {
    "nothing": text(lambda _: b"", 2, "empty"),
    "deep lists": text(more(b'"a": ' + b"[" * 200_000), 2, "levels deep", quick=True),
    "deep objects": text(more(b'"a": ' + b'{"a":' * 200_000), 2, "levels deep"),
    "a byte order mark": text(lambda data: codecs.BOM_UTF8 + data, 2, "byte order mark"),
    "UTF-16": text(lambda data: data.decode().encode("utf-16"), 2, "UTF-16"),
    "UTF-32": text(lambda data: data.decode().encode("utf-32-be"), 2),
    "not UTF-8": text(more(b'"\xff": 1'), 2, "0xff"),
    "overlong UTF-8": text(more(b'"\xc0\xaf": 1'), 2, "0xc0"),
    "a surrogate in UTF-8": text(more(b'"\xed\xa0\x80": 1'), 2, "0xed"),
    "half a character as a key": text(more(b'"\\ud800": 1'), 2, "surrogate"),
    "half a character in a path": asks({"model.name": "a\ud800"}, 2, "surrogate"),
    "a key twice": text(more(b'"seed": 1'), 2, "twice", quick=True),
    "a key twice, once escaped": text(more(b'"\\u0073eed": 1'), 2, "twice"),
    "a key that looks like another": text(more('"ѕeed": 1'.encode()), 2, "unknown key"),
    "keys of objects": text(more(b'"__proto__": {}, "__class__": {}'), 2, "unknown key"),
    "a key of 10 MB": text(more(b'"' + b"a" * 10 * MIB + b'": 1'), 2, "unknown key"),
    "a key with escape codes": text(more(b'"\\u001b[2J\\r\\nerror: x": 1'), 2, "unknown key"),
    "a key 100,000 times": text(more(keys(100_000)), 2, "twice", seconds=30),
    "100,000 unknown keys": text(
        more(b",".join(b'"a%d":0' % index for index in range(100_000))), 2, "unknown key", seconds=30
    ),
    "NaN 100,000 times": text(more(b'"a": [' + b",".join([b"NaN"] * 100_000) + b"]"), 2, "NaN", seconds=30),
    "a megabyte of new lines": text(lambda data: b"\n" * MIB + data[:-1], 2, "line"),
    "two tasks": text(lambda data: data + data, 2, "end of the text"),
    "NaN": seed(b"NaN", "finite"),
    "minus infinity": seed(b"-Infinity", "finite"),
    "1e999": seed(b"1e999", "64-bit"),
    "1e-999": seed(b"1e-999", "integer"),
    "a million digits": seed(b"9" * 10**6, "64-bit", quick=True),
    "a million digits behind the point": seed(b"0." + b"9" * 10**6, "integer"),
    "an exponent of a million digits": seed(b"1e" + b"9" * 10**6, "64-bit"),
    "other digits": seed("٧".encode()),
    "an underscore": seed(b"1_0"),
    "hexadecimal": seed(b"0x7"),
    "minus nothing": seed(b"-"),
    "a seed of 300 digits": text(lambda d: d.replace(b'"seed": 7', b'"seed": ' + b"9" * 300), 0, train=True),
    "steps beyond counting": asks(
        {"train_args.num_train_steps": 10**300, "train_args.max_train_steps": 10**300}, 2, "is too large"
    ),
    "a whole training beyond counting": asks({"train_args.max_train_steps": 10**300}, 0, train=True),
    "epochs beyond counting": asks(
        {"train_args.max_train_steps": None, "train_args.max_train_epochs": 10**300}, 0, train=True
    ),
    "a batch beyond counting": asks({"train_args.batch_size": 10**18}, 6, train=True),
    "accumulation beyond counting": asks({"train_args.gradient_accumulation_steps": 10**30}, 2, "accumulation"),
    "a resolution beyond counting": asks({"train_args.resolution": 8 * 10**18}, 3, "extreme"),
    "buckets beyond counting": asks(
        {"train_args.resolution": 64 * 10**9, "transforms": {"buckets": True}}, 2, "resolution"
    ),
    "a rank beyond counting": asks({"lora.rank": 10**18}, 6, train=True),
    "an alpha beyond counting": asks({"lora.alpha": 1e308}, 2, "alpha"),
    "a threshold beyond counting": asks({"train_args.huber_c": 1e308}, 2, "huber_c"),
    "warm-up beyond counting": asks(
        {"train_args.lr_scheduler": {"lr_scheduler": "cosine", "lr_warmup_steps": 10**300}}, 0, train=True
    ),
    "an expression that takes for ever": asks(
        {"lora.target_modules": "((([a-z]+)*_?[0-9.]*)+)+!"}, 2, "takes more than", seconds=190
    ),
    "an expression that is a book": asks({"lora.target_modules": "(" * 50_000}, 2, "target_modules"),
    "an expression that is a tower": asks({"lora.target_modules": "(((a{1,999}){1,999}){1,999}){1,999}b"}, 2),
    "100,000 targets": asks({"lora.target_modules": [f"a{i}" for i in range(100_000)]}, 2, "target_modules"),
    "a prompt of 10 MB": asks({"validation.prompt": "a" * 10 * MIB}, 2, "characters"),
    "a rate beyond float32": asks({"train_args.learning_rate": 1e308}, 8, "learning rate", train=True, quick=True),
    "Min-SNR beyond float32": asks(
        {"train_args.snr_gamma": 1e308, "train_args.prediction_type": "v_prediction"}, 0, train=True
    ),
    "noise beyond float32": asks({"train_args.noise_offset": 1e308}, 8, train=True),
    "decay beyond float32": asks({"train_args.adam_args.weight_decay": 1e308}, 8, train=True),
    "guidance beyond float32": asks({"validation.guidance_scale": 1e308}, 2, "guidance_scale"),
    "a learning rate that is a word": asks({"train_args.learning_rate": "1e-4"}, 2, "learning_rate"),
    "true for a number": asks({"train_args.batch_size": True}, 2, "batch_size"),
    "a path through a file": asks({"checkpoint": "/etc/passwd/x"}, 5),
    "a path of a megabyte": asks({"checkpoint": "a/" * 500_000}, 5),
    "standard input for a checkpoint": asks({"checkpoint": "/dev/stdin"}, 5),
    "a terminal for a model": asks({"model.name": "/dev/tty"}, 4),
    "memory for a model": asks({"model.name": "/proc/self/mem"}, 4),
    "all devices for a dataset": asks({"dataset.name": "/dev/zero"}, 3),
    "nobody's home": asks({"dataset.name": "~nobody-of-that-name/x"}, 3),
}
