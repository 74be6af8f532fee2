"""Read the sizes of all samples of a dataset from their headers, and the facts about clips; cache them. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from engine.core.canonical_json import canonical_json
from engine.core.console import Meter
from engine.core.files import atomic_files
from engine.data.dataset.dataset import ImageDataset
from engine.data.media.clip_facts import ClipFacts
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium, ReadFacts
from engine.task.plan.extent import Extent

UNREADABLE: Final = Extent(0, 0, 0)
_FORMAT: Final = "sd-lora-task image sizes v1"
_FACTS_FORMAT: Final = "sd-lora-task clips v1"
Clip = ClipFacts | str
"""A clip's facts, or the reason why it is unreadable."""
T = TypeVar("T")


def read_extents(dataset: ImageDataset, medium: Medium, cache_dir: Path) -> list[Extent]:
    """Return the upright size of each of `dataset.image_indices()`; `UNREADABLE` if it is unreadable.

    The sizes are cached in `cache_dir` under the dataset's fingerprint.
    """
    known = dataset.known_sizes()
    if known is not None:
        return [Extent(*size) if any(size) else UNREADABLE for size in known.tolist()]
    identity, note = _note(_FORMAT, dataset, medium, cache_dir)
    found = _noted_extents(_unsealed(note, identity), dataset.num_images, medium)
    if found is None:
        found = _of_each(dataset, medium.measure, lambda error: UNREADABLE)
        values = np.array(found, dtype="<i4").reshape(len(found), 3)[:, : _num_parts(medium)]
        _seal(note, identity, values.tobytes())
    return found


def read_clips(dataset: ImageDataset, medium: Medium, read_facts: ReadFacts, cache_dir: Path) -> list[Clip]:
    """Return the facts about each of `dataset.image_indices()`, or the reason why it is unreadable.

    `read_facts` is the medium's. The facts are cached in `cache_dir` under the dataset's fingerprint.
    """
    identity, note = _note(_FACTS_FORMAT, dataset, medium, cache_dir)
    found = _noted_clips(_unsealed(note, identity), dataset.num_images)
    if found is None:
        found = _of_each(dataset, read_facts, str)
        values = [one if isinstance(one, str) else _as_json(one) for one in found]
        _seal(note, identity, json.dumps(values).encode())
    return found


def extents_of(clips: Sequence[Clip]) -> list[Extent]:
    """Return the size of each clip; `UNREADABLE` for an unreadable one."""
    return [UNREADABLE if isinstance(clip, str) else clip.extent for clip in clips]


def _of_each(dataset: ImageDataset, read: Callable[[bytes], T], refused: Callable[[UnreadableImage], T]) -> list[T]:
    """Return what `read` returns for the bytes of each sample, or `refused` for an unreadable one."""
    found: list[T] = []
    meter = Meter("reading sizes", dataset.names.several, dataset.num_images)
    try:
        for done, index in enumerate(dataset.in_blocks(dataset.image_indices()), start=1):
            try:
                found.append(read(dataset.image_bytes(index)))
            except UnreadableImage as error:  # unreadable for the fingerprint too, else the dataset raises DatasetError
                found.append(refused(error))
            meter.update(done)
    finally:
        meter.close()
    return found


def _note(format_name: str, dataset: ImageDataset, medium: Medium, cache_dir: Path) -> tuple[bytes, Path]:
    """Return the identity of what is cached for a dataset, and the file that it is cached in."""
    identity = canonical_json([format_name, medium.reader_version, dataset.fingerprint, dataset.selection])
    return identity, cache_dir / "sizes" / hashlib.sha256(identity).hexdigest()


def _seal(note: Path, identity: bytes, payload: bytes) -> None:
    # If the file cannot be written, the next job reads the headers again.
    atomic_files.write_cached(note, atomic_files.seal(identity + payload))


def _unsealed(note: Path, identity: bytes) -> bytes | None:
    """Return what an earlier job cached for the same samples; None if the file is missing or damaged."""
    payload = None
    with contextlib.suppress(OSError):
        payload = atomic_files.unseal(note.read_bytes())
    return payload.removeprefix(identity) if payload is not None and payload.startswith(identity) else None


def _noted_extents(payload: bytes | None, count: int, medium: Medium) -> list[Extent] | None:
    parts = _num_parts(medium)
    if payload is None or len(payload) != 4 * parts * count:
        return None
    values = np.frombuffer(payload, dtype="<i4").reshape(count, parts)
    return [Extent(*value) if any(value) else UNREADABLE for value in values.tolist()]


def _num_parts(medium: Medium) -> int:
    """Return how many numbers of a size are cached: images have one frame each."""
    return 3 if medium.has_frames else 2


def _noted_clips(payload: bytes | None, count: int) -> list[Clip] | None:
    values: Sequence[Any] = json.loads(payload or b"[]")
    return [one if isinstance(one, str) else _parsed(one) for one in values] if len(values) == count else None


def _as_json(facts: ClipFacts) -> dict[str, Any]:
    rate = facts.file_rate
    return asdict(facts) | {"file_rate": None if rate is None else [rate.numerator, rate.denominator]}


def _parsed(value: dict[str, Any]) -> ClipFacts:
    rate = value.pop("file_rate")
    return ClipFacts(**value, file_rate=None if rate is None else Fraction(*rate))
