"""The fingerprint of a dataset: one digest of every row's encoded image, mask and captions, in order.

Images that are read again later must be those of the fingerprint: `Pinned` keeps their digests.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.stat_cache import Identity, remembered_bytes
from engine.data.dataset.images import DIGEST_BYTES, UNREADABLE, Images
from engine.data.dataset.rows import Rows
from engine.data.media.geometry import UnreadableImage

FINGERPRINT_VERSION: Final = "sd-lora-task dataset v1"
MAX_CAPTION_BYTES: Final = 100_000
"""Size limit of a caption. A tokenizer's time and memory grow with the whole text, even if most of it is cut off."""
_FINGERPRINT_BYTES: Final = 64
_MAX_FRAME_ROWS: Final = 1024
_FRAMES: Final = 64
_NOT_READ: Final = bytes(DIGEST_BYTES)


def fingerprint(parts: Sequence[Rows]) -> str:
    """Return the SHA-256 of all rows, as 64 hex digits. Images whose digests are not known are read once, by up to
    8 threads.

    Rows are encoded with fixed-size digests, counts and lengths, so that different datasets have different encodings. A
    row is 0x01 and the image's SHA-256 (0x00 alone if the image is unreadable), the number of captions, then the length
    and the UTF-8 of each. A single caption and a list of that one caption are the same data. A part with repeats begins
    with 0x02, the repeats, and the number of rows. With masks, each image is followed by 0x03 and its mask's SHA-256,
    by 0x04 for no mask, or by 0x05 for an unreadable one.

    Raises DatasetError if a caption is longer than `MAX_CAPTION_BYTES`, or an image must not be read.
    """
    digest = hashlib.sha256(FINGERPRINT_VERSION.encode())
    # hashlib releases the interpreter lock, so threads hash in parallel.
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        for part in parts:
            if part.repeats > 1:
                digest.update(b"\x02" + struct.pack("<QQ", part.repeats, len(part.images)))
            # Many rows for each task of the pool: submitting a task costs as much as hashing a small image.
            count = max(1, min(len(part.images) // _FRAMES, _MAX_FRAME_ROWS))
            starts = range(0, len(part.images), count)
            for frame in pool.map(partial(_frame, part, count), starts):
                digest.update(frame)
    return digest.hexdigest()


def _frame(part: Rows, count: int, start: int) -> bytes:
    """Return the encoding of `count` rows from `start` on."""
    captions = part.captions.slice(start, count).to_pylist()
    return b"".join(piece for row, value in enumerate(captions, start) for piece in _row_frame(part, row, value))


def _row_frame(part: Rows, row: int, value: str | list[str]) -> Iterator[bytes]:
    try:
        yield b"\x01" + part.images.digest(row)
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
                "shorten it: a text encoder reads only the first words"
            )
        yield struct.pack("<Q", len(encoded)) + encoded


def _mask_frame(masks: Images, row: int) -> bytes:
    if not masks.has(row):
        return b"\x04"
    try:
        return b"\x03" + masks.digest(row)
    except UnreadableImage:
        return b"\x05"


@dataclass(frozen=True, slots=True)
class Pinned:
    """Images that must not change: each read is compared with the first one by digest.

    So the images that are encoded and trained on are those of the fingerprint, or the job ends with an error.
    """

    images: Images
    digests: bytearray | memoryview
    """SHA-256 of each image, zeros until it is read; a `memoryview` of those that are known from the beginning."""

    if_changed: str
    """The end of the message that an image has changed."""

    @classmethod
    def of(cls, images: Images, if_changed: str) -> Pinned:
        known = images.known_digests()
        return cls(images, bytearray(DIGEST_BYTES * len(images)) if known is None else known, if_changed)

    @property
    def is_known(self) -> bool:
        """Return whether all digests are known without reading the images."""
        return isinstance(self.digests, memoryview)

    def __len__(self) -> int:
        return len(self.images)

    def has(self, index: int) -> bool:
        return self.images.has(index)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes. Raises DatasetError if they have changed, and the errors of `Images.read`."""
        try:
            data = bytes(self.images.read(index))  # a copy: a mapped file may change in between
        except UnreadableImage:
            self._require(index, UNREADABLE)
            raise
        self._require(index, hashlib.sha256(data).digest())
        return data

    def digest(self, index: int) -> bytes:
        """Return the SHA-256 of the encoded bytes, which are read unless it is known. Raises the errors of `read`."""
        if not self.is_known:
            try:
                self._require(index, self.images.digest(index))
            except UnreadableImage:
                self._require(index, UNREADABLE)
                raise
        digest = bytes(self.digests[_place(index)])
        if digest == UNREADABLE:
            raise UnreadableImage("it cannot be read")
        return digest

    def name(self, index: int) -> str:
        return self.images.name(index)

    def identify(self, identity: Identity) -> None:
        self.images.identify(identity)

    def known_digests(self) -> memoryview | None:
        return self.images.known_digests()

    def read_ahead(self, rows: Sequence[int]) -> None:
        self.images.read_ahead(rows)

    def _require(self, index: int, found: bytes) -> None:
        place = _place(index)
        before = bytes(self.digests[place])
        if before == _NOT_READ:
            self.digests[place] = found
        elif before != found:
            raise DatasetError(f"{self.name(index)} has changed {self.if_changed}")


def _place(index: int) -> slice:
    return slice(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES)


def pinned(parts: Sequence[Rows]) -> tuple[Rows, ...]:
    """Return the same rows with `Pinned` images and masks: reading one that has changed is an error."""
    return tuple(
        replace(
            part,
            images=Pinned.of(part.images, part.if_changed),
            masks=None if part.masks is None else Pinned.of(part.masks, part.if_changed),
        )
        for part in parts
    )


def remembered_fingerprint(parts: Sequence[Rows], cache_dir: Path) -> str:
    """Return the fingerprint: the one that an earlier job cached for the same captions and files, else computed.

    The digests of `pinned` images are cached with it, unless they are known.
    """
    every = [images for part in parts for images in (part.images, part.masks) if isinstance(images, Pinned)]
    found = [images for images in every if not images.is_known]
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
