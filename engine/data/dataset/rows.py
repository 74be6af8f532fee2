"""A table's rows: their images, and at least one caption for each row.

A `DatasetError` names the table, the column, the row (counted from 0) and the value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.core.errors import DatasetError
from engine.core.messages import plural, short
from engine.data.dataset.columns import Columns, arrow_kind, arrow_kinds, is_binary, is_list, is_string
from engine.data.dataset.images import Cells, Images, Origin, Picked
from engine.data.dataset.reach import Reach

_ROWS_PER_CHUNK: Final = 65_536
NO_CAPTION: Final = "none of their own"
Rules = tuple[tuple[str, Sequence[int]], ...]


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """Facts about rows that are known without reading their images."""

    digests: npt.NDArray[np.uint8]
    """The SHA-256 of each encoded image, (rows, 32); `UNREADABLE` for one that cannot be read."""
    mask_digests: npt.NDArray[np.uint8] | None
    """The same of the masks; None if the task asks for no masks."""
    sizes: npt.NDArray[np.int32] | None
    """The upright width and height of each image in pixels, (rows, 2); zeros for an unreadable one; None for clips."""

    def picked(self, rows: npt.NDArray[np.int64]) -> KnownFacts:
        """Return the facts about some of the rows, by their indices."""
        return KnownFacts(
            self.digests[rows],
            None if self.mask_digests is None else self.mask_digests[rows],
            None if self.sizes is None else self.sizes[rows],
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A table's images and their captions (strings, or lists of strings), row by row."""

    images: Images
    captions: pa.ChunkedArray
    label: str
    repeats: int = 1
    """The number of visits of each row in an epoch."""
    masks: Images | None = None
    """The masks of the same rows; None if the task asks for no masks."""
    rules: Rules = ()
    """The rules by which captions were found, each with its rows; () means that all are from the table."""
    known: KnownFacts | None = None
    """Facts that are known without reading the images, of which reading is slow; None for those on this machine."""
    if_changed: str = "since the job began; do not change the dataset while a job runs, and start it again"
    """The end of the message that an image has changed."""

    def picked(self, rows: Sequence[int]) -> Rows:
        """Return some of the rows, by their indices."""
        numbers = np.array(rows, dtype=np.int64)
        taken = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])  # without pandas
        masks = None if self.masks is None else Picked(self.masks, numbers)
        kept = [(name, np.flatnonzero(np.isin(numbers, own)).tolist()) for name, own in self.rules]
        rules = tuple((name, own) for name, own in kept if own)
        try:
            captions = self.captions.take(taken)
        except pa.ArrowNotImplementedError:  # string views
            captions = caption_array([self.captions[row].as_py() for row in rows], "captions", self.label)
        known = None if self.known is None else self.known.picked(numbers)
        images = Picked(self.images, numbers)
        return replace(self, images=images, captions=captions, masks=masks, rules=rules, known=known)


def rows_from_arrow(
    table: pa.Table, columns: Columns, *, folder: Path, reach: Reach, label: str, files: tuple[Path, ...] = ()
) -> Rows:
    """Return the rows of an Arrow table without copying its data.

    Args:
        table: in memory, or memory-mapped from `files`.
        columns: the columns that the task asks for.
        folder: relative image paths start there.
        reach: the files that the rows may name.
        label: the table's name in messages.
        files: the files that the table is mapped from; empty if they are not known.

    Raises:
        DatasetError: a column is missing, damaged or of another type, or a caption is missing.
    """
    kinds = arrow_kinds(table.schema)
    image, caption = columns.pick(kinds, label)
    columns = replace(columns, caption=caption)
    mask = columns.pick_mask(kinds, label)
    for name in (image, *([caption] if caption in table.column_names else []), *([mask] if mask else [])):
        try:
            # An Arrow file is mapped without parsing: wrong offsets in it would crash the process later.
            table.column(name).validate(full=True)
        except pa.ArrowException as error:
            raise DatasetError(f"column {name!r} of {label} is damaged: {short(str(error))}") from error

    def cells(name: str) -> Cells:
        payloads, paths = _split_cells(table.column(name))
        return Cells(payloads, paths, len(table), folder, reach, label, Origin(files, name) if files else None)

    if caption in table.column_names:
        captions, rules = _arrow_captions(table.column(caption), columns, label)
    else:
        captions, rules = captions_from_values([None] * len(table), columns, label)
    return Rows(cells(image), captions, label, masks=cells(mask) if mask else None, rules=rules)


