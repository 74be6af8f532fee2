"""A table's columns: what each of them holds, and which of them the task asks for.

A `DatasetError` names the table, the column, and what is there instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from engine.core.errors import DatasetError
from engine.core.messages import shown
from engine.data.media.medium import Medium, suffix_of
from engine.data.media.sample_names import OF_VIDEOS
from engine.data.media.video.signatures import SUFFIXES

_MAX_LISTED: Final = 6
_DEFAULT_CAPTION: Final = "text"
_MUSUBI_CAPTION: Final = "caption"
_SEVERAL: Final = "several columns of one name"


class NoSuchColumnError(DatasetError):
    """A table lacks the columns asked for; it may not belong to the dataset at all."""

    def __init__(self, message: str, kinds: Mapping[str, str], medium: Medium) -> None:
        super().__init__(message)
        self.names_images = "images" in kinds.values() or any(map(medium.has_name, kinds))
        """True if a column holds images or is named after an image format: the table may belong to the dataset."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that the task asks for, and the medium of the samples in them."""

    image: str
    caption: str
    medium: Medium
    fallback: str | None = None
    """The caption of a row that has none; None makes such a row an error."""
    mask: str | None = None
    """The column of masks, if any."""

    def pick_mask(self, kinds: Mapping[str, str], label: str) -> str | None:
        """Return the mask column's name in a table; None if the task asks for no masks. Raises NoSuchColumnError."""
        if self.mask is None:
            return None
        for name in (self.mask, f"{self.mask}_file_name"):
            if kinds.get(name) in ("images", "text", "null"):
                return name
        raise NoSuchColumnError(
            f"{label} has no column {self.mask!r} of images (dataset.mask_column); "
            f"its columns: {listed(kinds, self.medium)}",
            kinds,
            self.medium,
        )

    @property
    def image_spellings(self) -> tuple[str, ...]:
        """The names that the image column may have: an imagefolder's metadata calls it `file_name`."""
        names = self.medium.names
        others = names.other_columns if self.image == names.default_column else ()
        return (self.image, f"{self.image}_file_name", *others)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that one of the columns may have."""
        masks = (self.mask, f"{self.mask}_file_name") if self.mask else ()
        captions = (_MUSUBI_CAPTION,) if self.medium.names.musubi_columns else ()
        return tuple(dict.fromkeys((*self.image_spellings, self.caption, *captions, *masks)))

    def pick(self, kinds: Mapping[str, str], label: str) -> tuple[str, str]:
        """Return the names of the image column and of the caption column in a table.

        Args:
            kinds: what every column holds: "images", "text", or its type.
            label: the table's name in messages.

        Raises:
            NoSuchColumnError: one of the two is missing; lists the table's columns.
            DatasetError: the caption column is there twice, or the image column holds something else.
        """
        found = [name for name in self.image_spellings if name in kinds]
        caption = self._caption_beside(found, kinds)
        key = self.medium.names.column_key
        for name, asked_by, there in (
            (self.image, key, found),
            (self.caption, "caption_column", caption in kinds),
        ):
            if not there and (asked_by == key or self.fallback is None):
                raise NoSuchColumnError(
                    f"{label} has no column {name!r} (dataset.{asked_by}); its columns: {listed(kinds, self.medium)}",
                    kinds,
                    self.medium,
                )
        if kinds.get(caption) == _SEVERAL:
            raise DatasetError(f"{label} has {_SEVERAL}: {caption!r}")
        if kinds[found[0]] not in ("images", "text"):
            raise DatasetError(
                f"column {found[0]!r} of {label} (dataset.{key}) holds {kinds[found[0]]}, not "
                f"{self.medium.names.several}; its columns: {listed(kinds, self.medium)}"
            )
        return found[0], caption

    def _caption_beside(self, found: Sequence[str], kinds: Mapping[str, str]) -> str:
        """Return the name of the caption column, which is `caption` in lists for musubi-tuner."""
        is_musubis = found[:1] and found[0] in self.medium.names.musubi_columns
        if is_musubis and self.caption == _DEFAULT_CAPTION and self.caption not in kinds:
            return _MUSUBI_CAPTION
        return self.caption


def listed(kinds: Mapping[str, str], medium: Medium) -> str:
    """Return a table's first columns for a message, each with what it holds; names with outer blanks are quoted."""
    few = [
        f"{shown(name) if name == name.strip() != '' else repr(shown(name))} ({_said(name, kinds[name], medium)})"
        for name in islice(kinds, _MAX_LISTED)
    ]
    more = f" and {len(kinds) - _MAX_LISTED:,} more" if len(kinds) > _MAX_LISTED else ""
    return ", ".join(few) + more or "none"


def _said(name: str, kind: str, medium: Medium) -> str:
    """Return what a column holds in words: "images" stands for samples of any medium."""
    is_named_so = name == OF_VIDEOS.default_column and kind == "images"
    if medium.names != OF_VIDEOS and (is_named_so or suffix_of(name) in SUFFIXES):
        return "videos, which only video models train on"
    return medium.names.several if kind == "images" else kind


def arrow_kinds(schema: pa.Schema) -> dict[str, str]:
    """Return what each column of an Arrow schema holds: "images", "text", or its type."""
    kinds = {field.name: arrow_kind(field.type) for field in schema}
    counts = Counter(schema.names)
    return {name: kind if counts[name] == 1 else _SEVERAL for name, kind in kinds.items()}


def arrow_kind(type_: pa.DataType) -> str:
    if is_binary(type_) or (pa.types.is_struct(type_) and {"bytes", "path"} & {field.name for field in type_}):
        return "images"
    if is_string(type_) or (is_list(type_) and is_string(type_.value_type)):
        return "text"
    return shown(str(type_))


def is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def is_string(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return is_string(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def kind_of(value: Any, medium: Medium) -> str:
    """Return what a column of JSON or CSV holds, judged by one of its values."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "images" if medium.has_name(value) else "text"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "text"
    return {bool: "booleans", int: "numbers", float: "numbers", dict: "objects", list: "lists"}[type(value)]
