"""The size of HunyuanVideo's VAE and what it takes for a clip, beside what torch holds."""

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from engine.models.parts.footprints.video_vaes import hunyuan_video
from engine.task.plan.extent import latent_frames
from tests.support.fake_transformers import encoding_bytes

SIDE = 128
OTHER = {
    "block_out_channels": [8, 16, 16, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def call(frames, decode):
    def of(vae):
        if decode:
            channels, latents = vae.config.latent_channels, latent_frames(frames, 4)
            return vae.decode(torch.empty(1, channels, latents, SIDE // 8, SIDE // 8))
        return vae.encode(torch.empty(1, 3, frames, SIDE, SIDE))

    return of


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("frames", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 17, 61))])
def test_a_clip_is_predicted_within_5_percent(frames, decode):
    peak, parameters = encoding_bytes(AutoencoderKLHunyuanVideo, call(frames, decode), torch.float32)
    found = hunyuan_video.image_encoder({}, SIDE, 4, frames=frames)
    assert (found.parameters, found.weight_bytes) == (parameters, 4 * parameters)
    assert (found.decode_bytes if decode else found.encode_bytes) == pytest.approx(peak, rel=0.05)


def test_parameters_of_other_sizes_are_counted():
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(**OTHER)
    assert hunyuan_video.reduction(OTHER) == 8
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    assert hunyuan_video.image_encoder(OTHER, SIDE, 4, frames=9).parameters == parameters
