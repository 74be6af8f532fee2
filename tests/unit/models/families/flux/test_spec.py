"""What shares FLUX.1's classes and is something else, told from its configurations alone."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.flux.spec import SPEC, check, refine, webui_metadata

DEV = {
    "transformer": {
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "vae": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "block_out_channels": [128, 512]},
    "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "eos_token_id": 2},
    "text_encoder_2": {"d_model": 4096, "num_layers": 24, "vocab_size": 32128, "eos_token_id": 1},
}
"""The sizes of the published FLUX.1 [dev]."""


def dev_with(component="transformer", **changes):
    return DEV | {component: DEV[component] | changes}


SCHNELL = dev_with(guidance_embeds=False)


@pytest.mark.parametrize(
    "configs",
    [DEV, SCHNELL, dev_with(num_layers=8), dev_with(axes_dims_rope=[16, 56, 56]), dev_with(out_channels=64)],
)
def test_accepted(configs):
    check(configs.__getitem__)


@pytest.mark.parametrize(
    "configs, message",
    [
        (dev_with(in_channels=384, out_channels=64), "FLUX.1 Fill.*second image"),
        (dev_with(in_channels=128, out_channels=64), "FLUX.1 Canny or Depth.*second image"),
        (dev_with(in_channels=16), "tokens of 16 values and gives 16, its VAE's latents have 64"),
        (dev_with(out_channels=128), "takes tokens of 64 values and gives 128"),
        (dev_with(patch_size=2), "not those of FLUX.1"),
        (dev_with("vae", latent_channels=4), "its VAE's latents have 16"),
        (dev_with("vae", shift_factor=None), "shift_factor as 'None'.*VAE of another model"),
        (dev_with("vae", shift_factor=float("nan")), "shift_factor as 'nan'"),
        (dev_with("vae", latents_mean=[0.0] * 16), "scales each channel separately"),
        (dev_with("vae", scaling_factor=0), "vae/config.json gives scaling_factor"),
        (dev_with(joint_attention_dim=2048), "width 2048 from text_encoder_2, which gives 4096"),
        (dev_with("text_encoder_2", d_model=1024), "width 4096 from text_encoder_2, which gives 1024"),
        (dev_with("text_encoder", hidden_size=1280), "width 768 from text_encoder, which gives 1280"),
        (dev_with("text_encoder", hidden_size="768"), "text_encoder/config.json gives hidden_size as '768'"),
        (dev_with(axes_dims_rope=[16, 56, 48]), "do not go together"),
        (dev_with(axes_dims_rope=[16, 55, 57]), "do not go together"),
        (dev_with(axes_dims_rope=None), "do not go together"),
        (dev_with(attention_head_dim=64), "do not go together"),
        (dev_with(guidance_embeds="yes"), "do not go together"),
        (dev_with(num_layers=10**9), "transformer/config.json gives num_layers"),
        (dev_with(num_single_layers=-1), "transformer/config.json gives num_single_layers"),
        (dev_with("text_encoder_2", num_layers=10**6), "text_encoder_2/config.json gives num_layers"),
    ],
)
def test_refused(configs, message):
    with pytest.raises(ModelError, match=message) as caught:
        check(configs.__getitem__)
    assert caught.value.code == 4


def test_dev_and_schnell_differ_in_captions_and_drawing():
    dev, schnell = (refine(configs.__getitem__) for configs in (DEV, SCHNELL))
    assert dev is SPEC
    assert (dev.caption_tokens.usual, schnell.caption_tokens.usual) == (512, 256)
    assert (dev.drawing.guidance_scale, dev.drawing.num_inference_steps) == (3.5, 28)
    assert (schnell.drawing.guidance_scale, schnell.drawing.num_inference_steps) == (0.0, 4)
    assert dev.takes_guidance(DEV.__getitem__) and not dev.takes_guidance(SCHNELL.__getitem__)


def test_model_managers_are_told_which_it_is():
    names = [webui_metadata(one.__getitem__, "flow")["modelspec.architecture"] for one in (DEV, SCHNELL)]
    assert names == ["flux-1-dev/lora", "flux-1-schnell/lora"]
