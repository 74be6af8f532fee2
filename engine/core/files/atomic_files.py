"""Atomic file operations: write beside the target, sync, rename, so that a file is whole or absent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, TypeVar

from engine.core.errors import OutputError

FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_CHUNK_BYTES: Final = 1 << 20
_NO_LINKS: Final = {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems without hard links, or that refuse one here."""


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an `OutputError` with advice."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
            errno.EROFS: "it is read-only: mount it writable",
            errno.EACCES: "permission denied: make it writable for the user that runs the job",
            errno.EPERM: "permission denied: make it writable for the user that runs the job",
            errno.ENOLCK: "its file system has no locks: mount it with them, or choose another folder",
        }.get(error.errno or 0)
        raise OutputError(f"cannot write to {folder}: {advice or _in_the_way(folder, error)}") from error


def _in_the_way(folder: Path, error: OSError) -> str:
    """Describe a file or link that is in the way; else return the system's message."""
    reason = error.strerror or str(error)
    found, name = obstacle(folder), error.filename2 or error.filename
    if found is None and isinstance(name, str):
        path = Path(name)
        found = {
            errno.EISDIR: f"{path} is a folder, not a file",
            errno.ELOOP: f"{path} is a link, not a file",
            errno.EEXIST: obstacle(path),
            errno.ENOTDIR: obstacle(path.parent),
            errno.ENOENT: obstacle(path.parent),
        }.get(error.errno or 0)
    return f"{found}; remove it, or choose another folder" if found else reason


def obstacle(path: Path) -> str | None:
    """Describe what keeps `path` from being a folder: a dangling link or a file, there or above it; else None."""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        if os.path.isdir(place):  # noqa: PTH112 - False also where `Path.is_dir` raises
            continue
        if place.is_symlink():
            where = place.readlink()
            return f"{place} is a link to {where}, which is {'a file' if place.exists() else 'not there'}"
        return f"{place} is a file, not a folder" if place.exists() else None
    return None


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_plain(path: Path, limit: int) -> bytes | None:
    """Read an untrusted file of at most `limit` bytes; None for a link, a pipe or a larger file. Raises OSError."""
    status = path.lstat()
    return path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= limit else None


def write_file(path: Path, data: bytes, *, owner: Path | None = None) -> None:
    """Write `path` atomically, readable by everyone, owned like `owner`. One writer at a time."""
    with _renamed(path.with_name(f".{path.name}.tmp"), owner, lambda: path) as file:
        file.write(data)


def create_file(path: Path, data: bytes) -> bool:
    """Write a new file atomically. Return False if something has its name, which stays. One writer at a time."""
    beside = path.with_name(f".{path.name}.tmp")
    remove(beside)
    try:
        write_new(beside, data)
        try:
            path.hardlink_to(beside)  # unlike a rename, it replaces nothing
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_new(path, data)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _renamed(beside: Path, owner: Path | None, name: Callable[[], Path]) -> Iterator[BinaryIO]:
    """Open a new file `beside`. When the block ends, it is synced and gets its name; after an error it is removed."""
    remove(beside)
    try:
        with _new_file(beside, owner) as file:
            yield file
        beside.replace(name())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(beside.parent)


def write_cached(path: Path, data: bytes) -> bool:
    """Write a cache file atomically; return False if the disk refuses. Any number of jobs may write it at once.

    It is not synced: `data` must be sealed, so that a file damaged by a power failure counts as a cache miss.
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
    """A file on disk with its SHA-256, for content that is too large for memory. Checked whenever it is read."""

    path: Path
    sha256: str

    def is_whole(self) -> bool:
        """Return whether the file exists and is unchanged."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in pieces. Raises OutputError, at the end at the latest, if the file is damaged."""
        digest = hashlib.sha256()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != self.sha256:
            self._refuse()

    def require_whole(self) -> None:
        """Raise OutputError if the file is missing or damaged."""
        if not self.is_whole():
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise OutputError(f"{self.path}, a part of the result, is gone or damaged; run the same command again")


Contents = bytes | Stored
Pieces = Callable[[], Iterator[bytes | memoryview]]
"""Returns a file's content in pieces that are made when they are written, so that it is never in memory as a whole."""


def store(folder: Path, pieces: Iterable[bytes | memoryview], *, owner: Path | None = None) -> Stored:
    """Write and sync a file whose name is the SHA-256 of its content. One writer to the folder at a time."""
    digest = hashlib.sha256()
    beside = folder / ".tmp"
    with _renamed(beside, owner, lambda: folder / digest.hexdigest()) as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return Stored(folder / digest.hexdigest(), digest.hexdigest())


def write_new(path: Path, data: Contents, *, owner: Path | None = None) -> None:
    """Create and sync a file. Raises OutputError if `data` is a stored file that is damaged."""
    with _new_file(path, owner) as file:
        for chunk in data.chunks() if isinstance(data, Stored) else (data,):
            file.write(chunk)


def link_new(path: Path, stored: Stored, *, owner: Path | None = None) -> None:
    """Give a stored file of this job a second name; copy it where the file system has no hard links.

    Raises:
        OutputError: it is missing or damaged.
    """
    stored.require_whole()
    try:
        path.hardlink_to(stored.path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_new(path, stored, owner=owner)


@contextlib.contextmanager
def _new_file(path: Path, owner: Path | None) -> Iterator[BinaryIO]:
    """Open a file that is not there yet, and sync what the block wrote."""
    # Whoever may write to the folder may have put a link there: it is not followed.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE), "wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        yield file
        file.flush()
        os.fsync(file.fileno())
        _give(file.fileno(), owner)


def open_log(path: Path, *, owner: Path | None = None) -> int:
    """Open a file for appending; replace a link, a pipe or a hard link by a new file. Returns the descriptor."""
    if os.path.lexists(path) and not _is_own_file(path.lstat()):
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
    try:
        if not _is_own_file(os.fstat(descriptor)):  # it was put there just now
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        os.fchmod(descriptor, FILE_MODE)
        _give(descriptor, owner)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_lock(path: Path, *, owner: Path | None = None) -> int:
    """Open a lock file for writing, and create it if missing. Returns the descriptor.

    It gets the folder's write permissions, so that everyone who may write to the folder can open it.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
    os.fchmod(descriptor, path.parent.stat().st_mode & 0o666 | FILE_MODE)
    _give(descriptor, owner)
    return descriptor


def _is_own_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def make_folder(path: Path, *, owner: Path | None = None) -> None:
    """Create an empty folder; remove what was at its path."""
    remove(path)
    path.mkdir(parents=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, FOLDER_MODE)
        _give(descriptor, owner)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder with its contents, or a link (not its target). A missing path is no error."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _give(descriptor: int, owner: Path | None) -> None:
    """Change an open file's owner to that of `owner`: results of a root container belong to the folder's owner."""
    if owner is not None and os.geteuid() == 0:
        status = owner.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)


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
    remove(replaced)
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
    """Restore the folder that `publish_folder` had moved aside if it was killed between its two renames."""
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


Sealed = TypeVar("Sealed", bytes, memoryview)


def seal(payload: bytes) -> bytes:
    """Return the payload preceded by its SHA-256, for files that only this program reads."""
    return hashlib.sha256(payload).digest() + payload


def unseal(data: Sealed) -> Sealed | None:
    """Return the payload of a sealed file, or None if it is damaged."""
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return payload if hashlib.sha256(payload).digest() == digest else None
