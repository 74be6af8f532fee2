"""The sizes of language models and what it takes to encode a caption, beside what torch holds."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from engine.models.parts.footprints import language_model
from tests.support.fake_transformers import encoding_bytes
from tests.support.real_shapes import LLAMA_3_8B, QWEN3_4B, QWEN25_VL_7B

LENGTH = 512
WITH_HEAD = QWEN3_4B | {"architectures": ["Qwen3ForCausalLM"]}
UNTIED = WITH_HEAD | {"tie_word_embeddings": False}
CASES = [
    (Qwen3Model, Qwen3Config, QWEN3_4B),
    pytest.param(LlamaModel, LlamaConfig, LLAMA_3_8B, marks=pytest.mark.slow),
    pytest.param(Qwen3ForCausalLM, Qwen3Config, WITH_HEAD, marks=pytest.mark.slow),
    pytest.param(Qwen3ForCausalLM, Qwen3Config, UNTIED, marks=pytest.mark.slow),
    pytest.param(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, QWEN25_VL_7B, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("cls, config_cls, config", CASES)
def test_a_caption_is_predicted_within_15_percent(cls, config_cls, config):
    """With the states of all layers, and without a cache of keys and values."""

    def call(encoder):
        ids, places = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(3, 1, LENGTH, dtype=torch.int64)
        options = {"position_ids": places} if "vision_config" in config else {}
        return encoder(input_ids=ids, output_hidden_states=True, use_cache=False, **options)

    peak, parameters = encoding_bytes(lambda: cls(config_cls(**config)), call, torch.bfloat16)
    found = language_model.text_encoder(config, length=LENGTH, value_bytes=2)
    assert (found.parameters, found.weight_bytes) == (parameters, 2 * parameters)
    assert found.encode_bytes == pytest.approx(peak, rel=0.15)
