"""T5's size and what it takes to encode a caption, beside what torch holds: the published size, without memory."""

import pytest
import torch
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from engine.models.parts.footprints import t5
from tests.support.fake_transformers import encoding_bytes
from tests.support.real_shapes import T5_XXL, UMT5_XXL


def footprint(length, *, value_bytes=2, is_float16=False):
    return t5.text_encoder(T5_XXL, length=length, value_bytes=value_bytes, is_float16=is_float16)


@pytest.mark.parametrize("length", [*(pytest.param(length, marks=pytest.mark.slow) for length in (77, 256)), 512])
def test_a_caption_is_predicted_within_15_percent(length):
    peak, parameters = encoding_bytes(
        lambda: T5EncoderModel(T5Config(**T5_XXL)),
        lambda encoder: encoder(torch.zeros(1, length, dtype=torch.int64)),
        torch.bfloat16,
    )
    found = footprint(length)
    assert (found.parameters, found.weight_bytes) == (parameters, 2 * parameters)
    assert found.encode_bytes == pytest.approx(peak, rel=0.15)


def test_umt5_has_a_table_of_positions_in_each_layer():
    """As Wan's pipeline calls it, with a mask."""
    peak, parameters = encoding_bytes(
        lambda: UMT5EncoderModel(UMT5Config(**UMT5_XXL)),
        lambda encoder: encoder(torch.zeros(1, 512, dtype=torch.int64), torch.ones(1, 512, dtype=torch.int64)),
        torch.bfloat16,
    )
    found = t5.text_encoder(UMT5_XXL, length=512, value_bytes=2, is_float16=False)
    assert found.parameters == parameters
    assert found.encode_bytes == pytest.approx(peak, rel=0.15)


def test_in_fp16_a_layer_of_each_block_is_in_float32():
    """As `T5EncoderModel._keep_in_fp32_modules` says."""
    assert T5EncoderModel._keep_in_fp32_modules == ["wo"]
    wide = 2 * T5_XXL["num_layers"] * T5_XXL["d_ff"] * T5_XXL["d_model"]
    assert footprint(77, is_float16=True).weight_bytes == footprint(77).weight_bytes + wide
    assert footprint(77, value_bytes=4).weight_bytes == 4 * footprint(77).parameters


def test_another_configuration_is_an_error():
    with pytest.raises((KeyError, ValueError)):
        t5.text_encoder({"hidden_size": 8}, length=77, value_bytes=2, is_float16=False)
    with pytest.raises(ValueError, match="number of layers"):
        t5.text_encoder(T5_XXL | {"num_layers": 10**9}, length=77, value_bytes=2, is_float16=False)
