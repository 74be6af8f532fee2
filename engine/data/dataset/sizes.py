"""Read the sizes of all images of a dataset from their headers, and cache them. No torch."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from engine.core.canonical_json import canonical_json
from engine.core.console import Meter
from engine.core.files import atomic_files
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.geometry import Size, UnreadableImage
from engine.data.media.medium import Medium

_UNREADABLE: Final[Size] = (0, 0)
_FORMAT: Final = "sd-lora-task image sizes v1"


def read_sizes(dataset: ImageDataset, medium: Medium, cache_dir: Path) -> list[Size]:
    """Return the upright (width, height) in pixels of each of `dataset.image_indices()`; (0, 0) if it is unreadable.

    The sizes are cached in `cache_dir` under the dataset's fingerprint.
    """
    identity = canonical_json([_FORMAT, medium.reader_version, dataset.fingerprint, dataset.selection])
    note = cache_dir / "sizes" / hashlib.sha256(identity).hexdigest()
    found = _noted(note, identity, dataset.num_images)
    if found is None:
        found = []
        meter = Meter("reading sizes", "images", dataset.num_images)
        try:
            for done, index in enumerate(dataset.image_indices(), start=1):
                found.append(_size(dataset, medium, index))
                meter.update(done)
        finally:
            meter.close()
        _note(note, identity, found)
    return found


def _size(dataset: ImageDataset, medium: Medium, index: int) -> Size:
    try:
        return medium.read_size(dataset.image_bytes(index))
    except UnreadableImage:  # it was unreadable for the fingerprint too, else the dataset raises DatasetError
        return _UNREADABLE


def _noted(note: Path, identity: bytes, count: int) -> list[Size] | None:
    """Return the sizes that an earlier job cached for the same images; None if the file is missing or damaged."""
    payload = None
    with contextlib.suppress(OSError):
        payload = atomic_files.unseal(note.read_bytes())
    if payload is None or not payload.startswith(identity) or len(payload) != len(identity) + 8 * count:
        return None
    sides = np.frombuffer(payload, dtype="<i4", offset=len(identity)).reshape(count, 2)
    return [(width, height) for width, height in sides.tolist()]


def _note(note: Path, identity: bytes, sizes: Sequence[Size]) -> None:
    # If the file cannot be written, the next job reads the headers again.
    atomic_files.write_cached(note, atomic_files.seal(identity + np.array(sizes, dtype="<i4").tobytes()))
