"""The size of Qwen-Image's VAE and what it takes for one image, beside what torch holds."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from engine.models.parts.footprints import vae_3d
from tests.support.fake_transformers import encoding_bytes

PUBLISHED = {"base_dim": 96, "z_dim": 16}
NARROW = {"base_dim": 32, "z_dim": 8, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, False]}


@pytest.mark.parametrize("config", [PUBLISHED, NARROW])
@pytest.mark.parametrize("decode", [False, True])
def test_an_image_is_predicted_within_15_percent(config, decode):
    side, shrinks = 512, vae_3d.reduction(config)

    def call(vae):
        if decode:
            return vae.decode(torch.empty(1, config["z_dim"], 1, side // shrinks, side // shrinks))
        return vae.encode(torch.empty(1, 3, 1, side, side))

    peak, parameters = encoding_bytes(lambda: AutoencoderKLQwenImage(**config), call, torch.float32)
    found = vae_3d.image_encoder(config, side, 4)
    assert (found.parameters, found.weight_bytes) == (parameters, 4 * parameters)
    if config is PUBLISHED:
        assert (found.decode_bytes if decode else found.encode_bytes) == pytest.approx(peak, rel=0.15)
