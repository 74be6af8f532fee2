"""Load a dataset from the Hugging Face Hub as one Arrow table at one commit, through 🤗 datasets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.core.errors import DatasetError
from engine.core.files.atomic_files import write_file
from engine.core.files.retention import hold, hold_repository
from engine.core.messages import Say
from engine.data.dataset.columns import Columns
from engine.data.dataset.folder.splits import choose_split
from engine.data.dataset.reach import Reach
from engine.data.dataset.tables.tables import read_arrow
from engine.data.fetch.hub import resolve_commit, with_retries


def load_hub_table(
    name: str,
    config_name: str | None,
    revision: str | None,
    columns: Columns,
    *,
    cache_dir: Path,
    report: Say,
    wanted: str | None = None,
) -> tuple[pa.Table, Reach, str, tuple[Path, ...]]:
    """Load one split of a Hub dataset.

    The images are not decoded by 🤗 datasets: its table holds their bytes, or paths into its caches.

    Args:
        name: the Hub ID.
        config_name: the configuration; None is the default one.
        revision: a branch, tag or commit; None is `main`.
        columns: the columns that the task asks for.
        cache_dir: the folder that the dataset is downloaded to.
        report: called with a line to print.
        wanted: the split; None is the training split.

    Returns:
        The memory-mapped table, the files that its rows may name, its commit, and the mapped files (empty if they are
        not known).

    Raises:
        DatasetError, TemporaryError, OutputError: it cannot be loaded, the Hub cannot be reached, the cache cannot be
            written.
    """
    hold_repository(cache_dir, name, "dataset")
    commit = resolve_commit(name, "dataset", revision or "main")
    # A folder for each commit: without the Hub, 🤗 datasets takes whichever version is in its cache folder.
    folder = cache_dir / "hub" / f"{name.replace('/', '--')}@{commit}"
    hold(cache_dir, folder)
    asked = [config_name, columns.image, *([] if wanted is None else [wanted])]
    note = folder / f"prepared-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"
    table, files = _prepared_table(note)
    if table is None:
        report(f"dataset: loading {name} at {commit[:12]} from the Hub")
        split = _load_split(name, config_name, commit, folder, wanted)
        table = split.data.table
        _note_prepared(note, split, columns)
    return table, _reach(folder), commit, files


def _load_split(name: str, config_name: str | None, commit: str, folder: Path, wanted: str | None) -> Any:
    """Return the wanted split as a 🤗 `Dataset`."""
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    what = f"dataset {name!r}"
    try:
        loaded = with_retries(
            lambda: datasets.load_dataset(name, config_name, revision=commit, cache_dir=str(folder)),
            what,
            refused=DatasetError,
        )
    except FileNotFoundError as error:
        raise DatasetError(f"{what}: {_line(error)}; if it is private or gated, set HF_TOKEN") from error
    # A builder raises its own errors for malformed data, Arrow's, and ValueError for an unknown configuration.
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, RuntimeError, OSError) as error:
        raise DatasetError(f"{what} cannot be loaded: {_line(error.__cause__ or error)}") from error
    return loaded[choose_split(loaded, what, wanted)]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _reach(folder: Path) -> Reach:
    from huggingface_hub import constants

    roots = (folder, constants.HF_HUB_CACHE)  # not HF_HOME, which holds the token
    return Reach(roots=tuple(os.path.realpath(root) for root in roots), absolute=True, zipped=True)


def _note_prepared(note: Path, split: Any, columns: Columns) -> None:
    """Note a split's Arrow files, so that the next task of a chain needs neither the library nor the network.

    Nothing is noted if the rows hold paths instead of images: the files in other caches may be deleted.
    """
    column = next((column for column in columns.image_spellings if column in split.column_names), None)
    files = [entry["filename"] for entry in split.cache_files]
    if column is None or not files or not _is_embedded(split.data.table.column(column)):
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: not below our folder
        relative = [str(Path(file).relative_to(note.parent)) for file in files]
        write_file(note, json.dumps({"files": relative, "rows": len(split)}).encode())


def _is_embedded(column: pa.ChunkedArray) -> bool:
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    return bool(pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) and not column.null_count


def _prepared_table(note: Path) -> tuple[pa.Table | None, tuple[Path, ...]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        listed = json.loads(note.read_bytes())
        files = tuple(note.parent / file for file in listed["files"])
        table = pa.concat_tables(map(read_arrow, files))
        if len(table) == listed["rows"]:
            return table, files
    return None, ()
