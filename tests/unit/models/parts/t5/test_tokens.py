"""T5's tokens are counted as transformers counts them, without it."""

import subprocess
import sys

import pytest
from transformers import T5TokenizerFast

from engine.core.errors import ModelError
from engine.models.parts.t5 import tokens
from tests.support import tiny_tokenizers

CAPTIONS = [
    "",
    "a photo of a cat, sitting on the mat",
    "  ÉTUDE \u00a0 des\tcouleurs\n",
    "it's 1234 o'clock!!! (masterpiece:1.2), <lora:x>",
    "猫が座っている 🐈\u200d⬛ ﬁne",
    "e\u0301 versus é",
    "</s> in the middle <pad>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Both ways in which a tokenizer is stored."""
    root = tmp_path_factory.mktemp("model")
    tiny_tokenizers.build_t5().save_pretrained(root / "tokenizer_2")
    tiny_tokenizers.write_spiece(root / "tokenizer_3")
    return root


@pytest.mark.parametrize("component", ["tokenizer_2", "tokenizer_3"])
def test_counts_as_transformers_does(component, model):
    counter = tokens.counter(component)(model, None, 256)
    reference = T5TokenizerFast.from_pretrained(model / component)
    assert counter.limit == 255
    for caption in CAPTIONS:
        assert counter.count(caption) == len(reference(caption, add_special_tokens=False).input_ids), caption


def test_a_tokenizer_that_is_not_on_disk_has_no_counter(model):
    assert tokens.counter("tokenizer_4")(model, None, 256) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has neither tokenizer\.json nor spiece\.model"),
        ({"tokenizer.json": b"{"}, "does not load"),
        ({"spiece.model": b""}, "has no tokens"),
        ({"spiece.model": b"\x80\x04cos\nsystem\n."}, "is malformed"),
        # A single token, where <unk> has number 5.
        ({"spiece.model": b"\x0a\x05\x0a\x03abc\x12\x03\xc0\x02\x05"}, "does not load"),
    ],
)
def test_a_malformed_tokenizer_is_the_models_fault(files, message, tmp_path):
    folder = tmp_path / "tokenizer_2"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=message):
        tokens.counter("tokenizer_2")(tmp_path, None, 256)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_huge_file_is_not_parsed(name, tmp_path):
    (tmp_path / "tokenizer_2").mkdir()
    with (tmp_path / "tokenizer_2" / name).open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(ModelError, match="too large"):
        tokens.counter("tokenizer_2")(tmp_path, None, 256)


def test_nothing_heavy_is_imported(model):
    script = (
        "import sys; from pathlib import Path; from engine.models.parts.t5 import tokens\n"
        f"tokens.counter('tokenizer_3')(Path({str(model)!r}), None, 256).count('a cat')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
