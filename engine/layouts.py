"""What the names of files and folders of images say, in an archive as on disk."""

from __future__ import annotations

import re
from typing import Final

# Three digits: `2024_summer` is a year, not two thousand visits.
_REPEATED: Final = re.compile(r"(\d{1,3})_(.+)", re.ASCII | re.DOTALL)
# OneTrainer's mask of `cat.jpg` is `cat-masklabel.png`.
_MASK: Final = re.compile(r".+-masklabel\.[A-Za-z]+", re.DOTALL)
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


def repeated_folder(name: str) -> tuple[int, str] | None:
    """kohya's `10_sks dog` is (10, "sks dog"): visits of each image in an epoch, and what it shows; else None."""
    match = _REPEATED.fullmatch(name)
    return (int(match[1]), match[2].strip()) if match else None


def is_mask_name(path: str) -> bool:
    """Whether a file is the mask of the image beside it."""
    return _MASK.fullmatch(path.rpartition("/")[2]) is not None


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or holds what a system has left: thumbnails, deleted files (`__MACOSX`, `@eaDir`)."""
    return name.startswith((".", "__")) or name.lower() in _OF_SYSTEMS


def is_of_system(path: str) -> bool:
    """Whether a file is hidden, or in such a folder."""
    *folders, name = path.split("/")
    return name.startswith(".") or any(map(is_system_folder, folders))
