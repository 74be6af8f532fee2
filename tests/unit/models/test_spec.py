"""What a family's row says of what is trained, and of LoRA files."""

from dataclasses import replace

import pytest

from engine.core.errors import TaskError
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


def test_what_is_trained():
    assert SPEC.trained_components(with_text_encoders=False) == ("unet",)
    assert SPEC.trained_components(with_text_encoders=True) == ("unet", "text_encoder", "text_encoder_2")
    with pytest.raises(TaskError, match=r"train_text_encoder: .* has no text encoder that can be trained"):
        replace(SPEC, text_encoders=()).trained_components(with_text_encoders=True)


def test_targets_are_the_tasks_or_the_familys():
    assert SPEC.targets_of("unet", None) == SPEC.lora_targets
    assert SPEC.targets_of("unet", ("conv1",)) == ("conv1",)
    assert SPEC.targets_of("text_encoder_2", ("conv1",)) == SPEC.text_lora_targets
