"""The size of LTX-Video's VAEs and what they take for a clip, beside what torch holds."""

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from engine.models.parts.footprints.video_vaes import ltx
from tests.support.fake_transformers import encoding_bytes
from tests.support.real_shapes import LTX_091_VAE, LTX_095_VAE

SIDE = 256
VERSIONS = {"0.9.0": {}, "0.9.1": LTX_091_VAE, "0.9.5": LTX_095_VAE}


@pytest.mark.parametrize(
    "version, frames",
    [
        pytest.param(version, frames, marks=() if (version, frames) == ("0.9.1", 17) else pytest.mark.slow)
        for version in VERSIONS
        for frames in (17, 41)
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_a_clip_is_predicted_within_5_percent(version, frames, decode):
    config = VERSIONS[version]

    def call(vae):
        if not decode:
            return vae.encode(torch.empty(1, 3, frames, SIDE, SIDE))
        time = torch.empty(1) if config.get("timestep_conditioning") else None
        return vae.decode(torch.empty(1, 128, (frames - 1) // 8 + 1, SIDE // 32, SIDE // 32), time)

    peak, parameters = encoding_bytes(lambda: AutoencoderKLLTXVideo(**config), call, torch.float32)
    found = ltx.image_encoder(config, SIDE, 4, frames=frames)
    assert (found.parameters, found.weight_bytes) == (parameters, 4 * parameters)
    assert (found.decode_bytes if decode else found.encode_bytes) == pytest.approx(peak, rel=0.05)
