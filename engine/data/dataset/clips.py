"""Read what is known of all clips of a dataset without decoding them, and cache it. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from engine.core.canonical_json import canonical_json
from engine.core.console import Meter
from engine.core.files import atomic_files
from engine.data.dataset.dataset import ImageDataset
from engine.data.dataset.sizes import UNREADABLE
from engine.data.media.clip_facts import ClipFacts
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium, ReadFacts
from engine.task.plan.extent import Extent

Clip = ClipFacts | str
"""What is known of a clip, or the reason why it is unreadable."""
_FORMAT: Final = "sd-lora-task clips v1"


def read_clips(dataset: ImageDataset, medium: Medium, read: ReadFacts, cache_dir: Path) -> list[Clip]:
    """Return what is known of each of `dataset.image_indices()`, cached in `cache_dir` under the dataset's fingerprint.

    `read` is `medium.read_facts`. Raises DatasetError if a clip changes meanwhile.
    """
    identity = canonical_json([_FORMAT, medium.reader_version, dataset.fingerprint, dataset.selection])
    note = cache_dir / "sizes" / hashlib.sha256(identity).hexdigest()
    found = _noted(note, identity, dataset.num_images)
    if found is None:
        found = []
        meter = Meter("reading clips", medium.names.several, dataset.num_images)
        try:
            for done, index in enumerate(dataset.image_indices(), start=1):
                found.append(_read(dataset, read, index))
                meter.update(done)
        finally:
            meter.close()
        # If the file cannot be written, the next job reads the clips again.
        values = [one if isinstance(one, str) else _as_json(one) for one in found]
        atomic_files.write_cached(note, atomic_files.seal(identity + json.dumps(values).encode()))
    return found


def extents_of(clips: Sequence[Clip]) -> list[Extent]:
    """Return the size of each clip; `UNREADABLE` for an unreadable one."""
    return [UNREADABLE if isinstance(clip, str) else clip.extent for clip in clips]


def _read(dataset: ImageDataset, read: ReadFacts, index: int) -> Clip:
    try:
        return read(dataset.image_bytes(index))
    except UnreadableImage as error:
        return str(error)


def _noted(note: Path, identity: bytes, count: int) -> list[Clip] | None:
    """Return what an earlier job cached for the same clips; None if the file is missing or damaged."""
    payload = None
    with contextlib.suppress(OSError):
        payload = atomic_files.unseal(note.read_bytes())
    if payload is None or not payload.startswith(identity):
        return None
    values: Sequence[Any] = json.loads(payload[len(identity) :])
    return [one if isinstance(one, str) else _parsed(one) for one in values] if len(values) == count else None


def _as_json(facts: ClipFacts) -> dict[str, Any]:
    rate = facts.file_rate
    return asdict(facts) | {"file_rate": None if rate is None else [rate.numerator, rate.denominator]}


def _parsed(value: dict[str, Any]) -> ClipFacts:
    rate = value.pop("file_rate")
    return ClipFacts(**value, file_rate=None if rate is None else Fraction(*rate))
