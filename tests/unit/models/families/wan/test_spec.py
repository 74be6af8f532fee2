"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models.families.wan.spec import SPEC, check, check_size, refine
from engine.task.plan.extent import Extent

PARTS = {
    "transformer": {
        "added_kv_proj_dim": None,
        "attention_head_dim": 128,
        "image_dim": None,
        "in_channels": 16,
        "num_attention_heads": 12,
        "num_layers": 30,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "rope_max_seq_len": 1024,
        "text_dim": 4096,
    },
    "transformer_2": {},
    "vae": {
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "latents_mean": [0.1] * 16,
        "latents_std": [2.0] * 16,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    "text_encoder": {"d_model": 4096, "num_layers": 24, "vocab_size": 256384, "eos_token_id": 1},
}
"""As in the configurations of Wan 2.1 with 1.3 billion parameters."""
NEWER = PARTS | {
    "transformer": PARTS["transformer"] | {"in_channels": 48, "out_channels": 48},
    "vae": {
        "is_residual": True,
        "latents_mean": [0.1] * 48,
        "latents_std": [2.0] * 48,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "z_dim": 48,
    },
}
"""Wan 2.2 TI2V-5B."""


def check_with(component=None, **changes):
    check(lambda part: PARTS[part] | (changes if part == component else {}))


def test_wan_passes():
    check_with()
    check(lambda part: NEWER[part])


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}, "vae": {}}
    check(lambda part: small[part])


def test_the_row_is_refined_by_the_vae():
    assert refine(PARTS.get) == SPEC
    assert (refine(NEWER.get).token_side, refine(NEWER.get).frame_rate) == (32, 24.0)


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer_2", {"num_layers": 40}, "two denoisers"),
        ("transformer", {"image_dim": 1280}, "given an image"),
        ("transformer", {"added_kv_proj_dim": 5120}, "given an image"),
        ("transformer", {"in_channels": 36}, "takes 36 channels"),
        ("transformer", {"out_channels": 8}, "gives 8"),
        ("transformer", {"patch_size": [1, 1, 1]}, "other sizes than 1 x 2 x 2"),
        ("transformer", {"text_dim": 2048}, "text of width 2048, its text encoder gives 4096"),
        ("transformer", {"attention_head_dim": 5}, "attention_head_dim 5"),
        ("transformer", {"rope_max_seq_len": 10**9}, "rope_max_seq_len 1000000000"),
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("vae", {"z_dim": 8}, "latents have 8"),
        ("vae", {"latents_std": [2.0] * 15}, "16 numbers are expected"),
        ("vae", {"latents_std": [0.0] * 16}, "16 numbers are expected"),
        ("vae", {"temperal_downsample": [False, True, False]}, "does not divide frames by 4"),
        ("vae", {"temperal_downsample": [2]}, "does not divide frames by 4"),
        ("vae", {"dim_mult": [1, 2, 4]}, "not those of Wan"),
        ("vae", {"patch_size": 2}, "not those of Wan"),
        ("vae", {"patch_size": "2"}, "not those of Wan"),
        ("vae", {"is_residual": 1}, "not those of Wan"),
        ("vae", {"scale_factor_spatial": 16}, "not those of Wan"),
        ("text_encoder", {"num_layers": 10**9}, "num_layers"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check_with(component, **changes)


def test_sides_are_whole_tokens_and_have_positions():
    check_size(PARTS.get, Extent(832, 480, 81))
    with pytest.raises(TaskError, match="a multiple of 16 for this base model, such as 832 or 848"):
        check_size(PARTS.get, Extent(840, 480, 81))
    with pytest.raises(TaskError, match="a multiple of 32"):
        check_size(NEWER.get, Extent(848, 480, 81))
    for extent in (Extent(16 * 1025, 16), Extent(16, 16, 4 * 1024 + 1)):
        with pytest.raises(TaskError, match="16,384 pixels of a side and 4,093 frames"):
            check_size(PARTS.get, extent)


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import WanPipeline

    types = WanPipeline._get_signature_types()
    assert WanPipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == {*types} - {"boundary_ratio", "expand_timesteps"}
    assert {*SPEC.weighted} <= {*SPEC.components} and {*SPEC.optional} == {"transformer_2"}
