"""Read samples and captions from two text files, line by line: `videos.txt` and `prompts.txt`.

This is the layout of finetrainers and of Diffusers' training scripts for videos: line k of one file belongs to line k
of the other. Paths are relative to the folder of the list.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import stem_of
from engine.core.messages import listing, plural, shown
from engine.data.dataset.folder.unused import Account
from engine.data.dataset.images import Cells, images_among
from engine.data.dataset.reach import read_below
from engine.data.dataset.rows import NO_CAPTION, Rows, caption_array, paths_from_values
from engine.data.dataset.tables.tables import Source
from engine.data.media.geometry import UnreadableImage

CAPTION_FILES: Final = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
MAX_FILE_BYTES: Final = 256 << 20


def line_lists(account: Account) -> list[str]:
    """Return the files of a dataset's folder that list samples; a text file beside a sample is its caption instead."""
    names = account.medium.names.list_files
    found = [file for file in account.files if posixpath.basename(file) in names]
    if not found:
        return []
    captioned = set(map(stem_of, images_among(account.files, account.medium)))
    return [file for file in found if stem_of(file) not in captioned]


def read_line_list(file: str, account: Account, source: Source) -> Rows:
    """Return the rows of a list of samples, with the captions of the file beside it.

    Args:
        file: the list, relative to the folder of `account`, which gets entries for it and its captions.
        account: of the dataset's folder.
        source: the captions that the task asks for, and the files that a list may name.

    Raises:
        DatasetError: there is no file of captions or more than one, the two have different numbers of lines, or a line
            is blank.
    """
    captions_file = _captions_beside(file, account, source)
    paths = _lines(file, account, source)
    texts = [""] * len(paths) if captions_file is None else _lines(captions_file, account, source)
    if captions_file and len(texts) != len(paths):
        raise DatasetError(
            f"{shown(file)} has {plural(len(paths), 'line')}, {shown(captions_file)} {len(texts):,}: line by line they "
            f"name a {account.medium.names.noun} and its caption, so write each caption on one line, without blank "
            "lines between them"
        )
    blank = [number for number, path in enumerate(paths, start=1) if not path]
    if blank:
        raise DatasetError(f"line {blank[0]} of {shown(file)} is blank: remove it, and that line of its captions")
    fallback = source.columns.fallback
    without = [row for row, text in enumerate(texts) if not text]
    if without and fallback is None:
        raise DatasetError(
            f"line {without[0] + 1} of {shown(captions_file or file)} is blank: write a caption, or set "
            "dataset.default_caption or dataset.trigger_word"
        )
    account.use(name for name in (file, captions_file) if name)
    label, folder = shown(file), account.root / posixpath.dirname(file)
    cells = paths_from_values(paths, "path", label)
    kept = [row for row, text in enumerate(texts) if text]
    rules = ((shown(captions_file or ""), kept), (NO_CAPTION, without))
    return Rows(
        images=Cells(None, cells, len(cells), folder, source.reach, label),
        captions=caption_array([text or fallback or "" for text in texts], "caption", label),
        label=label,
        rules=tuple((rule, rows) for rule, rows in rules if rows),
    )


def _captions_beside(file: str, account: Account, source: Source) -> str | None:
    """Return the file of captions in the list's folder; None if there is none and the task gives a caption."""
    folder, there = posixpath.dirname(file), set(account.files)
    found = [name for name in (posixpath.join(folder, each) for each in CAPTION_FILES) if name in there]
    if len(found) > 1:
        raise DatasetError(f"{shown(file)} has more than one file of captions beside it, {listing(found)}: keep one")
    if not found and source.columns.fallback is None:
        raise DatasetError(
            f"{shown(file)} has no captions beside it: write {CAPTION_FILES[0]} with one caption a line, or set "
            "dataset.default_caption or dataset.trigger_word"
        )
    return found[0] if found else None


def _lines(file: str, account: Account, source: Source) -> Sequence[str]:
    """Return a text file's lines without outer blanks; blank lines at the end are left out. Raises DatasetError."""
    try:
        data = read_below(account.root, file, source.reach, MAX_FILE_BYTES)
        text = data.decode("utf-8-sig")
    except UnreadableImage as error:
        raise DatasetError(f"{shown(file)} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DatasetError(f"{shown(file)} is not UTF-8 text (it has a byte {byte:#04x}); save it in UTF-8") from None
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())] if text.strip() else []
