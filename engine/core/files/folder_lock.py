"""The lock on an output folder, which one job at a time may write to, on any machine.

A lock on the folder itself would hold on one machine only: an NFS server is told of locks on plain files that are open
for writing, and of no others. So an empty file in the folder is locked. The kernel releases the lock when its holder
dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engine.core.errors import OutputError, TemporaryError
from engine.core.files import atomic_files
from engine.core.files.file_lock import try_lock

LOCK: Final = ".lock"
_ATTEMPTS: Final = 100
"""Each but the last fails because another job takes or lets go of the lock just then."""
_CHANGING_HANDS: Final = {errno.EEXIST, errno.ENOENT, errno.ESTALE}


@contextlib.contextmanager
def held(root: Path, *, stays: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock on `root` while the block runs.

    Args:
        root: the folder.
        stays: called at the end; returns whether to keep the lock file. Keep it if anything was written: another
            machine might not see its removal at once.

    Raises:
        TemporaryError: another job holds it.
        OutputError: it cannot be written.
    """
    path = root / LOCK
    with atomic_files.writing_to(root):
        is_new = not os.path.lexists(path)
        descriptor = _lock(path, root)
    try:
        yield
    finally:
        if is_new and not stays():
            with contextlib.suppress(OSError):  # the folder itself may be gone
                path.unlink()  # before it is let go: whoever has opened it meanwhile sees that it is no longer there
        with contextlib.suppress(OSError):  # closing lets go as well, but in user space (FUSE) only some time later
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _lock(path: Path, root: Path) -> int:
    """Return a descriptor that holds the lock. Raises TemporaryError if another job holds it."""
    for _ in range(_ATTEMPTS):
        _require_file(path)
        try:
            descriptor = _try_to_lock(path, root)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno not in _CHANGING_HANDS:
                raise
            continue
        if descriptor is not None:
            return descriptor
    raise TemporaryError(f"another job is running on {root}; wait for it or choose another folder")


def _try_to_lock(path: Path, root: Path) -> int | None:
    """Return a descriptor that holds the lock; None if the file was replaced meanwhile.

    Raises:
        BlockingIOError: another job holds it.
    """
    descriptor = atomic_files.open_lock(path, owner=root)
    try:
        if not try_lock(descriptor):
            raise BlockingIOError
        if _is_at(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the path still names the open file. Opens it, since `stat` might not ask an NFS server."""
    other = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.path.samestat(os.fstat(other), os.fstat(descriptor))
    finally:
        os.close(other)


def _require_file(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OutputError(f"{path} is not a plain file, as the job's own is: remove it, or choose another folder")
