"""A result on disk, and which of its files belong to it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from engine.data.media.registry import is_sample
from engine.results.checkpoint import MANIFEST, Checkpoint
from engine.training.methods.registry import load_checkpoint

_OF_FILE_MANAGERS: Final = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in folders; no loader reads them."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result on disk. Its checkpoint matches its own hashes; nothing else is known about it."""

    checkpoint_folder: Path
    validation_folder: Path | None
    checkpoint: Checkpoint

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read an output folder, or a `checkpoint/` alone.

        Raises:
            CheckpointError: there is no complete checkpoint.
        """
        is_checkpoint = (folder / MANIFEST).is_file()
        own = folder if is_checkpoint else folder / "checkpoint"
        found = load_checkpoint(own)
        return cls(own, None if is_checkpoint else folder / "validation", found)

    def files(self, names: Mapping[str, Path]) -> dict[str, Path | None]:
        """Find the files with these names (`checkpoint/…`, `validation/…`); None for each that is not a plain file."""
        folders = {"checkpoint": self.checkpoint_folder, "validation": self.validation_folder}
        found: dict[str, Path | None] = {}
        for name in names:
            kind, _, base = name.partition("/")
            folder = folders[kind]
            if folder is not None:
                found[name] = folder / base if _is_plain_file(folder / base) else None
        return found

    def names(self) -> tuple[set[str], set[str]]:
        """Return the names that belong to the result, and the names of the other files there.

        Everything that a checkpoint lists or has belongs to it: loaders take weights and configurations by whatever
        name they find first, including hidden ones and those in subfolders. In `validation/` it is images and weights.
        """
        taken = {f"checkpoint/{name}" for name in self.checkpoint.manifest["files"]}
        found = {f"checkpoint/{name}" for name in _everything_below(self.checkpoint_folder)}
        others = {name for name in found if PurePath(name).name in _OF_FILE_MANAGERS}
        told_by_what_is_in_them = {parent.as_posix() for name in taken | found for parent in PurePath(name).parents}
        taken |= found - others - told_by_what_is_in_them - {f"checkpoint/{MANIFEST}"}
        if self.validation_folder is not None:
            pictures = {f"validation/{name}" for name in _everything_below(self.validation_folder, folders=False)}
            taken |= {name for name in pictures if is_sample(name) or PurePath(name).suffix.lower() == ".safetensors"}
            others |= pictures
        return taken, others - taken


def _everything_below(folder: Path, *, folders: bool = True) -> Iterator[str]:
    """Yield the relative paths of all files and links, and with `folders` of folders. Links are not followed."""
    for at, inner, files in os.walk(folder):
        names = inner if folders else [name for name in inner if Path(at, name).is_symlink()]
        yield from (os.path.relpath(f"{at}/{name}", folder) for name in (*files, *names))


def _is_plain_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK)
    return False
