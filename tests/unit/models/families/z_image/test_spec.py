"""The kinds of models that the family refuses."""

import pytest

from engine.core.errors import ModelError
from engine.models.families.z_image.spec import SPEC, check

PARTS = {
    "transformer": {
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": 2560,
        "dim": 3840,
        "in_channels": 16,
        "n_heads": 30,
        "n_layers": 30,
        "n_refiner_layers": 2,
    },
    "vae": {"latent_channels": 16, "shift_factor": 0.1159, "scaling_factor": 0.3611},
    "text_encoder": {"hidden_size": 2560, "num_hidden_layers": 36, "vocab_size": 151936, "eos_token_id": 151645},
}
"""As in Z-Image-Turbo's configurations."""


def check_with(component=None, **changes):
    check(lambda part: PARTS[part] | (changes if part == component else {}))


def test_z_image_passes():
    check_with()


def test_defaults_of_the_classes_are_known():
    small = PARTS | {"transformer": {}}
    check(lambda part: small[part])


@pytest.mark.parametrize(
    "component, changes, message",
    [
        ("transformer", {"siglip_feat_dim": 1152}, "Z-Image-Omni"),
        ("transformer", {"all_patch_size": [2, 4]}, "patches of other sizes"),
        ("transformer", {"all_f_patch_size": [2]}, "patches of other sizes"),
        ("transformer", {"in_channels": 32}, "takes 32 channels, its VAE's latents have 16"),
        ("transformer", {"cap_feat_dim": 4096}, "text of width 4096, its text encoder gives 2560"),
        ("transformer", {"cap_feat_dim": "2560"}, "cap_feat_dim as '2560'"),
        ("transformer", {"axes_dims": [32, 48, 47]}, "do not go together"),
        ("transformer", {"axes_dims": [32, 48]}, "do not go together"),
        ("transformer", {"axes_dims": [31, 49, 48]}, "do not go together"),
        ("transformer", {"axes_lens": [1 << 40, 512, 512]}, "do not go together"),
        ("transformer", {"axes_lens": None}, "do not go together"),
        ("transformer", {"n_heads": 24}, "do not go together"),
        ("transformer", {"n_layers": 10**9}, "n_layers"),
        ("transformer", {"n_refiner_layers": -1}, "n_refiner_layers"),
        ("vae", {"shift_factor": None}, "the VAE of another model"),
        ("vae", {"scaling_factor": 0}, "scaling_factor"),
        ("vae", {"latents_std": [1.0]}, "scales each channel separately"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("text_encoder", {"num_hidden_layers": 1}, "has 1 layers"),
    ],
)
def test_others_do_not(component, changes, message):
    with pytest.raises(ModelError, match=message):
        check_with(component, **changes)


def test_the_row_names_a_pipeline_and_its_parts():
    from diffusers import ZImagePipeline

    assert ZImagePipeline.__name__ == SPEC.pipeline
    assert {*SPEC.components} == {*ZImagePipeline._get_signature_types()} and {*SPEC.weighted} <= {*SPEC.components}
