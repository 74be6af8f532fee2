"""A folder of images as artists have it: a caption beside each image, folders that say how often and of what.

Beside `cat.png` its caption is `cat.txt` or `cat.caption` (also `cat.png.txt`), in UTF-8; several lines are several
captions. A folder `10_sks dog` is visited ten times an epoch, and its images without a caption of their own have
`sks dog`: kohya's layout.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from ..errors import DatasetError
from ..layouts import is_mask_name, repeated_folder
from ..quoting import listing, plural, shown
from ..task import Dataset
from ..transforms import UnreadableImage
from .columns import Columns
from .images import Files, is_image_name
from .reach import Reach, read_below
from .rows import NO_CAPTION, Rows, Rules, caption_array
from .splits import TRAIN, by_split, choose_named_split, split_of_image
from .tables import Source
from .unused import OTHER_SPLITS, ZERO_TIMES, Account

CAPTION_SUFFIXES: Final = (".txt", ".caption")
MAX_FILE_BYTES: Final = 64 << 10
"""A page of text has 4 KB; whatever is larger was not written as a caption."""
FOLDER_NAME: Final = "the folder's name"
_PLAIN: Final = Dataset()
_BYTE_ORDER_MARKS: Final = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def images_among(files: Iterable[str]) -> list[str]:
    """The images among relative paths; masks are none."""
    return [file for file in files if is_image_name(file) and not is_mask_name(file)]


def has_sidecars(files: Sequence[str]) -> bool:
    """Whether any image among these relative paths has a caption beside it."""
    texts = _texts(files)
    return any(_sidecar(file, texts) for file in images_among(files))


def without_sidecar(files: Sequence[str]) -> list[str]:
    """The images among these relative paths that have no caption beside them."""
    texts = _texts(files)
    return [file for file in images_among(files) if not _sidecar(file, texts)]


def read_sidecars(
    account: Account, source: Source, *, declared: Sequence[str] | None = None
) -> tuple[tuple[Rows, ...], list[str]]:
    """Rows of the images of a folder, in the order of their paths, and lines for a person.

    `declared`: the images of the wanted split in their order, where something says which they are.
    Raises DatasetError: no image has a caption and the task gives none, or captions that are no UTF-8 text.
    """
    root = account.root
    if source.columns.mask:
        raise DatasetError(
            f"dataset.mask_column names a column, and {root.name} has no table: name the masks in a metadata.jsonl, "
            "or use dataset.alpha_mask"
        )
    if declared is None:
        everything = images_among(account.files)
        images = _images_of_split(everything, root.name, source.split)
        account.leave(OTHER_SPLITS, sorted(set(everything) - set(images)))
    else:
        images = images_among(declared)
    notes = _columns_in_vain(root.name, source.columns)
    texts = _texts(account.files)
    left_out = [file for file in images if _repeats(file)[0] == 0]
    images = [file for file in images if _repeats(file)[0] > 0]
    captions, found = _captions(root, images, texts, source)
    if not images or (set(found) == {NO_CAPTION} and source.columns.fallback is None):
        raise DatasetError(no_captions(root.name, len(images)))
    account.leave(ZERO_TIMES, left_out)
    account.use(filter(None, (_sidecar(image, texts) for image in images)))
    notes += _notes(images, found, source)
    parts = []
    for repeats, run in itertools.groupby(range(len(images)), key=lambda index: _repeats(images[index])[0]):
        own = list(run)
        parts.append(
            Rows(
                images=Files(root, [images[index] for index in own], source.reach),
                captions=caption_array([captions[index] for index in own], "caption", root.name),
                label=root.name,
                repeats=repeats,
                rules=_rules([found[index] for index in own]),
            )
        )
    return tuple(parts), notes


def _columns_in_vain(label: str, columns: Columns) -> list[str]:
    """Columns are a table's."""
    named = {"image_column": columns.image, "caption_column": columns.caption}
    return [
        f"dataset: {key} {shown(name)!r} has no effect: {label} is read as images, not as a table"
        for key, name in named.items()
        if name != getattr(_PLAIN, key)
    ]


