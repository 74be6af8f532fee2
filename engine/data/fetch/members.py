"""Check the names inside an archive: which are safe to create, which are skipped, and their common layout."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from engine.core.errors import DatasetError
from engine.core.files.folder_names import repeated_folder
from engine.data.media.registry import is_sample

MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 1024
MAX_DEPTH: Final = 64

_SIDECARS: Final = frozenset({"txt", "text", "caption", "json", "cls"})


def refused(name: str, why: str) -> DatasetError:
    """Make the error about a member, whose name is escaped and shortened."""
    shown = ascii(name) if len(name) <= 120 else f"{name[:120]!a}…"
    return DatasetError(f"its member {shown} is {why}; pack the dataset again without it")


def too_many(max_files: int) -> DatasetError:
    return DatasetError(f"it holds more than {max_files:,} files and folders; use Parquet or WebDataset shards instead")


def clean_name(name: str) -> str | None:
    """Return a member's name as a relative path; None for files that operating systems add (`__MACOSX/`, `._x`).

    Raises DatasetError for a name that could lead out of the folder or that no file system is sure to hold.
    """
    problem = _problem(name)
    if problem:
        raise refused(name, problem)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._"):
        return None
    return "/".join(parts)


_UNTOLD: Final = "are in an encoding that the archive does not tell, and may be read as others"
_PACK_AS_UTF8: Final = "pack it with UTF-8 names (7-Zip's option -mcu=on, or as .tar)"

# Tried in this order: the sizes below need a name that can be encoded.
_UNSAFE: Final = (
    (re.compile(r"\A\Z"), "without a name"),
    (re.compile(r"[\ud800-\udfff]"), "not named in UTF-8"),
    (re.compile(r"[\x00-\x1f\x7f-\x9f]"), "named with control characters"),
    (re.compile(r"\\|\A/*[A-Za-z]:|\A//"), "named by a Windows path"),
    (re.compile(r"\A/"), "named by an absolute path"),
    (re.compile(r"(\A|/)\.\.(/|\Z)"), "named by a path that leads out of the archive"),
)


def _problem(name: str) -> str | None:
    return next((problem for pattern, problem in _UNSAFE if pattern.search(name)), None) or _size_problem(name)


def _size_problem(name: str) -> str | None:
    parts = name.split("/")
    if len(name.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"named too long (more than {MAX_NAME_BYTES} bytes, or {MAX_PATH_BYTES} with its folders)"
    return f"more than {MAX_DEPTH} folders deep" if len(parts) > MAX_DEPTH else None


class Listing:
    """All names of an archive, checked against each other before anything is written."""

    def __init__(self, max_files: int) -> None:
        self._max_files = max_files
        self._num_members = 0
        self._files: dict[str, str] = {}
        self._folders: set[str] = set()
        self._untold: list[str] = []

    def count(self) -> None:
        """Count a member of any kind. Raises DatasetError if there are too many."""
        self._num_members += 1
        if self._num_members > self._max_files:
            raise too_many(self._max_files)

    def add(self, path: str, *, told: bool = True) -> None:
        """Note a file. Raises DatasetError when another member has its path, or one that differs only in case.

        `told`: whether the name is surely what it was when it was packed.
        """
        # Unicode-normal and folded, so that the archive means the same on every file system.
        key = unicodedata.normalize("NFC", path).casefold()
        parents = {str(parent) for parent in PurePosixPath(key).parents} - {"."}
        if key in self._files:
            other = self._files[key]
            raise refused(path, "there twice" if other == path else f"named like {other!a} but for its case")
        if key in self._folders or not parents.isdisjoint(self._files):
            raise refused(path, "both a file and a folder")
        self._files[key] = path
        self._folders |= parents
        if not told:
            self._untold.append(path)
        # A single member may ask for many folders.
        if len(self._files) + len(self._folders) > self._max_files:
            raise too_many(self._max_files)

    def notes(self) -> list[str]:
        """Return notes about the names."""
        if not self._untold:
            return []
        return [f"names of {len(self._untold):,} members, such as {self._untold[0]!a}, {_UNTOLD}; {_PACK_AS_UTF8}"]

    def check_captions(self) -> None:
        """Raise DatasetError where a folder's name in an unknown encoding would become an image's caption."""
        if any(path.rpartition("/")[2].startswith("metadata.") for path in self.paths):
            return
        captioned = {path.rpartition(".")[0] for path in self.paths if path.lower().endswith((".txt", ".caption"))}
        for path in self._untold:
            folders, stem = path.split("/")[:-1], path.rpartition(".")[0]
            is_image = is_sample(path)
            says = any(repeated_folder(folder) and not folder.isascii() for folder in folders)
            if is_image and says and not captioned & {path, stem}:
                raise DatasetError(
                    f"its member {path!a} is in a folder whose name becomes a caption, in an encoding that the "
                    f"archive does not tell; {_PACK_AS_UTF8}"
                )

    @property
    def paths(self) -> Iterable[str]:
        return self._files.values()

    def wrapper(self) -> str:
        """`folder/` when everything lies in one top folder, else an empty string. Raises DatasetError without files.

        A folder whose name is part of the dataset, as kohya's `10_sks dog`, stays.
        """
        if not self._files:
            raise DatasetError("it holds no files")
        tops = {path.partition("/")[:2] for path in self._files.values()}
        top, slash = next(iter(tops))
        return top + slash if len(tops) == 1 and slash and not repeated_folder(top) else ""


def is_webdataset(paths: Iterable[str]) -> bool:
    """Return whether a tar holds WebDataset samples: each image with a caption or label, and no metadata file.

    Such a tar is kept as it is: its samples are found by the names of its members. Folders that say how often their
    images are visited (kohya's `10_sks dog`) are none of that form.
    """
    samples: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name.startswith("metadata.") or any(map(repeated_folder, folder.split("/"))):
            return False
        stem, _, extension = name.partition(".")
        samples.setdefault(f"{folder}/{stem}", set()).add(extension.lower())
    pictured = [extensions for extensions in samples.values() if any(map(is_sample, extensions))]
    return bool(pictured) and all(extensions & _SIDECARS for extensions in pictured)
