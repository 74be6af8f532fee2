"""Which layers are quantised: those in the blocks of every family's denoiser."""

import pytest

from engine.models.quantization.rule import is_in_a_block


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.37.proj_mlp",
        "noise_refiner.1.attention.to_out.0",
        "layers.3.adaLN_modulation.0",
        "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
        "mid_block.attentions.0.proj_in",
    ],
)
def test_layers_in_blocks_are(name):
    assert is_in_a_block(name)


@pytest.mark.parametrize(
    "name",
    ["x_embedder", "time_text_embed.timestep_embedder.linear_1", "norm_out.linear", "proj_out", "cap_embedder.1"],
)
def test_layers_around_them_are_not(name):
    assert not is_in_a_block(name)
