"""Validation images: the same prompts and seeds through a chain, one at a time."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from engine.core import rng
from engine.data.media.video import decoding
from engine.evaluation import sampling
from engine.evaluation.drawings import Canvas, listing, plan_images
from engine.models.families.sd.spec import SPEC
from engine.models.family import Drawing
from engine.models.spec import DrawingDefaults
from engine.task.plan.extent import Extent
from engine.task.task import Prompt, Validation

CPU = torch.device("cpu")


class FakeFamily:
    """Draws noise from the generator that it is given, as Diffusers does."""

    def __init__(self):
        self.calls, self.devices = [], []
        self.move_encoders = self.devices.append

    def draw(self, drawing, generator, after_step):
        for _ in range(drawing.num_inference_steps):
            after_step()
        self.calls.append((drawing, generator.initial_seed()))
        width, height = drawing.size
        return torch.randint(0, 256, (drawing.frames, height, width, 3), generator=generator, dtype=torch.uint8).numpy()


@pytest.fixture
def family():
    return FakeFamily()


def draw(images, family):
    return sampling.draw(images, family, resolution=16, device=CPU, progress=lambda done: None)


def test_seeds_depend_on_the_tasks_seed_and_the_place_alone():
    five, three = plan_images(["a"] * 5, 10**40), plan_images(["b"] * 3, 10**40)
    seeds = [image.seed for image in five]
    assert seeds[:3] == [image.seed for image in three]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds != [image.seed for image in plan_images(["a"] * 5, 1)]
    assert [image.file for image in five] == [f"{k}.png" for k in range(5)]


def test_one_at_a_time_with_the_documented_settings(family):
    images = plan_images(["a cat", "a dog"], 0)
    done = []
    files = sampling.draw(images, family, resolution=16, device=CPU, progress=done.append)
    options = {"num_inference_steps": 30, "guidance_scale": 7.5, "negative_prompt": None, "size": (16, 16)}
    assert family.calls == [(Drawing(prompt=image.prompt, **options), image.seed) for image in images]
    assert list(files) == ["0.png", "1.png"] and done == [1, 2] and family.devices == [CPU]


def test_an_image_does_not_depend_on_the_others(family):
    images = plan_images(["a", "b", "c"], 0)
    files = draw(images, family)
    assert draw(images[2:], family) == {"2.png": files["2.png"]}
    assert len(set(files.values())) == 3
    generator = rng.torch_generator(images[1].seed)
    expected = torch.randint(0, 256, (1, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    assert np.array_equal(np.asarray(Picture.open(io.BytesIO(files["1.png"]))), expected[0])


def test_the_listing_names_file_prompt_and_seed():
    images = plan_images(["ein Kätzchen 🐈", ""], 0)
    text = listing(images)
    assert json.loads(text) == [{"file": i.file, "prompt": i.prompt, "seed": i.seed} for i in images]
    assert "Kätzchen".encode() in text and text.endswith(b"\n")


def test_what_is_set_is_drawn_and_told(family):
    wanted = Validation(negative_prompt="rain", guidance_scale=3.0, num_inference_steps=2, seed=2**32 - 1)
    images = plan_images(["a", "b"], 0, wanted, SPEC.drawing.of(wanted))
    assert [image.seed for image in images] == [2**32 - 1, 2**32]
    draw(images, family)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "rain"}
    drawings = [Drawing(prompt=image.prompt, size=(16, 16), **options) for image in images]
    assert family.calls == [(drawing, image.seed) for drawing, image in zip(drawings, images, strict=True)]
    assert json.loads(listing(images))[1] == {"file": "1.png", "prompt": "b", "seed": 2**32} | options
    negative = plan_images(["a"], 0, Validation(negative_prompt=""))[0]
    assert set(negative.described()) == {"file", "prompt", "seed", "negative_prompt"}


def test_what_is_usual_for_another_family_is_always_told():
    """A reader of the list need not know the family."""
    usual = DrawingDefaults(guidance_scale=3.5, num_inference_steps=28)
    (image,) = plan_images(["a"], 0, Validation(), usual.of(Validation()))
    assert image.described().items() >= {"guidance_scale": 3.5, "num_inference_steps": 28}.items()
    (image,) = plan_images(["a"], 0, Validation(), usual.of(Validation(guidance_scale=7.5)))
    assert "guidance_scale" not in image.described()


def test_a_stop_ends_the_drawing_within_a_step(family):
    steps = []

    def check():
        steps.append(1)
        if len(steps) == 40:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sampling.draw(
            plan_images(["a"] * 3, 0),
            family,
            resolution=16,
            device=CPU,
            progress=lambda done: None,
            check_stop=check,
        )
    assert len(family.calls) == 1 and len(steps) == 40


def test_a_clip_is_drawn_with_its_length_and_rate(family):
    canvas = Canvas(resolution=64, num_frames=9, frame_rate=24.0)
    clip, still = plan_images(["a", Prompt(prompt="b", num_frames=1, width=96)], 0, canvas=canvas)
    files = draw([clip, still], family)
    drawings = [drawing for drawing, _ in family.calls]
    assert [(one.size, one.frames, one.frame_rate) for one in drawings] == [((64, 64), 9, 24.0), ((96, 64), 1, 24.0)]
    facts = decoding.read_facts(files["0.mp4"], None)
    assert (facts.extent, facts.file_rate) == (Extent(64, 64, 9), 24)
    with Picture.open(io.BytesIO(files["1.png"])) as image:
        assert image.size == (96, 64)
