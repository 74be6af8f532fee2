"""What containers announce, by patching the tables of good files."""

import struct
from contextlib import suppress

import pytest

from engine.data.media.geometry import UnreadableImage
from engine.data.media.video.claims import MAX_CLAIMED, refuse_claims
from engine.data.media.video.signatures import container_name
from tests.support.clips import clip_bytes

CLIPS = {suffix: clip_bytes(suffix, codec="mpeg4", frames=3) for suffix in (".mp4", ".mkv", ".avi")}


def refused(data):
    with pytest.raises(UnreadableImage) as refusal:
        refuse_claims(data, container_name(data))
    return str(refusal.value)


@pytest.mark.parametrize("suffix", CLIPS)
def test_good_files_pass_and_cut_ones_do_not(suffix):
    data = CLIPS[suffix]
    refuse_claims(data, container_name(data))
    for length in (len(data) - 1, len(data) // 2):
        assert "its end is missing" in refused(data[:length])


@pytest.mark.parametrize("suffix", CLIPS)
def test_every_beginning_of_a_file_is_refused_or_passes(suffix):
    """A file may be cut between two boxes."""
    for length in range(12, len(CLIPS[suffix]), 7):
        with suppress(UnreadableImage):
            refuse_claims(CLIPS[suffix][:length], container_name(CLIPS[suffix]))


def samples(size, count):
    data = bytearray(CLIPS[".mp4"])
    struct.pack_into(">II", data, data.index(b"stsz") + 8, size, count)
    return bytes(data)


def test_samples_that_are_announced_without_bytes():
    assert "announces more than 8,388,608 samples" in refused(samples(1, MAX_CLAIMED + 1))
    refuse_claims(samples(1, MAX_CLAIMED), "mov")
    refuse_claims(samples(0, MAX_CLAIMED + 1), "mov")  # each of these has four bytes, which FFmpeg misses


def test_boxes_in_boxes():
    def box(kind, body=b""):
        return struct.pack(">I", 8 + len(body)) + kind + body

    head = box(b"ftyp", b"isom")
    assert "more than 100,000 boxes" in refused(head + box(b"moov", box(b"free") * 100_001))
    refuse_claims(head + struct.pack(">I4sQ", 1, b"mdat", 20) + b"four", "mov")  # a length of 64 bits
    assert "damaged" in refused(head + struct.pack(">I4s", 4, b"mdat"))
    assert "end is missing" in refused(head + struct.pack(">I4sQ", 1, b"mdat", 2**63))
    run = struct.pack(">III", 0, 2**31, 0)
    assert "announces" in refused(head + box(b"moof", box(b"traf", box(b"trun", run))))
    run = struct.pack(">III", 0x200, 2**31, 0)
    refuse_claims(head + box(b"moof", box(b"traf", box(b"trun", run))), "mov")  # each has its size


def test_many_chunks():
    data = CLIPS[".avi"]
    chunks = b"00dc\0\0\0\0" * (2**20 + 1)
    assert "more than 1,048,576 chunks" in refused(data[:4] + struct.pack("<I", len(data) - 8) + data[8:] + chunks)


def test_a_segment_of_unknown_length():
    """As a recording has that was not finished: where it ends is known at the file's end alone."""
    data = bytearray(CLIPS[".mkv"])
    at = data.index(b"\x18\x53\x80\x67") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7
    refuse_claims(bytes(data[:-5]), "matroska")
