"""Read a local folder or file: the rows that 🤗 datasets would load from there, without its copies and caches.

The split of a file follows the rules of 🤗 datasets too (`splits.py`), except for metadata files: 🤗 datasets ignores a
metadata file beside folders that name splits; here it belongs to the training split if no folder names that one.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.core.errors import DatasetError
from engine.core.files.folder_names import is_part_of_archive, project_folders
from engine.core.limits import bounded_memory
from engine.core.messages import Say, listing, short, shown
from engine.data.dataset.captions.json_captions import PathCaptions, files_beside, read_by_path
from engine.data.dataset.captions.sidecars import read_sidecars
from engine.data.dataset.folder.hub_configurations import (
    IMAGES,
    METADATA_NAMES,
    README,
    Configuration,
    choose_configuration,
    is_of_kind,
    kind_of_files,
)
from engine.data.dataset.folder.line_lists import line_lists, read_line_list
from engine.data.dataset.folder.listed import files_of, read_listed
from engine.data.dataset.folder.missing import report_missing
from engine.data.dataset.folder.own_results import result_files
from engine.data.dataset.folder.splits import choose_split, files_of_split, refuse_split, split_of_folder
from engine.data.dataset.folder.table_choice import read_tables
from engine.data.dataset.folder.unused import (
    ABOUT_NO_IMAGES,
    OTHER_CONFIGURATIONS,
    OTHER_SPLIT_TABLES,
    PROJECT_RESULTS,
    REGULARISATION,
    RESULTS,
    Account,
)
from engine.data.dataset.folder.walking import walk
from engine.data.dataset.images import Cells, images_among
from engine.data.dataset.rows import Rows, rows_from_arrow
from engine.data.dataset.tables.tables import (
    MAX_PARSING_BYTES,
    TABLE_SUFFIXES,
    Source,
    read_arrow,
    read_table,
    reading,
    require_file,
    with_progress,
)
from engine.data.fetch.hub import snapshot_of
from engine.data.media.medium import Medium


def read_local(path: Path, source: Source, report: Say) -> tuple[Rows, ...]:
    """Return the rows of a dataset on this machine. Their order does not depend on the order of directory entries.

    `report` is called with a line for each reason for which files are not trained on. Raises DatasetError if nothing
    can be loaded.
    """
    if path.is_file():
        return _read_file(path, source)
    path = snapshot_of(path, "main", DatasetError)
    configuration = choose_configuration(path, source.config_name)
    if configuration is not None and configuration.folder:
        path = path / configuration.folder
    tree = walk(path, follow_links=source.reach.roots is None)
    account = Account(tree, source.columns.medium)
    account.drop(RESULTS, result_files(path, [*tree.files, *tree.hidden]))
    parts = _read_declared(configuration, account, source, report) or _read_folder(account, source, report)
    account.use(file for part in parts for file in files_of(part, path))
    account.close()
    if source.split is None:  # a folder that is read again for a held-out split is reported once
        for line in account.lines():
            report(line)
    return parts


def _read_folder(account: Account, source: Source, report: Say) -> tuple[Rows, ...]:
    path, files = account.root, account.files
    if (path / "dataset_dict.json").is_file():
        return _read_saved_splits(account, source, report)
    if (path / "state.json").is_file():
        return _read_saved("", account, source)
    metadata = [file for file in files if posixpath.basename(file) in METADATA_NAMES]
    if metadata:
        chosen = files_of_split(metadata, split_of_folder, path.name, source.split, rest_is_train=True)
        return read_listed(metadata, chosen, account, source, report, names=METADATA_NAMES)
    if lists := line_lists(account):
        chosen = files_of_split(lists, split_of_folder, path.name, source.split, rest_is_train=True)
        names = account.medium.names.list_files
        return read_listed(lists, chosen, account, source, report, read=read_line_list, names=names)
    _leave_projects(account)
    listed = _kohyas_metadata(account, source)
    others = {*listed, *files_beside(account.files, account.medium).values()}
    if tables := read_tables([file for file in account.files if file not in others], account, source, report):
        named = {file for part in tables for file in files_of(part, path)}
        folders = {_inside(part.images.folder, path) for part in tables if isinstance(part.images, Cells)}
        account.use(named)
        report_missing(account, sorted(folders), named, report, column=source.columns.image)
        return tables
    if not images_among(account.files, account.medium):
        account.close()
        nothing = f"no metadata.jsonl, no table ({', '.join(TABLE_SUFFIXES)}), no images"
        found = "; ".join(filter(None, map(account.told, ABOUT_NO_IMAGES))) or nothing
        raise DatasetError(f"{path.name} holds nothing to train on: {found}")
    parts, notes = read_sidecars(account, listed, source)
    for note in notes:
        report(note)
    return parts


def _read_declared(
    configuration: Configuration | None, account: Account, source: Source, report: Say
) -> tuple[Rows, ...]:
    """Return the rows of a configuration that lists its files; () if it lists none."""
    if configuration is None or configuration.patterns is None:
        return ()
    splits = configuration.files(account.files)
    if not source.config_name and not any(splits.values()):
        report(f"dataset: {README} lists files that do not exist; the folder is read without it")
        return ()
    split = choose_split(splits, f"configuration {configuration.name!r} of {account.root.name}", source.split)
    files = splits[split]
    kind = kind_of_files(files, account.medium)
    if kind is None:
        raise DatasetError(
            f"{README}: the data_files of configuration {configuration.name!r}, split {split!r}, match no images and "
            "no tables here"
        )
    if kind == IMAGES:
        parts = _read_declared_images(files, account, source, report)
    else:
        tables = [file for file in files if is_of_kind(file, kind)]
        parts = tuple(read_table(account.root / file, source, shown(file)) for file in with_progress(tables))
        account.use(tables)
    account.use(file for part in parts for file in files_of(part, account.root))
    account.leave(OTHER_CONFIGURATIONS, (file for file in account.open if _is_data(file, account.medium)))
    return parts


def _read_declared_images(files: Sequence[str], account: Account, source: Source, report: Say) -> tuple[Rows, ...]:
    metadata = [file for file in files if posixpath.basename(file) in METADATA_NAMES]
    if metadata:
        return read_listed(metadata, metadata, account, source, report, names=METADATA_NAMES)
    listed = _kohyas_metadata(account, source)
    parts, notes = read_sidecars(account, listed, source, declared=list(dict.fromkeys(files)))
    for note in notes:
        report(note)
    return parts


def _is_data(file: str, medium: Medium) -> bool:
    return medium.has_name(file) or (file.lower().endswith(TABLE_SUFFIXES) and not file.lower().endswith(".json"))


def _inside(folder: Path, root: Path) -> str:
    inside = os.path.relpath(folder, root)
    return "" if inside == "." else inside


def _leave_projects(account: Account) -> None:
    """Leave out a kohya project's folders of regularisation images and results, beside its training images."""
    regularisation, results = project_folders(account.files)
    account.drop(REGULARISATION, [file for file in account.files if file.startswith(regularisation)])
    account.drop(PROJECT_RESULTS, [file for file in account.files if file.startswith(results)])


