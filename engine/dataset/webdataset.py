"""WebDataset tars -> rows, read where they lie: nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, cast

from ..errors import DatasetError
from ..limits import MAX_HEADER_BYTES, refuse_endless_number
from ..quoting import short
from .columns import Columns, kind_of
from .images import TarMembers, is_image_name
from .rows import Rows, captions_from_values, parse_object

MAX_TEXT_BYTES: Final = 1 << 20


def read_tar(path: Path, columns: Columns, label: str) -> Rows:
    """A WebDataset tar: members `key.ext` of one key are a sample; a column is an extension, or a key of its `.json`.

    Where the task leaves the columns at `image` and `text`, they mean the first image and the `.txt` of each sample.
    """
    samples: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    # Plain tar only ("r:"): a compressed one has no random access, and unpacking is the business of fetch.
    with _Headers(path) as file, tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as tar:
        end = path.stat().st_size
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen: a gigabyte per million
            key, _, extension = _split_key(member.name)
            if not member.isreg() or member.sparse is not None or not extension:
                continue
            if member.offset_data + member.size > end:
                raise DatasetError(f"{label} ends in the middle of {short(member.name)}: it is truncated")
            fields = samples.setdefault(key, {})
            if extension in fields:
                raise DatasetError(f"{label} holds {short(member.name)} twice")
            _add_field(file, member, extension, fields, kinds)
    columns = _tar_columns(columns, kinds)
    image, _ = columns.pick(kinds, label)
    columns = replace(columns, mask=columns.pick_mask(kinds, label))
    return _tar_rows(path, samples, image, columns, label)


def _split_key(name: str) -> tuple[str, str, str]:
    """`a/b.c.txt` -> (`a/b`, `.`, `c.txt`), as WebDataset splits names; hidden files have no extension."""
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (f"{folder}/{stem}", dot, extension.lower() if stem else "")


class _Headers(io.FileIO):
    """A tar as tarfile reads it: one that lies about the size of a header would be read into memory whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise DatasetError(f"it has a member with more than {MAX_HEADER_BYTES:,} bytes of headers; pack it again")
        header = super().read(size) or b""
        refuse_endless_number(header)
        return header


def _add_field(
    file: io.FileIO, member: tarfile.TarInfo, extension: str, fields: dict[str, Any], kinds: dict[str, str]
) -> None:
    """Note where an image lies; read a text. Anything else is only noted as being there."""
    if is_image_name(f".{extension}"):
        fields[extension] = (member.offset_data, member.size, member.name)
        kinds[extension] = "images"
        return
    fields[extension] = None
    if extension not in ("txt", "caption", "text", "json") or member.size > MAX_TEXT_BYTES:
        kinds.setdefault(extension, "other data")
        return
    data = os.pread(file.fileno(), member.size, member.offset_data)
    if extension == "json":
        fields["json"] = values = parse_object(data, short(member.name))
        kinds.update({name: kind_of(value) for name, value in values.items() if kinds.get(name, "null") == "null"})
    else:
        try:
            fields[extension] = data.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{short(member.name)} is not UTF-8 text: byte {data[error.start]:#04x}") from None
        kinds[extension] = "text"


def _tar_columns(wanted: Columns, kinds: Mapping[str, str]) -> Columns:
    image, caption = wanted.image, wanted.caption
    if image == "image" and image not in kinds:
        image = next((name for name, kind in kinds.items() if kind == "images" and name != wanted.mask), image)
    if caption == "text" and caption not in kinds:
        caption = next((name for name in ("txt", "caption") if name in kinds), caption)
    return replace(wanted, image=image, caption=caption)


def _tar_rows(path: Path, samples: dict[str, dict[str, Any]], image: str, columns: Columns, label: str) -> Rows:
    images, masks, captions, mask = _Places(path), _Places(path), [], columns.mask
    for key, fields in samples.items():
        place = fields.get(image)
        if not isinstance(place, tuple):
            place = next((fields[name] for name in fields if isinstance(fields[name], tuple) and name != mask), None)
        if place is None:
            raise DatasetError(f"sample {short(key)} of {label} has no image")
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
    """Where members of a tar lie."""

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
