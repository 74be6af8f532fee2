"""A tokenizer is read whole from its one file, or built of others, within bounds."""

import os

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from engine.core.errors import ModelError
from engine.models.parts.token_files import read_pairs, read_tokenizer


def tokenizer():
    made = Tokenizer(WordLevel({"a": 0, "cat": 1}, unk_token="a"))
    made.pre_tokenizer = Whitespace()
    return made


def never():
    raise AssertionError("there is a tokenizer.json")


def test_its_own_truncation_and_padding_are_off(tmp_path):
    limited = tokenizer()
    limited.enable_truncation(2)
    limited.enable_padding(length=4)
    limited.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path, never)
    assert [len(read.encode(text).ids) for text in ("cat", "a cat a")] == [1, 3]


def test_without_it_the_tokenizer_is_built(tmp_path):
    assert read_tokenizer(tmp_path, tokenizer).encode("cat").ids == [1]


def too_large(path):
    path.touch()
    os.truncate(path, 1 << 40)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    too_large(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match="too large"):
        read_tokenizer(tmp_path, never)


@pytest.mark.parametrize("large", ["vocab.json", "merges.txt"])
def test_so_are_vocabulary_and_merges(tmp_path, large):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    too_large(tmp_path / large)
    with pytest.raises(ModelError, match="too large"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"vocab.json": "[]", "merges.txt": ""}])
def test_what_is_missing_or_malformed_is_the_models_error(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match="does not load"):
        read_tokenizer(tmp_path, lambda: read_pairs(tmp_path))
