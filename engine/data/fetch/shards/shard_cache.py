"""Shards on the disk: `datasets/shards/<key>.tar`, where the key is the SHA-256 of the shard's URL.

`<key>.json` beside it says which version of the shard was indexed; it stays when the shard is removed. Remove it to
read the shard anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine.core.errors import DatasetError, OutputError
from engine.core.files.atomic_files import FILE_MODE, write_file, writing_to
from engine.core.files.file_lock import locked
from engine.core.limits import Limits
from engine.core.messages import Say
from engine.core.redact import shown_url
from engine.data.fetch.download import Download
from engine.data.fetch.http_hops import Policy
from engine.data.fetch.shards.lists import name_of
from engine.data.fetch.shards.ranges import NoRangesError, RangeReader, RemoteFile
from engine.data.fetch.shards.room import Room
from engine.data.fetch.sniffing import Kind, sniff

_PROBED_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Facts:
    """The version of a shard that was indexed."""

    size: int
    """Bytes."""
    validator: str | None
    """The value for `If-Range`; None if the server gives no strong one."""
    has_ranges: bool
    """True if the server sends parts of it."""
    stamp: str
    """Random: what was found out about another version has another stamp."""

    @property
    def is_well_formed(self) -> bool:
        """Return whether the values have the types that they are noted with: the file may be damaged."""
        types = ((self.size, int), (self.validator, str | None), (self.has_ranges, bool), (self.stamp, str))
        return all(isinstance(value, kind) for value, kind in types)


class ShardCache:
    """The shards of all datasets in a cache folder. Threads may share it."""

    def __init__(self, cache_dir: Path, *, limits: Limits, policy: Policy, report: Say) -> None:
        self._cache_dir = cache_dir
        self._limits = limits
        self._policy = policy
        self._report = report
        self._folder = cache_dir / "datasets" / "shards"
        self.ranges = RangeReader(limits, policy, report)
        self.room = Room(cache_dir, limits.max_cache_bytes)
        self._ranges_by_host: dict[str, bool] = {}
        self._one_at_a_time = threading.Lock()

    @staticmethod
    def key(url: str) -> str:
        return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()

    def path(self, url: str) -> Path:
        """Return where a shard is if it is in the cache."""
        return self._folder / f"{self.key(url)}.tar"

    def facts_file(self, url: str) -> Path:
        return self._folder / f"{self.key(url)}.json"

    def facts(self, url: str) -> Facts | None:
        """Return the facts about a shard; None if it was not read yet."""
        with suppress(OSError, ValueError, TypeError):
            facts = Facts(**json.loads(self.facts_file(url).read_bytes()))
            return facts if facts.is_well_formed else None
        return None

    @contextmanager
    def whole(
        self, url: str, *, most_bytes: int | None = None, progress: Say | None = None, takes_new: bool = False
    ) -> Iterator[Path]:
        """Return a context with the whole shard on the disk, downloaded if need be; it is kept after that if it fits.

        One shard at a time is downloaded, so that at most one is on the disk beyond the cache's bound. Processes that
        want the same shard wait for each other.

        Args:
            url: the shard's.
            most_bytes: its largest size; None for MAX_DATASET_BYTES.
            progress: takes lines on what has been fetched.
            takes_new: whether facts about another version are replaced by those about what is downloaded; for a shard
                of which the job has no index yet.

        Raises:
            DatasetError: refused by the server, at a private address, too large, or no tar.
            TemporaryError: the server or the network fails after all attempts.
            OutputError: the cache cannot be written, or has too little space.
        """
        downloads, path = self._cache_dir / "datasets" / "url", self.path(url)
        with writing_to(self._cache_dir):
            for folder in (downloads, self._folder):
                folder.mkdir(parents=True, exist_ok=True)
        with self._one_at_a_time, locked(downloads / f"{self.key(url)}.lock", "shard", self._report):
            if path.is_file() and self.facts(url) is not None:
                yield path
                return
            with writing_to(self._folder):
                path.unlink(missing_ok=True)  # of a version about which nothing is known
            limits = self._limits if most_bytes is None else replace(self._limits, max_dataset_bytes=most_bytes)
            download = Download(
                url,
                downloads / f"{self.key(url)}.part",
                limits=limits,
                policy=self._policy,
                report=self._report,
                progress=progress or (lambda line: None),
            )
            try:
                self._run(download)
                self._check(download, takes_new=takes_new)
                yield download.part
            except DatasetError:
                download.discard()  # the same bytes would be refused again; the server may have better ones next time
                raise
            self._keep(download, path)

    def _run(self, download: Download) -> None:
        """Run a download. Raises its errors; where all shards are kept, with advice on a disk without enough space."""
        try:
            download.run()
        except OutputError as error:
            if self._limits.max_cache_bytes is not None:
                raise
            advice = "or set MAX_CACHE_BYTES, the space that shards may take: the others are read from their servers"
            raise OutputError(f"{error}; {advice}") from error

    def _is_known_version(self, download: Download) -> bool:
        """Return whether a downloaded shard is the version that its facts are about, as far as its server says."""
        facts, size = self.facts(download.url), download.part.stat().st_size
        return facts is not None and (facts.size, facts.validator) == (size, download.validator)

    def _check(self, download: Download, *, takes_new: bool) -> None:
        """Check that a downloaded file is a tar, and note the facts about it unless those about another one stay."""
        kind = sniff(download.part)
        if kind is not Kind.TAR:
            raise DatasetError(f"it is {kind.value}; a shard is a plain, uncompressed tar (WebDataset)")
        if self._is_known_version(download) or (self.facts(download.url) is not None and not takes_new):
            return
        file = RemoteFile(download.url, download.part.stat().st_size, download.validator)
        facts = Facts(file.size, file.validator, self._has_ranges(file, download.part), uuid.uuid4().hex)
        with writing_to(self._cache_dir):
            write_file(self.facts_file(download.url), json.dumps(asdict(facts)).encode())

    def _has_ranges(self, file: RemoteFile, part: Path) -> bool:
        """Return whether a server sends parts of its files; one shard of each server is tried."""
        host = urlsplit(file.url).netloc
        if host not in self._ranges_by_host:
            with part.open("rb") as opened:
                begins = opened.read(_PROBED_BYTES)
            try:
                found = self.ranges.read(file, 0, len(begins))
            except (NoRangesError, DatasetError):
                found = b""
            self._ranges_by_host[host] = found == begins
        return self._ranges_by_host[host]

    def _keep(self, download: Download, path: Path) -> None:
        with writing_to(self._cache_dir):
            download.part.chmod(FILE_MODE)
            with download.part.open("rb") as file:
                os.fsync(file.fileno())
            if self._is_known_version(download):  # the index in the cache is not another's
                self.room.keep(download.part, path)
            download.discard()

    def label(self, url: str) -> str:
        """Return a shard's name in messages."""
        return f"{name_of(url)} ({shown_url(url)})"
