"""A local folder or file -> the tables in it: what 🤗 datasets would load from there, without its copies and caches.

Which files belong to the training split follows its rules too (`splits.py`), but for metadata files: 🤗 datasets leaves
out one beside folders that name splits, here it is the training split's where none of them is.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..errors import DatasetError
from ..limits import bounded_memory
from ..quoting import listing, plural, short, shown
from .columns import NoSuchColumnError
from .images import Cells, is_image_name
from .rows import Rows, rows_from_arrow
from .sidecars import has_sidecars, read_sidecars
from .splits import choose_split, files_of_split, refuse_split, split_of_folder, split_of_table
from .tables import MAX_PARSING_BYTES, TABLE_SUFFIXES, Source, read_arrow, read_table, reading, require_file

Report = Callable[[str], None]

METADATA_NAMES: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# JSON files that describe a dataset and hold none of its rows.
_DESCRIPTIONS: Final = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "config.json"})


def read_local(path: Path, source: Source, report: Report) -> tuple[Rows, ...]:
    """The rows of a dataset on this machine, in an order that does not depend on how the folder lists.

    Raises DatasetError when nothing there can be loaded.
    """
    if path.is_file():
        return _read_file(path, source)
    if (path / "dataset_dict.json").is_file():
        return _read_saved_splits(path, source, report)
    if (path / "state.json").is_file():
        return _read_saved(path, source, path.name)
    files = walk(path)
    metadata = [file for file in files if posixpath.basename(file) in METADATA_NAMES]
    if metadata:
        return _read_imagefolder(path, metadata, files, source, report)
    try:
        if tables := _read_tables(path, files, source, report):
            return tables
    except NoSuchColumnError as error:
        if not has_sidecars(files):
            raise
        report(f"dataset: captions are taken from the text files beside the images; {error}")
    if not any(map(is_image_name, files)):
        raise DatasetError(
            f"{path.name} holds nothing to train on: no metadata.jsonl, no table ({', '.join(TABLE_SUFFIXES)}), "
            "no images"
        )
    parts, notes = read_sidecars(path, files, source)
    for note in notes:
        report(note)
    return parts


def _read_tables(path: Path, files: Sequence[str], source: Source, report: Report) -> tuple[Rows, ...]:
    """The rows of the first kind of table there is; nothing where there is none."""
    for suffix in TABLE_SUFFIXES:
        tables = [file for file in files if file.lower().endswith(suffix) and Path(file).name not in _DESCRIPTIONS]
        if tables:
            chosen = files_of_split(tables, split_of_table, path.name, source.split, rest_is_train=False)
            _report_others(tables, chosen, source, report)
            return tuple(read_table(path / file, source, shown(file)) for file in chosen)
    return ()


def _read_file(path: Path, source: Source) -> tuple[Rows, ...]:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError(
            f"{path} is no dataset: expected a folder or a file {', '.join(TABLE_SUFFIXES)} "
            "(an archive is unpacked first, or given as dataset.url)"
        )
    refuse_split(path.name, source.split)
    return (read_table(path, source, shown(path.name)),)


def _report_others(files: Sequence[str], chosen: Sequence[str], source: Source, report: Report) -> None:
    """Say which tables are trained on, where these are not all."""
    if source.split is None and len(chosen) < len(files):
        others = plural(len(files) - len(chosen), "other file is", "other files are")
        report(f"dataset: the training split is {listing(chosen)}; {others} not used")


def walk(root: Path) -> list[str]:
    """All files below `root` as sorted relative paths; hidden ones and `__` folders (macOS' leavings) are left out."""

    def refuse(error: OSError) -> None:
        raise DatasetError(f"cannot list {error.filename}: {error.strerror}")

    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        found.extend(prefix + name for name in files if not name.startswith("."))
    return sorted(found)


# --- Images with a metadata file ------------------------------------------------------------------------------------


def _read_imagefolder(
    root: Path, metadata: Sequence[str], files: Sequence[str], source: Source, report: Report
) -> tuple[Rows, ...]:
    """Rows in the order of the metadata, whose image paths are relative to the metadata file's own folder."""
    chosen = files_of_split(metadata, split_of_folder, root.name, source.split, rest_is_train=True)
    _report_others(metadata, chosen, source, report)
    folders = [posixpath.dirname(file) for file in chosen]
    for folder in folders:
        if folders.count(folder) > 1:
            raise DatasetError(f"{folder or root.name} holds more than one of {', '.join(METADATA_NAMES)}: keep one")
    parts = tuple(read_table(root / file, source, shown(file)) for file in chosen)
    others = tuple(f"{posixpath.dirname(file)}/" for file in metadata if file not in chosen)
    _report_differences(root, folders, parts, [file for file in files if not file.startswith(others)], report)
    return parts


def _report_differences(
    root: Path, folders: Sequence[str], parts: Sequence[Rows], files: Sequence[str], report: Report
) -> None:
    """Say how many images no row names, and how many rows name no file: nothing is dropped silently."""
    named: set[str] = set()
    for folder, part in zip(folders, parts, strict=True):
        if not isinstance(part.images, Cells) or part.images.paths is None:
            return
        columns = [part.images.paths]
        if isinstance(part.masks, Cells) and part.masks.paths is not None:
            columns.append(part.masks.paths)
        for column in columns:
            named.update(posixpath.normpath(posixpath.join(folder, name or "")) for name in column.to_pylist())
    there = {file for file in files if is_image_name(file)}
    within = {file for file in there if any(not folder or file.startswith(f"{folder}/") for folder in folders)}
    if unused := sorted(within - named):
        count = plural(len(unused), "image is", "images are")
        report(f"dataset: {count} not used, named by no metadata row: {listing(unused)}")
    inside = (name for name in named - set(files) if "\0" not in name and not name.startswith(("/", "..")))
    if missing := sorted(name for name in inside if not os.path.exists(f"{root}/{name}")):  # noqa: PTH110  # it may be behind a link
        count = plural(len(missing), "image is", "images are")
        report(f"dataset: {count} named by metadata rows but not there: {listing(missing)}")


# --- Saved by `save_to_disk` ----------------------------------------------------------------------------------------


def _read_saved_splits(path: Path, source: Source, report: Report) -> tuple[Rows, ...]:
    splits = _read_json(path / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) and _is_plain(name) for name in splits):
        raise DatasetError(f"{path.name}/dataset_dict.json: expected a list of split names, got {short(splits)}")
    split = choose_split(splits, path.name, source.split)
    if len(splits) > 1:
        report(f"dataset: split {split!r} of {', '.join(splits)}")
    return _read_saved(path / split, replace(source, split=None), f"{path.name}/{split}")


def _read_saved(path: Path, source: Source, label: str) -> tuple[Rows, ...]:
    """The Arrow files that state.json lists, in its order."""
    refuse_split(path.name, source.split)
    listed = _read_json(path / "state.json").get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in _as_list(listed)]
    plain = [name for name in names if isinstance(name, str) and _is_plain(name)]
    if not plain or len(plain) < len(names):
        raise DatasetError(f"{label}/state.json: expected the names of Arrow files, got {short(listed)}")
    parts = []
    for name in plain:
        source.reach.check_resolved(path / name, name, f"{label}/state.json")
        require_file(path / name, f"{label}/{name}")
        with reading(f"{label}/{name}"), bounded_memory(MAX_PARSING_BYTES):
            table = read_arrow(path / name)
        parts.append(
            rows_from_arrow(
                table,
                source.columns,
                folder=path,
                reach=source.reach,
                label=f"{label}/{name}",
                files=(path / name,),
            )
        )
    return tuple(parts)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _read_json(path: Path) -> dict[str, Any]:
    with reading(path.name):
        value = json.loads(path.read_bytes())
    return value if isinstance(value, dict) else {}
