"""Captions encoded with a tiny real T5, as Diffusers' pipelines encode them."""

import json

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from engine.core.errors import ModelError
from engine.models.family import LoadArgs
from engine.models.parts.t5 import encoder as t5
from tests.support import tiny_tokenizers


@pytest.fixture
def args(tmp_path):
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2/config.json").write_text(json.dumps({"vocab_size": 256}))
    return LoadArgs(
        folder=tmp_path,
        variants={},
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction_type="flow",
        caption_tokens=16,
    )


@pytest.mark.parametrize("length", [512, int(1e30)], ids=["512", "no limit"])
def test_either_file_is_enough(args, length):
    folder = args.folder / "tokenizer_2"
    tiny_tokenizers.build_t5(length).save_pretrained(folder)
    assert t5.token_ids(t5.load_tokenizer(args, "tokenizer_2"), "ab", 6).tolist() == [3, 68, 69, 1, 0, 0]
    (folder / "tokenizer.json").unlink()
    tiny_tokenizers.write_spiece(folder)
    found = t5.load_tokenizer(args, "tokenizer_2")
    assert t5.token_ids(found, "a cat", 6).tolist() == [7, 6, 8, 1, 0, 0]


def test_long_captions_keep_their_end(args):
    tiny_tokenizers.build_t5(8).save_pretrained(args.folder / "tokenizer_2")
    ids = t5.token_ids(t5.load_tokenizer(args, "tokenizer_2"), "abcdefghijklmnop", 12)
    assert ids.dtype == torch.int64 and ids.tolist() == [3, *range(68, 78), 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": b"{}"}, r"has neither tokenizer\.json nor spiece\.model"),
        ({"spiece.model": b"not a model"}, "is malformed"),
        ({"tokenizer.json": b"{}"}, "does not load"),
    ],
)
def test_never_an_empty_tokenizer(args, files, message):
    (args.folder / "tokenizer_2").mkdir()
    for name, data in files.items():
        (args.folder / "tokenizer_2" / name).write_bytes(data)
    with pytest.raises(ModelError, match=message):
        t5.load_tokenizer(args, "tokenizer_2")


def test_tokens_that_the_encoder_does_not_know(args):
    tiny_tokenizers.build_t5().save_pretrained(args.folder / "tokenizer_2")
    (args.folder / "text_encoder_2/config.json").write_text(json.dumps({"vocab_size": 97}))
    with pytest.raises(ModelError, match="has 98 tokens, its text encoder 97"):
        t5.load_tokenizer(args, "tokenizer_2")


def test_a_caption_is_encoded_as_in_the_pipelines():
    config = T5Config(vocab_size=256, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    encoder, tokenizer = T5EncoderModel(config).eval(), tiny_tokenizers.build_t5()
    found = t5.encode(encoder, t5.token_ids(tokenizer, "a cat", 20))
    inputs = tokenizer("a cat", padding="max_length", max_length=20, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(inputs.input_ids)[0][0]  # as in StableDiffusion3Pipeline._get_t5_prompt_embeds
    assert found.shape == (20, 16) and torch.equal(found, expected) and not found.requires_grad
