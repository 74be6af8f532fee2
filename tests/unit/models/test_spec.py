"""What a family's row says of what is trained, and of LoRA files."""

from dataclasses import replace

import pytest

from engine.core.errors import TaskError
from engine.models.families.sdxl.spec import SPEC
from engine.models.spec import CaptionTokens
from engine.task.task import Dataset


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


@pytest.mark.parametrize(
    "allowed, wanted, found, unusual",
    [
        (CaptionTokens(75, 225, 75), None, 75, None),
        (CaptionTokens(75, 225, 75), 75, 75, None),
        (CaptionTokens(75, 225, 75), 225, 225, 3),
        (CaptionTokens(512, 512, 1), None, 512, None),
        (CaptionTokens(512, 512, 1), 1, 1, 1),
        (CaptionTokens(256, 512, 1), 512, 512, 512),
    ],
)
def test_the_numbers_of_tokens_that_a_family_allows(allowed, wanted, found, unusual):
    dataset = Dataset(name="d", max_caption_tokens=wanted)
    allowed.require(dataset)
    assert allowed.of(dataset) == found and allowed.unusual(dataset) == unusual


@pytest.mark.parametrize("wanted", [1, 76, 100, 300])
def test_other_numbers_are_refused_with_those_that_are_allowed(wanted):
    with pytest.raises(TaskError, match=f"max_caption_tokens is {wanted}: expected one of 75, 150, 225 .* null for 75"):
        SPEC.caption_tokens.require(Dataset(name="d", max_caption_tokens=wanted))
    with pytest.raises(TaskError, match="expected a number from 1 to 512 for this base model, or null for 256"):
        CaptionTokens(256, 512, 1).require(Dataset(name="d", max_caption_tokens=513))
    with pytest.raises(TaskError, match="expected a number from 9 to 512 for this base model"):
        CaptionTokens(512, 512, 1, least=9).require(Dataset(name="d", max_caption_tokens=8))


def test_targets_are_the_tasks_or_the_familys():
    assert SPEC.targets_of("unet", None) == SPEC.lora_targets
    assert SPEC.targets_of("unet", ("conv1",)) == ("conv1",)
    assert SPEC.targets_of("text_encoder_2", ("conv1",)) == SPEC.text_lora_targets
