"""Which files a dataset's rows may name, and how these are read.

Rows come from strangers. `Reach` says how far they reach; an image that cannot be read is an `UnreadableImage`, which
costs that row alone, and a row that names what it must not is a `DatasetError` with row and value.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from engine.core.errors import DatasetError, TemporaryError
from engine.core.messages import short, shown
from engine.data.media.geometry import UnreadableImage

_FACTS: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
)
_URL: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://|(file|https?|ftps?|data|s3|gs|hf|zip|tar):|.*::", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Reach:
    """The files that rows may name. URLs are never among them, wherever the table came from.

    `roots`: folders, fully resolved, that hold every file once links are followed; None is anywhere on this machine.
    `absolute`: whether a row may write an absolute path or go up by `..` at all.
    `zipped`: whether `zip://member::/archive.zip` may stand for a file, as 🤗 datasets writes it for Hub archives.
    """

    roots: tuple[str, ...] | None = None
    absolute: bool = True
    zipped: bool = False

    @classmethod
    def within(cls, folder: Path) -> Reach:
        """Relative paths inside `folder` only: what a downloaded dataset may name."""
        return cls(roots=(os.path.realpath(folder),), absolute=False)

    def check(self, value: str, where: str) -> None:
        """Refuse a value by its spelling. Raises DatasetError."""
        if _URL.match(value):
            raise DatasetError(f"{where} names {short(value)}: images are never fetched; put the file beside the table")
        if not self.absolute and (value.startswith("/") or ".." in PurePosixPath(value).parts):
            raise DatasetError(f"{where} names {short(value)}, which is not inside the dataset's own folder")

    def check_resolved(self, path: Path | str, value: str, where: str) -> None:
        """Refuse a path whose links lead out of the roots. Raises DatasetError."""
        if self.roots is None:
            return
        resolved = os.path.realpath(path)
        if not any(resolved == root or resolved.startswith(root.rstrip(os.sep) + os.sep) for root in self.roots):
            raise DatasetError(f"{where} names {short(value)}, which leads out of the dataset's own folder")


def read_below(folder: Path, name: str, reach: Reach, max_bytes: int) -> bytes:
    """A file that was listed below `folder`. Raises UnreadableImage, DatasetError (a link that leads out)."""
    path = f"{folder}/{name}"
    try:
        reach.check_resolved(path, name, folder.name)
        return read_regular(path, max_bytes)
    except OSError as error:
        raise unreadable(error, shown(name)) from error


def read_regular(path: str, max_bytes: int) -> bytes:
    """A file's bytes. Raises UnreadableImage for what is no file or too large, OSError, ValueError for a NUL."""
    # Without O_NONBLOCK, opening a pipe would wait for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a device has no end
            raise UnreadableImage("it is not a file")
        if status.st_size > max_bytes:
            raise UnreadableImage(f"its {status.st_size:,} bytes are more than the {max_bytes:,} that are read")
        data = file.read(status.st_size + 1)
        if len(data) > status.st_size:  # it grows, or is one of /proc's, which say they are empty and may have no end
            raise UnreadableImage("it is longer than it says")
        return data


def unreadable(error: OSError, where: str) -> UnreadableImage | TemporaryError:
    """Return the error for a file: UnreadableImage if it is missing or may not be read, else TemporaryError.

    Skipping an image for the latter would train on other images than every other machine does.
    """
    if error.errno in _FACTS:
        return UnreadableImage(error.strerror or str(error))
    return TemporaryError(
        f"the image of {where} could not be read ({error.strerror or error}); run the same command again"
    )
