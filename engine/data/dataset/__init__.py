"""Name, folder or URL -> `ImageDataset`: rows of an encoded image and its captions, fingerprinted by their content."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np

from engine.core.errors import DatasetError
from engine.core.limits import Limits
from engine.data.dataset.captions.caption_files import is_text_beside
from engine.data.dataset.captions.caption_notes import caption_notes
from engine.data.dataset.columns import Columns, arrow_kinds
from engine.data.dataset.fingerprints import fingerprint as fingerprint
from engine.data.dataset.fingerprints import pinned, remembered_fingerprint
from engine.data.dataset.folder.folders import Report, read_local
from engine.data.dataset.reach import Reach
from engine.data.dataset.rows import NO_CAPTION as NO_CAPTION
from engine.data.dataset.rows import Rows, rows_from_arrow
from engine.data.dataset.tables.tables import Source
from engine.data.media.transforms import UnreadableImage
from engine.task.paths import nearest
from engine.task.task import Task

MAX_EPOCH_VISITS: Final = 100_000_000
"""An epoch's permutation is in memory; a folder's name must not be able to ask for more of it than there is."""
_DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """Rows of images and captions where they lie on disk; reads nothing until asked, holds no image.

    `fingerprint` is 64 hex digits over every row's encoded image and captions, in order: equal content has an equal
    fingerprint in any folder and any table format. `revision` is the Hub commit, None for data from elsewhere.
    """

    parts: tuple[Rows, ...]
    ends: tuple[int, ...]
    fingerprint: str
    revision: str | None
    selection: str | None = None
    """Names the images that `picked` took, where these are not all."""

    def __len__(self) -> int:
        """How many visits an epoch has: an image that is repeated counts so often."""
        return self.ends[-1]

    @property
    def num_images(self) -> int:
        return sum(len(part.images) for part in self.parts)

    @property
    def caption_rules(self) -> dict[str, int]:
        """Where the captions come from: rule -> number of images, in the order of the rows."""
        rules: Counter[str] = Counter()
        for part in self.parts:
            rules.update({name: len(rows) for name, rows in part.rules} or {part.label: len(part.images)})
        return dict(rules)

    def image_index(self, index: int) -> int:
        """The first row that shows the same image: one of its repeats stands for all of them."""
        number, row = self._locate(index)
        return self._start(number) + row

    def image_indices(self) -> Iterator[int]:
        """The rows without their repeats."""
        for number, part in enumerate(self.parts):
            start = self._start(number)
            yield from range(start, start + len(part.images))

    def image_bytes(self, index: int) -> bytes:
        """The image as it was encoded (PNG, JPEG, …). Raises UnreadableImage where there is none."""
        number, row = self._locate(index)
        part = self.parts[number]
        data = bytes(part.images.read(row))
        if not data:
            raise UnreadableImage("the file is empty")
        return data

    def mask_bytes(self, index: int) -> bytes | None:
        """The mask as it was encoded; None where the dataset has none for this image. Raises UnreadableImage."""
        number, row = self._locate(index)
        masks = self.parts[number].masks
        if masks is None or not masks.has(row):
            return None
        try:
            return bytes(masks.read(row))
        except UnreadableImage as error:
            raise UnreadableImage(f"its mask cannot be read: {error}") from error

    def captions(self, index: int) -> tuple[str, ...]:
        """One caption or more; a caption may be empty."""
        number, row = self._locate(index)
        part = self.parts[number]
        value = part.captions[row].as_py()
        return (value,) if isinstance(value, str) else tuple(value)

    def name(self, index: int) -> str:
        """What messages call the image: its file name where it has one, else its row."""
        number, row = self._locate(index)
        part = self.parts[number]
        return part.images.name(row)

    def picked(self, images: Iterable[int], *, repeated: bool = True) -> ImageDataset:
        """Some of the images, numbered from 0 without their repeats, in the order of the rows; at least one.

        `repeated`: each with its repeats, else once. The fingerprint stays that of the whole.
        """
        wanted, start, parts = sorted(images), 0, []
        for part in self.parts:
            end = start + len(part.images)
            rows = wanted[bisect_left(wanted, start) : bisect_left(wanted, end)]
            if rows:
                own = part.picked([row - start for row in rows])
                parts.append(own if repeated else replace(own, repeats=1))
            start = end
        return ImageDataset(tuple(parts), _ends(parts), self.fingerprint, self.revision, _name_of(wanted))

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the part that a row is in, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        return number, (index - self._start(number)) % len(self.parts[number].images)

    def _start(self, number: int) -> int:
        return self.ends[number - 1] if number else 0


def open_dataset(
    task: Task,
    *,
    cache_dir: Path,
    revision: str | None,
    report: Report,
    limits: Limits = _DEFAULT_LIMITS,
    split: str | None = None,
) -> ImageDataset:
    """Open the task's dataset: `dataset.name` (a local path, else a Hub ID), or `dataset.url`.

    A local dataset's rows may name any local image, also by absolute path; a downloaded one's only files inside its
    own folder; nobody's may name a URL. A Hub dataset is opened at the commit `revision` (a chain's first task passes
    None: its main branch, resolved once). `report` takes lines for a person; `limits` bound
    downloads and what they unpack to. `split` is one by name instead of the training split.

    Raises DatasetError (not found, no such column, no rows, unsafe rows), TemporaryError (network or Hub trouble),
    OutputError (the cache cannot be written).
    """
    dataset = _open(task, cache_dir=cache_dir, revision=revision, report=report, limits=limits, split=split)
    if split is None:
        for line in caption_notes(dataset.parts):
            report(line)
        if task.dataset.joins_lines and not any(map(is_text_beside, dataset.caption_rules)):
            report('dataset: caption_lines "joined" has no effect: no text files beside images are read')
    return dataset


def _open(
    task: Task, *, cache_dir: Path, revision: str | None, report: Report, limits: Limits, split: str | None
) -> ImageDataset:
    wanted = task.dataset
    columns = Columns(wanted.image_column, wanted.caption_column, wanted.fallback_caption, wanted.mask_column)
    max_bytes = limits.max_dataset_bytes
    source = Source(columns, Reach(), cache_dir, max_bytes, split, wanted.config_name, wanted.joins_lines)
    if not wanted.name:
        return _open_url(task, source, report, limits)
    path = Path(wanted.name)
    if path.exists():
        return _dataset(read_local(path, source, report), wanted.repeats, cache_dir)
    if path.is_absolute() or wanted.name.startswith("."):
        raise DatasetError(f"dataset.name is {wanted.name!r}: there is no such folder or file{nearest(path)}")
    return _open_hub(task, source, revision, report)


def _open_url(task: Task, source: Source, report: Report, limits: Limits) -> ImageDataset:
    from engine.data.fetch import fetch_dataset

    folder = fetch_dataset(str(task.dataset.url), source.cache_dir, report=report, limits=limits)
    parts = read_local(folder, replace(source, reach=Reach.within(folder)), report)
    return _dataset(parts, task.dataset.repeats, source.cache_dir)


def _open_hub(task: Task, source: Source, revision: str | None, report: Report) -> ImageDataset:
    from engine.data.dataset.hub import load_hub_table

    name, columns = str(task.dataset.name), source.columns
    table, reach, commit, files = load_hub_table(
        name, source.config_name, revision, columns, cache_dir=source.cache_dir, report=report, wanted=source.split
    )
    kinds = arrow_kinds(table.schema)
    image, _ = columns.pick(kinds, name)
    if kinds[image] != "images":
        raise DatasetError(f"column {image!r} of {name} (dataset.image_column) holds {kinds[image]}, not images")
    rows = rows_from_arrow(table, columns, folder=Path("/"), reach=reach, label=name, files=files)
    return _dataset((rows,), task.dataset.repeats, source.cache_dir, revision=commit)


def _dataset(parts: Sequence[Rows], repeats: int, cache_dir: Path, *, revision: str | None = None) -> ImageDataset:
    parts = pinned([replace(part, repeats=part.repeats * repeats) for part in parts if len(part.images)])
    if not parts:
        raise DatasetError("the dataset has no rows")
    ends = _ends(parts)
    if ends[-1] > MAX_EPOCH_VISITS and any(part.repeats > 1 for part in parts):
        raise DatasetError(
            f"with its repeats an epoch of the dataset has {ends[-1]:,} visits, more than {MAX_EPOCH_VISITS:,}: "
            "repeat less (dataset.repeats, folders called N_name)"
        )
    return ImageDataset(parts, ends, remembered_fingerprint(parts, cache_dir), revision)


def none_readable(what: str, num_images: int, name: str, reason: str) -> str:
    """What to do about a dataset, called `what`, of whose images none is readable, such as the one of this name."""
    if num_images == 1:
        return f"{what}: its only image, {name}, is not readable ({reason}); save it as PNG or JPEG, or take another"
    return (
        f"{what}: none of its {num_images:,} images is readable, such as {name} ({reason}); "
        "save them as PNG or JPEG, or take others"
    )


def _name_of(images: Iterable[int]) -> str:
    """64 hex digits that no other images have."""
    return hashlib.sha256(np.fromiter(images, dtype="<i8").tobytes()).hexdigest()


def _ends(parts: Sequence[Rows]) -> tuple[int, ...]:
    """After how many visits of an epoch each part ends."""
    return tuple(accumulate(len(part.images) * part.repeats for part in parts))
