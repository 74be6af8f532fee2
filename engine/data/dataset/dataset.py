"""A dataset: rows of encoded images with their captions, and the fingerprint of their content."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.data.dataset.images import UNREADABLE
from engine.data.dataset.rows import Rows
from engine.data.media.geometry import UnreadableImage
from engine.data.media.sample_names import OF_IMAGES, SampleNames

_BLOCK: Final = 64


BeginWindow = Callable[[Callable[[], None]], None]
"""Called before images are read ahead, with a function that may raise and is called while one is waited for."""


def no_window(check_stop: Callable[[], None]) -> None:
    """Do nothing: no images are read ahead."""


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """Rows of images and captions on disk. An image is read when it is asked for, and not kept in memory.

    For video models the images are clips, and images beside clips: samples of the medium, whatever methods call them.
    """

    parts: tuple[Rows, ...]
    ends: tuple[int, ...]
    """The number of visits of an epoch after which each part ends."""
    fingerprint: str
    """A digest of every row's encoded image, mask and captions, in order, as 64 hex digits: equal content has an equal
    fingerprint in any folder and any table format."""
    revision: str | None
    """The Hub commit, None for data from elsewhere."""
    selection: str | None = None
    """A digest of the indices of the images that `picked` took; None for the whole dataset."""
    names: SampleNames = OF_IMAGES
    """The words for its samples."""
    begin_window: BeginWindow = no_window
    """Forgets what was read ahead before and not used."""

    def __len__(self) -> int:
        """Return the number of visits of an epoch: a repeated image counts that often."""
        return self.ends[-1]

    @property
    def num_images(self) -> int:
        return sum(len(part.images) for part in self.parts)

    @property
    def caption_rules(self) -> dict[str, int]:
        """The number of images for each rule by which captions were found, in the order of the rows."""
        rules: Counter[str] = Counter()
        for part in self.parts:
            rules.update({name: len(rows) for name, rows in part.rules} or {part.label: len(part.images)})
        return dict(rules)

    def image_index(self, index: int) -> int:
        """Return the first of the rows that repeat the same image."""
        number, row = self._locate(index)
        return self._start(number) + row

    def image_indices(self) -> Iterator[int]:
        """Yield the rows without their repeats."""
        for number, part in enumerate(self.parts):
            start = self._start(number)
            yield from range(start, start + len(part.images))

    def image_bytes(self, index: int) -> bytes:
        """Return the encoded image (PNG, JPEG, …). Raises UnreadableImage, DatasetError."""
        number, row = self._locate(index)
        part = self.parts[number]
        data = bytes(part.images.read(row))
        if not data:
            raise UnreadableImage("the file is empty")
        return data

    def mask_bytes(self, index: int) -> bytes | None:
        """Return the encoded mask; None if the dataset has none for this image. Raises UnreadableImage."""
        number, row = self._locate(index)
        masks = self.parts[number].masks
        if masks is None or not masks.has(row):
            return None
        try:
            return bytes(masks.read(row))
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask cannot be read: {error}") from error

    def read_ahead(
        self, images: Iterable[int], *, with_masks: bool = False, check_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to fetch what is not on this machine of images that are read next, in this order.

        Args:
            images: one that is named twice is kept until it was read twice.
            with_masks: whether each image's mask is read after it.
            check_stop: called while a server is waited for; raises when the job is to stop.
        """
        self.begin_window(check_stop)
        for number, row in map(self._locate, images):
            part = self.parts[number]
            part.images.read_ahead([row])
            if with_masks and part.masks is not None:
                part.masks.read_ahead([row])

    def in_blocks(self, indices: Iterable[int]) -> Iterator[int]:
        """Yield the indices of images that are read one after the other, and read some images ahead."""
        remaining = iter(indices)
        while block := list(islice(remaining, _BLOCK)):
            self.read_ahead(block)
            yield from block

    def known_digest(self, index: int, *, of_mask: bool = False) -> str | None:
        """Return the SHA-256 of the encoded image, or of its mask, as 64 hex digits, if it is known without reading.

        None also if it is unreadable.
        """
        number, row = self._locate(index)
        part = self.parts[number]
        if part.known is None:
            return None
        digests = part.known.mask_digests if of_mask else part.known.digests
        if digests is None or (of_mask and (part.masks is None or not part.masks.has(row))):
            return None
        digest = digests[row].tobytes()
        return None if digest == UNREADABLE else digest.hex()

    def known_size(self, index: int) -> tuple[int, int] | None:
        """Return the upright width and height of an image if they are known without reading it."""
        number, row = self._locate(index)
        known = self.parts[number].known
        if known is None or known.sizes is None:
            return None
        width, height = known.sizes[row].tolist()
        return (width, height) if width and height else None

    def known_sizes(self) -> npt.NDArray[np.int32] | None:
        """Return the upright width and height of each of `image_indices()` if all are known; zeros if unreadable."""
        sizes = [part.known.sizes for part in self.parts if part.known is not None and part.known.sizes is not None]
        return np.concatenate(sizes) if len(sizes) == len(self.parts) else None

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the image's captions, at least one; a caption may be empty."""
        number, row = self._locate(index)
        part = self.parts[number]
        value = part.captions[row].as_py()
        return (value,) if isinstance(value, str) else tuple(value)

    def name(self, index: int) -> str:
        """Return the image's name for messages: its file name, else its row."""
        number, row = self._locate(index)
        part = self.parts[number]
        return part.images.name(row)

    def picked(self, images: Iterable[int], *, repeated: bool = True) -> ImageDataset:
        """Return a dataset of some of the images. Its fingerprint stays that of the whole dataset.

        Args:
            images: their numbers, counted from 0 without repeats; at least one.
            repeated: False takes each image once, without its repeats.
        """
        wanted, start, parts = sorted(images), 0, []
        for part in self.parts:
            end = start + len(part.images)
            rows = wanted[bisect_left(wanted, start) : bisect_left(wanted, end)]
            if rows:
                own = part.picked([row - start for row in rows])
                parts.append(own if repeated else replace(own, repeats=1))
            start = end
        return replace(self, parts=tuple(parts), ends=ends_of(parts), selection=_name_of(wanted))

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the part that a row is in, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        return number, (index - self._start(number)) % len(self.parts[number].images)

    def _start(self, number: int) -> int:
        return self.ends[number - 1] if number else 0


def none_readable(what: str, dataset: ImageDataset, name: str, reason: str) -> str:
    """Return the message for a dataset, called `what`, without a readable image; `name` and `reason` are an example."""
    num_images, names = dataset.num_images, dataset.names
    if num_images == 1:
        return (
            f"{what}: its only {names.noun}, {name}, is not readable ({reason}); save it as {names.readable}, "
            "or take another"
        )
    return (
        f"{what}: none of its {num_images:,} {names.several} is readable, such as {name} ({reason}); "
        f"save them as {names.readable}, or take others"
    )


def _name_of(images: Iterable[int]) -> str:
    """Return the SHA-256 of the images' indices, as 64 hex digits."""
    return hashlib.sha256(np.fromiter(images, dtype="<i8").tobytes()).hexdigest()


def ends_of(parts: Sequence[Rows]) -> tuple[int, ...]:
    """Return after how many visits of an epoch each part ends."""
    return tuple(accumulate(len(part.images) * part.repeats for part in parts))
