"""Validation clips: what is in the file, and that its bytes are the same each time."""

import hashlib
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from engine.data.media.video.decoding import check, frames
from engine.evaluation.clip_file import encode_clip
from tests.support.clips import numbers, pictures

SCRIPT = """
import hashlib
from engine.evaluation.clip_file import encode_clip
from tests.support.clips import pictures
print(hashlib.sha256(encode_clip(pictures(20, (96, 64)), 24.0)).hexdigest())
"""


def decoded(data):
    return np.stack(list(frames(data, range(check(data, None).frames), None)))


def test_a_clip_is_read_back():
    shown = pictures(20, (96, 64))
    data = encode_clip(shown, 24.0)
    facts = check(data, None)
    assert facts.extent == (96, 64, 20) and facts.file_rate == 24
    assert numbers(decoded(data)) == list(range(20)) and np.abs(decoded(data).astype(int) - shown).mean() < 4


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 60, 200)])
def test_colours_are_kept(colour):
    shown = np.zeros((2, 64, 64, 3), np.uint8) + np.array(colour, np.uint8)
    assert np.abs(decoded(encode_clip(shown, 8.0)).astype(int) - shown).max() <= 2


def test_the_bytes_are_the_same_in_every_process_and_thread():
    data = encode_clip(pictures(20, (96, 64)), 24.0)
    assert data == encode_clip(pictures(20, (96, 64)), 24.0) != encode_clip(pictures(20, (96, 64), first=1), 24.0)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "3"}
    )
    assert ran.stdout.strip() == hashlib.sha256(data).hexdigest() and ran.stderr == ""


@pytest.mark.parametrize(
    "rate, written", [(0.01, "1/100"), (24000 / 1001, "24000/1001"), (23.976, "2997/125"), (240, "240")]
)
def test_every_rate_of_a_task_can_be_written(rate, written):
    assert check(encode_clip(pictures(2, (64, 64)), rate), None).file_rate == Fraction(written)


def test_what_players_need(tmp_path):
    """AV1 of 8 bits in 4:2:0, marked BT.709, the index before the frames; and nothing of the encoder or the clock."""
    data = encode_clip(pictures(9, (64, 48)), 29.97)
    assert data.index(b"moov") < data.index(b"mdat") and data[4:8] == b"ftyp"
    assert not any(name in data for name in (b"Lavf", b"Lavc", b"SVT"))
    (tmp_path / "clip.mp4").write_bytes(data)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        (stream,) = container.streams
        assert stream.average_rate == Fraction(2997, 100) and "creation_time" not in container.metadata
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
        assert stream.codec_context.name == "libdav1d"


def test_odd_sizes_are_padded_with_their_edge():
    shown = pictures(3, (65, 47))
    back = decoded(encode_clip(shown, 8.0))
    assert back.shape == (3, 48, 66, 3) and np.abs(back[:, :47, :65].astype(int) - shown).mean() < 6


def test_the_index_has_room_for_long_clips():
    data = encode_clip(np.zeros((400, 64, 64, 3), np.uint8), 23.976)
    assert check(data, None).frames == 400
