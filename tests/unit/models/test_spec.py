"""What a family's row says of LoRA files."""

import pytest

from engine.models.families.sdxl.spec import SPEC


@pytest.mark.parametrize(
    "component, module, name",
    [
        ("unet", "mid_block.attn1.to_q", "unet.mid_block.attn1.to_q"),
        ("unet", "encoder.layers.0.to_q", "unet.encoder.layers.0.to_q"),
        ("text_encoder", "encoder.layers.0.q_proj", "text_encoder.text_model.encoder.layers.0.q_proj"),
        ("text_encoder_2", "text_model.encoder.layers.0.q_proj", "text_encoder_2.text_model.encoder.layers.0.q_proj"),
    ],
)
def test_lora_names_are_those_of_files(component, module, name):
    assert SPEC.lora_name(component, module) == name
