"""What shares Stable Diffusion's classes and is something else, told from its configurations alone."""

import pytest

from engine.core.errors import ModelError
from engine.models import checks

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
    checks.stable_diffusion(configs.__getitem__)


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
        checks.stable_diffusion(configs.__getitem__)
    assert caught.value.code == 4


XL = {
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


def xl_with(component="unet", **changes):
    return XL | {component: XL[component] | changes}


def test_xl_accepted():
    checks.stable_diffusion_xl(XL.__getitem__)


@pytest.mark.parametrize(
    "configs, message",
    [
        (xl_with(in_channels=9), "takes 9 channels and gives 4.*inpainting"),
        (xl_with(addition_embed_type=None), "not told the image's size"),
        (xl_with(addition_embed_type="image"), "not told the image's size"),
        (xl_with(projection_class_embeddings_input_dim=2560), "aesthetic score.*refiner"),
        (xl_with(projection_class_embeddings_input_dim=2815), "pooled text of width 1279.*do not belong together"),
        (xl_with(cross_attention_dim=768), "text states of width 768.*give 2048 and 1280"),
        (xl_with("text_encoder_2", projection_dim=768), "pooled text of width 1280.*give 2048 and 768"),
        (xl_with("text_encoder", hidden_size="x"), "text_encoder/config.json gives hidden_size as 'x'"),
        (xl_with(addition_time_embed_dim=None), "unet/config.json gives addition_time_embed_dim as None"),
        (xl_with(cross_attention_dim=[2048, 2048]), "unet/config.json gives cross_attention_dim as"),
        (xl_with(time_cond_proj_dim=256), "guidance scale.*distilled"),
        (xl_with(class_embed_type="timestep"), "another model"),
        (xl_with(encoder_hid_dim_type="text_proj"), "another model"),
        (xl_with(down_block_types=["DownBlock2D", "KCrossAttnDownBlock2D"]), "another model"),
        (xl_with("vae", latents_mean=[0.0] * 4), "scales each channel by itself"),
    ],
)
def test_xl_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        checks.stable_diffusion_xl(configs.__getitem__)
    assert caught.value.code == 4


def test_xls_parts_are_no_stable_diffusion():
    with pytest.raises(ModelError, match="do not belong together"):
        checks.stable_diffusion(XL.__getitem__)
