"""What shares Stable Diffusion's classes and is something else, told from its configurations alone."""

import pytest

from engine.errors import ModelError
from engine.families import checks

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
    ],
)
def test_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        checks.stable_diffusion(configs.__getitem__)
    assert caught.value.code == 4
