"""One process at a time for one URL."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, what: str, report: Callable[[str], None]) -> Iterator[None]:
    """Only one process at a time; the kernel lets go when it dies. `what` is being downloaded, for the message."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process is downloading the same {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
