"""Videos that are bombs, broken, in parts or something else, each beside a good one: skipped, or read within bounds.

Nothing outside a file is ever opened: `secret.mp4` lies where files of other programs would be found.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av

from tests.integration.hostile.archives import zip_of
from tests.integration.hostile.case import MIB, Case, Cases, Place
from tests.integration.hostile.tables import lines
from tests.support.clips import clip_bytes, spliced
from tests.support.tiny import SMALL_PNG

BOUND = 900 * MIB
"""FFmpeg takes 0.6 GB for the samples that a file may announce."""
SIZE = (64, 64)


def good(suffix: str = ".mp4", **how: object) -> bytes:
    return clip_bytes(suffix, **{"frames": 9, "size": SIZE, **how})


def patched(data: bytes, box: bytes, offset: int, form: str, *values: int) -> bytes:
    """Numbers overwritten in the content of the first box, or element, that is called `box`."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(box) + len(box) + offset, *values)
    return bytes(changed)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def fragmented() -> bytes:
    """A good clip in fragments, as for streaming."""
    written = io.BytesIO()
    with (
        av.open(io.BytesIO(good())) as source,
        av.open(written, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return written.getvalue()


def sound_alone() -> bytes:
    written = io.BytesIO()
    with av.open(io.BytesIO(good(audio=True))) as source, av.open(written, "w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return written.getvalue()


def attached() -> bytes:
    """A clip with a font and a program as attachments."""
    written = io.BytesIO()
    with av.open(io.BytesIO(good())) as source, av.open(written, "w", format="matroska") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        out.add_attachment("../../escaped.ttf", "font/ttf", b"font")
        out.add_attachment("/etc/cron.d/job", "application/x-sh", b"#!/bin/sh\n")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return written.getvalue()


def elsewhere(path: bytes) -> bytes:
    """A clip whose frames are in another file, named by a Macintosh alias (QuickTime File Format, data references)."""
    alias = bytes(10) + b"\x01x" + bytes(26) + bytes(12) + b"\x01x" + bytes(62) + bytes(16)
    alias += struct.pack(">HH", 0, 0) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2)
    entry = box(b"alis", bytes(4), alias + struct.pack(">H", 0xFFFF))
    data = good()
    old = data.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", data, old)
    new = box(b"dref", struct.pack(">II", 0, 1), entry)
    changed = bytearray(data[:old] + new + data[old + size :])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = changed.index(parent) - 4
        (length,) = struct.unpack_from(">I", changed, at)
        struct.pack_into(">I", changed, at, length + len(new) - size)
    return bytes(changed)


def many_blocks(count: int) -> bytes:
    """A WebM of no frame but very many empty blocks of 256 laced frames."""
    data = good(".webm", codec="vp9")
    start = data.index(b"\x1f\x43\xb6\x75")
    block = b"\xa3\x85\x81\0\0\x84\xff"
    cluster = b"\xe7\x81\0" + block * count
    head = bytearray(data[:start])
    length = head.index(b"\x18\x53\x80\x67") + 4
    head[length : length + 8] = b"\x01" + b"\xff" * 7
    return bytes(head) + b"\x1f\x43\xb6\x75\x08" + len(cluster).to_bytes(7, "big") + cluster


def many_chunks(count: int) -> bytes:
    data = good(".avi", codec="mpeg4") + b"00dc\0\0\0\0" * count
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def wide(width: int, height: int) -> bytes:
    """A Motion JPEG whose pictures say another size."""
    data = bytearray(good(".avi", codec="mjpeg"))
    at = -1
    while (at := data.find(b"\xff\xc0", at + 1)) >= 0:
        struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def other_size() -> bytes:
    return spliced(*(good(codec="mjpeg", size=size) for size in (SIZE, (32, 32))))


def video(build: Callable[[], bytes], skipped: bool, *words: str, quick: bool = False, name: str = "2.mp4") -> Case:
    """Beside a good clip; `skipped` says whether the bad one is left out."""
    return placed(lambda place: build(), skipped, *words, quick=quick, name=name)


def placed(
    build: Callable[[Place], bytes], skipped: bool, *words: str, quick: bool = False, name: str = "2.mp4"
) -> Case:
    """The same, of bytes that name a place."""

    def make(place: Place) -> dict[str, object]:
        (place.root / "secret.mp4").write_bytes(good(first=100))
        (place.inputs / "1.mp4").write_bytes(good())
        (place.inputs / name).write_bytes(build(place))
        rows = [{"file_name": file, "text": "a"} for file in ("1.mp4", name)]
        (place.inputs / "metadata.jsonl").write_bytes(lines(*rows))
        return {
            "model.name": str(place.video_model),
            "dataset": {"name": str(place.inputs)},
            "train_args.num_frames": 9,
            "train_args.resolution": 64,
        }

    said = (f"unreadable     1: {name} (", *words) if skipped else ("unreadable     none", *words)
    return Case(make=make, code=0, words=said, memory=BOUND, seconds=120, quick=quick)


def playlist(text: str) -> Case:
    """A file that names others: `{path}` on this machine, `{url}` on a server."""
    return placed(
        lambda place: text.format(path=place.root / "secret.mp4", url=place.server.url(good())).encode(),
        True,
        "neither a video",
    )


CASES: Cases = {
    "half an MP4": video(lambda: good()[: len(good()) // 2], True, "its end is missing", quick=True),
    "half a WebM": video(lambda: good(".webm", codec="vp9")[:600], True, "its end is missing"),
    "half an AVI": video(lambda: good(".avi", codec="mpeg4")[:6000], True, "its end is missing"),
    "nothing": video(lambda: b"", True),
    "a text": video(lambda: b"not a video", True, "neither a video"),
    "sound alone": video(sound_alone, True, "no video stream"),
    "a billion samples": video(lambda: patched(good(), b"stsz", 4, ">II", 1, 10**9), True, "announces", quick=True),
    "eight million samples": video(lambda: patched(good(), b"stsz", 4, ">II", 1, 2**23), True),
    "a billion samples in a fragment": video(
        lambda: patched(fragmented(), b"trun", 0, ">II", 1, 10**9), True, "announces"
    ),
    "a fragment": video(fragmented, False),
    "a time for a billion samples": video(lambda: patched(good(), b"stts", 8, ">I", 2**31), False),
    "a million empty blocks": video(lambda: many_blocks(1_000_000), True),
    "two million chunks": video(lambda: many_chunks(2_000_000), True, "chunks"),
    "endless": video(lambda: good() * 10_000, True, "boxes"),
    "pictures of 65,500 x 65,500": video(lambda: wide(65_500, 65_500), True),
    "pictures of 65,500 x 16": video(lambda: wide(65_500, 16), True),
    "a container that says 65,535 x 65,535": video(lambda: patched(good(), b"avc1", 24, ">HH", 65535, 65535), False),
    "a track of no pixels": video(lambda: patched(good(), b"avc1", 24, ">HH", 0, 0), False),
    "a size that changes": video(other_size, True, "size changes", quick=True),
    "attachments": video(attached, False),
    "frames in another file": placed(lambda place: elsewhere(bytes(place.root / "secret.mp4")), True, "no frames"),
    "frames in a pipe": placed(lambda place: elsewhere(b"/dev/stdin"), True, "no frames"),
    "a list for HLS": playlist("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n"),
    "a list for HLS by URL": playlist("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"),
    "a list to concatenate": playlist("ffconcat version 1.0\nfile '{path}'\n"),
    "concat:": playlist("concat:{path}|{path}"),
    "a manifest for DASH": playlist(
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><AdaptationSet mimeType='video/mp4'>"
        "<Representation id='0'><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "a session description": playlist("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{url}\n"),
    "a codec that is not decoded": video(lambda: good(".mov", codec="prores"), True, "its codec is prores"),
    "an image": video(lambda: SMALL_PNG, False, "2.mp4 (an image)"),
    "an archive": video(lambda: zip_of({"1.mp4": good()}), True, "neither a video"),
    "boxes in boxes": video(lambda: deep(5000), True),
    "two hundred thousand boxes": video(lambda: good() + box(b"free") * 200_000, True, "boxes"),
    "a hundred streams": video(lambda: streams(100), True),
    "turned by a little": video(lambda: patched(good(), b"tkhd", 40, ">i", 60_000), False),
    "turned by an angle": video(
        lambda: patched(good(), b"tkhd", 40, ">iiiii", 46_341, 46_341, 0, -46_341, 46_341), True, "angle"
    ),
}


def deep(count: int) -> bytes:
    """Boxes, each in the one before."""
    head = box(b"ftyp", b"isom", bytes(4))
    return head + b"".join(struct.pack(">I4s", 8 * (count - index), b"moov") for index in range(count))


def streams(count: int) -> bytes:
    """A clip whose track is there so many times."""
    data = good()
    at = data.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", data, at)
    moov, track = data[at : at + size], data[data.index(b"trak") - 4 :]
    track = track[: struct.unpack_from(">I", track)[0]]
    return data[:at] + box(b"moov", moov[8:], track * count) + data[at + size :]
