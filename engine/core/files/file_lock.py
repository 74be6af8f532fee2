"""Exclusive locks on open files. The kernel releases them when the file is closed or its process dies."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, what: str, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock on a file while the block runs; wait for another process that holds it.

    Args:
        path: of the lock file, which is created.
        what: is being downloaded, for the message.
        report: takes the message that another process is waited for.
    """
    with path.open("ab") as file:
        if not try_lock(file.fileno()):
            report(f"another process is downloading the same {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
