"""Read the rows of table files: JSON lines, JSON, CSV, Parquet, Arrow and WebDataset tars. The files are untrusted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from engine.core.console import Meter
from engine.core.errors import DatasetError
from engine.core.files.atomic_files import FILE_MODE, writing_to
from engine.core.files.retention import hold
from engine.core.files.stat_cache import Identity, remembered
from engine.core.limits import Budget, Limits, bounded_memory
from engine.data.dataset.columns import Columns, NoSuchColumnError, arrow_kinds, kind_of
from engine.data.dataset.images import Cells
from engine.data.dataset.reach import Reach
from engine.data.dataset.rows import Rows, captions_from_values, paths_from_values, rows_from_arrow
from engine.data.dataset.tables.records import csv_records, json_records
from engine.data.dataset.tables.tar_index import read_tar

# The order in which a folder is searched for tables.
TABLE_SUFFIXES: Final = (".parquet", ".arrow", ".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".tar")
MAX_PARSING_BYTES: Final = 2 << 30
"""The memory limit while a table is parsed. A few kilobytes of Parquet or compressed Arrow can unpack to any size."""
_BATCH_BYTES: Final = 64 << 20
_MANY_TABLES: Final = 100


@dataclass(frozen=True, slots=True)
class Source:
    """The settings for reading tables: columns, files that rows may name, the folder for copies."""

    columns: Columns
    reach: Reach
    cache_dir: Path
    max_bytes: int
    """The size limit of one Parquet file, unpacked."""
    split: str | None = None
    """The split to read; None is the training split."""
    config_name: str | None = None
    """The configuration to read; None is the default one, or the whole folder if none is declared."""
    joins_lines: bool = False
    """True if all lines of a text file beside an image are one caption."""


def read_table(path: Path, source: Source, label: str) -> Rows:
    """Return the rows of a table file; its suffix decides on the format. `label` is its name in messages.

    Raises DatasetError.
    """
    suffix = path.suffix.lower()
    source.reach.check_resolved(path, label, "the dataset")
    require_file(path, label)
    with reading(label), bounded_memory(MAX_PARSING_BYTES):
        if suffix == ".parquet":
            return _read_parquet(path, source, label)
        if suffix == ".arrow":
            return _from_arrow(read_arrow(path), path, source, label, mapped=path)
        if suffix == ".tar":
            return read_tar(path, source.columns, label, cache_dir=source.cache_dir, joins_lines=source.joins_lines)
        if suffix in (".csv", ".tsv"):
            return _from_records(csv_records(path, source.columns.names, label), path, source, label)
        return _from_records(json_records(path, label), path, source, label)


def with_progress(tables: Sequence[str]) -> Iterable[str]:
    """Yield the tables to read, with a progress line every 10 seconds where there are many."""
    return tables if len(tables) < _MANY_TABLES else Meter("reading tables", "tables", len(tables)).over(tables)


def require_file(path: Path, label: str) -> None:
    """Raise DatasetError unless a path is a regular file: a pipe could block forever, a link may be broken."""
    if not path.is_file():
        raise DatasetError(f"{label} is not a file")


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Return a context that turns the errors of parsers into a DatasetError that names the file."""
    try:
        yield
    except MemoryError as error:
        raise DatasetError(
            f"{label} takes more than {MAX_PARSING_BYTES >> 30} GiB of memory to read; split it into smaller files"
        ) from error
    except (
        *(pa.ArrowException, tarfile.TarError, csv.Error),
        *(UnicodeError, RecursionError, OverflowError, ValueError, OSError),
    ) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).split("\n", 1)[0]
        reason = "".join(char if char.isprintable() else "?" for char in reason[:200])  # it may quote the file
        raise DatasetError(f"{label} cannot be read as {label.rpartition('.')[2]}: {reason}") from error


def _from_arrow(table: pa.Table, path: Path, source: Source, label: str, *, mapped: Path | None) -> Rows:
    files = (mapped,) if mapped else ()
    return rows_from_arrow(table, source.columns, folder=path.parent, reach=source.reach, label=label, files=files)


# --- JSON and CSV -----------------------------------------------------------------------------------------------------


