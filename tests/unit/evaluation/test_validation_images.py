"""Which validation images a job draws."""

import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.media.geometry import UnreadableImage
from engine.evaluation import validation_images
from engine.evaluation.validation_images import draw_prompts
from engine.models.families.sd.spec import SPEC
from engine.results.checkpoint import Checkpoint
from engine.task.task import Dataset, Model, Task, Validation
from tests.support.clips import clip_bytes, numbers
from tests.support.fakes import FakeDataset


class Rows:
    """Captions by row."""

    def __len__(self):
        return 3

    def captions(self, index):
        return (f"caption {index}",)


def planned(**validation):
    task = Task(model=Model(name="m"), dataset=Dataset(name="d"), validation=Validation(**validation), seed=3)
    return validation_images.planned_images(task, Rows(), SPEC)


def test_given_prompts_and_drawn_captions():
    assert [image.prompt for image in planned(prompts=("a", "b"), num_images=3)] == ["a", "b", "a"]
    assert [image.prompt for image in planned(prompt="", num_images=2)] == ["", ""]
    captions = planned(num_images=3)
    assert sorted(image.prompt for image in captions) == ["caption 0", "caption 1", "caption 2"]
    assert [image.seed for image in captions] == [image.seed for image in planned(prompt="x", num_images=3)]


class TestPrompts:
    def test_are_the_datasets_captions_without_repetition(self):
        dataset = FakeDataset([b""] * 5, [(f"a{k}", f"b{k}") for k in range(5)])
        prompts = draw_prompts(dataset, 0, 5)
        assert sorted(prompt[1] for prompt in prompts) == list("01234")
        assert {prompt[0] for prompt in prompts} <= {"a", "b"}

    def test_go_round_when_there_are_too_few(self):
        prompts = draw_prompts(FakeDataset([b""] * 2), 0, 5)
        assert len(prompts) == 5 and prompts[:2] == prompts[2:4] and prompts[4] == prompts[0]

    def test_are_empty_only_where_there_is_no_other(self):
        texts = [("", "", "", f"a{k}") for k in range(20)] + [("",)]
        prompts = draw_prompts(FakeDataset([b""] * 21, texts), 0, 21)
        assert sorted(prompts) == sorted([f"a{k}" for k in range(20)] + [""])

    def test_depend_on_the_seed_alone_and_fewer_are_a_beginning(self):
        dataset = FakeDataset([b""] * 40, [(f"a{k}", f"b{k}") for k in range(40)])
        assert draw_prompts(dataset, 1, 3) == draw_prompts(dataset, 1, 8)[:3]
        assert draw_prompts(dataset, 1, 8) != draw_prompts(dataset, 2, 8)
        assert dataset.reads == [], "no image is read for a prompt"

    def test_prompts_have_the_trigger_word(self):
        prompts = draw_prompts(FakeDataset([b""] * 3), 0, 3, "sks")
        assert sorted(prompts) == [f"sks, caption {k}" for k in range(3)]


class TestCarried:
    """Images without the training, from the checkpoint that is continued."""

    IMAGES = validation_images.without_training(planned(prompts=("a", "b"), num_images=2))
    FILES: ClassVar = {"without-0.png": b"0", "without-1.png": b"1"}

    def parent(self, **changes):
        known = {"baseline": [image.described() for image in self.IMAGES], "pictures": self.FILES}
        return Checkpoint(**dict.fromkeys(Checkpoint.__dataclass_fields__) | known | changes)

    def test_are_those_of_the_same_prompts_and_seeds(self):
        assert validation_images.carried(self.parent(), self.IMAGES) == self.FILES

    def test_are_none_where_another_is_asked_for_or_one_is_missing(self):
        others = validation_images.without_training(planned(prompts=("a", "c"), num_images=2))
        assert validation_images.carried(self.parent(), others) is None
        assert validation_images.carried(self.parent(pictures={"without-0.png": b"0"}), self.IMAGES) is None
        assert validation_images.carried(None, self.IMAGES) is None


def png(*size):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def test_smaller_pictures_keep_their_shape():
    with Image.open(io.BytesIO(validation_images.smaller(png(200, 100), 50))) as small:
        assert small.size == (50, 25) and small.format == "PNG"
    small = png(40, 50)
    assert validation_images.smaller(small, 50) is small


def test_the_still_of_a_clip_is_its_middle_frame():
    data = clip_bytes(codec="av1", frames=9)
    with Image.open(io.BytesIO(validation_images.still_of("0.mp4", data))) as still:
        assert numbers(np.asarray(still)[None]) == [4]
    assert validation_images.still_of("0.png", b"any") == b"any"
    with pytest.raises(UnreadableImage):
        validation_images.still_of("0.mp4", b"any")


class TestDrawing:
    """A family of which the images of some prompts show nothing."""

    class Family:
        def move_encoders(self, device):
            pass

        def draw(self, drawing, generator, after_step):
            if drawing.prompt in ("VAE", "denoiser"):
                drawing.not_finite(drawing.prompt)
            return np.zeros((1, 8, 8, 3), np.uint8)

    def drawn(self, *prompts):
        images = planned(prompts=prompts, num_images=len(prompts))
        device = torch.device("cpu")
        return validation_images.draw(images, self.Family(), what="validation at step 3", resolution=8, device=device)

    def test_images_that_show_nothing_are_told_with_the_cause_and_advice(self, capsys):
        found = self.drawn("a cat", "VAE", "denoiser", "VAE")
        assert list(found.files) == ["0.png", "1.png", "2.png", "3.png"] and found.flawed == {"1.png", "2.png", "3.png"}
        why = "computed values that are not finite"
        vae, denoiser = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        told = f"note: validation at step 3: 2 of 4 images show nothing, because the VAE {why}: 'VAE', 'VAE'; "
        assert vae.startswith(told) and "model.components.vae" in vae
        told = f"note: validation at step 3: 1 of 4 images shows nothing, because the denoiser {why}: 'denoiser'; "
        assert denoiser.startswith(told) and "learning_rate" in denoiser

    def test_nothing_is_said_where_all_is_well(self, capsys):
        assert self.drawn("a cat").flawed == frozenset()
        assert "note: " not in capsys.readouterr().err
