"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models.families.ltx.spec import SPEC, check
from engine.task.plan.extent import Extent

PARTS = {
    "transformer": {
        "attention_head_dim": 64,
        "caption_channels": 4096,
        "cross_attention_dim": 2048,
        "in_channels": 128,
        "num_attention_heads": 32,
        "num_layers": 28,
        "out_channels": 128,
        "patch_size": 1,
        "patch_size_t": 1,
    },
    "vae": {
        "latent_channels": 128,
        "patch_size": 4,
        "patch_size_t": 1,
        "scaling_factor": 1.0,
        "spatio_temporal_scaling": [True, True, True, False],
        "timestep_conditioning": False,
    },
    "text_encoder": {"d_model": 4096, "num_layers": 24, "vocab_size": 32128, "eos_token_id": 1},
}
"""As in LTX-Video's configurations."""
NEWER = {
    "spatio_temporal_scaling": [True] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
"""The VAE of version 0.9.5."""


def check_with(component=None, **changes):
    check(lambda part: PARTS[part] | (changes if part == component else {}))


def test_ltx_video_passes():
    check_with()
    check_with("vae", **NEWER)


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}, "vae": {}}
    check(lambda part: small[part])


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"in_channels": 129}, "takes 129 channels"),
        ("transformer", {"out_channels": 64}, "gives 64"),
        ("transformer", {"patch_size": 2}, "patches of several positions"),
        ("transformer", {"patch_size_t": 2}, "patches of several positions"),
        ("transformer", {"cross_attention_dim": 1024}, "do not go together"),
        ("transformer", {"caption_channels": 2048}, "text of width 2048, its text encoder gives 4096"),
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("vae", {"latent_channels": 16}, "latents have 16"),
        ("vae", {"patch_size": 8}, "does not divide sides by 32"),
        ("vae", {"patch_size": "4"}, "does not divide sides by 32"),
        ("vae", {"spatio_temporal_scaling": [True, True, False, False]}, "does not divide"),
        ("vae", {"spatio_temporal_scaling": 3}, "does not divide"),
        ("vae", {"spatial_compression_ratio": 16}, "does not divide"),
        ("vae", NEWER | {"temporal_compression_ratio": 4}, "does not divide"),
        ("vae", NEWER | {"downsample_type": ["spatial"] * 4}, "does not divide"),
        ("vae", NEWER | {"downsample_type": [[]] * 4}, "does not divide"),
        ("vae", {"timestep_conditioning": 1}, "timestep_conditioning"),
        ("vae", {"scaling_factor": 0.0}, "scaling_factor"),
        ("text_encoder", {"num_layers": 10**9}, "num_layers"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check_with(component, **changes)


def test_sides_are_whole_tokens():
    SPEC.check_size(PARTS.get, Extent(768, 512, 121))
    with pytest.raises(TaskError, match="a multiple of 32 for this base model, such as 480 or 512"):
        SPEC.check_size(PARTS.get, Extent(768, 496, 121))


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import LTXPipeline

    assert LTXPipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == {*LTXPipeline._get_signature_types()} and {*SPEC.weighted} <= {*SPEC.components}
