"""Which validation images a job draws."""

import io
from types import SimpleNamespace

from PIL import Image

from engine import pictures
from engine.task import Validation


class Rows:
    """Captions by row."""

    def __len__(self):
        return 3

    def captions(self, index):
        return (f"caption {index}",)


def planned(**validation):
    dataset = SimpleNamespace(trigger_word=None)
    task = SimpleNamespace(validation=Validation(**validation), seed=3, dataset=dataset)
    return pictures.planned_images(SimpleNamespace(task=task, dataset=Rows()))


def test_given_prompts_and_drawn_captions():
    assert [image.prompt for image in planned(prompts=("a", "b"), num_images=3)] == ["a", "b", "a"]
    assert [image.prompt for image in planned(prompt="", num_images=2)] == ["", ""]
    captions = planned(num_images=3)
    assert sorted(image.prompt for image in captions) == ["caption 0", "caption 1", "caption 2"]
    assert [image.seed for image in captions] == [image.seed for image in planned(prompt="x", num_images=3)]


def png(*size):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def test_smaller_pictures_keep_their_shape():
    with Image.open(io.BytesIO(pictures.smaller(png(200, 100), 50))) as small:
        assert small.size == (50, 25) and small.format == "PNG"
    small = png(40, 50)
    assert pictures.smaller(small, 50) is small
