"""Rules on the names of files and folders in a dataset: hidden files, parts of archives, common suffixes."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

# Three digits: `2024_summer` is a year, not two thousand visits.
_REPEATED: Final = re.compile(r"(\d{1,3})_(.+)", re.ASCII | re.DOTALL)
# OneTrainer's mask of `cat.jpg` is `cat-masklabel.png`, what an inpainting model gets too `cat-condlabel.png`.
_LABEL: Final = re.compile(r"(.*[^/])-(mask|cond)label\.[a-z]+", re.DOTALL | re.IGNORECASE)
_PROJECT_IMAGES: Final = frozenset({"img", "image", "images"})
_REGULARISATION: Final = frozenset({"reg", "regularization", "regularisation"})
_PROJECT_RESULTS: Final = frozenset({"model", "log", "logs", "sample", "samples"})
# What network storage and operating systems put into folders: thumbnails, and what was deleted.
_OF_SYSTEMS: Final = frozenset(
    {
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
_PART: Final = re.compile(r"\.(?:\d{3}|[zr]\d\d|part\d+\.(?:rar|zip))\Z", re.IGNORECASE)


def is_part_of_archive(name: str) -> bool:
    """Return whether a file is one part of a split archive: `.z01`, `.001`, `.part2.rar`, …"""
    return _PART.search(name) is not None


def composed(name: str) -> str:
    """A name as it is compared: macOS decomposes the accents of names that it packs, whoever types them composes."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """A path without its suffix, composed: what an image and the files about it have in common."""
    return composed(path.rpartition(".")[0])


def same_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of trailing parts that two paths share."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def repeated_folder(name: str) -> tuple[int, str] | None:
    """kohya's `10_sks dog` is (10, "sks dog"): visits of each image in an epoch, and what it shows; else None."""
    match = _REPEATED.fullmatch(name)
    return (int(match[1]), match[2].strip()) if match else None


def label_of(path: str) -> tuple[str, str] | None:
    """The path without suffix of the image that a file is OneTrainer's label of, and the label: `mask` or `cond`."""
    match = _LABEL.fullmatch(path)
    return (match[1], match[2].lower()) if match else None


def project_folders(files: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of kohya projects that hold regularisation images, and those that hold results.

    A project is any folder: its training images lie in `img/10_sks dog`, or in `10_sks dog` beside a `reg` that is laid
    out likewise. The folders are given as prefixes of paths.
    """
    inside: dict[str, set[str]] = {}
    repeated: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in files}:
        parts = folder.split("/")
        last = max((index for index, part in enumerate(parts) if repeated_folder(part)), default=-1)
        for index, part in enumerate(parts):
            inside.setdefault("".join(f"{parent}/" for parent in parts[:index]), set()).add(part)
            if index <= last:
                repeated.add("".join(f"{parent}/" for parent in parts[: index + 1]))
    regular: list[str] = []
    results: list[str] = []
    for project, tops in inside.items():
        trained = {top for top in tops if f"{project}{top}/" in repeated} - {
            top for top in tops if top.lower() in _REGULARISATION | _PROJECT_RESULTS
        }
        if trained:
            prefixes = {f"{project}{top}/": top.lower() for top in tops}
            regular += [prefix for prefix, top in prefixes.items() if top in _REGULARISATION and prefix in repeated]
            if any(top.lower() in _PROJECT_IMAGES for top in trained):
                results += [prefix for prefix, top in prefixes.items() if top in _PROJECT_RESULTS]
    return tuple(regular), tuple(results)


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden or made by a system: thumbnails, deleted files (`__MACOSX`, `@eaDir`)."""
    return name.startswith((".", "__")) or name.lower() in _OF_SYSTEMS


def is_of_system(path: str) -> bool:
    """Return whether a file is hidden or in a hidden folder."""
    *folders, name = path.split("/")
    return name.startswith(".") or any(map(is_system_folder, folders))
