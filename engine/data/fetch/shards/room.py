"""Decide which downloaded shards stay in the cache, so that it holds at most MAX_CACHE_BYTES."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Final

from engine.core.files.retention import prune

_SHARE: Final = 8
"""Divisor of the cache's bound, for how much is freed at once."""


class Room:
    """The room for shards in a cache. Processes count what all of them keep in a file, under its lock."""

    def __init__(self, cache_dir: Path, max_bytes: int | None) -> None:
        """`max_bytes` is what the whole cache may hold; None keeps all shards."""
        self._cache_dir = cache_dir
        self._max_bytes = max_bytes
        self._has_looked = False
        self._is_full = False
        self._kept: set[Path] = set()
        self._num_added = 0

    def note(self, num_bytes: int) -> None:
        """Note that something else was added to the cache."""
        self._num_added += num_bytes

    def keep(self, part: Path, target: Path) -> bool:
        """Move a shard to its place in the cache if it fits; entries of the cache that were used before may give way.

        Shards of this process do not displace each other: images are read at random, so none is worth more.

        Args:
            part: the shard as it was downloaded, in the cache; its lock is held.
            target: its place.

        Raises:
            OSError: the file system refuses.
        """
        if self._max_bytes is None:
            part.rename(target)
            return True
        size = part.stat().st_size
        with (target.parent / "room").open("a+b") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            used = self._used(counter, size, self._max_bytes)
            if used + size > self._max_bytes and not self._is_full:
                # Much at once, since each look at the whole cache may take seconds.
                used = self._pruned(self._max_bytes - max(size, self._max_bytes // _SHARE), size)
                self._is_full = used + size > self._max_bytes
            fits = used + size <= self._max_bytes
            if fits:
                part.rename(target)
                self._kept.add(target)
            counter.truncate(0)
            counter.write(str(used + size * fits).encode())
        return fits

    def _used(self, counter: IO[bytes], size: int, max_bytes: int) -> int:
        """Return the bytes in the cache without a part of this size.

        What others have added, but for shards, since this process looked first is not counted.
        """
        counter.seek(0)
        noted = counter.read(32)
        added, self._num_added = self._num_added, 0
        if self._has_looked and noted.isdigit():
            return int(noted) + added
        self._has_looked = True
        return self._pruned(max_bytes, size)

    def _pruned(self, max_bytes: int, size: int) -> int:
        """Remove the entries used least recently until `max_bytes` and a part of this size are left."""
        return prune(self._cache_dir, max(0, max_bytes) + size, spared=self._kept).num_bytes_left - size
