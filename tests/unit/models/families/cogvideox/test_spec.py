"""The kinds of models that the family refuses, and what is usual for those that it trains."""

import pytest

from engine.core.errors import ModelError, TaskError
from engine.models.families.cogvideox.spec import SPEC, check, check_size, refine
from engine.task.plan.extent import Extent

PARTS = {
    "transformer": {
        "attention_head_dim": 64,
        "in_channels": 16,
        "max_text_seq_length": 226,
        "num_attention_heads": 48,
        "num_layers": 42,
        "out_channels": 16,
        "patch_size": 2,
        "sample_frames": 49,
        "sample_height": 60,
        "sample_width": 90,
        "temporal_compression_ratio": 4,
        "text_embed_dim": 4096,
        "use_rotary_positional_embeddings": True,
    },
    "vae": {
        "block_out_channels": [128, 256, 256, 512],
        "latent_channels": 16,
        "latents_mean": None,
        "scaling_factor": 0.7,
        "shift_factor": None,
        "temporal_compression_ratio": 4,
    },
    "text_encoder": {"d_model": 4096, "num_layers": 24, "vocab_size": 32128},
}
"""As in CogVideoX-5b's configurations."""
LATER = {"patch_size_t": 2, "sample_height": 300, "sample_width": 300, "sample_frames": 81}
"""As in that of CogVideoX1.5-5B."""
TABLE = {"use_rotary_positional_embeddings": False, "num_attention_heads": 30, "num_layers": 30}
"""As in that of CogVideoX-2b."""


def config_with(component=None, **changes):
    return lambda part: PARTS[part] | (changes if part == component else {})


@pytest.mark.parametrize("changes", [{}, LATER, TABLE])
def test_cogvideox_passes(changes):
    check(config_with("transformer", **changes))


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}, "vae": {}}
    check(lambda part: small[part])


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"in_channels": 32}, "given an image or a video"),
        ("transformer", {"in_channels": 33}, "given an image or a video"),
        ("transformer", {"ofs_embed_dim": 512}, "given an image or a video"),
        ("transformer", {"use_learned_positional_embeddings": True}, "given an image or a video"),
        ("transformer", {"out_channels": 8}, "not those of CogVideoX"),
        ("transformer", {"patch_size": 4}, "not a CogVideoX"),
        ("transformer", {"patch_size_t": 4}, "not a CogVideoX"),
        ("transformer", {"attention_head_dim": 72}, "multiple of 16"),
        ("transformer", {"temporal_compression_ratio": 8}, "latents of another VAE"),
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("transformer", {"max_text_seq_length": 10**9}, "too large"),
        ("transformer", TABLE | {"sample_height": 10**6}, "too large"),
        ("transformer", {"text_embed_dim": 2048}, "text of width 2048, its text encoder gives 4096"),
        ("vae", {"latent_channels": 8}, "given an image or a video|not those"),
        ("vae", {"block_out_channels": [128, 256, 512]}, "not that of CogVideoX"),
        ("vae", {"temporal_compression_ratio": 8}, "not that of CogVideoX"),
        ("vae", {"latents_mean": [0.0] * 16}, "each channel separately"),
        ("vae", {"shift_factor": 0.1}, "shift_factor"),
        ("vae", {"sample_height": 300}, "sample_height 300 and sample_width 720: .* tiles"),
        ("vae", {"sample_width": 10**400}, "sample_height 480 and sample_width 1000"),
        ("vae", {"scaling_factor": 0}, "scaling_factor"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check(config_with(component, **changes))


def test_sizes_are_whole_tokens():
    check_size(config_with(), Extent(720, 480, 49))
    with pytest.raises(TaskError, match=r"multiple of 16.*such as 480 or 496"):
        check_size(config_with(), Extent(720, 488, 49))


def test_version_15_has_a_largest_size():
    later = config_with("transformer", **LATER)
    check_size(later, Extent(2400, 16, 81))
    with pytest.raises(TaskError, match="positions for 2400 pixels"):
        check_size(later, Extent(2416, 16, 81))
    check_size(config_with(), Extent(2416, 16, 49))


def test_a_table_of_positions_needs_texts_of_one_length():
    assert (refine(config_with()).caption_tokens.least, refine(config_with()).frame_rate) == (2, 8.0)
    tokens = refine(config_with("transformer", **TABLE)).caption_tokens
    assert (tokens.least, tokens.usual, tokens.most) == (226, 226, 226)
    assert refine(config_with("transformer", **LATER)).frame_rate == 16.0


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import CogVideoXPipeline

    assert CogVideoXPipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == {*CogVideoXPipeline._get_signature_types()} and {*SPEC.weighted} <= {*SPEC.components}
