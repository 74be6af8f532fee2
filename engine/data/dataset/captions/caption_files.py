"""Find the captions of a folder of images: in a text or JSON file beside each image, else in a folder's name."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import composed, repeated_folder, stem_of
from engine.core.messages import listing, plural, shown
from engine.data.dataset.captions.json_captions import PathCaptions, files_beside, read_beside
from engine.data.dataset.images import images_among
from engine.data.dataset.reach import Reach, read_below
from engine.data.dataset.rows import NO_CAPTION
from engine.data.dataset.tables.tables import Source
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium

CAPTION_SUFFIXES: Final = (".txt", ".caption")
MAX_FILE_BYTES: Final = 64 << 10
"""Size limit of a caption file. A page of text has 4 KB; a larger file was not written as a caption."""
FOLDER_NAME: Final = "the folder's name"
_BESIDE: Final = "a {suffix} file beside the {noun}"
_BYTE_ORDER_MARKS: Final = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Caption:
    """An image's captions, the rule by which they were found, and their file."""

    texts: list[str]
    rule: str
    file: str | None = None
    is_in_paragraphs: bool = False
    """True if the text file has blank lines between its lines."""


def has_sidecars(files: Sequence[str], medium: Medium) -> bool:
    """Return whether any image among these relative paths has a caption file or a JSON file beside it."""
    texts = _texts(files)
    return bool(files_beside(files, medium)) or any(_sidecar(file, texts) for file in images_among(files, medium))


def without_caption(root: Path, files: Sequence[str], medium: Medium) -> list[str]:
    """Return the images among these paths relative to `root` that have no caption in a file beside them."""
    texts, beside, source = _texts(files), files_beside(files, medium), Reach()
    return [
        file
        for file in images_among(files, medium)
        if not _sidecar(file, texts)
        and ((name := beside.get(stem_of(file))) is None or read_beside(root, name, "text", source) is None)
    ]


def json_beside(images: Iterable[str], files: Sequence[str], medium: Medium) -> list[str]:
    """Return the JSON files beside these images."""
    beside = files_beside(files, medium)
    return [beside[stem] for image in images if (stem := stem_of(image)) in beside] if beside else []


def is_text_beside(rule: str) -> bool:
    """Return whether captions found by this rule are in text files beside the images."""
    return any(rule.startswith(_BESIDE.format(suffix=suffix, noun="")) for suffix in CAPTION_SUFFIXES)


def json_rule(medium: Medium) -> str:
    """Return the rule by which captions are found in JSON files beside the samples."""
    return _BESIDE.format(suffix=".json", noun=medium.names.noun)


def repeats(file: str) -> tuple[int, str | None]:
    """Return an image's repeats and caption from the nearest folder named `N_name` (kohya's layout); else 1, None."""
    return _repeats_of_folder(file.rpartition("/")[0])


@functools.lru_cache(maxsize=4096)
def _repeats_of_folder(folder: str) -> tuple[int, str | None]:
    return next(filter(None, map(repeated_folder, reversed(folder.split("/")))), (1, None))


def find_captions(
    root: Path, images: Sequence[str], files: Sequence[str], listed: Mapping[str, PathCaptions], source: Source
) -> list[Caption]:
    """Return each image's captions, from `files` or from kohya's metadata (`listed`).

    Raises DatasetError if text files are not UTF-8.
    """
    medium = source.columns.medium
    texts, beside, problems = _texts(files), files_beside(files, medium), list[str]()

    def in_text(image: str) -> Caption | None:
        file = _sidecar(image, texts)
        if file is None:
            return None
        rule = _BESIDE.format(suffix=f".{file.rpartition('.')[2].lower()}", noun=medium.names.noun)
        try:
            lines, is_in_paragraphs = _read(root, file, source.reach)
        except UnreadableImage as error:
            problems.append(f"{shown(file)} ({error})")
            lines, is_in_paragraphs = [""], False
        return Caption([" ".join(lines)] if source.joins_lines else lines, rule, file, is_in_paragraphs)

    def in_json(image: str) -> Caption | None:
        file = beside.get(stem_of(image))
        own = None if file is None else read_beside(root, file, source.columns.caption, source.reach)
        if own is not None:
            return Caption(own, json_rule(medium), file)
        found = ((name, metadata.of(image)) for name, metadata in listed.items())
        return next(
            (Caption([text], f"{shown(name)}, kohya's", name) for name, text in found if text is not None), None
        )

    captions = [
        in_text(image) or in_json(image) or _in_name(image) or Caption([source.columns.fallback or ""], NO_CAPTION)
        for image in images
    ]
    if problems:
        count = plural(len(problems), "caption file")
        raise DatasetError(f"{root.name}: {count} cannot be read; save as UTF-8 text: {listing(problems, str)}")
    return captions


def _in_name(image: str) -> Caption | None:
    name = repeats(image)[1]
    return None if name is None else Caption([name], FOLDER_NAME)


def _texts(files: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the caption files: path without suffix -> suffix in lower case -> path.

    Names with accents have a key as they are spelled, and one in composed form (Unicode NFC). Where several files share
    a key, the one that is spelled like the key wins.
    """
    texts: dict[str, dict[str, str]] = {}
    other_spellings: list[tuple[str, str, str]] = []
    for file in files:
        stem, dot, suffix = file.rpartition(".")
        suffix = f".{suffix.lower()}"
        if dot and suffix in CAPTION_SUFFIXES:
            texts.setdefault(stem, {}).setdefault(suffix, file)
            if composed(stem) != stem:
                other_spellings.append((composed(stem), suffix, file))
    for stem, suffix, file in other_spellings:
        texts.setdefault(stem, {}).setdefault(suffix, file)
    return texts


def _sidecar(image: str, texts: Mapping[str, Mapping[str, str]]) -> str | None:
    owners: tuple[str, ...] = (image.rpartition(".")[0], image)
    if not image.isascii():  # a file with another Unicode spelling counts where none has the same spelling
        owners = tuple(dict.fromkeys([*owners, *map(composed, owners)]))
    for suffix in CAPTION_SUFFIXES:
        for owner in owners:
            if file := texts.get(owner, {}).get(suffix):
                return file
    return None


def _read(root: Path, file: str, reach: Reach) -> tuple[list[str], bool]:
    """Return the lines of a caption file, and whether it has blank lines between them.

    An empty file is an empty caption. The encoding is UTF-8 and is never guessed. Raises UnreadableImage.
    """
    data = read_below(root, file, reach, MAX_FILE_BYTES)
    if name := _BYTE_ORDER_MARKS.get(data[:2]):
        raise UnreadableImage(f"it is {name}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableImage(f"it is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from None
    if "\0" in text:
        raise UnreadableImage("it is not text: it contains a NUL character")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.strip())]
    return [line for line in lines if line] or [""], "" in lines[1:]
