"""What shares Stable Diffusion XL's classes and is something else, told from its configurations alone."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.sdxl.spec import check

WHOLE = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae": {"latent_channels": 4},
    "text_encoder": {"hidden_size": 768},
    "text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280},
}


def whole_with(component="unet", **changes):
    return WHOLE | {component: WHOLE[component] | changes}


def test_accepted():
    check(WHOLE.__getitem__)


@pytest.mark.parametrize(
    "configs, message",
    [
        (whole_with(in_channels=9), "takes 9 channels and gives 4.*inpainting"),
        (whole_with(addition_embed_type=None), "not conditioned on image sizes"),
        (whole_with(addition_embed_type="image"), "not conditioned on image sizes"),
        (whole_with(projection_class_embeddings_input_dim=2560), "aesthetic score.*refiner"),
        (whole_with(projection_class_embeddings_input_dim=2815), "pooled text of width 1279.*are of different models"),
        (whole_with(cross_attention_dim=768), "text states of width 768.*give 2048 and 1280"),
        (whole_with("text_encoder_2", projection_dim=768), "pooled text of width 1280.*give 2048 and 768"),
        (whole_with("text_encoder", hidden_size="x"), "text_encoder/config.json gives hidden_size as 'x'"),
        (whole_with(addition_time_embed_dim=None), "unet/config.json gives addition_time_embed_dim as None"),
        (whole_with(cross_attention_dim=[2048, 2048]), "unet/config.json gives cross_attention_dim as"),
        (whole_with(time_cond_proj_dim=256), "guidance scale.*distilled"),
        (whole_with(class_embed_type="timestep"), "another model"),
        (whole_with(encoder_hid_dim_type="text_proj"), "another model"),
        (whole_with(down_block_types=["DownBlock2D", "KCrossAttnDownBlock2D"]), "another model"),
        (whole_with("vae", latents_mean=[0.0] * 4), "scales each channel separately"),
    ],
)
def test_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        check(configs.__getitem__)
    assert caught.value.code == 4
