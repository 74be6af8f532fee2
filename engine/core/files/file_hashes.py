"""SHA-256 of local files, computed in the background and remembered in the cache. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from engine.core.errors import ModelError
from engine.core.files.stat_cache import Identity, remembered

_Marks = tuple[int, int, int, int]
_CHUNK: Final = 16 << 20
"""Bytes hashed between two waits for Python's lock, which whoever imports gives up every 5 ms only."""


class FileDigests:
    """SHA-256 of files; a file whose digest is in the cache is not read again.

    Hashing releases Python's lock, so that files are hashed while the libraries are imported.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._threads: dict[Path, threading.Thread] = {}
        self._found: dict[Path, str] = {}
        self._marks: dict[Path, _Marks] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Start hashing these files, each in a daemon thread. Errors are ignored here: `of` reads such a file again."""
        for path in paths:
            if path not in self._threads:
                self._threads[path] = threading.Thread(target=self._try, args=(path,), daemon=True)
                self._threads[path].start()

    def are_ready(self, *, seconds: float) -> bool:
        """Return whether all files that were begun are hashed, after waiting for that for at most `seconds`."""
        end = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads.values())

    def of(self, path: Path) -> str:
        """Return a file's digest, 64 hex digits. Raises OSError if it cannot be read."""
        if path in self._threads:
            self._threads[path].join()
        return self._found.get(path) or self._compute(path)

    def require_unchanged(self) -> None:
        """Check that the files are still those that were hashed. Call it after they were loaded.

        Raises:
            ModelError: a file was written to or replaced in the meantime.
        """
        for path, marks in list(self._marks.items()):  # a file that nobody asked for may still be hashed
            if not path.exists() or _marks_of(path.stat()) != marks:
                raise ModelError(
                    f"the base model's file {path} has changed since the job began; "
                    "leave the base model alone while a job runs, and start it again"
                )

    def _try(self, path: Path) -> None:
        with contextlib.suppress(OSError, MemoryError):
            self._found[path] = self._compute(path)

    def _compute(self, path: Path) -> str:
        identity = Identity("sha256 of a file", self._cache_dir)
        identity.add_files([path])
        with path.open("rb", buffering=0) as file:
            self._marks[path] = _marks_of(os.fstat(file.fileno()))
            with contextlib.suppress(OSError):  # a note saves hashing it, but it will be loaded
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return remembered(identity, self._cache_dir, lambda: _sha256(file))


def _marks_of(status: os.stat_result) -> _Marks:
    """Return what identifies a file's content. Without the change time, which a backup changes by linking the file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(file: io.FileIO) -> str:
    digest, chunk = hashlib.sha256(), bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size or 1))
    while size := file.readinto(chunk):
        digest.update(memoryview(chunk)[:size])
    return digest.hexdigest()
