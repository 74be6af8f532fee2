"""Say the rows of metadata whose files do not exist, with advice on what to write instead."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import same_end
from engine.core.messages import Say, listing, plural, shown
from engine.data.dataset.folder.unused import Account, is_archive

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_ALIKE: Final = 3
"""The number of names that a message shows."""


def report_missing(
    account: Account, folders: Sequence[str], named: Iterable[str], report: Say, *, column: str = "file_name"
) -> None:
    """Say how many rows name a file that does not exist, with advice.

    Args:
        account: of the dataset's folder.
        folders: the folders of the metadata files or tables, relative to the dataset's folder.
        named: the files that the rows name, relative to the dataset's folder.
        report: called with a line to print.
        column: the column with the files' names.

    Raises:
        DatasetError: none of the files exists, and there is advice on what to write.
    """
    everything = list(named)
    inside = [
        name
        for name in everything
        if "\0" not in name and not name.startswith(("/", "..")) and not _ADDRESS.match(name)
    ]
    there = set(account.files)
    missing = sorted(
        name
        for name in inside
        if name not in there and not os.path.exists(f"{account.root}/{name}")  # noqa: PTH110  # it may be behind a link
    )
    if not missing:
        return
    advice = _advice(missing, folders, account, column)
    if advice and len(missing) == len(everything):
        none = (
            f"none of the {len(missing):,} files listed in the metadata is found, such as"
            if len(missing) > 1
            else "the only file listed in the metadata is not found:"
        )
        raise DatasetError(f"{account.root.name}: {none} {_plain(missing[0])}; {advice}")
    count = plural(len(missing), account.medium.names.noun)
    tail = f"; {advice}" if advice else ""
    report(f"dataset: {count} listed in the metadata, file not found: {listing(missing, _plain, _ALIKE)}{tail}")


def _advice(missing: Sequence[str], folders: Sequence[str], account: Account, column: str) -> str:
    """Return advice on names that do not exist: a file that may be meant, or an archive that may hold it."""
    by_name: dict[str, list[str]] = {}
    for file in account.files:
        by_name.setdefault(posixpath.basename(file).casefold(), []).append(file)
    for name in missing:
        folder = max((folder for folder in folders if not folder or name.startswith(f"{folder}/")), key=len, default="")
        written = name.removeprefix(f"{folder}/") if folder else name
        if meant := _meant(written, folder, by_name):
            return (
                f"{shown(column)} is a path from {folder or account.root.name}/ on, with / between folders: "
                f"write {_plain(meant)}, not {_plain(written)}"
            )
    archives = [file for file in account.files if is_archive(file)]
    if archives:
        has = "is not unpacked: unpack it" if len(archives) == 1 else "are not unpacked: unpack them"
        return f"{listing(archives)} {has} there, so that the files are where {shown(column)} says"
    return ""


def _meant(written: str, folder: str, by_name: Mapping[str, Sequence[str]]) -> str | None:
    """Return the file with the longest common end with `written`, relative to `folder`; None if several have it."""
    wanted = written.replace("\\", "/").casefold().split("/")
    found = by_name.get(wanted[-1], [])
    alike = {file: same_end(file.casefold().split("/"), wanted) for file in found}
    best = [file for file, count in alike.items() if count == max(alike.values())]
    return posixpath.relpath(best[0], folder or ".") if len(best) == 1 else None


def _plain(name: str) -> str:
    """Return a path for a message, with single backslashes."""
    return shown(name).replace("\\\\", "\\")