def _split_cells(cells: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """Return the part of an image column that holds bytes, and the part that holds paths; None for a missing one."""
    if is_binary(cells.type):
        return cells, None
    if is_string(cells.type):
        return None, cells
    parts = {field.name: field.type for field in cells.type}
    has_bytes = "bytes" in parts and is_binary(parts["bytes"])
    has_path = "path" in parts and is_string(parts["path"])
    return (
        pc.struct_field(cells, "bytes") if has_bytes else None,
        pc.struct_field(cells, "path") if has_path else None,
    )


def _arrow_captions(column: pa.ChunkedArray, columns: Columns, label: str) -> tuple[pa.ChunkedArray, Rules]:
    if columns.fallback is not None and _lacks_captions(column):
        return captions_from_values(column.to_pylist(), columns, label)
    return _checked_captions(column, columns.caption, label), ()


def _lacks_captions(column: pa.ChunkedArray) -> bool:
    empty = is_list(column.type) and pc.any(pc.equal(pc.list_value_length(column), 0)).as_py()
    return bool(column.null_count or empty)


def _checked_captions(column: pa.ChunkedArray, name: str, label: str) -> pa.ChunkedArray:
    """Return an Arrow column as captions. Raises DatasetError with the first row that has none."""
    if pa.types.is_null(column.type):
        refuse_missing_captions(range(len(column)), name, label)
        return column
    if arrow_kind(column.type) != "text":
        raise DatasetError(
            f"column {name!r} of {label} (dataset.caption_column) holds {arrow_kind(column.type)}; "
            "expected strings or lists of strings"
        )
    refuse_missing_captions(_where(pc.is_null(column)), name, label)
    if is_list(column.type):
        refuse_missing_captions(_where(pc.equal(pc.list_value_length(column), 0)), name, label)
        refuse_missing_captions(_where_inside(column), name, label)
    return column


def _where(mask: pa.ChunkedArray) -> list[int]:
    if not pc.any(mask).as_py():
        return []
    indices: list[int] = pc.indices_nonzero(mask).to_pylist()
    return indices


def _where_inside(column: pa.ChunkedArray) -> list[int]:
    """Return the rows whose list contains a null."""
    nulls = pc.is_null(pc.list_flatten(column))
    if not pc.any(nulls).as_py():
        return []
    parents: list[int] = pc.unique(pc.filter(pc.list_parent_indices(column), nulls)).to_pylist()
    return parents


def refuse_missing_captions(rows: Sequence[int], name: str, label: str) -> None:
    """Raise DatasetError if there are rows without a caption. An empty caption ("") is a caption."""
    if len(rows):
        raise DatasetError(
            f"{label}: no caption in column {name!r} of {plural(len(rows), 'row')} (the first is row {rows[0]}); "
            'write one, or "" to train without a caption'
        )


def captions_from_values(values: Sequence[Any], columns: Columns, label: str) -> tuple[pa.ChunkedArray, Rules]:
    """Return captions from JSON or CSV values (strings, lists of strings, or both), and the rules that they came by.

    Raises DatasetError with the row.
    """
    name = columns.caption
    missing = [i for i, value in enumerate(values) if value is None or value == []]
    if columns.fallback is None:
        refuse_missing_captions(missing, name, label)
    elif missing:
        values = [columns.fallback if value is None or value == [] else value for value in values]
    without = set(missing)
    given = [i for i in range(len(values)) if i not in without] if missing else []
    rules = tuple((rule, rows) for rule, rows in ((label, given), (NO_CAPTION, missing)) if rows) if missing else ()
    return caption_array(values, name, label), rules


def caption_array(values: Sequence[Any], name: str, label: str) -> pa.ChunkedArray:
    """Return strings, lists of strings, or both as an Arrow array. Raises DatasetError with the row."""
    for index, value in enumerate(values):
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise DatasetError(
                f"column {name!r}, row {index} of {label} holds {short(value)}; expected a string or a list of strings"
            )
    if any(isinstance(value, list) for value in values):
        return _lists([value if isinstance(value, list) else [value] for value in values], name, label)
    return _strings(values, name, label)


def paths_from_values(values: Sequence[Any], name: str, label: str) -> pa.ChunkedArray:
    """Return image paths from JSON or CSV values as an Arrow array. Raises DatasetError with the row."""
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise DatasetError(f"column {name!r}, row {index} of {label} holds {short(value)}; expected a path")
    return _strings(values, name, label)


def _strings(values: Sequence[str | None], name: str, label: str) -> pa.ChunkedArray:
    """Return strings as an Arrow array. `pa.array` would import pandas, which takes a quarter of a second."""
    chunks = []
    for start in range(0, len(values), _ROWS_PER_CHUNK):
        builder = pa.lib.StringBuilder()
        try:
            builder.append_values(values[start : start + _ROWS_PER_CHUNK])
        except UnicodeEncodeError as error:  # JSON can spell half a character ("\ud800"), which no tokenizer takes
            raise DatasetError(
                f"column {name!r} of {label} holds text that is not valid Unicode: {short(error.object)}"
            ) from None
        chunks.append(builder.finish())
    return pa.chunked_array(chunks, pa.string())


def _lists(values: Sequence[list[str]], name: str, label: str) -> pa.ChunkedArray:
    """Return lists of strings as an Arrow array, without importing pandas."""
    items = _strings([item for value in values for item in value], name, label).combine_chunks()
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    offsets = pa.Array.from_buffers(pa.int64(), len(ends), [None, pa.py_buffer(ends)])
    return pa.chunked_array([pa.LargeListArray.from_arrays(offsets, items)])


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a line. Raises DatasetError."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON ({error}); expected one object per line") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{where} is {short(record)}; expected an object")
    return record
