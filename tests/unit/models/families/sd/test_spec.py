"""What shares Stable Diffusion's classes and is something else, told from its configurations alone."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.sd.spec import check

WHOLE = {
    "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 768, "class_embed_type": None},
    "vae": {"latent_channels": 4},
    "text_encoder": {"hidden_size": 768},
}


def with_unet(**changes):
    return WHOLE | {"unet": WHOLE["unet"] | changes}


@pytest.mark.parametrize(
    "configs",
    [
        WHOLE,
        with_unet(in_channels=8, out_channels=8) | {"vae": {"latent_channels": 8}},
        {"unet": {"cross_attention_dim": 1024}, "vae": {}, "text_encoder": {"hidden_size": 1024}},
    ],
)
def test_accepted(configs):
    check(configs.__getitem__)


@pytest.mark.parametrize(
    "configs, message",
    [
        (with_unet(in_channels=9), "takes 9 channels and gives 4.*inpainting"),
        (with_unet(cross_attention_dim=1024), "width 1024.*gives 768"),
        (with_unet(addition_embed_type="text_time"), "more than a caption"),
        (with_unet(class_embed_type="projection"), "more than a caption"),
        ({"unet": {}, "vae": {}, "text_encoder": {}}, "width 1280.*gives 512"),
        (with_unet(layers_per_block=10**9), "unet/config.json gives layers_per_block as '1000000000'"),
        (with_unet(layers_per_block="x"), "gives layers_per_block as 'x'"),
        (with_unet(transformer_layers_per_block=[1, [2, 10**9]]), "gives transformer_layers_per_block"),
        (with_unet(down_block_types=["DownBlock2D"] * 65), "gives down_block_types"),
        (WHOLE | {"vae": {"layers_per_block": -1}}, "vae/config.json gives layers_per_block"),
        (WHOLE | {"vae": {"scaling_factor": 0}}, "vae/config.json gives scaling_factor as '0'"),
        (WHOLE | {"vae": {"scaling_factor": "x"}}, "gives scaling_factor as 'x'"),
        (WHOLE | {"vae": {"scaling_factor": float("nan")}}, "gives scaling_factor as 'nan'"),
        (WHOLE | {"text_encoder": {"hidden_size": 768, "num_hidden_layers": 10**9}}, "gives num_hidden_layers"),
        (WHOLE | {"text_encoder": {"hidden_size": 768, "max_position_embeddings": 10**9}}, "max_position_embeddings"),
        (WHOLE | {"text_encoder": {"hidden_size": 768, "eos_token_id": "x"}}, "gives eos_token_id as 'x'"),
    ],
)
def test_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        check(configs.__getitem__)
    assert caught.value.code == 4


def test_xls_parts_are_no_stable_diffusion():
    encoder = {"hidden_size": 768}
    configs = {"unet": WHOLE["unet"] | {"cross_attention_dim": 2048}, "vae": {}, "text_encoder": encoder}
    with pytest.raises(ModelError, match="are of different models"):
        check(configs.__getitem__)
