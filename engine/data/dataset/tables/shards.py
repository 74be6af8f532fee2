"""Read the rows of shards (WebDataset tars) on web servers, by indices that are made while a shard is on the disk.

The index of a shard is cached in `tables/` under the shard's URL and everything else that it depends on. Beside what
the index of a local tar has (see tar_index.py), it has the columns `width` and `height` of images, so that neither
buckets nor a job whose encodings are cached need the images again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from engine.core.canonical_json import canonical_json
from engine.core.console import NOTE
from engine.core.errors import DatasetError
from engine.core.files.retention import hold
from engine.core.limits import Limits, bounded_memory
from engine.core.messages import Say, plural, shown
from engine.core.redact import shown_url
from engine.data.dataset.dataset import BeginWindow
from engine.data.dataset.folder.splits import refuse_split
from engine.data.dataset.images import DIGEST_BYTES, Images
from engine.data.dataset.rows import KnownFacts, Rows
from engine.data.dataset.tables.tables import MAX_PARSING_BYTES, Source, reading
from engine.data.dataset.tables.tar_index import index_settings, load_index, rows_of_index, save_index
from engine.data.dataset.tables.tar_members import LocalTar
from engine.data.dataset.tables.webdataset import make_index
from engine.data.fetch.http_hops import Policy
from engine.data.fetch.shards.lists import name_of
from engine.data.fetch.shards.remote import RemoteShards
from engine.data.fetch.shards.shard_cache import Facts, ShardCache
from engine.data.media.geometry import UnreadableImage
from engine.data.media.medium import Medium

_SIZES: Final = ("width", "height")
_VERSION: Final = "sd-lora-task index of a shard v1"
_DEFAULT_POLICY: Final = Policy()
_REPORT_SECONDS: Final = 10.0


def read_shards(
    urls: Sequence[str], source: Source, *, limits: Limits, report: Say, policy: Policy = _DEFAULT_POLICY
) -> tuple[tuple[Rows, ...], BeginWindow]:
    """Return the rows of shards, in this order, and the function to call before a window of images is read ahead.

    Shards without an index in the cache are downloaded, one after the other.

    Args:
        urls: the shards'; all different.
        source: the columns to read, and the cache.
        limits: of all shards together.
        report: takes lines for a person.
        policy: how patient downloads are.

    Raises:
        DatasetError: a shard is refused by its server, no tar, or not usable; or they are too large.
        TemporaryError: a server or the network fails after all attempts.
        OutputError: the cache cannot be written, or has too little space.
    """
    refuse_split("the list of shards", source.split)
    if source.config_name not in (None, "", "default"):
        raise DatasetError(
            f"is {source.config_name!r}, but a list of shards has no configurations", key="dataset.config_name"
        )
    cache = ShardCache(source.cache_dir, limits=limits, policy=policy, report=report)
    shards = RemoteShards(cache)
    reader = _Reader(urls, source, cache, limits.max_dataset_bytes, report)
    parts = []
    for number, url in enumerate(urls):
        index, facts = reader.read(number)
        label = shown(name_of(url))
        rows = rows_of_index(index, shards.add(url, facts), label)
        parts.append(replace(rows, known=_known(index, rows), if_changed=_if_changed(url, cache)))
    reader.summarise()
    return tuple(parts), shards.begin_window


class _Reader:
    """Reads the indices of shards, and makes those that are missing."""

    def __init__(self, urls: Sequence[str], source: Source, cache: ShardCache, max_bytes: int, report: Say) -> None:
        self._urls = urls
        self._source = source
        self._cache = cache
        self._max_bytes = max_bytes
        self._report = report
        self._settings = index_settings(source.columns, joins_lines=source.joins_lines).decode()
        self._total = 0
        self._fetched = 0
        self._has_ranges = True
        self._began = self._reported = time.monotonic()

    def read(self, number: int) -> tuple[pa.RecordBatch, Facts]:
        """Return the index and the facts of a shard. Shards are read in order."""
        url = self._urls[number]
        index, facts = self._known(url) or self._make(number)
        self._total += facts.size
        self._has_ranges = self._has_ranges and facts.has_ranges
        if self._total > self._max_bytes:
            raise self._too_large(number)
        return index, facts

    def _known(self, url: str) -> tuple[pa.RecordBatch, Facts] | None:
        """Return what the cache has of a shard; None if something is missing."""
        facts = self._cache.facts(url)
        if facts is None:
            return None
        kept = self._kept(url, facts)
        hold(self._source.cache_dir, kept)
        index = load_index(kept)
        return None if index is None else (index, facts)

    def _kept(self, url: str, facts: Facts) -> Path:
        """Return where a shard's index is cached."""
        what = [_VERSION, url, facts.stamp, self._settings, self._source.columns.medium.reader_version]
        return self._source.cache_dir / "tables" / f"{hashlib.sha256(canonical_json(what)).hexdigest()}.arrow"

    def _make(self, number: int) -> tuple[pa.RecordBatch, Facts]:
        """Return the index and the facts of a shard, which is downloaded unless it is in the cache."""
        url, left = self._urls[number], self._max_bytes - self._total
        if left <= 0:
            raise self._too_large(number)
        try:
            progress = partial(self._note, number)
            with self._cache.whole(url, most_bytes=left, progress=progress, takes_new=True) as path:
                # Another process may have made it while this one waited.
                index, facts = self._known(url) or self._made(url, path)
        except DatasetError as error:
            raise DatasetError(f"shard {number + 1:,} of {len(self._urls):,}, {shown_url(url)}: {error}") from error
        self._fetched += facts.size
        return index, facts

    def _made(self, url: str, path: Path) -> tuple[pa.RecordBatch, Facts]:
        """Make and keep the index of a shard at a path."""
        facts = self._cache.facts(url)
        assert facts is not None  # noted when the shard was downloaded
        kept = self._kept(url, facts)
        index = _index(path, self._source, shown(name_of(url)))
        if save_index(index, kept):
            self._cache.room.note(kept.stat().st_size)
        return load_index(kept) or index, facts  # mapped, so that it takes no memory of its own

    def _too_large(self, number: int) -> DatasetError:
        return DatasetError(
            f"the first {plural(number + 1, 'shard')} of {len(self._urls):,} have more than {self._max_bytes:,} bytes: "
            "use fewer, or raise MAX_DATASET_BYTES"
        )

    def _note(self, number: int, line: str) -> None:
        """Report progress now and then."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            rate = self._fetched / (now - self._began) / 1e6
            self._report(f"shard {number + 1:,} of {len(self._urls):,} ({rate:,.1f} MB/s so far): {line}")

    def summarise(self) -> None:
        """Say how many shards there are, how much of them is in the cache, and whether others are downloaded again."""
        sizes = [path.stat().st_size for url in self._urls if (path := self._cache.path(url)).is_file()]
        self._report(
            f"dataset: {plural(len(self._urls), 'shard')} of {self._total / 1e6:,.1f} MB together, "
            f"{len(sizes):,} of them in the cache ({sum(sizes) / 1e6:,.1f} MB)"
        )
        if len(sizes) < len(self._urls) and not self._has_ranges:
            self._report(
                f"{NOTE}a server of the shards does not send parts of files: shards that are not in the cache are "
                "downloaded again for each window of images; raise MAX_CACHE_BYTES, or use a server with range requests"
            )


def _index(path: Path, source: Source, label: str) -> pa.RecordBatch:
    """Return a new index of a shard on the disk."""
    with reading(label), bounded_memory(MAX_PARSING_BYTES):
        index = make_index(path, source.columns, label, joins_lines=source.joins_lines)
    medium = source.columns.medium
    if medium.has_frames:
        return index
    sizes = _sizes(rows_of_index(index, LocalTar(path), label).images, medium)
    columns = [pa.Array.from_buffers(pa.int32(), index.num_rows, [None, pa.py_buffer(one)]) for one in sizes]
    return pa.record_batch([*index.columns, *columns], names=[*index.schema.names, *_SIZES])


def _sizes(images: Images, medium: Medium) -> tuple[bytes, bytes]:
    """Return the widths and the heights of images as int32; zeros for those that are unreadable."""
    found = np.zeros((2, len(images)), np.int32)
    for row in range(len(images)):
        try:
            found[:, row] = medium.measure(bytes(images.read(row))).size
        except UnreadableImage:
            continue
    return found[0].tobytes(), found[1].tobytes()


def _known(index: pa.RecordBatch, rows: Rows) -> KnownFacts:
    def digests(images: Images | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
        known = None if images is None else images.known_digests()
        return None if known is None else np.frombuffer(known, np.uint8).reshape(-1, DIGEST_BYTES)

    sizes = None
    if "width" in index.schema.names:
        columns = [np.frombuffer(index.column(name).buffers()[1], np.int32) for name in _SIZES]
        sizes = np.stack([column[: index.num_rows] for column in columns], axis=1)
    of_images = digests(rows.images)
    assert of_images is not None  # an index has them
    return KnownFacts(of_images, digests(rows.masks), sizes)


def _if_changed(url: str, cache: ShardCache) -> str:
    return (
        f"on its server since its shard was first read ({shown_url(url)}): put the old file back, or remove "
        f"{cache.facts_file(url).with_suffix('.*')} to take the new one, with which another training begins"
    )
