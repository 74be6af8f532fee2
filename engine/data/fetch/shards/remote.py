"""Read members of shards: from the shard on the disk, else by range requests, else from the whole shard once more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from engine.core.errors import DatasetError, TemporaryError
from engine.data.fetch.shards.lists import name_of
from engine.data.fetch.shards.ranges import NoRangesError, RemoteFile
from engine.data.fetch.shards.read_ahead import Place, ReadAhead
from engine.data.fetch.shards.shard_cache import Facts, ShardCache


class RemoteShards:
    """The shards of one dataset."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._files: list[RemoteFile] = []
        self._used: set[int] = set()
        self._whole_only: set[str] = set()
        self._ahead = ReadAhead(self._fetch, self._is_whole)

    def add(self, url: str, facts: Facts) -> RemoteTar:
        """Add the next shard and return it. Its members are read as they were in the version with these facts."""
        self._files.append(RemoteFile(url, facts.size, facts.validator))
        if not facts.has_ranges:
            self._whole_only.add(urlsplit(url).netloc)
        return RemoteTar(self, len(self._files) - 1, name_of(url))

    def begin_window(self, check_stop: Callable[[], None]) -> None:
        """Forget the members that were announced before and not read.

        `check_stop` is called while one is waited for from now on; it raises when the job is to stop.
        """
        self._ahead.clear(check_stop)

    def announce(self, shard: int, places: Sequence[tuple[int, int]]) -> None:
        """Note members that are read next, given by offset and size, unless their shard is on the disk."""
        if places and not self._path(shard).is_file():
            self._ahead.announce(Place(shard, offset, size) for offset, size in places)

    def read(self, place: Place) -> bytes:
        """Return the bytes of a member, which may be others than before.

        Raises:
            DatasetError: the server refuses, or its address is not allowed.
            TemporaryError: the server, the network or the disk fails.
            OutputError: the cache cannot be written, or has too little space.
        """
        if not place.size:  # HTTP has no range of no bytes
            return b""
        self._ahead.start()  # now that all of the window is announced
        data = self._on_disk(place)
        return self._ahead.take(place) if data is None else data

    def _on_disk(self, place: Place) -> bytes | None:
        """Return the bytes of a member whose shard is in the cache; None if it is not. Raises TemporaryError."""
        path = self._path(place.shard)
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), place.size, place.offset)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or error
            raise TemporaryError(f"{path} could not be read ({reason}); run the same command again") from error
        self._mark_used(place.shard, path)
        return data

    def _fetch(self, places: Sequence[Place]) -> list[bytes]:
        """Return members of one shard from its server."""
        file = self._files[places[0].shard]
        try:
            if not self._is_whole(places[0].shard):
                try:
                    return [self._cache.ranges.read(file, place.offset, place.size) for place in places]
                except NoRangesError:
                    self._whole_only.add(urlsplit(file.url).netloc)
            with self._cache.whole(file.url) as path, path.open("rb") as opened:
                return [os.pread(opened.fileno(), place.size, place.offset) for place in places]
        except DatasetError as error:
            raise DatasetError(f"shard {self._cache.label(file.url)}: {error}") from error

    def _is_whole(self, shard: int) -> bool:
        return urlsplit(self._files[shard].url).netloc in self._whole_only

    def _path(self, shard: int) -> Path:
        return self._cache.path(self._files[shard].url)

    def _mark_used(self, shard: int, path: Path) -> None:
        """Set the time of a shard's last use, once in a job: the cache removes what was not used for longest."""
        if shard not in self._used:
            self._used.add(shard)
            try:
                os.utime(path)
            except OSError:  # a cache that is only read, or the shard was removed just now
                return


@dataclass(frozen=True, slots=True)
class RemoteTar:
    """A shard on a server, read like a local tar."""

    shards: RemoteShards
    number: int
    name: str
    """Its file name, for messages."""

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a member. Raises as `RemoteShards.read`."""
        return self.shards.read(Place(self.number, offset, size))

    def read_ahead(self, places: Sequence[tuple[int, int]]) -> None:
        """Note members that are read next, given by offset and size."""
        self.shards.announce(self.number, places)
