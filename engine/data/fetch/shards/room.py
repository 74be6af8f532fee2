"""Decide which downloaded shards stay in the cache, so that it holds at most MAX_CACHE_BYTES."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Final

from engine.core.files.retention import prune

_SHARE: Final = 8
"""Divisor of the cache's bound: so much is freed at once, since each look at the whole cache may take seconds."""


class Room:
    """The room for shards in a cache. Processes count what all of them keep in a file, under its lock."""

    def __init__(self, cache_dir: Path, max_bytes: int | None) -> None:
        """`max_bytes` is what the whole cache may hold; None keeps all shards."""
        self._cache_dir = cache_dir
        self._max_bytes = max_bytes
        self._has_looked = False
        self._is_full = False
        self._kept: list[Path] = []

    def keep(self, part: Path, target: Path) -> bool:
        """Move a shard to its place in the cache if it fits; entries of the cache that were used before may give way.

        Shards of this process do not displace each other: images are read at random, so none is worth more.

        Raises:
            OSError: the file system refuses.
        """
        if self._max_bytes is None:
            part.rename(target)
            return True
        size = part.stat().st_size
        with (target.parent / "room").open("a+b") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            used = self._used(counter, self._max_bytes)
            if used + size > self._max_bytes and not self._is_full:
                used = self._freed(size, self._max_bytes)
            fits = used + size <= self._max_bytes
            if fits:
                part.rename(target)
                self._kept.append(target)
            counter.truncate(0)
            counter.write(str(used + size * fits).encode())
        return fits

    def _used(self, counter: IO[bytes], max_bytes: int) -> int:
        """Return the bytes that the cache holds, without what other than shards was added since a process looked."""
        counter.seek(0)
        noted = counter.read(32)
        if self._has_looked and noted.isdigit():
            return int(noted)
        self._has_looked = True
        return prune(self._cache_dir, max_bytes).num_bytes_left

    def _freed(self, size: int, max_bytes: int) -> int:
        """Remove the entries used least recently, and return the bytes that are left."""
        left = prune(self._cache_dir, max(0, max_bytes - max(size, max_bytes // _SHARE))).num_bytes_left
        self._is_full = left + size > max_bytes or not all(path.exists() for path in self._kept)
        return left
