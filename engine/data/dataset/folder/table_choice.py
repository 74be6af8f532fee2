"""Choose which tables of a folder are the dataset's, and read their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import repeated_folder
from engine.core.messages import Say, listing, shown
from engine.data.dataset.captions.caption_files import has_sidecars
from engine.data.dataset.columns import NoSuchColumnError
from engine.data.dataset.folder.splits import files_of_split, split_of_table
from engine.data.dataset.folder.unused import OTHER_SPLIT_TABLES, UNREADABLE_TABLES, WITHOUT_COLUMNS, Account
from engine.data.dataset.images import images_among
from engine.data.dataset.rows import Rows
from engine.data.dataset.tables.tables import TABLE_SUFFIXES, Source, read_table, with_progress

# JSON files that describe a dataset and hold none of its rows.
_DESCRIPTIONS: Final = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "config.json"})


def read_tables(files: Sequence[str], account: Account, source: Source, report: Say) -> tuple[Rows, ...]:
    """Return the rows of the first kind of table that has the columns asked for; () if no table is needed.

    If images have captions without a table, files that cannot be read as one (a preset, a log, a task) are left out
    with a note. Raises DatasetError if a table is needed, and none has the columns or one cannot be read.
    """
    captioned = _has_captions(account)
    problems: list[DatasetError] = []
    for suffix in TABLE_SUFFIXES:
        tables = [
            file for file in files if file.lower().endswith(suffix) and PurePosixPath(file).name not in _DESCRIPTIONS
        ]
        if not tables:
            continue
        try:
            parts, chosen = _read_kind(tables, account, source, captioned)
        except DatasetError as error:
            if not (captioned or isinstance(error, NoSuchColumnError)):
                raise
            problems.append(error)
            continue
        account_for(tables, chosen, account, source, report)
        return parts
    if not problems:
        return ()
    about_images = [problem for problem in problems if isinstance(problem, NoSuchColumnError) and problem.names_images]
    if captioned or (_has_fallback(account, source) and not about_images):
        for problem in about_images[:1]:
            report(f"dataset: the images have captions without a table; {problem}")
        return ()
    raise problems[0]


def account_for(tables: Sequence[str], chosen: Sequence[str], account: Account, source: Source, report: Say) -> None:
    """Enter the tables that are trained on, and report them if there are tables of other splits."""
    account.use(chosen)
    not_noted = set(account.open)
    others = [file for file in tables if file in not_noted]
    if source.split is None and others:
        account.leave(OTHER_SPLIT_TABLES, others)
        report(f"dataset: the training split is {listing(chosen)}")


def _read_kind(
    tables: Sequence[str], account: Account, source: Source, captioned: bool
) -> tuple[tuple[Rows, ...], list[str]]:
    """Return the rows of tables of one suffix, and the tables; those without the columns are left out.

    Raises DatasetError if none has the columns, or one cannot be read.
    """
    problems: list[DatasetError] = []
    while tables:
        chosen = files_of_split(tables, split_of_table, account.root.name, source.split, rest_is_train=False)
        parts: dict[str, Rows] = {}
        for file in with_progress(chosen):
            try:
                parts[file] = read_table(account.root / file, source, shown(file))
            except DatasetError as error:
                if not (captioned or isinstance(error, NoSuchColumnError)):
                    raise
                problems.append(error)
                reason = WITHOUT_COLUMNS if isinstance(error, NoSuchColumnError) else UNREADABLE_TABLES
                account.leave(reason, [file])
        if parts:
            return tuple(parts.values()), list(parts)
        # The tables without the columns are not the dataset's: try those that name no split.
        tables = [file for file in tables if file not in chosen and split_of_table(file) is None]
    raise problems[0]


def _has_captions(account: Account) -> bool:
    """Return whether any image has a caption without a table: in a file beside it, or in the name of its folder."""
    images = images_among(account.files, account.medium)
    return has_sidecars(account.files, account.medium) or any(
        any(map(repeated_folder, image.split("/")[:-1])) for image in images
    )


def _has_fallback(account: Account, source: Source) -> bool:
    return source.columns.fallback is not None and bool(images_among(account.files, account.medium))
