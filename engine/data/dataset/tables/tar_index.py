"""The index of a WebDataset tar: where each row's image is, its SHA-256 and its captions; cached for later jobs.

An index is an Arrow record batch with one row for each image and the columns `offset`, `size`, `name`, `sha256`,
`caption` and `has_own_caption`; with masks also `mask_offset`, `mask_size`, `mask_name` and `mask_sha256`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.core.canonical_json import canonical_json
from engine.core.files import atomic_files
from engine.core.files.retention import hold
from engine.core.files.stat_cache import Identity
from engine.data.dataset.columns import Columns
from engine.data.dataset.images import DIGEST_BYTES, MAX_IMAGE_FILE_BYTES
from engine.data.dataset.rows import NO_CAPTION, Rows
from engine.data.dataset.tables.tar_members import LocalTar, Tar, TarMembers
from engine.data.dataset.tables.webdataset import make_index

Number = TypeVar("Number", np.int64, np.uint8)
_VERSION: Final = "sd-lora-task index of a tar v1"
_MEMBER_TYPES: Final = {
    "offset": pa.int64(),
    "size": pa.int64(),
    "name": pa.binary(),
    "sha256": pa.binary(DIGEST_BYTES),
}
_TYPES: Final = _MEMBER_TYPES | {"has_own_caption": pa.uint8()}
_MASK_TYPES: Final = {f"mask_{name}": type_ for name, type_ in _MEMBER_TYPES.items()}
_CAPTION_TYPES: Final = (pa.string(), pa.large_list(pa.string()))
_MAPPED_BYTES: Final = 64 << 10
"""Smaller indices are read into memory: a process may have 65,530 mappings (vm.max_map_count)."""


def read_tar(path: Path, columns: Columns, label: str, *, cache_dir: Path, joins_lines: bool = False) -> Rows:
    """Return the rows of a WebDataset tar, from the index that an earlier job cached, else from a new one.

    Raises the errors of `make_index`.
    """
    identity = Identity(_VERSION, cache_dir)
    identity.add(index_settings(columns, joins_lines=joins_lines))
    identity.add_files([path])
    key = identity.key
    if key is None:
        return rows_of_index(make_index(path, columns, label, joins_lines=joins_lines), LocalTar(path), label)
    kept = cache_dir / "tables" / f"{key}.arrow"
    hold(cache_dir, kept)
    index = load_index(kept)
    if index is None:
        index = make_index(path, columns, label, joins_lines=joins_lines)
        save_index(index, kept)
        index = load_index(kept) or index  # mapped, so that it takes no memory of its own
    return rows_of_index(index, LocalTar(path), label)


def index_settings(columns: Columns, *, joins_lines: bool) -> bytes:
    """Return everything besides the tar that an index depends on, for the key under which it is cached."""
    medium = columns.medium
    return canonical_json(
        [
            [_VERSION, MAX_IMAGE_FILE_BYTES, joins_lines],
            [columns.image, columns.caption, columns.fallback, columns.mask],
            [medium.names.default_column, sorted(medium.suffixes), sorted(medium.still_suffixes)],
        ]
    )


def save_index(index: pa.RecordBatch, path: Path) -> bool:
    """Write an index atomically, sealed by its SHA-256; return False if the disk refuses."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, index.schema) as writer:
        writer.write_batch(index)
    return atomic_files.write_cached(path, atomic_files.seal(sink.getvalue().to_pybytes()))


def load_index(path: Path) -> pa.RecordBatch | None:
    """Return a saved index, memory-mapped unless it is small; None if it is missing or damaged. Keeps no file open."""
    try:
        if path.stat().st_size < _MAPPED_BYTES:
            data = pa.py_buffer(path.read_bytes())
        else:
            with pa.memory_map(str(path)) as file:  # the mapping outlives the open file
                data = file.read_buffer()
    except OSError:
        return None
    payload = atomic_files.unseal(memoryview(data).cast("B"))
    return None if payload is None else _checked(payload)


def _checked(payload: memoryview) -> pa.RecordBatch | None:
    """Return the index in sealed bytes; None if they are another one's: wrong offsets would crash the process."""
    try:
        index = pa.ipc.open_stream(pa.py_buffer(payload)).read_next_batch()
        index.validate(full=True)
    except (pa.ArrowException, StopIteration):
        return None
    types = {field.name: field.type for field in index.schema}
    caption = types.pop("caption", None)
    expected = _TYPES | (_MASK_TYPES if "mask_size" in types else {})
    others = {name: pa.int32() for name in types.keys() - expected.keys()}  # sizes of images, which shards.py adds
    is_index = types == expected | others and caption in _CAPTION_TYPES
    return index if is_index and not any(column.null_count for column in index.columns) else None


def rows_of_index(index: pa.RecordBatch, tar: Tar, label: str) -> Rows:
    """Return the rows of a tar by its index.

    Args:
        index: by `make_index`, or saved by an earlier job.
        tar: reads the members.
        label: the tar's name in messages and rules.
    """
    own = _numbers(index, "has_own_caption", np.uint8)
    lacking = np.flatnonzero(own == 0).tolist()
    rules = ((label, np.flatnonzero(own).tolist()), (NO_CAPTION, lacking)) if lacking else ()
    return Rows(
        _members(index, tar, ""),
        pa.chunked_array([index.column("caption")]),
        label,
        masks=_members(index, tar, "mask_") if "mask_size" in index.schema.names else None,
        rules=tuple((rule, rows) for rule, rows in rules if rows),
    )


def _members(index: pa.RecordBatch, tar: Tar, prefix: str) -> TarMembers:
    return TarMembers(
        tar,
        _numbers(index, f"{prefix}offset", np.int64),
        _numbers(index, f"{prefix}size", np.int64),
        index.column(f"{prefix}name"),
        memoryview(index.column(f"{prefix}sha256").buffers()[1]).cast("B")[: index.num_rows * DIGEST_BYTES],
    )


def _numbers(index: pa.RecordBatch, name: str, dtype: type[Number]) -> npt.NDArray[Number]:
    """Return a column without a copy; pyarrow's `to_numpy` would import pandas."""
    return np.frombuffer(index.column(name).buffers()[1], dtype=dtype, count=index.num_rows)
