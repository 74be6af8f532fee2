"""Unreadable images: skipped, told once, and refused where there are no others."""

import pytest

from engine.core.errors import DatasetError
from tests.support.encoding import BATCH, STEPS, Setup, with_unreadable
from tests.support.fakes import png


def test_unreadable_images_are_counted_and_said_once(tmp_path):
    setup = Setup(with_unreadable(), tmp_path)
    setup.run()
    assert len(setup.encoder.skipped) == 4
    assert sorted(line.partition(":")[0] for line in setup.said) == [f"skipping image image-{k}" for k in (1, 3, 4, 5)]


@pytest.mark.parametrize("bad", [None, b"", b"no image", png(0)[:90]], ids=["missing", "empty", "noise", "cut"])
def test_nothing_readable_is_a_dataset_error(tmp_path, bad):
    expected = r"^the dataset: none of its 3 images is readable, such as image-\d \(.+\); save them as PNG or JPEG, or"
    with pytest.raises(DatasetError, match=expected) as caught:
        Setup([bad] * 3, tmp_path).run()
    assert caught.value.code == 3


def test_one_readable_image_is_enough(tmp_path):
    steps = Setup([None, b"", png(2)], tmp_path).run()
    assert len(steps) == STEPS and all(len(examples) == BATCH for examples in steps)
