"""The fingerprint of a dataset: one digest over every row's encoded image, mask and captions, in order."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.stat_cache import Identity, remembered_bytes
from engine.data.dataset.images import Images, Pinned
from engine.data.dataset.rows import Rows
from engine.data.media.geometry import UnreadableImage

FINGERPRINT_VERSION: Final = "sd-lora-task dataset v1"
MAX_CAPTION_BYTES: Final = 100_000
"""A tokenizer's time and memory grow with what it reads, however little of it is kept."""
_FINGERPRINT_BYTES: Final = 64
_MAX_FRAME_ROWS: Final = 1024
_FRAMES: Final = 64


def fingerprint(parts: Sequence[Rows]) -> str:
    """SHA-256 over all rows, as 64 hex digits. Reads every image once, on all cores, and keeps none.

    A row is framed by fixed-size digests and explicit counts and lengths, so that no two datasets frame alike:
    0x01 and the image's SHA-256 (0x00 for a row without a readable file), the number of captions, then each one's
    length and UTF-8. A caption alone and a list of that one caption are the same data. Rows that are repeated follow
    0x02, how often, and how many rows. With masks, each image is followed by 0x03 and its mask's
    SHA-256, 0x04 for none, or 0x05 for an unreadable one.
    """
    digest = hashlib.sha256(FINGERPRINT_VERSION.encode())
    # hashlib lets go of the interpreter lock, so threads hash in parallel.
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        for part in parts:
            if part.repeats > 1:  # of that many rows
                digest.update(b"\x02" + struct.pack("<QQ", part.repeats, len(part.images)))
            # Rows by the hundred where there are many: handing one over costs as much as hashing a small image.
            count = max(1, min(len(part.images) // _FRAMES, _MAX_FRAME_ROWS))
            starts = range(0, len(part.images), count)
            for frame in pool.map(partial(_frame, part, count), starts):
                digest.update(frame)
    return digest.hexdigest()


def _frame(part: Rows, count: int, start: int) -> bytes:
    """`count` rows from `start` on, framed."""
    captions = part.captions.slice(start, count).to_pylist()
    return b"".join(piece for row, value in enumerate(captions, start) for piece in _row_frame(part, row, value))


def _row_frame(part: Rows, row: int, value: str | list[str]) -> Iterator[bytes]:
    try:
        yield b"\x01" + _digest(part.images, row)
    except UnreadableImage:
        yield b"\x00"
    if part.masks is not None:
        yield _mask_frame(part.masks, row)
    captions = [value] if isinstance(value, str) else value
    yield struct.pack("<Q", len(captions))
    for caption in captions:
        encoded = caption.encode()
        if len(encoded) > MAX_CAPTION_BYTES:
            raise DatasetError(
                f"row {row} of {part.label} has a caption of {len(encoded):,} bytes, more than {MAX_CAPTION_BYTES:,}; "
                "of so much a text encoder reads its first words alone"
            )
        yield struct.pack("<Q", len(encoded)) + encoded


def _mask_frame(masks: Images, row: int) -> bytes:
    if not masks.has(row):
        return b"\x04"
    try:
        return b"\x03" + _digest(masks, row)
    except UnreadableImage:
        return b"\x05"


def _digest(images: Images, row: int) -> bytes:
    """SHA-256 of an encoded image. Raises UnreadableImage."""
    return images.digest(row) if isinstance(images, Pinned) else hashlib.sha256(images.read(row)).digest()


def pinned(parts: Sequence[Rows]) -> tuple[Rows, ...]:
    """The same rows, whose images and masks must stay what they are when they are first read."""
    return tuple(
        replace(part, images=Pinned.of(part.images), masks=None if part.masks is None else Pinned.of(part.masks))
        for part in parts
    )


def remembered_fingerprint(parts: Sequence[Rows], cache_dir: Path) -> str:
    """The fingerprint, as noted by an earlier job that found the same captions and files, else computed.

    Of `pinned` parts the note has what each image is, too.
    """
    found = [images for part in parts for images in (part.images, part.masks) if isinstance(images, Pinned)]
    identity = Identity(f"{FINGERPRINT_VERSION}, {len(found)} pinned", cache_dir)
    for part in parts:
        identity.add(struct.pack("<QQQ", part.repeats, len(part.images), part.masks is not None))
        identity.add_column(part.captions)
        part.images.identify(identity)
        if part.masks is not None:
            part.masks.identify(identity)

    def compute() -> bytes:
        return b"".join([fingerprint(parts).encode(), *(images.digests for images in found)])

    note = io.BytesIO(remembered_bytes(identity, cache_dir, compute))
    digest = note.read(_FINGERPRINT_BYTES).decode()
    for images in found:
        images.digests[:] = note.read(len(images.digests))
    return digest
