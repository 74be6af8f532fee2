"""Restrict the files that a dataset's rows may name, and read them.

Datasets are untrusted. `Reach` defines the files that rows may name. An image that cannot be read is an
`UnreadableImage`, and that row alone is skipped; a row that names a forbidden file is a `DatasetError`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from engine.core.errors import DatasetError, TemporaryError
from engine.core.messages import short, shown
from engine.data.media.geometry import UnreadableImage

Take = Callable[[str, int], bytes]
"""A function of a file's path and its largest size, such as `read_regular`."""
_PIECE_BYTES: Final = 1 << 20
_FACTS: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
)
_URL: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://|(file|https?|ftps?|data|s3|gs|hf|zip|tar):|.*::", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Reach:
    """The files that rows may name. URLs are never allowed."""

    roots: tuple[str, ...] | None = None
    """Resolved folders that every file must be in after links are followed; None allows any file of this machine."""
    absolute: bool = True
    """True if a row may contain an absolute path or `..`."""
    zipped: bool = False
    """True if `zip://member::/archive.zip` may name a file, as 🤗 datasets writes it for archives on the Hub."""

    @classmethod
    def within(cls, folder: Path) -> Reach:
        """Return the reach of a downloaded dataset: relative paths inside `folder` only."""
        return cls(roots=(os.path.realpath(folder),), absolute=False)

    def check(self, value: str, where: str) -> None:
        """Raise DatasetError if a row's value is a URL, or a path that this reach does not allow."""
        if _URL.match(value):
            raise DatasetError(
                f"{where} names {short(value)}: images are not downloaded one by one; put the file beside the table"
            )
        if not self.absolute and (value.startswith("/") or ".." in PurePosixPath(value).parts):
            raise DatasetError(f"{where} names {short(value)}, which is not inside the dataset's own folder")

    def check_resolved(self, path: Path | str, value: str, where: str) -> None:
        """Raise DatasetError if a path, with its links followed, is outside the roots."""
        if self.roots is None:
            return
        resolved = os.path.realpath(path)
        if not any(resolved == root or resolved.startswith(root.rstrip(os.sep) + os.sep) for root in self.roots):
            raise DatasetError(f"{where} names {short(value)}, which leads out of the dataset's own folder")


def read_below(folder: Path, name: str, reach: Reach, max_bytes: int) -> bytes:
    """Return the bytes of a file below `folder`. Raises UnreadableImage, TemporaryError, DatasetError (see `Reach`)."""
    return take_below(folder, name, reach, max_bytes, read_regular)


def take_below(folder: Path, name: str, reach: Reach, max_bytes: int, take: Take) -> bytes:
    """Return what `take` (`read_regular`, `hash_regular`) returns for a file below `folder`.

    Raises the errors of `read_below`.
    """
    path = f"{folder}/{name}"
    try:
        reach.check_resolved(path, name, folder.name)
        return take(path, max_bytes)
    except OSError as error:
        raise unreadable(error, shown(name)) from error


def read_regular(path: str, max_bytes: int) -> bytes:
    """Return a file's bytes.

    Raises:
        UnreadableImage: it is not a regular file, or too large.
        OSError: it cannot be opened or read.
        ValueError: the path contains a NUL character.
    """
    with _opened(path, max_bytes) as (file, size):
        data = file.read(size + 1)
        _require_size(len(data), size)
        return data


def hash_regular(path: str, max_bytes: int) -> bytes:
    """Return the SHA-256 of a file's bytes, which are read in pieces. Raises the errors of `read_regular`."""
    digest, count = hashlib.sha256(), 0
    with _opened(path, max_bytes) as (file, size):
        while piece := file.read(min(_PIECE_BYTES, size + 1 - count)):
            digest.update(piece)
            count += len(piece)
        _require_size(count, size)
    return digest.digest()


@contextmanager
def _opened(path: str, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Return a context with an open file and its size. Raises the errors of `read_regular`."""
    # Without O_NONBLOCK, opening a pipe could block forever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a device has no end
            raise UnreadableImage("it is not a file")
        if status.st_size > max_bytes:
            raise UnreadableImage(f"it has {status.st_size:,} bytes, more than the limit of {max_bytes:,}")
        yield file, status.st_size


def _require_size(count: int, size: int) -> None:
    if count > size:  # it grows, or is in /proc, where files have size 0 and may be endless
        raise UnreadableImage("it is longer than its size in the file system")


def unreadable(error: OSError, where: str) -> UnreadableImage | TemporaryError:
    """Return the error for a file: UnreadableImage if it is missing or may not be read, else TemporaryError.

    An image must not be skipped for a temporary error: the job would train on other images than on another machine.
    """
    if error.errno in _FACTS:
        return UnreadableImage(error.strerror or str(error))
    return TemporaryError(
        f"the image of {where} could not be read ({error.strerror or error}); run the same command again"
    )
