"""Crops: torchvision's centre, random corners, targets of any shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.media.geometry import UnreadableImage, geometry

WORD = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    "size, resolution, resized, top, left",
    [
        ((512, 512), 512, (512, 512), 0, 0),
        ((1000, 800), 512, (640, 512), 0, 64),  # int(512 * 1000 / 800) = 640
        ((800, 1000), 512, (512, 640), 64, 0),
        ((333, 500), 512, (512, 768), 128, 0),  # int(768.77): cut, not rounded
        ((100, 101), 64, (64, 64), 0, 0),  # int(64.64)
        ((65, 64), 64, (65, 64), 0, 0),  # round(1 / 2.0) = 0: halves to even, as torchvision's centre crop
        ((67, 64), 64, (67, 64), 0, 2),  # round(3 / 2.0) = 2
    ],
)
def test_centre_crop_follows_torchvision(size, resolution, resized, top, left):
    view = geometry(size, target=(resolution, resolution), center_crop=True, crop_words=(2**63, 2**63), flip=False)
    assert (view.resized, view.top, view.left) == (resized, top, left)
    assert view.repeatable


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), words=st.tuples(WORD, WORD), flip=st.booleans())
def test_random_crop_lies_inside(width, height, words, flip):
    if max(width, height) > 100 * min(width, height):
        return
    view = geometry((width, height), target=(64, 64), center_crop=False, crop_words=words, flip=flip)
    assert min(view.resized) == 64
    assert 0 <= view.left <= view.resized[0] - 64
    assert 0 <= view.top <= view.resized[1] - 64
    assert view.repeatable == (view.resized == (64, 64))


@given(size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)), target=st.sampled_from([(64, 128), (192, 64)]))
@settings(deadline=None)
def test_a_target_of_any_shape_is_covered_and_cropped_along_one_side_only(size, target):
    if max(size) > 100 * min(size):
        return
    view = geometry(size, target=target, center_crop=False, crop_words=(2**63, 2**63), flip=False)
    slack = [resized - wanted for resized, wanted in zip(view.resized, target, strict=True)]
    assert min(slack) == 0 <= max(slack)
    left, top, right, bottom = view.box
    assert (right - left, bottom - top) == target
    assert 0 <= left <= slack[0] and 0 <= top <= slack[1]
    kept = target[0] * target[1] / (view.resized[0] * view.resized[1])
    least = min(size[0] * target[1], size[1] * target[0]) / max(size[0] * target[1], size[1] * target[0])
    assert kept >= least, "no more is cropped than the shapes ask for"


def test_random_crop_reaches_both_ends_evenly():
    def left(word):
        return geometry((67, 64), target=(64, 64), center_crop=False, crop_words=(0, word), flip=False).left

    words = np.linspace(0, 2**64 - 1, 4000, dtype=np.float64)
    counts = np.bincount([left(min(int(word), 2**64 - 1)) for word in words], minlength=4)
    assert left(0) == 0
    assert left(2**64 - 1) == 3
    assert counts.min() >= 999


def test_random_crop_top_and_left_use_their_own_word():
    tall = geometry((64, 128), target=(64, 64), center_crop=False, crop_words=(2**64 - 1, 0), flip=False)
    wide = geometry((128, 64), target=(64, 64), center_crop=False, crop_words=(2**64 - 1, 0), flip=False)
    assert (tall.top, tall.left) == (64, 0)
    assert (wide.top, wide.left) == (0, 0)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (0, 5)])
def test_extreme_shapes_are_refused(size):
    with pytest.raises(UnreadableImage):
        geometry(size, target=(512, 512), center_crop=True, crop_words=(0, 0), flip=False)
