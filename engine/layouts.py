"""What the names of files and folders of images say, in an archive as on disk."""

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
    """Whether a file is one of the parts into which an archive was split: `.z01`, `.001`, `.part2.rar`, …"""
    return _PART.search(name) is not None


def composed(name: str) -> str:
    """A name as it is compared: macOS decomposes the accents of names that it packs, whoever types them composes."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """A path without its suffix, composed: what an image and the files about it have in common."""
    return composed(path.rpartition(".")[0])


def same_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
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


def project_folders(images: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the folders of a kohya project that hold regularisation images, and those that hold results.

    Its training images lie in `img/10_sks dog`, or in `10_sks dog` beside a `reg` that is laid out likewise.
    """
    repeated, tops = set(), set()
    for path in images:
        top, *folders = path.split("/")[:-1] or [""]
        tops.add(top)
        if any(map(repeated_folder, [top, *folders])):
            repeated.add(top)
    trained = {top for top in repeated if top.lower() not in _REGULARISATION | _PROJECT_RESULTS}
    regular = {top for top in repeated if trained and top.lower() in _REGULARISATION}
    is_project = any(top.lower() in _PROJECT_IMAGES for top in trained)
    return frozenset(regular), frozenset(top for top in tops if is_project and top.lower() in _PROJECT_RESULTS)


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or holds what a system has left: thumbnails, deleted files (`__MACOSX`, `@eaDir`)."""
    return name.startswith((".", "__")) or name.lower() in _OF_SYSTEMS


def is_of_system(path: str) -> bool:
    """Whether a file is hidden, or in such a folder."""
    *folders, name = path.split("/")
    return name.startswith(".") or any(map(is_system_folder, folders))
