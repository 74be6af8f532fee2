"""What holds for every medium: the rows of the registry, and one that a test adds."""

from dataclasses import replace

import numpy as np
import pytest

from engine.data.fetch.members import is_webdataset
from engine.data.media.geometry import Frames, UnreadableImage, geometry
from engine.data.media.registry import MEDIA, MediumRow
from engine.data.media.rendering import render_all
from engine.task.task import Dataset
from tests.support.clips import lossless_frame
from tests.support.fakes import png
from tests.support.toy_medium import CLIP, clip

ENCODERS = {"image": png, "video": lossless_frame}
EVERY = [*((row.make(Dataset()), ENCODERS[name]) for name, row in MEDIA.items()), (CLIP, clip)]
"""Each with what encodes a sample: a number and a size give bytes."""
MASKED = [row for row in EVERY if row[1] is not lossless_frame]
"""Those whose samples may have masks."""


def view_of(size, flip=False):
    return geometry(size, target=(8, 8), center_crop=True, crop_words=(0, 0), flip=flip, frames=Frames((0,)))


@pytest.mark.parametrize("medium, encoded", EVERY)
class TestEvery:
    def test_the_size_is_in_the_header(self, medium, encoded):
        data = encoded(1, (12, 8))
        assert medium.measure(data) == medium.check(data) == (12, 8, 1)
        with pytest.raises(UnreadableImage):
            medium.check(data[: len(data) - 40])

    def test_a_view_is_cropped_and_mirrored(self, medium, encoded):
        data = encoded(1, (12, 8))
        all_of_it = replace(view_of((12, 8)), target=(12, 8), left=0)
        whole = medium.render(data, all_of_it)
        shown, mirrored = (medium.render(data, view_of((12, 8), flip)) for flip in (False, True))
        assert shown.dtype == np.uint8 and shown.shape[-3:] == (8, 8, 3)
        assert np.array_equal(shown, whole[..., 2:10, :]) and np.array_equal(mirrored, shown[..., ::-1, :])

    @pytest.mark.parametrize("data", [b"", b"no sample", b"\0" * 200])
    def test_other_bytes_are_unreadable(self, medium, encoded, data):
        for action in (medium.measure, medium.check, lambda data: medium.render(data, view_of((8, 8)))):
            with pytest.raises(UnreadableImage):
                action(data)

    def test_names_and_what_else_is_asked(self, medium, encoded):
        for suffix in medium.suffixes:
            assert medium.has_name(f"a/b.{suffix[1:].upper()}") and suffix == suffix.lower()
        assert not medium.has_name("a.txt")
        assert not medium.has_alpha(encoded(1)) and not medium.has_more_frames(encoded(1))

    def test_workers_render_the_same(self, medium, encoded):
        requests = [(lambda k=k: encoded(k, (12, 8)), view_of((12, 8))) for k in range(3)]
        alone, helped = (list(render_all(requests, medium.render, workers)) for workers in (0, 1))
        assert all(map(np.array_equal, alone, helped)) and len(helped) == 3


@pytest.mark.parametrize("medium, encoded", MASKED)
def test_the_size_of_a_sample_that_is_cut(medium, encoded):
    """The header is enough; a clip's container says how long it is."""
    assert medium.measure(encoded(1, (12, 8))[:-40]) == (12, 8, 1)


@pytest.mark.parametrize("medium, encoded", MASKED)
def test_masks_are_cut_like_their_samples(medium, encoded):
    mask = medium.render_mask(encoded(2, (12, 8)), view_of((12, 8)), (4, 4), alpha=False)
    assert mask.dtype == np.uint8 and mask.shape == (4, 4)
    assert (medium.render_mask(encoded(1), view_of((8, 8)), (4, 4), alpha=True) == 255).all()
    medium.check_mask(encoded(2, (12, 8)), (12, 8))
    with pytest.raises(UnreadableImage):
        medium.check_mask(encoded(2, (12, 8)), (8, 12))


def test_archives_keep_shards_of_a_medium_that_is_registered(monkeypatch):
    assert not is_webdataset(["1.clip", "1.txt"])
    monkeypatch.setitem(MEDIA, "clip", MediumRow(CLIP.suffixes, lambda dataset: CLIP))
    assert is_webdataset(["1.clip", "1.txt"])


@pytest.mark.parametrize("row", MEDIA.values(), ids=MEDIA)
def test_a_row_has_the_suffixes_of_its_medium(row):
    assert row.suffixes == row.make(Dataset()).suffixes