def _rules(found: Sequence[str]) -> Rules:
    rows: dict[str, list[int]] = {}
    for row, rule in enumerate(found):
        rows.setdefault(rule, []).append(row)
    return tuple(rows.items())


def no_captions(label: str, num_images: int) -> str:
    """What to do about images without any caption."""
    return (
        f"{label} holds {plural(num_images, 'image')} but no captions: put a text file of the same name beside each "
        '(cat.png, cat.txt), or a metadata.jsonl with a line {"file_name": "1.png", "text": "a caption"} for each, '
        "or set dataset.default_caption or dataset.trigger_word"
    )


def _images_of_split(images: list[str], label: str, wanted: str | None) -> list[str]:
    """Those of the wanted split; of none, those of the training split, else all.

    Raises DatasetError: there is no such split.
    """
    splits = by_split(images, split_of_image, rest_is_train=True)
    if wanted is not None:
        return splits[choose_named_split(splits, label, wanted)]
    return splits.get(TRAIN, images)


def _repeats(file: str) -> tuple[int, str | None]:
    """How often an image is visited and what it shows, as the nearest folder of kohya's `N_name` says; else 1, None."""
    for part in reversed(PurePosixPath(file).parts[:-1]):
        if found := repeated_folder(part):
            return found
    return 1, None


def _texts(files: Iterable[str]) -> dict[str, dict[str, str]]:
    """What a caption file belongs to (its path without suffix) -> suffix in lower case -> its path."""
    texts: dict[str, dict[str, str]] = {}
    for file in files:
        stem, dot, suffix = file.rpartition(".")
        if dot and f".{suffix.lower()}" in CAPTION_SUFFIXES:
            texts.setdefault(stem, {}).setdefault(f".{suffix.lower()}", file)
    return texts


def _sidecar(image: str, texts: Mapping[str, Mapping[str, str]]) -> str | None:
    for suffix in CAPTION_SUFFIXES:
        for owner in (image.rpartition(".")[0], image):
            if file := texts.get(owner, {}).get(suffix):
                return file
    return None


def _captions(
    root: Path, images: Sequence[str], texts: Mapping[str, Mapping[str, str]], source: Source
) -> tuple[list[list[str]], list[str]]:
    """Each image's captions, and by which rule they were found. Raises DatasetError that lists unreadable ones."""
    captions, found, problems = [], [], []
    for image in images:
        file, name = _sidecar(image, texts), _repeats(image)[1]
        if file is not None:
            try:
                captions.append(_read(root, file, source.reach))
            except UnreadableImage as error:
                problems.append(f"{shown(file)} ({error})")
            found.append(f"a {Path(file).suffix.lower()} file beside the image")
        elif name is not None:
            captions.append([name])
            found.append(FOLDER_NAME)
        else:
            captions.append([source.columns.fallback or ""])
            found.append(NO_CAPTION)
    if problems:
        count = plural(len(problems), "caption file")
        raise DatasetError(f"{root.name}: {count} cannot be read; save as UTF-8 text: {listing(problems, str)}")
    return captions, found


def _read(root: Path, file: str, reach: Reach) -> list[str]:
    """The lines of a caption file; an empty file is an empty caption. Never guesses an encoding."""
    data = read_below(root, file, reach, MAX_FILE_BYTES)
    if name := _BYTE_ORDER_MARKS.get(data[:2]):
        raise UnreadableImage(f"it is {name}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableImage(f"it is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from None
    if "\0" in text:
        raise UnreadableImage("it is not text: it holds a NUL")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    return [line for line in lines if line] or [""]


def _notes(images: Sequence[str], found: Sequence[str], source: Source) -> list[str]:
    """How many images have no caption, and which."""
    without = [image for image, rule in zip(images, found, strict=True) if rule == NO_CAPTION]
    if not without:
        return []
    fallback = source.columns.fallback
    given = "an empty caption" if fallback is None else f"dataset.default_caption {shown(fallback)!r}"
    if fallback == "":
        given = "an empty caption or the trigger word alone"
    has = "has no caption and gets" if len(without) == 1 else "have no caption and get"
    return [f"dataset: {len(without):,} of {plural(len(images), 'image')} {has} {given}: {listing(without)}"]
