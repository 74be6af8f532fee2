"""Notes in the cache of what reading whole files gave, so that the next job need not read them again.

A note is found by what `stat` says of every file that was read. What must hold is that no file changes and still looks
like what its note was made of:

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
"""Of the cache: what is in them is written once, and whole, by this program and the libraries that it calls."""


class Identity:
    """What stands for data without reading them: words, columns in memory, and the marks of files."""

    def __init__(self, what: str, cache_dir: Path) -> None:
        """Of `what` is to be noted in `cache_dir`; the files are marked now, and read after that."""
        # The user too: what one may read is not what another may.
        user = [os.geteuid(), os.getegid(), *sorted(os.getgroups())]
        self._digest = hashlib.sha256(f"{VERSION}|{what}|{user}".encode())
        self._settled_before = time.time_ns() - SETTLED_NS
        self._own = tuple(f"{cache_dir / name}/" for name in _OWN_FOLDERS)
        self._is_certain = True

    @property
    def key(self) -> str | None:
        """64 hex digits; None where some of the data may change without a mark."""
        return self._digest.hexdigest() if self._is_certain else None

    def give_up(self) -> None:
        """There is something that nothing stands for."""
        self._is_certain = False

    def add(self, *values: bytes) -> None:
        for value in values:
            self._digest.update(struct.pack("<Q", len(value)) + value)

    def add_column(self, column: pa.ChunkedArray) -> None:
        """All of a column's values."""
        sink = _DigestSink(self._digest)
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), pa.schema([("column", column.type)])) as writer:
            writer.write_table(pa.table([column], names=["column"]))
        self.add(b"end of column")

    def add_files(self, paths: Iterable[str | Path]) -> None:
        """Files by their marks; one that is not there by its absence."""
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
    """A file to write to that only hashes."""

    closed = False

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The digest goes on."""


@lru_cache(maxsize=16)
def _keeps_change_times(device: int) -> bool:
    """Whether the mounted file system with this device number is one of `FILE_SYSTEMS` (proc(5), mountinfo)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, UnicodeError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] in FILE_SYSTEMS
    return False


def remembered(identity: Identity, cache_dir: Path, compute: Callable[[], str]) -> str:
    """What `compute` gave when `identity` was the same, else what it gives now, which is noted; in ASCII."""
    return remembered_bytes(identity, cache_dir, lambda: compute().encode("ascii")).decode("ascii")


def remembered_bytes(identity: Identity, cache_dir: Path, compute: Callable[[], bytes]) -> bytes:
    """`remembered`, of any bytes."""
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
    write_cached(path, seal(computed))  # where it cannot, the next job takes its time, nothing else
    return computed
