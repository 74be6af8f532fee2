"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models.families.hunyuan_video.spec import SPEC, check, takes_guidance
from engine.task.plan.extent import Extent

PARTS = {
    "transformer": {
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 16,
        "mlp_ratio": 4.0,
        "num_attention_heads": 24,
        "num_layers": 20,
        "num_refiner_layers": 2,
        "num_single_layers": 40,
        "out_channels": 16,
        "patch_size": 2,
        "patch_size_t": 1,
        "pooled_projection_dim": 768,
        "qk_norm": "rms_norm",
        "rope_axes_dim": [16, 56, 56],
        "text_embed_dim": 4096,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "latent_channels": 16,
        "scaling_factor": 0.476986,
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4,
    },
    "text_encoder": {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128320, "eos_token_id": 128001},
    "text_encoder_2": {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 49408, "eos_token_id": 2},
}
"""As in HunyuanVideo's configurations."""


def config_with(component=None, **changes):
    return lambda part: PARTS[part] | (changes if part == component else {})


def test_hunyuan_video_passes():
    check(config_with())
    assert takes_guidance(config_with()) and not takes_guidance(config_with("transformer", guidance_embeds=False))


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}, "vae": {}}
    check(lambda part: small[part])


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"image_condition_type": "token_replace"}, "given an image"),
        ("transformer", {"in_channels": 33}, "given an image"),
        ("transformer", {"out_channels": 8}, "not those of HunyuanVideo"),
        ("transformer", {"patch_size": 1}, "layers of another kind"),
        ("transformer", {"patch_size_t": 2}, "layers of another kind"),
        ("transformer", {"mlp_ratio": 2.0}, "layers of another kind"),
        ("transformer", {"qk_norm": None}, "layers of another kind"),
        ("transformer", {"rope_axes_dim": [16, 56]}, "do not go together"),
        ("transformer", {"rope_axes_dim": [16, 57, 55]}, "do not go together"),
        ("transformer", {"guidance_embeds": "yes"}, "do not go together"),
        ("transformer", {"num_single_layers": 10**9}, "num_single_layers"),
        ("transformer", {"num_refiner_layers": 10**9}, "num_refiner_layers"),
        ("transformer", {"text_embed_dim": 3584}, "text of width 3584, its text encoder gives 4096"),
        ("transformer", {"pooled_projection_dim": 1280}, "pooled text of width 1280"),
        ("vae", {"latent_channels": 8}, "given an image|not those"),
        ("vae", {"spatial_compression_ratio": 16}, "other factors"),
        ("vae", {"temporal_compression_ratio": 8}, "other factors"),
        ("vae", {"block_out_channels": [128] * 5}, "other factors"),
        ("vae", {"latents_std": [1.0] * 16}, "each channel separately"),
        ("text_encoder", {"num_hidden_layers": 2}, "has 2 layers"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check(config_with(component, **changes))


def test_sizes_are_whole_tokens():
    SPEC.check_size(config_with(), Extent(960, 544, 61))
    with pytest.raises(TaskError, match="such as 528 or 544"):
        SPEC.check_size(config_with(), Extent(960, 540, 61))


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import HunyuanVideoPipeline

    signature = {*HunyuanVideoPipeline._get_signature_types()}
    assert HunyuanVideoPipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == signature and {*SPEC.weighted} <= {*SPEC.components}
