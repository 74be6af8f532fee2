"""Read the rows of WebDataset tars in place, without unpacking them."""

from __future__ import annotations

import io
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, cast

from engine.core.errors import DatasetError
from engine.core.files.folder_names import composed
from engine.core.limits import MAX_HEADER_BYTES, refuse_endless_number
from engine.core.messages import short
from engine.data.dataset.columns import Columns, kind_of
from engine.data.dataset.images import TarMembers
from engine.data.dataset.rows import Rows, captions_from_values, parse_object
from engine.data.media.medium import Medium

MAX_TEXT_BYTES: Final = 1 << 20
_TEXTS: Final = ("txt", "caption", "text", "json")


def read_tar(path: Path, columns: Columns, label: str, *, joins_lines: bool = False) -> Rows:
    """Return the rows of a WebDataset tar.

    The members `key.ext` with the same key are one sample; the columns are its extensions and the keys of its `.json`.
    The key ends at the first dot of a name. If only the last dot gives each image a text, as in `2024.01 cat.jpg` and
    `2024.01 cat.txt`, the key ends there, and texts are read like caption files (with `joins_lines` as one caption).
    The default columns `image` (or `video`) and `text` mean the first image (clip) and the `.txt` or `.caption` of each
    sample. A still beside a clip, such as its thumbnail, is not used.

    Raises DatasetError.
    """
    samples: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    with _Headers(path) as file:
        members = list(_members(file, path, label))
        medium = columns.medium
        in_lines = not _has_texts(members, _split_key, medium) and _has_texts(members, _split_last, medium)
        for member in members:
            key, extension = (_split_last if in_lines else _split_key)(member[0])
            fields = samples.setdefault(key, {})
            if extension in fields:
                raise DatasetError(f"{label} contains {short(member[0])} twice")
            _add_field(file, member, extension, fields, kinds, medium=medium, in_lines=in_lines)
            if in_lines and joins_lines and isinstance(fields[extension], list):
                fields[extension] = " ".join(fields[extension])
    columns = _tar_columns(columns, kinds)
    image, _ = columns.pick(kinds, label)
    columns = replace(columns, mask=columns.pick_mask(kinds, label))
    return _tar_rows(path, samples, image, columns, label)


Member = tuple[str, int, int]
"""A member's name, and the offset and size of its content in bytes."""


def _members(file: _Headers, path: Path, label: str) -> Iterator[Member]:
    """Yield the regular files of a tar. Raises DatasetError if it is truncated."""
    end = path.stat().st_size
    # Uncompressed only ("r:"): a compressed tar has no random access; engine/data/fetch unpacks those.
    with tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen: a gigabyte per million
            if not member.isreg() or member.sparse is not None or not _split_key(member.name)[1]:
                continue
            if member.offset_data + member.size > end:
                raise DatasetError(f"{label} ends in the middle of {short(member.name)}: it is truncated")
            yield member.name, member.offset_data, member.size


def _split_key(name: str) -> tuple[str, str]:
    """`a/b.c.txt` -> (`a/b`, `c.txt`), as WebDataset splits names; hidden files have no extension."""
    folder, _, base = composed(name).rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}", extension.lower() if stem else ""


def _split_last(name: str) -> tuple[str, str]:
    """`a/b.c.txt` -> (`a/b.c`, `txt`)."""
    stem, _, extension = composed(name).rpartition(".")
    return stem, extension.lower()


def _has_texts(members: Sequence[Member], split: Callable[[str], tuple[str, str]], medium: Medium) -> bool:
    """Return whether there are images, and a text for each, if names are split by `split`."""
    images, texts = set[str](), set[str]()
    for name, _, _ in members:
        key, extension = split(name)
        if medium.has_name(extension):
            images.add(key)
        elif extension in _TEXTS:
            texts.add(key)
    return bool(images) and images <= texts


class _Headers(io.FileIO):
    """A tar for tarfile that limits the size of headers: a header can claim a size that would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise DatasetError(f"it has a member with more than {MAX_HEADER_BYTES:,} bytes of headers; pack it again")
        header = super().read(size) or b""
        refuse_endless_number(header)
        return header


def _add_field(
    file: io.FileIO,
    member: Member,
    extension: str,
    fields: dict[str, Any],
    kinds: dict[str, str],
    *,
    medium: Medium,
    in_lines: bool,
) -> None:
    """Add a member to its sample's `fields`: an image's offset, size and name, or a text. Other data is None."""
    name, offset, size = member
    if medium.has_name(extension):
        fields[extension] = (offset, size, name)
        kinds[extension] = "images"
        return
    fields[extension] = None
    if extension not in _TEXTS or size > MAX_TEXT_BYTES:
        kinds.setdefault(extension, "other data")
        return
    data = os.pread(file.fileno(), size, offset)
    if extension == "json":
        fields["json"] = values = parse_object(data, short(name))
        unknown = {name: value for name, value in values.items() if kinds.get(name, "null") == "null"}
        kinds.update({name: kind_of(value, medium) for name, value in unknown.items()})
    else:
        try:
            text = data.decode("utf-8-sig")
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


def _tar_rows(path: Path, samples: dict[str, dict[str, Any]], image: str, columns: Columns, label: str) -> Rows:
    images, masks, captions, mask = _Places(path), _Places(path), [], columns.mask
    for key, fields in samples.items():
        place = fields.get(image)
        if not isinstance(place, tuple):
            others = [name for name in fields if isinstance(fields[name], tuple) and name != mask]
            place = next((fields[name] for name in _stills_last(others, columns.medium)), None)
        if place is None:
            raise DatasetError(f"sample {short(key)} of {label} has no {columns.medium.names.noun}")
        images.add(place)
        if mask:
            masks.add(fields[mask] if isinstance(fields.get(mask), tuple) else (0, 0, ""))
        found = fields.get(columns.caption, (fields.get("json") or {}).get(columns.caption))
        if found is None and columns.caption == "txt":
            found = fields.get("caption")
        captions.append(found)
    array_of_captions, rules = captions_from_values(captions, columns, label)
    return Rows(images.members(), array_of_captions, label, masks=masks.members() if mask else None, rules=rules)


class _Places:
    """The offsets, sizes and names of members of a tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets, self._sizes = array("q"), array("q")
        self._names: list[str] = []

    def add(self, place: tuple[int, int, str]) -> None:
        self._offsets.append(place[0])
        self._sizes.append(place[1])
        self._names.append(place[2])

    def members(self) -> TarMembers:
        return TarMembers(self._path, self._offsets, self._sizes, self._names)
