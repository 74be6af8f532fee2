"""Refuse containers that are cut, or that claim more frames than their bytes can hold, before FFmpeg reads them.

FFmpeg allocates up to 70 bytes for each sample that an MP4 file announces, and a few bytes can announce billions.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from typing import Final

from engine.data.media.geometry import UnreadableImage

MAX_CLAIMED: Final = 2**23
"""Limit on the samples that an MP4 file announces without a byte for each: 0.6 GB in FFmpeg. Three minutes of
uncompressed sound have as many."""

_MAX_BOXES: Final = 100_000
_MAX_CHUNKS: Final = 2**20
_CHUNK: Final = re.compile(rb"[0-9][0-9][A-Za-z][A-Za-z]")
"""The name of a chunk of an AVI file, which begins with its stream's number. It rarely occurs by chance."""
_PARENTS: Final = frozenset([b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex"])
Box = tuple[bytes, int, int]
"""A box's type, and where its content begins and ends."""


def refuse_claims(data: bytes, container: str) -> None:
    """Raise UnreadableImage if a file is cut, or announces more than it can hold.

    Args:
        data: the whole file.
        container: FFmpeg's name: `mov`, `matroska` or `avi`.
    """
    if container == "mov":
        _check_boxes(data)
    elif container == "avi":
        _check_chunks(data)
    elif container == "matroska":
        _check_segment(data)


def _cut() -> UnreadableImage:
    return UnreadableImage("the file is cut: its end is missing")


def _check_boxes(data: bytes) -> None:
    """Check the tables of an MP4 or QuickTime file (ISO 14496-12)."""
    claimed = 0
    for kind, start, end in _boxes(data):
        claimed += _claimed(data, kind, start, end)
        if claimed > MAX_CLAIMED:
            raise UnreadableImage(
                f"it announces more than {MAX_CLAIMED:,} samples; if that is uncompressed sound, save it without"
            )


def _boxes(data: bytes) -> Iterator[Box]:
    """Yield all boxes, those inside others after them. Raises UnreadableImage if one ends after its parent."""
    pending = [(0, len(data))]
    count = 0
    while pending:
        at, end = pending.pop()
        while at + 8 <= end:
            kind, start, stop = _box(data, at, end)
            count += 1
            if count > _MAX_BOXES:
                raise UnreadableImage(f"it has more than {_MAX_BOXES:,} boxes")
            yield kind, start, stop
            if kind in _PARENTS:
                pending.append((start, stop))
            at = stop


def _box(data: bytes, at: int, end: int) -> Box:
    size, kind = struct.unpack_from(">I4s", data, at)
    start = at + 8
    if size == 1 and start + 8 <= end:
        (size,) = struct.unpack_from(">Q", data, start)
        start += 8
    stop = end if size == 0 else at + size
    if stop > end:
        raise _cut()
    if stop < start:
        raise UnreadableImage("its boxes are damaged")
    return kind, start, stop


def _claimed(data: bytes, kind: bytes, start: int, end: int) -> int:
    """Return how many samples a table announces that have no bytes of their own in it."""
    if kind == b"stsz" and end - start >= 12:
        size, count = struct.unpack_from(">II", data, start + 4)
        return int(count) if size else 0
    if kind == b"trun" and end - start >= 8:
        flags, count = struct.unpack_from(">II", data, start)
        return 0 if flags & 0xF00 else int(count)
    return 0


def _check_chunks(data: bytes) -> None:
    """Check an AVI file. FFmpeg keeps all chunks behind one without a time, with 400 bytes of its own for each."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise _cut()
    chunks = itertools.islice(_CHUNK.finditer(data), _MAX_CHUNKS + 1)
    if sum(1 for _ in chunks) > _MAX_CHUNKS:
        raise UnreadableImage(f"it has more than {_MAX_CHUNKS:,} chunks; cut it into shorter clips")


def _check_segment(data: bytes) -> None:
    """Check that the segment of a Matroska or WebM file (RFC 9559) ends in the file, where its length is known."""
    _, length, at = _element(data, 0)
    kind, length, at = _element(data, at + (length or 0))
    if kind == 0x18538067 and length is not None and at + length > len(data):
        raise _cut()


def _element(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Return an EBML element's ID, its length (None if it is unknown) and where its content begins (RFC 8794)."""
    kind, at = _number(data, at)
    length, start = _number(data, at)
    bits = 7 * (start - at)
    value = length - (1 << bits)
    return kind, None if value == (1 << bits) - 1 else value, start


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable width with its marker bit, and where it ends."""
    if at >= len(data) or data[at] == 0:
        raise UnreadableImage("its header is damaged")
    width = 9 - data[at].bit_length()
    return int.from_bytes(data[at : at + width], "big"), at + width
