"""Read the sizes of all samples of a dataset from their headers, and cache them. No torch."""

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
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium
from engine.task.plan.extent import Extent

UNREADABLE: Final = Extent(0, 0, 0)
_FORMAT: Final = "sd-lora-task image sizes v1"


def read_extents(dataset: ImageDataset, medium: Medium, cache_dir: Path) -> list[Extent]:
    """Return the upright size of each of `dataset.image_indices()`; `UNREADABLE` if it is unreadable.

    The sizes are cached in `cache_dir` under the dataset's fingerprint.
    """
    identity = canonical_json([_FORMAT, medium.reader_version, dataset.fingerprint, dataset.selection])
    note = cache_dir / "sizes" / hashlib.sha256(identity).hexdigest()
    found = _noted(note, identity, dataset.num_images, medium)
    if found is None:
        found = []
        meter = Meter("reading sizes", "images", dataset.num_images)
        try:
            for done, index in enumerate(dataset.image_indices(), start=1):
                found.append(_extent(dataset, medium, index))
                meter.update(done)
        finally:
            meter.close()
        _note(note, identity, found, medium)
    return found


def _extent(dataset: ImageDataset, medium: Medium, index: int) -> Extent:
    try:
        return medium.measure(dataset.image_bytes(index))
    except UnreadableImage:  # it was unreadable for the fingerprint too, else the dataset raises DatasetError
        return UNREADABLE


def _noted(note: Path, identity: bytes, count: int, medium: Medium) -> list[Extent] | None:
    """Return the sizes that an earlier job cached for the same samples; None if the file is missing or damaged."""
    payload = None
    with contextlib.suppress(OSError):
        payload = atomic_files.unseal(note.read_bytes())
    parts = _num_parts(medium)
    if payload is None or not payload.startswith(identity) or len(payload) != len(identity) + 4 * parts * count:
        return None
    values = np.frombuffer(payload, dtype="<i4", offset=len(identity)).reshape(count, parts)
    return [Extent(*value) if any(value) else UNREADABLE for value in values.tolist()]


def _note(note: Path, identity: bytes, extents: Sequence[Extent], medium: Medium) -> None:
    # If the file cannot be written, the next job reads the headers again.
    values = np.array(extents, dtype="<i4").reshape(len(extents), 3)[:, : _num_parts(medium)]
    atomic_files.write_cached(note, atomic_files.seal(identity + values.tobytes()))


def _num_parts(medium: Medium) -> int:
    """Return how many numbers of a size are cached: images have one frame each."""
    return 3 if medium.has_frames else 2
