"""Make the index of a WebDataset tar: which members are one sample, where its image is, and its captions."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from engine.core.console import Meter
from engine.core.errors import DatasetError, TemporaryError
from engine.core.files.folder_names import composed
from engine.core.messages import short
from engine.data.dataset.columns import Columns, kind_of
from engine.data.dataset.images import MAX_IMAGE_FILE_BYTES, UNREADABLE
from engine.data.dataset.rows import captions_from_values, parse_object
from engine.data.dataset.tables.tar_headers import Member, Nearby, members
from engine.data.media.medium import Medium

MAX_TEXT_BYTES: Final = 1 << 20
_TEXTS: Final = ("txt", "caption", "text", "json")
_NO_MEMBER: Final[Member] = ("", 0, 0)


def make_index(path: Path, columns: Columns, label: str, *, joins_lines: bool = False) -> pa.RecordBatch:
    """Read a WebDataset tar once and return its index (see tar_index.py).

    The members `key.ext` with the same key are one sample; the columns are its extensions and the keys of its `.json`.
    The key ends at the first dot of a name. If only the last dot gives each image a text, as in `2024.01 cat.jpg` and
    `2024.01 cat.txt`, the key ends there, and texts are read like caption files (with `joins_lines` as one caption).
    The default columns `image` (or `video`) and `text` mean the first image (clip) and the `.txt` or `.caption` of each
    sample. A still beside a clip, such as its thumbnail, is not used.

    Raises:
        DatasetError: a column is missing, a sample has no image or no caption, or the tar is truncated.
        TemporaryError: an image cannot be read.
        tarfile.TarError: it is no tar, or damaged.
        OSError: the tar cannot be opened, or its headers cannot be read.
    """
    with path.open("rb") as file:
        descriptor = file.fileno()
        samples, kinds = _samples(descriptor, columns.medium, label, joins_lines=joins_lines)
        columns = _tar_columns(columns, kinds)
        image, _ = columns.pick(kinds, label)
        columns = replace(columns, mask=columns.pick_mask(kinds, label))
        images, masks, captions = _rows(samples, image, columns, label)
        found = _member_columns("", images, descriptor, label)
        if columns.mask:
            found |= _member_columns("mask_", masks, descriptor, label)
    texts, rules = captions_from_values(captions, columns, label)
    has_own = np.ones(len(images), np.uint8)
    if rules:
        has_own[:] = 0
        has_own[dict(rules).get(label, [])] = 1
    found["caption"] = texts.combine_chunks()
    found["has_own_caption"] = _array(pa.uint8(), len(images), has_own)
    return pa.record_batch(list(found.values()), names=list(found))


def _samples(
    descriptor: int, medium: Medium, label: str, *, joins_lines: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the fields of each sample by their extensions, and what each extension holds."""
    samples: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    near = Nearby(descriptor)
    found = [(member, *_split_key(member[0])) for member in members(descriptor, label)]
    found = [one for one in found if one[2]]
    in_lines = False
    if not _has_texts(found, medium):
        by_last_dot = [(member, *_split_last(member[0])) for member, _, _ in found]
        in_lines = _has_texts(by_last_dot, medium)
        found = by_last_dot if in_lines else found
    for member, key, extension in found:
        fields = samples.setdefault(key, {})
        if extension in fields:
            raise DatasetError(f"{label} contains {short(member[0])} twice")
        _add_field(near, member, extension, fields, kinds, medium=medium, in_lines=in_lines)
        if in_lines and joins_lines and isinstance(fields[extension], list):
            fields[extension] = " ".join(fields[extension])
    return samples, kinds


def _split_key(name: str) -> tuple[str, str]:
    """`a/b.c.txt` -> (`a/b`, `c.txt`), as WebDataset splits names; hidden files have no extension."""
    folder, _, base = composed(name).rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}", extension.lower() if stem else ""


def _split_last(name: str) -> tuple[str, str]:
    """`a/b.c.txt` -> (`a/b.c`, `txt`)."""
    stem, _, extension = composed(name).rpartition(".")
    return stem, extension.lower()


def _has_texts(found: Sequence[tuple[Member, str, str]], medium: Medium) -> bool:
    """Return whether there are images, and a text for each, among members with their keys and extensions."""
    images, texts = set[str](), set[str]()
    for _, key, extension in found:
        if medium.has_name(extension):
            images.add(key)
        elif extension in _TEXTS:
            texts.add(key)
    return bool(images) and images <= texts