def _kohyas_metadata(account: Account, source: Source) -> dict[str, PathCaptions]:
    if not images_among(account.files, account.medium):
        return {}
    beside = set(files_beside(account.files, account.medium).values())
    return read_by_path(
        account.root, (file for file in account.files if file not in beside), source.reach, account.medium
    )


def _read_file(path: Path, source: Source) -> tuple[Rows, ...]:
    if is_part_of_archive(path.name):
        raise DatasetError(f"{path} is one part of a split archive: join its parts, unpack them and name the folder")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError(
            f"{path} is not a dataset: expected a folder or a file {', '.join(TABLE_SUFFIXES)} "
            "(unpack an archive and name the folder, or give it as dataset.url)"
        )
    if source.config_name not in (None, "", "default"):
        raise DatasetError(
            f"is {source.config_name!r}, but {path.name} is a single file without configurations",
            key="dataset.config_name",
        )
    refuse_split(path.name, source.split)
    return (read_table(path, source, shown(path.name)),)


# --- Saved by `save_to_disk` ----------------------------------------------------------------------------------------


def _read_saved_splits(account: Account, source: Source, report: Say) -> tuple[Rows, ...]:
    path = account.root
    splits = _read_json(path / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) and _is_plain(name) for name in splits):
        raise DatasetError(f"{path.name}/dataset_dict.json: expected a list of split names, got {short(splits)}")
    split = choose_split(splits, path.name, source.split)
    if len(splits) > 1:
        report(f"dataset: split {split!r} of {listing(splits, most=8)}")
    parts = _read_saved(split, account, replace(source, split=None))
    others = set(splits) - {split}
    account.leave(OTHER_SPLIT_TABLES, [file for file in account.open if file.partition("/")[0] in others])
    return parts


def _read_saved(inside: str, account: Account, source: Source) -> tuple[Rows, ...]:
    """Return the rows of the Arrow files that state.json in the folder `inside` lists, in its order."""
    path = account.root / inside
    label = f"{account.root.name}/{inside}".rstrip("/")
    refuse_split(path.name, source.split)
    listed = _read_json(path / "state.json").get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in _as_list(listed)]
    plain = [name for name in names if isinstance(name, str) and _is_plain(name)]
    if not plain or len(plain) < len(names):
        raise DatasetError(f"{label}/state.json: expected the names of Arrow files, got {short(listed)}")
    account.use(posixpath.join(inside, name) for name in (*plain, "state.json"))
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
