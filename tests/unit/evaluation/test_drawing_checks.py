"""Validation images that a base model cannot draw are refused, with the nearest that it can."""

from dataclasses import replace

import pytest

from engine.core.errors import TaskError
from engine.evaluation.drawing_checks import check_drawings
from engine.models.families.sd.spec import SPEC
from engine.task.task import Prompt
from tests.support.tasks import MINIMAL, read


def of_32(config, extent):
    if extent.width % 32 or extent.height % 32 or extent.width > 512:
        raise TaskError("train_args.resolution")


VIDEO = replace(SPEC, medium="video", frame_step=8, frame_rate=25.0, check_size=of_32)


def check(family=VIDEO, *, file=None, **row):
    task = read(MINIMAL | {"train_args": {"resolution": 64}})
    validation = replace(task.validation, prompts=("a", Prompt(prompt="b", **row)), prompts_file=file)
    check_drawings(replace(task, validation=validation), family, lambda name: {}, steps=range(2, 100))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"width": 104},
            r"prompts\[1\], width and height: .* cannot draw 104 x 64; the nearest that it can is 96 x 64 or 128 x 64",
        ),
        (
            {"width": 520, "num_frames": 9},
            r"cannot draw 520 x 64 x 9 frames; the nearest that it can is 512 x 64",
        ),
        ({"width": 2048}, r"cannot draw 2048 x 64; use a smaller size"),
        (
            {"num_frames": 12},
            r"prompts\[1\], num_frames is 12: a StableDiffusionPipeline takes 8k \+ 1 frames, such as 9 or 17",
        ),
        (
            {"num_inference_steps": 100},
            r"prompts\[1\], num_inference_steps is 100: this base model's scheduler can draw in 2 to 99 steps",
        ),
        ({"num_inference_steps": 1}, r"num_inference_steps is 1: this base model's scheduler can draw in 2 to 99"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_possible(row, message):
    with pytest.raises(TaskError, match=message):
        check(**row)


def test_settings_of_all_images_are_checked_too():
    def check_all(family, **validation):
        task = read(MINIMAL | {"validation": validation})
        check_drawings(task, family, lambda name: {}, steps=range(1, 500))

    check_all(SPEC, num_inference_steps=499, negative_prompt="")
    with pytest.raises(TaskError, match=r"validation\.num_inference_steps is 500: .* can draw in 1 to 499 steps"):
        check_all(SPEC, num_inference_steps=500)
    without = replace(SPEC, takes_negative_prompt=False)
    check_all(without)
    with pytest.raises(TaskError, match=r"validation\.negative_prompt has no effect: a StableDiffusionPipeline"):
        check_all(without, negative_prompt="")


def test_rows_of_a_file_are_named_as_such():
    with pytest.raises(TaskError, match=r"^validation\.prompts_file: row 1 of clips\.csv, column num_frames is 2: "):
        check(file="/task/clips.csv", num_frames=2)


def test_what_is_possible_passes():
    check(width=96, height=32, num_frames=17)
    check(SPEC, num_frames=1)
    check()
    check(SPEC, num_inference_steps=99)


def test_image_models_have_no_frames_and_some_no_negative_prompt():
    with pytest.raises(TaskError, match=r"num_frames is 9: a StableDiffusionPipeline makes images; remove this key"):
        check(SPEC, num_frames=9)
    with pytest.raises(TaskError, match=r"prompts\[1\], negative_prompt has no effect"):
        check(replace(SPEC, takes_negative_prompt=False), negative_prompt="")
