"""A cache of results computed from whole files, so that the next job need not read the files again.

The key is what `stat` says of every file that was read. A file must not change without a change of its key:

- Of its marks, a file's owner can set the modification time back, but not the change time, which the kernel sets with
  every change of content, name or mode. So size, both times, inode and device are compared.
- The kernel's clock for files moves in ticks. A change within the tick of the one before leaves no mark, so a file that
  had been changed just before it was read is not noted, as git's index does not trust such files ("racily clean").
- Writing through a memory map marks a file when a page of it becomes dirty, and not again before that page was written
  back, half a minute later. So a file has to be at rest for longer than that.
- Not all file systems keep a change time: those of other machines and in user space may make one up, and tmpfs never
  writes its pages back; what an overlay lies on, a container cannot see. Only where marks are known to be kept are
  files noted; anywhere else they are read by every job.

The cache is trusted, as for encodings: docs/trust.md says who is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa

from engine.core.files.atomic_files import seal, unseal, write_cached

VERSION: Final = "sd-lora-task note v1"
SETTLED_NS: Final = 120_000_000_000
"""Age from which a further change is certain to be marked: coarser than any clock of the file systems below, and twice
and more what a dirty page may wait (`vm.dirty_expire_centisecs`, 30 s, and the disk's time to write it)."""
FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs"})
_OWN_FOLDERS: Final = ("datasets", "tables", "hub")
"""Folders of the cache whose files are written once, and whole, by this program and the libraries that it calls."""


class Identity:
    """The cache key of a result: text, columns in memory, and the `stat` values of files."""

    def __init__(self, what: str, cache_dir: Path) -> None:
        """`what` names the kind of result, `cache_dir` is the cache. Add files before they are read."""
        # The user too: what one may read is not what another may.
        user = [os.geteuid(), os.getegid(), *sorted(os.getgroups())]
        self._digest = hashlib.sha256(f"{VERSION}|{what}|{user}".encode())
        self._settled_before = time.time_ns() - SETTLED_NS
        self._own = tuple(f"{cache_dir / name}/" for name in _OWN_FOLDERS)
        self._is_certain = True

    @property
    def key(self) -> str | None:
        """The key, 64 hex digits; None if an input may change unnoticed, so that nothing may be cached."""
        return self._digest.hexdigest() if self._is_certain else None

    def give_up(self) -> None:
        """Mark this identity as unusable: an input has no reliable fingerprint, so nothing may be cached for it."""
        self._is_certain = False

    def add(self, *values: bytes | memoryview) -> None:
        for value in values:
            self._digest.update(struct.pack("<Q", len(value)))
            self._digest.update(value)

    def add_column(self, column: pa.ChunkedArray) -> None:
        """Add all values of a column."""
        sink = _DigestSink(self._digest)
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), pa.schema([("column", column.type)])) as writer:
            writer.write_table(pa.table([column], names=["column"]))
        self.add(b"end of column")

    def add_files(self, paths: Iterable[str | Path]) -> None:
        """Add files by their `stat` values; a missing file by its absence."""
        for path in paths:
            if not self._is_certain:
                return
            self._add_file(str(path))

    def _add_file(self, path: str) -> None:
        try:
            status = os.stat(path)  # noqa: PTH116  # a million of them
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            self.add(b"none", repr(getattr(error, "errno", None)).encode())
            return
        newest = max(status.st_mtime_ns, status.st_ctime_ns)
        is_settled = newest < self._settled_before or path.startswith(self._own)
        self._is_certain = (
            is_settled and stat.S_ISREG(status.st_mode) and status.st_size > 0 and _keeps_change_times(status.st_dev)
        )
        marks = (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.add(b"file", repr(marks).encode())


class _DigestSink:
    """A writable file object that hashes what is written."""

    closed = False

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: the digest is used further."""


@lru_cache(maxsize=16)
def _keeps_change_times(device: int) -> bool:
    """Return whether the file system with this device number is one of `FILE_SYSTEMS` (proc(5), mountinfo)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, UnicodeError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] in FILE_SYSTEMS
    return False


def remembered(identity: Identity, cache_dir: Path, compute: Callable[[], str]) -> str:
    """Return the cached result for `identity`; else compute and cache it. ASCII text."""
    return remembered_bytes(identity, cache_dir, lambda: compute().encode("ascii")).decode("ascii")


def remembered_bytes(identity: Identity, cache_dir: Path, compute: Callable[[], bytes]) -> bytes:
    """Return the cached bytes for `identity`; else compute and cache them."""
    key = identity.key
    if key is None:
        return compute()
    path = cache_dir / "notes" / key
    with contextlib.suppress(OSError):
        noted = unseal(path.read_bytes())
        if noted is not None:
            with contextlib.suppress(OSError):
                os.utime(path)  # used now: what was not used for longest is removed from a cache that is full
            return noted
    computed = compute()
    write_cached(path, seal(computed))  # a failed write costs the next job time, nothing else
    return computed
