"""Files that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import OutputError

FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_CHUNK_BYTES: Final = 1 << 20


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into one `OutputError` with advice."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
            errno.EROFS: "it is read-only: mount it writable",
            errno.EACCES: "permission denied: make it writable for the user that runs the job",
            errno.EPERM: "permission denied: make it writable for the user that runs the job",
        }.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"cannot write to {folder}: {advice}") from error


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_plain(path: Path, limit: int) -> bytes | None:
    """A stranger's file of at most `limit` bytes; None for a link, a pipe or a larger one. Raises OSError."""
    status = path.lstat()
    return path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= limit else None


def write_file(path: Path, data: bytes, *, owner: Path | None = None) -> None:
    """Write `path` atomically, readable by everyone, owned like `owner`. One writer at a time."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        write_new(beside, data, owner=owner)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_cached(path: Path, data: bytes) -> bool:
    """Write a file of a cache, atomically, if the disk can, and say whether it could; any number of jobs may at once.

    Not synced, so `data` is sealed: what a power failure has damaged is a miss.
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):  # mostly it is not there any more
            beside.unlink()
    return True


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file is to hold, where it lies: many are never in memory at once, and each is checked when it is used."""

    path: Path
    sha256: str

    def is_whole(self) -> bool:
        """Whether it is there, unchanged."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a piece at a time. Raises OutputError, at the end at the latest, when it is not whole."""
        digest = hashlib.sha256()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != self.sha256:
            raise OutputError(f"{self.path}, a part of the result, is gone or damaged; run the same command again")


Contents = bytes | Stored


def write_new(path: Path, data: Contents, *, owner: Path | None = None) -> None:
    """Write and sync a file that nobody reads yet. Raises OutputError for a stored one that is not whole."""
    with path.open("wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        for chunk in data.chunks() if isinstance(data, Stored) else (data,):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if owner is not None:
        adopt(path, owner)


def make_folder(path: Path, *, owner: Path | None = None) -> None:
    """Make an empty folder, in place of whatever is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    path.chmod(FOLDER_MODE)
    if owner is not None:
        adopt(path, owner)


def adopt(path: Path, owner: Path) -> None:
    """Give `path` to the owner of `owner`: a root container's results belong to the person who mounted the folder."""
    if os.geteuid() == 0:
        status = owner.stat()
        os.chown(path, status.st_uid, status.st_gid)


def publish_folder(built: Path, target: Path, replaced: Path) -> None:
    """Put the finished folder `built` in place of `target`; what was there before ends up at `replaced`.

    Where the file system can swap two names at once, there is no moment without `target`. Elsewhere there is one, and
    `recover_folder` ends it after a crash.
    """
    sync_folder(built)
    if not target.exists():
        built.rename(target)
        sync_folder(target.parent)
        return
    shutil.rmtree(replaced, ignore_errors=True)
    if _exchange(built, target):
        built.rename(replaced)
    else:
        target.rename(replaced)
        try:
            built.rename(target)
        except OSError:
            with contextlib.suppress(OSError):
                recover_folder(target, replaced)
            raise
    sync_folder(target.parent)


def recover_folder(target: Path, replaced: Path) -> None:
    """Bring back what `publish_folder` had moved aside when it was killed between its two renames."""
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux renameat2). False where the kernel or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return result == 0


def seal(payload: bytes) -> bytes:
    """`payload` behind its SHA-256, for files that this program alone reads back."""
    return hashlib.sha256(payload).digest() + payload


def unseal(data: bytes) -> bytes | None:
    """The payload of a sealed file, or None where a bit of it is wrong."""
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return payload if hashlib.sha256(payload).digest() == digest else None
