"""The medium `video`: views of clips, and still images as clips of one frame."""

import io

import numpy as np
import pytest
from PIL import Image

from engine.data.media import image
from engine.data.media.geometry import Frames, UnreadableImage, geometry
from engine.data.media.video.clip import video_medium
from tests.support.clips import clip_bytes, numbers, pictures

MEDIUM = video_medium(None)


def view(frames, *, size=(96, 64), target=(48, 40), flip=False):
    return geometry(
        size, target=target, center_crop=False, crop_words=(2**63, 2**62), flip=flip, frames=Frames(tuple(frames))
    )


def png(pixels, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("flip", [False, True])
def test_each_frame_is_shown_as_an_image_would_be(flip):
    """A lossless clip and its frames as PNG files give the same pixels."""
    shown = pictures(9, (96, 64))
    data = clip_bytes(".mkv", codec="ffv1", pixel_format="bgra", shown=shown)
    rendered = MEDIUM.render(data, view([0, 4, 4, 8], flip=flip))
    assert rendered.shape == (4, 40, 48, 3) and rendered.flags.c_contiguous and rendered.flags.writeable
    for pixels, index in zip(rendered, [0, 4, 4, 8], strict=True):
        assert np.array_equal(pixels, image.render(png(shown[index]), view([0], flip=flip)))


def test_a_still_image_is_a_clip_of_one_frame():
    data = png(pictures(1, (96, 64))[0])
    assert MEDIUM.measure(data) == MEDIUM.check(data) == (96, 64, 1)
    shown = MEDIUM.render(data, view([0]))
    assert shown.shape == (1, 40, 48, 3) and np.array_equal(shown[0], image.render(data, view([0])))
    assert MEDIUM.has_alpha(png(np.zeros((8, 8, 4), np.uint8), "RGBA")) and not MEDIUM.has_alpha(data)


def test_a_frame_rate_is_part_of_the_medium():
    """And of what caches are named after."""
    data, slow = clip_bytes(frames=24, rate=24), video_medium(8.0)
    assert slow.measure(data) == slow.check(data) == (64, 48, 8)
    shown = slow.render(data, view(range(8), size=(64, 48), target=(64, 48)))
    assert numbers(shown) == list(range(0, 24, 3))
    assert slow.decoding != MEDIUM.decoding and slow.reader_version != MEDIUM.reader_version
    assert all(name in slow.decoding for name in ("av 1", "libavcodec", "libswscale", "Pillow"))


def test_pixels_that_are_not_square_are_stretched():
    data = clip_bytes(frames=1, size=(48, 64), pixel_aspect=2)
    shown = MEDIUM.render(data, view([0], size=(96, 64), target=(96, 64)))
    assert np.abs(shown[0].astype(int) - pictures(1, (96, 64))[0]).mean() < 12


def test_another_clip_than_before_is_refused():
    with pytest.raises(UnreadableImage, match="changed while the job ran"):
        MEDIUM.render(clip_bytes(size=(64, 48)), view([0]))
    with pytest.raises(UnreadableImage, match="changed while the job ran"):
        MEDIUM.render(clip_bytes(size=(96, 64), frames=3), view([3]))


def test_what_is_neither_names_both():
    with pytest.raises(UnreadableImage, match=r"neither a video \(MP4, MOV, WebM, Matroska, AVI\) nor an image"):
        MEDIUM.measure(b"#EXTM3U\n/etc/passwd\n")
