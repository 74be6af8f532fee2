"""The size of the VAEs of Qwen-Image and Wan and what they take for an image or a clip, beside what torch holds."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan

from engine.models.parts.footprints.video_vaes import wan
from tests.support.fake_transformers import encoding_bytes
from tests.support.real_shapes import WAN_22_VAE

QWEN = {"base_dim": 96, "z_dim": 16}
NARROW = {"base_dim": 32, "z_dim": 8, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, False]}
WAN = {"z_dim": 16}


def measured(cls, config, frames, decode):
    """The peak bytes of torch, and the footprint."""
    side, shrinks = 512 if frames == 1 else 256, wan.reduction(config)

    def call(vae):
        if decode:
            return vae.decode(torch.empty(1, config["z_dim"], (frames - 1) // 4 + 1, side // shrinks, side // shrinks))
        return vae.encode(torch.empty(1, 3, frames, side, side))

    peak, parameters = encoding_bytes(lambda: cls(**config), call, torch.float32)
    found = wan.image_encoder(config, side, 4, frames=frames)
    assert (found.parameters, found.weight_bytes) == (parameters, 4 * parameters)
    return peak, found.decode_bytes if decode else found.encode_bytes


@pytest.mark.parametrize("config", [QWEN, NARROW])
@pytest.mark.parametrize("decode", [False, True])
def test_an_image_is_predicted_within_15_percent(config, decode):
    peak, found = measured(AutoencoderKLQwenImage, config, 1, decode)
    if config is QWEN:
        assert found == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    "config, frames",
    [
        pytest.param(config, frames, marks=() if config is WAN and frames == 9 else pytest.mark.slow)
        for config in (WAN, WAN_22_VAE)
        for frames in (1, 9, 33)
    ],
)
def test_a_clip_is_predicted_within_5_percent(config, frames, decode):
    peak, found = measured(AutoencoderKLWan, config, frames, decode)
    assert found == pytest.approx(peak, rel=0.05)
