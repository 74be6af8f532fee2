"""Notes on learning rates and constants that are far from what is usual."""

from dataclasses import replace

import pytest

from engine.job.advice.describe import describe, warnings
from engine.models.families.sd.spec import SPEC
from engine.training.optimizers.registry import OPTIMIZERS
from tests.support.jobs import job_of, text
from tests.support.published_models import base_of


@pytest.mark.parametrize(
    "args, is_noted",
    [
        ({}, True),  # the default is a LoRA's
        ({"learning_rate": 1e-5}, False),
        ({"learning_rate": 4.9e-5}, False),
        ({"learning_rate": 5.1e-5}, True),
        ({"learning_rate": 5.1e-5, "gradient_accumulation_steps": 16}, False),  # usual is twice as much
        ({"learning_rate": 1.01e-4, "gradient_accumulation_steps": 16}, True),
        ({"learning_rate": 1e-5, "scale_lr": True, "batch_size": 64}, True),  # 64 times as much
    ],
)
def test_a_rate_far_above_the_usual_one_is_noted(args, is_noted):
    args = {"scale_lr": False, "batch_size": 1} | args
    notes = [line for line in warnings(job_of(text(training_type="full", train_args=args))) if "is high for" in line]
    assert len(notes) == is_noted
    assert not any("is high for" in line for line in warnings(job_of(text(train_args=args))))


def test_a_rate_is_said_with_the_usual_one():
    args = {"learning_rate": 1e-5, "text_encoder_learning_rate": 1e-3, "train_text_encoder": True}
    args |= {"scale_lr": False, "batch_size": 1, "gradient_accumulation_steps": 16}
    found = warnings(job_of(text(training_type="full", train_args=args)))
    assert (
        "the text encoder's learning rate of 0.001 is high for a whole model, which may forget what it has "
        "learned: usual is about 2e-05 at 16 images a step"
    ) in found


def test_the_samples_of_a_video_model_are_clips():
    given = text(training_type="full", train_args={"learning_rate": 1e-2, "scale_lr": False, "batch_size": 1})
    (found,) = (line for line in warnings(job_of(given, family=replace(SPEC, medium="video"))) if "is high" in line)
    assert found.endswith(" at 1 clip a step")


def notes_of(**args):
    """The notes on rates and constants for a LoRA with one image a step."""
    job = job_of(text(train_args={"scale_lr": False, "batch_size": 1} | args))
    return [note for note in warnings(job) if "usual" in note]


@pytest.mark.parametrize(
    "optimizer, rate, is_noted",
    [
        ("adamw", 1e-2, False),
        ("adamw_8bit", 1e-4, False),
        ("adamw_8bit", 1e-3, True),
        ("adafactor", 1e-4, False),
        ("adafactor", 1e-2, True),  # the paper's, whose steps are relative
        ("lion", 1e-4, True),  # AdamW's
        ("lion", 2e-5, False),
        ("prodigy", 1e-4, True),
        ("prodigy", 0.5, False),
        ("prodigy", 1.0, False),
        ("prodigy", 16.0, True),
    ],
)
def test_each_optimizer_has_its_usual_rates_for_a_lora(optimizer, rate, is_noted):
    notes = [note for note in notes_of(optimizer=optimizer, learning_rate=rate) if "rate of" in note]
    assert len(notes) == is_noted and all(f"the optimizer {optimizer}" in note for note in notes)


def test_prodigy_says_what_to_set():
    """With the default of scale_lr the rate would be as high as there are images a step."""
    (note,) = notes_of(optimizer="prodigy", learning_rate=1.0, scale_lr=True, batch_size=8)
    assert note == (
        "the learning rate of 8 is far from what is usual for the optimizer prodigy: it finds the rate itself and "
        "multiplies it by this one; set learning_rate to 1 and scale_lr to false"
    )
    args = {"optimizer": "prodigy", "learning_rate": 1.0, "train_text_encoder": True}
    (note,) = notes_of(**args, text_encoder_learning_rate=1e-5)
    assert note.startswith("the text encoder's learning rate of 1e-05 is far")


def test_a_default_that_is_not_usual_for_the_optimizer_is_noted():
    note = "adam_args.beta2 is 0.999 by default; with the optimizer lion 0.99 is usual"
    args = {"optimizer": "lion", "learning_rate": 2e-5}
    assert notes_of(**args) == [note]
    assert notes_of(**args, adam_args={"beta2": 0.99}) == notes_of(**args, adam_args={"beta2": 0.95}) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_plan_says_what_the_optimizers_state_takes(optimizer):
    job = job_of(text(training_type="full", train_args={"optimizer": optimizer}))
    job.base.config = base_of("sd1").config
    (line,) = (line for line in describe(job) if line.startswith("optimizer "))
    told = {
        "adamw": "6.4 GiB, 8 bytes",
        "adamw_8bit": "1.6 GiB, 2 bytes",
        "adafactor": "6 MiB, 0.007 bytes",
        "lion": "3.2 GiB, 4 bytes",
        "prodigy": "12.8 GiB, 16 bytes",
    }
    assert line == f"optimizer      {optimizer}: its state takes {told[optimizer]} for each value"
