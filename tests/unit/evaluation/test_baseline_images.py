"""The baseline's images are drawn once for all trainings that have the same ones, and only for those."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from engine.evaluation.baseline_images import conditions, drawn_or_cached
from engine.evaluation.sampling import Image
from engine.evaluation.validation_images import Drawn
from engine.training.encoding.cache import EncodingCache
from tests.support.tasks import read

IMAGES = [Image("without-0.png", "a cat", 1), Image("without-1.png", "a dog", 2)]
TASK = {
    "model": {"name": "/model"},
    "dataset": {"name": "/images"},
    "validation": {},
    "train_args": {"num_train_steps": 1, "max_train_steps": 1, "resolution": 64},
}

BLACK = "a prompt that gives a black image"


class Drawing:
    """Draws while the training is off, and notes what."""

    def __init__(self):
        self.drawn = []
        self.is_off = False

    @contextmanager
    def baseline(self):
        self.is_off = True
        yield
        self.is_off = False

    def draw(self, images):
        assert self.is_off
        self.drawn += [image.file for image in images]
        files = {image.file: f"\0{image.prompt} {image.seed}".encode() for image in images}
        return Drawn(files, frozenset(image.file for image in images if image.prompt == BLACK))


@pytest.fixture
def drawn(tmp_path):
    """Run it, and return the files that were drawn; the bytes must be right in any case."""

    def run(images=IMAGES, *, max_bytes=1 << 20, **found):
        drawing = Drawing()
        pngs = drawn_or_cached(
            images,
            cache=EncodingCache(tmp_path, {}, max_bytes=max_bytes),
            conditions={"resolution": 64} | found,
            baseline=drawing.baseline,
            draw=drawing.draw,
        )
        assert list(pngs.items()) == [(image.file, f"\0{image.prompt} {image.seed}".encode()) for image in images]
        return drawing.drawn

    return run


def test_a_second_training_draws_none(drawn):
    assert drawn() == ["without-0.png", "without-1.png"]
    assert drawn() == []


def test_an_image_that_shows_nothing_is_drawn_again(drawn):
    """So that the next job says so, too."""
    images = [IMAGES[0], replace(IMAGES[1], prompt=BLACK)]
    assert drawn(images) == ["without-0.png", "without-1.png"]
    assert drawn(images) == ["without-1.png"]


def test_only_what_is_new_is_drawn(drawn):
    drawn()
    assert drawn([*IMAGES, Image("without-2.png", "a bird", 3)]) == ["without-2.png"]


def test_an_image_is_known_by_what_is_drawn_not_by_its_name(drawn):
    drawn()
    assert drawn([replace(IMAGES[1], file="without-0.png")]) == []


@pytest.mark.parametrize(
    "other",
    [
        replace(IMAGES[0], seed=7),
        replace(IMAGES[0], prompt="a cow"),
        replace(IMAGES[0], negative_prompt="ugly"),
        replace(IMAGES[0], guidance_scale=1.0),
        replace(IMAGES[0], num_inference_steps=3),
    ],
)
def test_another_image_is_drawn(drawn, other):
    drawn()
    assert drawn([other]) == [other.file]


def test_other_conditions_have_other_images(drawn):
    drawn()
    assert len(drawn(resolution=128)) == 2


def test_without_a_cache_they_are_drawn_each_time(drawn):
    assert len(drawn(max_bytes=0)) == len(drawn(max_bytes=0)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"init_lora_weights": "loftq"}},
        {"training_type": "full"},
        {"model": TASK["model"] | {"quantization": "int8"}},
        {"train_args": TASK["train_args"] | {"train_text_encoder": True}},
        {"train_args": TASK["train_args"] | {"prediction_type": "v_prediction"}},
        {"train_args": TASK["train_args"] | {"prediction_type": "v_prediction", "zero_terminal_snr": True}},
        {"train_args": TASK["train_args"] | {"flow_shift": 3.0}},
        {"train_args": TASK["train_args"] | {"guidance_scale": 3.5}},
        {"train_args": TASK["train_args"] | {"resolution": 128}},
        {"dataset": {"name": "/images", "max_caption_tokens": 150}},
    ],
    ids=str,
)
def test_conditions_on_which_the_bits_depend(change):
    assert conditions(read(TASK | change)) != conditions(read(TASK))


def test_other_keys_of_a_training_do_not_matter():
    args = TASK["train_args"] | {"learning_rate": 1.0, "num_train_steps": 5, "max_train_steps": 9, "batch_size": 4}
    other = TASK | {"train_args": args, "dataset": {"name": "/others"}, "seed": 3}
    assert conditions(read(other)) == conditions(read(TASK))
