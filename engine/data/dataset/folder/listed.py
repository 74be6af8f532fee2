"""Read the rows of files that list a folder's samples, such as `metadata.jsonl`, and account for the files listed."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.core.errors import DatasetError
from engine.core.messages import Say, listing, shown
from engine.data.dataset.folder.missing import report_missing
from engine.data.dataset.folder.table_choice import account_for
from engine.data.dataset.folder.unused import OTHER_SPLITS, Account
from engine.data.dataset.images import Cells, Files
from engine.data.dataset.rows import Rows
from engine.data.dataset.tables.tables import Source, read_table
from engine.task.paths import as_spelled

ReadList = Callable[[str, Account, Source], Rows]
"""A function that reads one list, given by its path relative to the dataset's folder."""


def read_metadata(file: str, account: Account, source: Source) -> Rows:
    """Return the rows of a table in a dataset's folder. Raises DatasetError."""
    return read_table(account.root / file, source, shown(file))


def read_listed(
    lists: Sequence[str],
    chosen: Sequence[str],
    account: Account,
    source: Source,
    report: Say,
    *,
    read: ReadList = read_metadata,
    names: Sequence[str],
) -> tuple[Rows, ...]:
    """Return the rows of the chosen lists, in their order. Paths in a list are relative to the list's folder.

    Args:
        lists: all lists of the folder, of any split.
        chosen: those of the wanted split.
        account: of the dataset's folder.
        source: the columns and captions that the task asks for.
        report: called with a line to print.
        read: reads one list.
        names: the names that a list may have, of which each folder may have one.

    Raises:
        DatasetError: a folder has two lists, one cannot be read, or none of the files listed exists.
    """
    root, files = account.root, account.files
    folders = [posixpath.dirname(file) for file in chosen]
    for folder in folders:
        if folders.count(folder) > 1:
            raise DatasetError(f"{folder or root.name} has more than one of {', '.join(names)}: keep one")
    parts = tuple(read(file, account, source) for file in chosen)
    account_for(lists, chosen, account, source, report)
    named = {file for part in parts for file in files_of(part, root)}
    account.use(named)
    others = tuple(f"{posixpath.dirname(file)}/" for file in lists if file not in chosen)
    account.leave(OTHER_SPLITS, [file for file in files if file.startswith(others) and account.medium.has_name(file)])
    report_missing(account, folders, named, report, column="file_name" if read is read_metadata else listing(chosen))
    return parts


def files_of(part: Rows, root: Path) -> Iterator[str]:
    """Yield the files that rows name, as paths relative to `root` if they are below it."""
    top = f"{os.path.abspath(root)}/"  # noqa: PTH100  # links stay as they are written
    for images in (part.images, part.masks):
        if isinstance(images, Files):
            yield from images.paths
        elif isinstance(images, Cells):
            folder = os.path.abspath(images.folder)  # noqa: PTH100
            for name in images.files():
                yield as_spelled(posixpath.normpath(posixpath.join(folder, name))).removeprefix(top)
