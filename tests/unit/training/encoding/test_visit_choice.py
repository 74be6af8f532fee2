"""What a visit shows does not depend on the visits before it: else a chain, which begins anew, would show another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.data.media import image
from engine.data.media.geometry import UnreadableImage
from engine.data.media.image import IMAGE
from engine.task.plan.extent import Extent
from engine.training.buckets import Bucket, BucketOrder
from tests.support.encoding import BATCH, STEPS, Setup, frozen, good
from tests.support.fakes import png

FRAMES, BROKEN = 6, 4
"""Frames of each clip, and the first of the damaged clip that cannot be decoded."""


def medium_with(damaged: bytes, lengths: dict[bytes, int]):
    """A medium in which an image is a clip that stands still; one clip is damaged near its end."""

    def measure(data):
        return Extent(*image.image_size(data), lengths.get(data, FRAMES))

    def check(data):
        if data == damaged:
            raise UnreadableImage("its end is damaged")
        return measure(data)

    def render(data, view):
        if data == damaged and view.frames[-1] >= BROKEN:
            raise UnreadableImage("its end is damaged")
        return np.stack([image.render(data, view) + np.uint8(frame) for frame in view.frames])

    return replace(IMAGE, has_frames=True, measure=measure, check=check, render=render)


def test_a_clip_that_is_damaged_near_its_end(tmp_path):
    """By chance a visit shows its good frames alone."""
    images = good()
    medium = medium_with(images[2], {})

    def encoded(start, folder):
        options = {"frame_extraction": "random", "medium": medium, "num_frames": 2}
        return frozen(Setup(images, folder, start=start, starts_small=True, **options).run())

    whole = encoded(0, tmp_path / "whole")
    for start in range(1, STEPS):
        assert encoded(start, tmp_path / str(start)) == whole[start:], start


def test_a_clip_that_is_damaged_is_told_apart_once(tmp_path):
    """A later task finds in the cache which clips are whole."""
    images, checked = good(), []
    medium = medium_with(b"", {})
    counting = replace(medium, check=lambda data: checked.append(data) or medium.check(data))
    for _ in range(2):
        Setup(images, tmp_path, medium=counting, num_frames=2).run()
    assert sorted(checked) == sorted(images)


def small(*extents_and_rows):
    return [Bucket(extent, np.array(rows, dtype=np.int64), len(rows)) for extent, rows in extents_and_rows]


@pytest.mark.parametrize("kind", ["short clips", "extreme shapes"])
def test_what_does_not_fit_the_bucket_of_another(tmp_path: Path, kind, monkeypatch):
    """It is tried there when all samples of that bucket are unreadable, and is shown in its own all the same."""
    images = [b"no" if row < 3 else png(row, (8, 8)) for row in range(7)]
    options = {"center_crop": True, "flip": False}
    if kind == "short clips":
        lengths = {data: 1 for data in images[3:6]}
        options |= {"medium": medium_with(b"", lengths)}
        members = small((Extent(8, 8, FRAMES), [0, 1, 2]), (Extent(8, 8, 1), [3, 4, 5]), (Extent(4, 8, FRAMES), [6]))
    else:
        monkeypatch.setattr("engine.data.media.geometry.MAX_RESIZED_PIXELS", 300)
        images[3:6] = [png(row, (2, 40)) for row in (3, 4, 5)]
        members = small((Extent(16, 8), [0, 1, 2]), (Extent(2, 40), [3, 4, 5]), (Extent(8, 8), [6]))

    def encoded(start, folder):
        order = BucketOrder(seed=0, members=members, batch_size=BATCH)
        return frozen(Setup(images, folder, start=start, order=order, starts_small=True, **options).run())

    whole = encoded(0, tmp_path / "whole")
    for start in range(1, STEPS):
        assert encoded(start, tmp_path / str(start)) == whole[start:], start
    shown = {one[0].bucket for step in whole for one in step}
    assert shown == {member.extent for member in members}
