"""Counting tokens as transformers does, without it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from engine.core.errors import ModelError
from engine.models.parts.clip.tokens import TokenCounter
from engine.models.single_file.weights import build_tokenizer
from tests.support import tiny

CAPTIONS = [
    "",
    "a photo of a cat, sitting on the mat",
    "  ÉTUDE \u00a0 des\tcouleurs\n",
    "it's 1234 o'clock!!! (masterpiece:1.2), <lora:x>",
    "猫が座っている 🐈‍⬛",
    "e\u0301 versus é",
    "<|endoftext|> in the middle <|startoftext|>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both ways in which a tokenizer is stored: as transformers saves it, and as Stable Diffusion 1.5 is published."""
    root = tmp_path_factory.mktemp("tokenizers")
    tokenizer = tiny.build_tokenizer()
    tokenizer.save_pretrained(root / "new")
    saved = json.loads((root / "new/tokenizer.json").read_text())["model"]
    (root / "old").mkdir()
    (root / "old/vocab.json").write_text(json.dumps(saved["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["merges"]]
    (root / "old/merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (root / "old/tokenizer_config.json").write_text('{"model_max_length": 77}')
    return root


@pytest.fixture(scope="module")
def counters(folder):
    return [TokenCounter.of_folder(folder / name) for name in ("new", "old")]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_counts_as_transformers_does(caption, counters, folder):
    expected = len(tiny.build_tokenizer()(caption, add_special_tokens=False).input_ids)
    assert [counter.count(caption) for counter in counters] == [expected, expected]
    old = CLIPTokenizer.from_pretrained(folder / "old")
    assert len(old(caption, add_special_tokens=False).input_ids) == expected


@settings(max_examples=100, deadline=None)
@given(caption=st.text(max_size=60))
def test_any_text(caption, counters):
    expected = len(_REFERENCE(caption, add_special_tokens=False).input_ids)
    assert {counter.count(caption) for counter in counters} == {expected}


_REFERENCE = tiny.build_tokenizer()


def test_the_limit_is_the_models(counters, tmp_path, folder):
    assert [counter.limit for counter in counters] == [75, 75]
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / "old" / name).read_bytes())
    for config, limit in (("{}", 75), ('{"model_max_length": 1e30}', 75), ('{"model_max_length": 64}', 62)):
        (tmp_path / "tokenizer_config.json").write_text(config)
        assert TokenCounter.of_folder(tmp_path).limit == limit


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"vocab.json": "{}", "merges.txt": "x y z\n"}])
def test_a_malformed_tokenizer_is_the_models_fault(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match="does not load"):
        TokenCounter.of_folder(tmp_path)


def test_a_single_file_has_clips_own_vocabulary():
    """Published tokens of OpenAI's: "a photo of a cat" is 320 1125 539 320 2368 there."""
    file = SimpleNamespace(configs={"tokenizer": {"model_max_length": 77, "pad_token": "!"}})
    counter = TokenCounter.of_single_file(file, chunks=2)
    assert counter.limit == 150
    assert counter._tokenizer.encode("a photo of a cat", add_special_tokens=False).ids == [320, 1125, 539, 320, 2368]
    reference = build_tokenizer(CLIPTokenizer, file, "tokenizer")
    for caption in CAPTIONS:
        assert counter.count(caption) == len(reference(caption, add_special_tokens=False).input_ids)


def test_a_malformed_configuration_is_the_models_fault(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not JSON"):
        TokenCounter.of_folder(tmp_path)


def test_nothing_heavy_is_imported(folder):
    script = (
        "import sys; from pathlib import Path; from engine.models.parts.clip.tokens import TokenCounter\n"
        f"TokenCounter.of_folder(Path({str(folder / 'old')!r})).count('a cat')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
