"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.flux2_klein.spec import SPEC, check
from engine.training.methods.lora.targets import is_target

PARTS = {
    "transformer": {
        "attention_head_dim": 128,
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": False,
        "in_channels": 128,
        "joint_attention_dim": 7680,
        "num_attention_heads": 24,
        "num_layers": 5,
        "num_single_layers": 20,
        "out_channels": None,
        "patch_size": 1,
    },
    "vae": {"latent_channels": 32, "patch_size": [2, 2]},
    "text_encoder": {"hidden_size": 2560, "num_hidden_layers": 36, "vocab_size": 151936, "eos_token_id": 151645},
}
"""As in FLUX.2 [klein] 4B's configurations."""


def check_with(component=None, **changes):
    check(lambda part: PARTS[part] | (changes if part == component else {}))


def test_klein_passes():
    check_with()
    check_with("transformer", out_channels=128)


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"guidance_embeds": True}, r"FLUX\.2 \[dev\]"),
        ("transformer", {"in_channels": 64}, "takes tokens of 64 values"),
        ("transformer", {"out_channels": 64}, "gives 64"),
        ("transformer", {"patch_size": 2}, r"not those of FLUX\.2"),
        ("transformer", {"joint_attention_dim": 15360}, "text of width 15360, its text encoder gives 7680"),
        ("transformer", {"axes_dims_rope": [64, 64]}, "do not go together"),
        ("transformer", {"axes_dims_rope": [31, 33, 32, 32]}, "do not go together"),
        ("transformer", {"num_single_layers": 10**9}, "num_single_layers"),
        ("vae", {"latent_channels": 16}, r"not those of FLUX\.2"),
        ("vae", {"patch_size": [1, 1]}, r"not those of FLUX\.2"),
        ("text_encoder", {"num_hidden_layers": 26}, "has 26 layers, the states of layer 27 are needed"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check_with(component, **changes)


def test_dev_is_known_by_the_default_of_its_class():
    transformer = {key: value for key, value in PARTS["transformer"].items() if key != "guidance_embeds"}
    with pytest.raises(ModelError, match=r"FLUX\.2 \[dev\]"):
        check(lambda part: transformer if part == "transformer" else PARTS[part])


def test_default_targets_are_layers_of_both_kinds_of_blocks():
    """In blocks of two streams `to_out` is a list, whose first entry is the layer."""
    names = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_out.0",
        "single_transformer_blocks.11.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.11.attn.to_out",
    ]
    others = [
        "transformer_blocks.0.attn.to_out",
        "transformer_blocks.0.attn.to_add_out",
        "transformer_blocks.0.ff.linear_in",
        "proj_out",
        "norm_out.linear",
    ]
    matches = is_target(SPEC.lora_targets)
    assert [*filter(matches, names + others)] == names


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import Flux2KleinPipeline

    assert Flux2KleinPipeline.__name__ == SPEC.pipeline
    parts = {*Flux2KleinPipeline._get_signature_types()} - {"is_distilled"}
    assert {*SPEC.components} == parts and {*SPEC.weighted} <= {*SPEC.components}
