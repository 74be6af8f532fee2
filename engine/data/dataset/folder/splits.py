"""Assign files to splits by words in the names of their folders, else in their own names.

The words, and the way in which names are split into words, are those of 🤗 datasets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final

from engine.core.errors import DatasetError
from engine.core.messages import listing

TRAIN: Final = "train"
_WORDS: Final = {
    **dict.fromkeys((TRAIN, "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD: Final = re.compile(r"(?:.*/)?data/([^/]+)-\d{5}-of-\d{5}[^/]*")

SplitOf = Callable[[str], str | None]
"""Maps a relative path to the split that it names, or None."""


def split_of_table(file: str) -> str | None:
    """Return the split in a shard's name, else of a word in a folder's name, else of a word in the file's name."""
    if shard := _SHARD.fullmatch(file):
        return _WORDS.get(shard[1], shard[1])
    return split_of_folder(file) or _named(PurePosixPath(file).stem)


def split_of_folder(file: str) -> str | None:
    """Return the split of a word in the name of a folder that the file is in."""
    return next(filter(None, map(_named, PurePosixPath(file).parent.parts)), None)


def split_of_image(file: str) -> str | None:
    """Return the split that the whole name of a folder is; folders of images such as `test shots` name no split."""
    return next((_WORDS[part] for part in file.split("/")[:-1] if part in _WORDS), None)


def _named(name: str) -> str | None:
    return next((_WORDS[word] for word in re.split(r"[-._ 0-9]+", name) if word in _WORDS), None)


def by_split(files: Iterable[str], split_of: SplitOf, *, rest_is_train: bool) -> dict[str, list[str]]:
    """Return split -> its files, in their order.

    Files that name no split belong to the training split if no file names that one (`rest_is_train`) or if no file
    names any split (not `rest_is_train`); otherwise they are left out.
    """
    splits: dict[str, list[str]] = {}
    rest: list[str] = []
    for file in files:
        split = split_of(file)
        (rest if split is None else splits.setdefault(split, [])).append(file)
    if rest and (rest_is_train or not splits):
        splits.setdefault(TRAIN, rest)
    return splits


def choose_split(names: Iterable[str], label: str, wanted: str | None = None) -> str:
    """Return the wanted split; if that is None, `train` or the only split. Raises DatasetError with all splits."""
    splits = list(names)
    listed = listing(sorted(splits), most=8) or "none"
    if wanted is not None:
        if wanted not in splits:
            raise DatasetError(f"{label} has no split {wanted!r} (validation.dataset.split); its splits: {listed}")
        return wanted
    if TRAIN in splits:
        return TRAIN
    if len(splits) == 1:
        return splits[0]
    raise DatasetError(f"{label} has no split 'train', and several others: {listed}")


def choose_named_split(names: Iterable[str], label: str, wanted: str | None) -> str:
    """Return the same for splits that words name: `wanted` may be any word for a split, such as `val`."""
    return choose_split(names, label, None if wanted is None else _WORDS.get(wanted, wanted))


def refuse_split(label: str, wanted: str | None) -> None:
    """Raise DatasetError if a split other than the training split is asked for, which is the only one here."""
    if wanted is not None:
        choose_named_split((TRAIN,), label, wanted)


def files_of_split(
    files: Sequence[str], split_of: SplitOf, label: str, wanted: str | None, *, rest_is_train: bool
) -> Sequence[str]:
    """Return the files of the wanted split; if that is None, of the training split or of the only split.

    Raises DatasetError, with the list of splits, if there is no such split.
    """
    splits = by_split(files, split_of, rest_is_train=rest_is_train)
    return splits[choose_named_split(splits, label, wanted)]
