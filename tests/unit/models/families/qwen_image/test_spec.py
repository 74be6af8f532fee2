"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.qwen_image.spec import SPEC, check

PARTS = {
    "transformer": {
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": 60,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 768,
    },
    "vae": {"z_dim": 16, "latents_mean": [0.1] * 16, "latents_std": [2.0] * 16},
    "text_encoder": {"hidden_size": 3584, "num_hidden_layers": 28, "vocab_size": 152064, "eos_token_id": 151645},
}
"""As in Qwen-Image's configurations."""


def check_with(component=None, **changes):
    check(lambda part: PARTS[part] | (changes if part == component else {}))


def test_qwen_image_passes():
    check_with()


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}, "vae": {}}
    check(lambda part: small[part])


def test_a_language_model_in_newer_words_passes():
    check_with("text_encoder", hidden_size=1, text_config=PARTS["text_encoder"])


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"zero_cond_t": True}, "Qwen-Image-Edit"),
        ("transformer", {"use_additional_t_cond": True}, "Qwen-Image-Layered"),
        ("transformer", {"use_layer3d_rope": True}, "Qwen-Image-Layered"),
        ("transformer", {"guidance_embeds": True}, "distilled on guidance"),
        ("transformer", {"in_channels": 128}, "takes tokens of 128 values"),
        ("transformer", {"out_channels": None}, "out_channels as 'None'"),
        ("transformer", {"patch_size": 1}, "not those of Qwen-Image"),
        ("transformer", {"joint_attention_dim": 4096}, "text of width 4096, its text encoder gives 3584"),
        ("transformer", {"axes_dims_rope": [16, 56]}, "do not go together"),
        ("transformer", {"axes_dims_rope": [16, 57, 55]}, "do not go together"),
        ("transformer", {"num_layers": 10**9}, "num_layers"),
        ("vae", {"z_dim": 8}, "not those of Qwen-Image"),
        ("vae", {"latents_std": [2.0] * 15}, "16 numbers are expected"),
        ("vae", {"latents_std": [0.0] * 16}, "16 numbers are expected"),
        ("vae", {"latents_mean": [float("nan")] * 16}, "16 numbers are expected"),
        ("vae", {"latents_mean": ["0"] * 16}, "16 numbers are expected"),
        ("vae", {"num_res_blocks": 10**9}, "num_res_blocks"),
        ("text_encoder", {"text_config": 3}, "no text_config that is an object"),
        ("text_encoder", {"text_config": {"hidden_size": 3584, "num_hidden_layers": 10**9}}, "num_hidden_layers"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check_with(component, **changes)


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import QwenImagePipeline

    assert QwenImagePipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == {*QwenImagePipeline._get_signature_types()} and {*SPEC.weighted} <= {*SPEC.components}
