"""Texts and token counts, against transformers' own."""

import json
import shutil

import pytest

from engine.core.errors import ModelError
from engine.models.parts.qwen.tokens import CHAT, CHAT_WITHOUT_THINKING, counter
from tests.support.tiny_tokenizers import build_qwen

CAPTIONS = ["", "a cat", "It's 1234 cats,  and\n\ndogs", "ünïcödé 猫 🐈", "<|im_end|> ends"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_qwen()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("text, thinks", [(CHAT, True), (CHAT_WITHOUT_THINKING, False)])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_texts_are_what_the_chat_template_makes(tokenizer, caption, text, thinks):
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=thinks
    )
    assert text.format(caption) == made


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_have_as_many_tokens_as_transformers_makes(tokenizer, folder, caption):
    own = counter(CHAT)(folder, None, 512)
    expected = tokenizer(caption, add_special_tokens=False).input_ids
    assert own.count(caption) == len(expected)
    assert own.limit == 512 - len(tokenizer(CHAT.format("")).input_ids)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_vocabulary_with_merges_counts_alike(folder, tmp_path, caption):
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    own = tmp_path / "tokenizer"
    own.mkdir()
    (own / "vocab.json").write_text(json.dumps(model["vocab"]))
    (own / "merges.txt").write_text("#version: 0.2\n")
    assert counter(CHAT)(tmp_path, None, 512).count(caption) == counter(CHAT)(folder, None, 512).count(caption)


def test_without_a_tokenizer_there_is_no_counter(tmp_path):
    assert counter(CHAT)(tmp_path, None, 512) is None


@pytest.mark.parametrize("broken", ["", "{}", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_malformed_files_are_named(folder, tmp_path, broken):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "tokenizer" / "tokenizer.json").write_text(broken)
    with pytest.raises(ModelError, match="the base model's tokenizer does not load"):
        counter(CHAT)(copy, None, 512)


def test_missing_files_are_named(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ModelError, match="the base model's tokenizer"):
        counter(CHAT)(tmp_path, None, 512)