def _from_records(records: Iterable[Mapping[str, Any]], path: Path, source: Source, label: str) -> Rows:
    """Return rows from dictionaries, in which keys may be missing. Only the columns that the task may mean are kept."""
    columns = source.columns
    kinds: dict[str, str] = {}
    kept: dict[str, list[Any]] = {name: [] for name in columns.names}
    for record in records:
        for name, value in record.items():
            if kinds.get(name, "null") == "null":
                kinds[name] = kind_of(value, columns.medium)
        for name, values in kept.items():
            values.append(record.get(name))
    if not kinds:
        raise NoSuchColumnError(f"{label} has no rows", kinds, columns.medium)
    image, caption = columns.pick(kinds, label)
    mask = columns.pick_mask(kinds, label)
    captions, rules = captions_from_values(kept[caption], replace(columns, caption=caption), label)

    def cells(name: str) -> Cells:
        paths = paths_from_values(kept[name], name, label)
        return Cells(None, paths, len(paths), path.parent, source.reach, label)

    return Rows(cells(image), captions, label, masks=cells(mask) if mask else None, rules=rules)


# --- Arrow and Parquet ----------------------------------------------------------------------------------------------


def read_arrow(path: Path) -> pa.Table:
    """Return the memory-mapped table of an Arrow IPC file: a stream, as 🤗 datasets writes it, or the file format."""
    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        return pa.ipc.open_file(source).read_all()
    source.seek(0)
    return pa.ipc.open_stream(source).read_all()


def _read_parquet(path: Path, source: Source, label: str) -> Rows:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    kinds = arrow_kinds(file.schema_arrow)
    mask = source.columns.pick_mask(kinds, label)
    names = [name for name in (*source.columns.pick(kinds, label), mask) if name in kinds]
    embedded = "images" in [kinds[name] for name in names]
    if not embedded:
        return _from_arrow(file.read(columns=names), path, source, label, mapped=None)
    copy = _copy_to_map(file, path, names, source, label)
    return _from_arrow(read_arrow(copy), path, source, label, mapped=copy)


def _copy_to_map(file: Any, path: Path, names: list[str], source: Source, label: str) -> Path:
    """Copy columns to an Arrow file in the cache, unless it exists, and return it: Parquet has no random access.

    The copy's name depends on the content and not on path or time: another dataset at the same path is another file.
    """
    identity = Identity("sha256", source.cache_dir)
    identity.add_files([path])
    digest = remembered(identity, source.cache_dir, lambda: _sha256(path))
    folder = source.cache_dir / "tables"
    copy = folder / f"{hashlib.sha256(json.dumps(['v1', digest, *names]).encode()).hexdigest()}.arrow"
    hold(source.cache_dir, copy)
    if not copy.exists():
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write_stream(_bounded(_batches(file, names, label), source, path.stat().st_size, label), copy)
    return copy


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _batches(file: Any, names: list[str], label: str) -> Iterator[Any]:
    """Yield these columns in batches of about 64 MB, estimated from the sizes in the file's metadata."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    mean = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    with reading(label):
        for batch in file.iter_batches(max(1, min(1024, _BATCH_BYTES // max(mean, 1))), columns=names):
            yield batch.select(names)


def _bounded(batches: Iterator[Any], source: Source, packed_bytes: int, label: str) -> Iterator[Any]:
    """Yield the batches up to a size limit: a small Parquet file can repeat an image a billion times.

    A downloaded file has the limits of an archive, too. Raises DatasetError.
    """
    total = 0
    budget = Budget(Limits(max_dataset_bytes=source.max_bytes), packed_bytes)
    for batch in batches:
        total += batch.nbytes
        if total > source.max_bytes:
            raise DatasetError(f"{label} unpacks to more than {source.max_bytes:,} bytes (MAX_DATASET_BYTES)")
        if not source.reach.absolute:
            budget.spend(batch.nbytes)
        yield batch


def _write_stream(batches: Iterator[Any], target: Path) -> None:
    """Write batches to `target` atomically, under a temporary name of its own first: jobs may share a cache."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            first = next(batches, None)
            if first is None:
                raise DatasetError("the dataset has no rows")
            with pa.ipc.new_stream(out, first.schema) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
            out.flush()
            os.fsync(out.fileno())
        beside.chmod(FILE_MODE)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
