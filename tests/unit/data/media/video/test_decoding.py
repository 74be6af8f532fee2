"""Facts and frames of clips in every codec: the frames' order, their times, and what is refused."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from engine.data.media.geometry import UnreadableImage
from engine.data.media.video import decoding
from engine.data.media.video.decoding import check, frames, read_facts
from tests.support.clips import CODECS, clip_bytes, numbers, pictures, spliced, vp8

CONTAINERS = {"vp9": ".webm", "av1": ".mp4", "ffv1": ".mkv", "mpeg4": ".avi", "mjpeg": ".avi"}
NAMES = {"h264": "H.264", "hevc": "H.265", "mjpeg": "Motion JPEG", "mpeg4": "MPEG-4"}
B_FRAMES = {"preset": "medium", "bf": "3"}


def shown(data, positions, frame_rate=None):
    return numbers(np.stack(list(frames(data, positions, frame_rate))))


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec):
    data = clip_bytes(CONTAINERS.get(codec, ".mp4"), codec=codec, frames=12, size=(96, 64), rate=24)
    facts = read_facts(data, None)
    assert facts == check(data, None) and facts.extent == (96, 64, 12)
    assert facts.codec == NAMES.get(codec, codec.upper()) and not facts.is_still
    assert (facts.file_frames, facts.has_variable_rate) == (12, False) and round(facts.file_rate) == 24
    pixels = np.stack(list(frames(data, range(12), None)))
    assert pixels.dtype == np.uint8 and numbers(pixels) == list(range(12))
    assert np.abs(pixels.astype(int) - pictures(12, (96, 64))).mean() < 4
    assert shown(data, [0, 5, 5, 11]) == [0, 5, 5, 11]


def test_frames_of_vp8_that_are_not_shown():
    """They have packets, but only later frames refer to them."""
    assert check(vp8(pictures(4, (64, 48))), None).extent == (64, 48, 4)
    data = vp8(pictures(6, (64, 48)), hidden=(1, 4))
    assert check(data, None).extent == (64, 48, 4) and shown(data, range(4)) == [0, 2, 3, 5]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_are_in_the_order_in_which_they_are_shown(suffix):
    """Not in that of a stream with frames that are predicted from later ones."""
    data = clip_bytes(suffix, frames=20, options=B_FRAMES)
    assert shown(data, range(20)) == list(range(20))
    assert check(data, None).frames == 20


@pytest.mark.parametrize("options", [{}, B_FRAMES])
def test_an_edit_list_trims_a_clip(options):
    """As a phone's editor does it: the packets stay, and the first three frames are only decoded."""
    data = bytearray(clip_bytes(frames=20, options=options))
    at = data.index(b"elst") + 16
    (start,) = struct.unpack_from(">i", data, at)
    struct.pack_into(">i", data, at, start + 3 * 512)
    facts = check(bytes(data), None)
    assert facts.frames == 17 and shown(bytes(data), range(17)) == list(range(3, 20))


def test_decoding_ends_with_the_last_frame_that_is_needed(monkeypatch):
    data, seen = clip_bytes(codec="mpeg4", frames=30), []
    monkeypatch.setattr(decoding, "_check_frame", lambda *arguments: seen.append(arguments))
    assert shown(data, [0, 3]) == [0, 3] and len(seen) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_another_frame_rate_takes_the_nearest_frames(suffix):
    data = clip_bytes(suffix, codec="vp9", frames=24, rate=24)
    facts = read_facts(data, 8.0)
    assert (facts.frames, facts.file_frames) == (8, 24)
    assert shown(data, range(8), 8.0) == list(range(0, 24, 3))
    assert shown(data, range(4), 48.0) == [0, 0, 1, 1]


def test_a_variable_frame_rate():
    data = clip_bytes(times=[0, 100, 150, 900, 1000], frames=5)
    facts = read_facts(data, 10.0)
    assert facts.has_variable_rate and facts.file_rate == 4 and facts.frames == 13
    assert shown(data, range(13), 10.0) == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_upright(rotation, suffix):
    data = clip_bytes(suffix, frames=3, size=(48, 96), rotation=rotation)
    assert read_facts(data, None).is_turned == (rotation > 0)
    assert read_facts(data, None).extent == (48, 96, 3)
    pixels = np.stack(list(frames(data, range(3), None)))
    assert pixels.shape == (3, 96, 48, 3) and np.abs(pixels.astype(int) - pictures(3, (48, 96))).mean() < 6


def test_sound_and_odd_rates():
    data = clip_bytes(audio=True, frames=5, rate=Fraction(30000, 1001))
    assert check(data, None).file_rate == Fraction(30000, 1001) and shown(data, range(5)) == list(range(5))


def test_pixels_that_are_not_square():
    """The size is the one at which the clip is shown."""
    data = clip_bytes(frames=2, size=(48, 32), pixel_aspect=2)
    assert read_facts(data, None).extent == (96, 32, 2)
    assert next(frames(data, [0], None)).shape == (32, 48, 3)


def test_a_size_that_changes_in_the_middle():
    halves = [clip_bytes(codec="mjpeg", frames=3, size=size) for size in ((64, 48), (32, 24))]
    data = spliced(*halves)
    assert read_facts(data, None).extent == (64, 48, 6) and shown(data, [1]) == [1]
    for action in (lambda: check(data, None), lambda: shown(data, [3])):
        with pytest.raises(UnreadableImage, match="size changes in frame 3"):
            action()


def test_a_clip_must_be_what_it_was():
    data = clip_bytes(frames=4, size=(64, 48))
    assert len(list(frames(data, [3], None, size=(64, 48)))) == 1
    for positions, size in (([4], (64, 48)), ([0], (48, 64))):
        with pytest.raises(UnreadableImage, match="changed while the job ran"):
            list(frames(data, positions, None, size=size))


def damaged(data, at, length):
    return data[:at] + b"\xff" * length + data[at + length :]


@pytest.mark.parametrize("codec", sorted({*CODECS} - {"vp9"}))
def test_damage_that_a_decoder_notices_is_said(codec):
    """No codec has checksums: a few bytes may give other pixels, and any bytes are a frame of VP9."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    data = clip_bytes(CONTAINERS.get(codec, ".mp4"), codec=codec, shown=noise)
    assert check(data, None).frames == 6
    with pytest.raises(UnreadableImage):
        check(damaged(data, len(data) // 2 - 1000, 2000), None)


def test_too_many_frames_or_pixels(monkeypatch):
    data = clip_bytes(frames=9)
    monkeypatch.setattr(decoding, "MAX_FRAMES", 8)
    with pytest.raises(UnreadableImage, match="more than 8 frames; cut it"):
        read_facts(data, None)
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48 * 9 - 1)
    with pytest.raises(UnreadableImage, match="64 x 48 pixels in 9 frames"):
        check(data, None)
    assert shown(data, range(8)) == list(range(8))


def test_a_header_alone():
    whole = bytearray(clip_bytes(".mkv", codec="ffv1"))
    length = whole.index(b"\x18\x53\x80\x67") + 4
    whole[length : length + 8] = b"\x01" + b"\xff" * 7  # unknown, so that the file may end before its first cluster
    with pytest.raises(UnreadableImage, match="End of file"):
        read_facts(bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")]), None)


def test_nothing_is_printed(capfd):
    data = clip_bytes()
    for at in range(40, len(data), 97):
        for broken in (data[:at], damaged(data, at, 8)):
            with pytest.raises(UnreadableImage):
                check(broken, None)
                raise UnreadableImage("whole")  # some damage is in what nobody reads
    assert capfd.readouterr() == ("", "")
