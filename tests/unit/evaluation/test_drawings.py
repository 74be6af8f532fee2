"""What each validation image is drawn with: the prompt's own settings, else the task's, else the family's."""

import json
from dataclasses import replace

from engine.evaluation.drawings import Canvas, extents, listing, plan_images
from engine.models.families.sd.spec import SPEC
from engine.task.plan.extent import Extent
from engine.task.task import Prompt, Validation
from tests.support.tasks import MINIMAL, read

VIDEO = replace(SPEC, medium="video", frame_step=4, frame_rate=16.0)
CLIP = Canvas(resolution=64, num_frames=9, frame_rate=24.0)


def test_a_prompts_own_settings_win():
    wanted = Validation(negative_prompt="rain", seed=5)
    own = Prompt(prompt="b", negative_prompt="", guidance_scale=2.0, num_inference_steps=3, seed=9, width=96)
    first, second = plan_images(["a", own], 0, wanted, SPEC.drawing)
    assert first.described() == {"file": "0.png", "prompt": "a", "seed": 5, "negative_prompt": "rain"}
    assert second.described() == {
        "file": "1.png",
        "prompt": "b",
        "seed": 9,
        "negative_prompt": "",
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "width": 96,
        "height": 512,
    }
    assert (first.extent(512), second.extent(512)) == (Extent(512, 512), Extent(96, 512))


def test_a_prompt_without_settings_is_its_string():
    assert plan_images(["a"], 3) == plan_images([Prompt(prompt="a")], 3)


def test_a_seed_of_a_prompt_that_is_drawn_again_counts_on():
    rows = Validation(prompts=("a", Prompt(prompt="b", seed=7)), num_images=5).given_prompts
    assert [row.seed for row in rows] == [None, 7, None, 8, None]


def test_clips_tell_size_frames_and_rate():
    still = Prompt(prompt="c", num_frames=1)
    images = plan_images(["a", Prompt(prompt="b", num_frames=5, height=32), still], 0, canvas=CLIP)
    assert [image.file for image in images] == ["0.mp4", "1.mp4", "2.png"]
    told = json.loads(listing(images))
    assert [(one["width"], one["height"], one["num_frames"], one["frame_rate"]) for one in told] == [
        (64, 64, 9, 24.0),
        (64, 32, 5, 24.0),
        (64, 64, 1, 24.0),
    ]
    assert images[1].extent(64) == Extent(64, 32, 5)


def test_extents_are_known_before_the_dataset_is():
    task = read(MINIMAL | {"validation": {"num_images": 2}, "train_args": {"resolution": 64}})
    assert extents(task, SPEC) == [Extent(64, 64)] * 2
    task = read(MINIMAL | {"validation": {"prompts": ["a", {"prompt": "b", "width": 96}], "num_images": 1}})
    assert extents(task, SPEC) == [Extent(512, 512), Extent(96, 512)]


def test_the_frame_rate_is_the_datasets_else_the_familys():
    task = read(MINIMAL | {"train_args": {"num_frames": 9, "resolution": 64}})
    assert Canvas.of(task, VIDEO) == Canvas(resolution=64, num_frames=9, frame_rate=16.0)
    task = replace(task, dataset=replace(task.dataset, frame_rate=30.0))
    assert Canvas.of(task, VIDEO).frame_rate == 30.0
    assert Canvas.of(task, SPEC) == Canvas(resolution=64)