def _add_field(
    near: Nearby,
    member: Member,
    extension: str,
    fields: dict[str, Any],
    kinds: dict[str, str],
    *,
    medium: Medium,
    in_lines: bool,
) -> None:
    """Add a member to its sample's `fields`: an image's `Member`, or a text. Other data is None."""
    name, offset, size = member
    if medium.has_name(extension):
        fields[extension] = member
        kinds[extension] = "images"
        return
    fields[extension] = None
    if extension not in _TEXTS or size > MAX_TEXT_BYTES:
        kinds.setdefault(extension, "other data")
        return
    data = near.read(offset, size).removeprefix(codecs.BOM_UTF8)
    if extension == "json":
        fields["json"] = values = parse_object(data, short(name))
        unknown = {name: value for name, value in values.items() if kinds.get(name, "null") == "null"}
        kinds.update({name: kind_of(value, medium) for name, value in unknown.items()})
    else:
        try:
            text = data.decode()
            fields[extension] = _lines(text) if in_lines else text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{short(name)} is not UTF-8 text: byte {data[error.start]:#04x}") from None
        kinds[extension] = "text"


def _lines(text: str) -> list[str]:
    """Return the lines of a text that are not blank, each a caption, as in a text file beside an image."""
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    return [line for line in lines if line] or [""]


def _tar_columns(wanted: Columns, kinds: Mapping[str, str]) -> Columns:
    image, caption = wanted.image, wanted.caption
    if image == wanted.medium.names.default_column and image not in kinds:
        samples = [name for name, kind in kinds.items() if kind == "images" and name != wanted.mask]
        image = next(iter(_stills_last(samples, wanted.medium)), image)
    if caption == "text" and caption not in kinds:
        caption = next((name for name in ("txt", "caption") if name in kinds), caption)
    return replace(wanted, image=image, caption=caption)


def _stills_last(extensions: Sequence[str], medium: Medium) -> list[str]:
    """Return the extensions of samples, those of still images beside another kind of samples after the others."""
    return sorted(extensions, key=lambda name: f".{name.rpartition('.')[2]}" in medium.still_suffixes)


def _rows(
    samples: Mapping[str, Mapping[str, Any]], image: str, columns: Columns, label: str
) -> tuple[list[Member], list[Member], list[Any]]:
    """Return the image, the mask and the caption of each sample. Raises DatasetError if one has no image."""
    images: list[Member] = []
    masks: list[Member] = []
    captions, mask = [], columns.mask
    for key, fields in samples.items():
        member = fields.get(image)
        if not isinstance(member, tuple):
            others = [name for name in fields if isinstance(fields[name], tuple) and name != mask]
            member = next((fields[name] for name in _stills_last(others, columns.medium)), None)
        if member is None:
            raise DatasetError(f"sample {short(key)} of {label} has no {columns.medium.names.noun}")
        images.append(member)
        if mask:
            masks.append(fields[mask] if isinstance(fields.get(mask), tuple) else _NO_MEMBER)
        found = fields.get(columns.caption, (fields.get("json") or {}).get(columns.caption))
        if found is None and columns.caption == "txt":
            found = fields.get("caption")
        captions.append(found)
    return images, masks, captions


# --- Arrays -----------------------------------------------------------------------------------------------------------


def _member_columns(prefix: str, found: Sequence[Member], descriptor: int, label: str) -> dict[str, pa.Array]:
    """Return the columns of an index that tell where members are, and their digests."""
    count = len(found)
    names = [name.encode("utf-8", "surrogateescape") for name, _, _ in found]
    ends = np.cumsum([0, *map(len, names)], dtype=np.int32)
    offsets = np.array([offset for _, offset, _ in found], dtype=np.int64)
    sizes = np.array([size for _, _, size in found], dtype=np.int64)
    return {
        f"{prefix}offset": _array(pa.int64(), count, offsets),
        f"{prefix}size": _array(pa.int64(), count, sizes),
        f"{prefix}name": _array(pa.binary(), count, ends, b"".join(names)),
        f"{prefix}sha256": _array(pa.binary(hashlib.sha256().digest_size), count, _digests(found, descriptor, label)),
    }


def _array(type_: pa.DataType, count: int, *buffers: Any) -> pa.Array:
    """Return an Arrow array without nulls. `pa.array` would import pandas, which takes a quarter of a second."""
    return pa.Array.from_buffers(type_, count, [None, *map(pa.py_buffer, buffers)])


# --- Digests ----------------------------------------------------------------------------------------------------------

_RUN_BYTES: Final = 4 << 20
_MANY_RUNS: Final = 4096  # 16 GiB
_CHUNK_BYTES: Final = 1 << 20


def _digests(found: Sequence[Member], descriptor: int, label: str) -> bytes:
    """Return the SHA-256 of each member, one after the other; `UNREADABLE` for one that is too large for an image."""
    runs = list(_runs(found))
    digest_run = partial(_digest_run, descriptor=descriptor, label=label)
    if len(runs) < 2:
        return b"".join(map(digest_run, runs))
    # hashlib releases the interpreter lock, so threads hash in parallel.
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        digests: Iterable[bytes] = pool.map(digest_run, runs)
        if len(runs) >= _MANY_RUNS:
            digests = Meter(f"reading {label}", "parts", len(runs)).over(digests)
        return b"".join(digests)


def _runs(found: Sequence[Member]) -> Iterator[Sequence[Member]]:
    """Yield the members in runs of some megabytes."""
    start = num_bytes = 0
    for index, (_, _, size) in enumerate(found, start=1):
        num_bytes += size
        if num_bytes >= _RUN_BYTES or index == len(found):
            yield found[start:index]
            start, num_bytes = index, 0


def _digest_run(run: Sequence[Member], *, descriptor: int, label: str) -> bytes:
    near = Nearby(descriptor, _CHUNK_BYTES)
    return b"".join(_digest(member, near, label) for member in run)


def _digest(member: Member, near: Nearby, label: str) -> bytes:
    """Return a member's SHA-256. Raises DatasetError if the tar was cut off meanwhile, TemporaryError."""
    name, offset, size = member
    if size > MAX_IMAGE_FILE_BYTES:
        return UNREADABLE
    digest = hashlib.sha256()
    try:
        for start in range(offset, offset + size, _CHUNK_BYTES):
            wanted = min(_CHUNK_BYTES, offset + size - start)
            data = near.read(start, wanted)
            if len(data) < wanted:
                raise DatasetError(f"{label} has changed while it was read; do not change a dataset while a job runs")
            digest.update(data)
    except OSError as error:
        where = f"{short(name)} of {label}"
        raise TemporaryError(f"{where} could not be read ({error.strerror}); run the same command again") from error
    return digest.digest()
