"""Mark entries of the cache as in use, and remove others when it holds more than it may.

An entry is what is removed whole: a downloaded dataset, a shard, a model, a table, a note, an encoding. A process that
uses a large one has a shared lock on a byte of the file `in_use/locks` that stands for it, until the process ends,
however it ends; whoever removes the entry needs that byte alone. These are locks on a regular file, which machines that
share a folder by NFS see of each other, and any number of them takes one descriptor. When an entry was last used is the
time of an empty file beside it. What is small is read at once, and found missing at worst.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import struct
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from engine.core.files.atomic_files import remove
from engine.core.files.file_lock import try_lock
from engine.core.messages import plural

_MARKS: Final = "in_use"
_LOCKS: Final = "locks"
_OFFSET_DIGITS: Final = 15
"""Leading digits of an entry's name that give the offset of its byte: file offsets have 63 bits."""
_DOOMED: Final = ".removed"
_ABANDONED_NS: Final = 24 * 3600 * 10**9
"""Age of a half-written table that no living process writes any more."""
_SMALL: Final = (("encoded", "encoding"), ("notes", "note"), ("sizes", "note"))

_CACHED: Final = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{32}\.tmp")
"""The names of encodings and notes, and of those that are being written."""

_opened: dict[Path, int] = {}
"""`in_use/` of a cache -> the descriptor of its locks, for as long as this process lives."""


def hold(cache_dir: Path, entry: Path) -> None:
    """Keep `entry` from being removed while this process lives. Call it before looking whether the entry is there.

    Waits while the entry is just being removed. Where nothing can be locked (a read-only cache that nobody has locked
    anything of, a file system without locks), nothing is held; what is outside of the cache is nobody's to remove.
    """
    name = _name_of(cache_dir, entry)
    if name is None:
        return
    marks = cache_dir / _MARKS
    if marks not in _opened:
        descriptor = _open_locks(marks)
        if descriptor is None:
            return
        _opened[marks] = descriptor
    with contextlib.suppress(OSError):
        _lock(_opened[marks], name, fcntl.F_RDLCK, fcntl.F_OFD_SETLKW)
        (marks / name).touch()


def hold_repository(cache_dir: Path, repo_id: str, repo_type: Literal["model", "dataset"]) -> None:
    """`hold` what the Hub's library keeps of a repository, where it keeps it inside the cache."""
    from huggingface_hub import constants

    hold(cache_dir, Path(constants.HF_HUB_CACHE, f"{repo_type}s--{repo_id.replace('/', '--')}"))


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    kind: str
    num_bytes: int
    used_ns: int
    name: str | None = None
    """The name that `hold` locks; None for small entries, which are not locked."""
    writer: Path | None = None
    """The lock file of the download that makes this entry, which is not removed meanwhile. It is also that of a shard,
    which may be removed while a job reads it: the job fetches what it needs again."""


@dataclass(slots=True)
class Pruned:
    """The result of `prune`."""

    removed: Counter[str] = field(default_factory=Counter)
    """Number of removed entries by kind."""
    num_bytes_removed: int = 0
    num_bytes_left: int = 0
    num_in_use: int = 0
    """Number of entries that had to stay, although the cache holds more than it may."""
    failures: list[str] = field(default_factory=list)

    @property
    def did_anything(self) -> bool:
        """Return whether anything was removed, or should have been."""
        return bool(self.removed or self.num_in_use or self.failures)

    def describe(self, cache_dir: Path, max_bytes: int) -> str:
        """One line for a person."""
        kinds = ", ".join(plural(count, kind) for kind, count in sorted(self.removed.items())) or "nothing"
        gone, left = _size(self.num_bytes_removed), _size(self.num_bytes_left)
        text = f"cache {cache_dir}: removed {kinds} ({gone}), {left} left"
        if self.num_bytes_left > max_bytes:
            in_use = plural(self.num_in_use, "entry", "entries")
            text += f", more than {_size(max_bytes)} (MAX_CACHE_BYTES): {in_use} in use"
        if self.failures:
            text += f"; {len(self.failures):,} could not be removed, such as {self.failures[0]}"
        return text


def prune(cache_dir: Path, max_bytes: int, *, spared: Collection[Path] = ()) -> Pruned:
    """Remove the entries used least recently, and not in use, until all together take at most `max_bytes`.

    `spared` are entries that are not removed either.
    """
    found = sorted(_entries(cache_dir), key=lambda entry: (entry.used_ns, str(entry.path)))
    done = Pruned(num_bytes_left=sum(entry.num_bytes for entry in found))
    for entry in found:
        if done.num_bytes_left <= max_bytes:
            break
        try:
            if entry.path in spared or not _remove(entry, cache_dir):
                done.num_in_use += 1
                continue
        except FileNotFoundError:  # another process was faster
            pass
        except OSError as error:
            done.failures.append(f"{entry.path} ({error.strerror or error})")
            continue
        else:
            done.removed[entry.kind] += 1
            done.num_bytes_removed += entry.num_bytes
        done.num_bytes_left -= entry.num_bytes
    return done


def _remove(entry: _Entry, cache_dir: Path) -> bool:
    """Remove an entry; False when it is in use. Raises OSError."""
    if entry.name is None:
        entry.path.unlink()
        return True
    marks = cache_dir / _MARKS
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = _open_locks(marks) if entry.writer is None else os.open(entry.writer, flags, 0o666)
    if descriptor is None:
        return False
    try:
        try:
            if entry.writer is None:
                _lock(descriptor, entry.name, fcntl.F_WRLCK, fcntl.F_OFD_SETLK)
            elif not try_lock(descriptor):
                return False
        except OSError:  # held by others, or a file system without locks
            return False
        # At once under another name: what is there under its own is whole.
        doomed = entry.path.with_name(f".{uuid.uuid4().hex}{_DOOMED}")
        entry.path.rename(doomed)
        remove(doomed)
        (marks / entry.name).unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int, name: str, kind: int, command: int) -> None:
    """Lock the byte that stands for an entry, for the open file: closing another of this process lets nothing go.

    Raises:
        OSError: others hold it, and `command` does not wait.
    """
    start = int(name[:_OFFSET_DIGITS], 16)
    fcntl.fcntl(descriptor, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, start, 1, 0))


def _open_locks(marks: Path) -> int | None:
    """Open the file of locks, made where it is missing; only to be read where the cache or the file is read-only."""
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            if flags & os.O_CREAT:
                marks.mkdir(parents=True, exist_ok=True)
            return os.open(marks / _LOCKS, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    return None


def _name_of(cache_dir: Path, entry: Path) -> str | None:
    """64 hex digits for an entry, by where it is in the cache; None for what is not in it."""
    root, path = Path(os.path.realpath(cache_dir)), Path(os.path.realpath(entry.parent), entry.name)
    if root not in path.parents:
        return None
    return hashlib.sha256(os.fsencode(path.relative_to(root))).hexdigest()


def _entries(cache_dir: Path) -> Iterator[_Entry]:
    for folder, kind in _SMALL:
        for used_ns, num_bytes, file in cached_files(cache_dir / folder):
            yield _Entry(Path(file), kind, num_bytes, used_ns)
    for path, kind in _large(cache_dir):
        yield from _large_entry(cache_dir, path, kind)
    for path in _listed(cache_dir / "datasets" / "shards", "*.tar"):
        yield from _large_entry(cache_dir, path, "shard", cache_dir / "datasets" / "url" / f"{path.stem}.lock")
    for name, kind in (("datasets", "dataset"), ("models", "model")):
        urls = cache_dir / name / "url"
        unfinished = {part: part.stem for part in _listed(urls, "*.part")}
        for building in _listed(cache_dir / name / "content", ".*.building"):
            unfinished[building] = building.stem.removeprefix(".")
        for path, key in unfinished.items():
            yield from _large_entry(cache_dir, path, f"unfinished {kind}", urls / f"{key}.lock")


def _large(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    from huggingface_hub import constants

    yield from ((path, "dataset") for path in _listed(cache_dir / "datasets" / "content", "[!.]*"))
    yield from ((path, "model") for path in _listed(cache_dir / "models" / "content", "[!.]*"))
    yield from ((path, "prepared Hub dataset") for path in _listed(cache_dir / "hub", "[!.]*"))
    yield from ((path, "table") for path in _listed(cache_dir / "tables", "*.arrow"))
    oldest = time.time_ns() - _ABANDONED_NS
    for path in _listed(cache_dir / "tables", "*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns < oldest:
                yield path, "unfinished table"
    repositories = Path(constants.HF_HUB_CACHE)
    if _name_of(cache_dir, repositories) is not None:
        for kind in ("model", "dataset"):
            yield from ((path, f"Hub {kind}") for path in _listed(repositories, f"{kind}s--*"))


def _large_entry(cache_dir: Path, path: Path, kind: str, writer: Path | None = None) -> Iterator[_Entry]:
    """One that is really in the cache, by no link, and was not removed meanwhile."""
    name = _name_of(cache_dir, path)
    if name is None:
        return
    with contextlib.suppress(OSError):
        mark = cache_dir / _MARKS / name
        used_ns = max(at.lstat().st_mtime_ns for at in (path, mark) if at.exists() or at is path)
        is_folder = path.is_dir() and not path.is_symlink()
        num_bytes = sum(size for _, size, _ in _files_below(path)) if is_folder else path.lstat().st_size
        yield _Entry(path, kind, num_bytes, used_ns, name, writer)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """List a folder's entries, and remove those that a killed process has left half removed."""
    for doomed in folder.glob(f".{'[0-9a-f]' * 32}{_DOOMED}"):
        with contextlib.suppress(OSError):
            remove(doomed)
    return sorted(folder.glob(pattern))


def cached_files(folder: Path) -> Iterator[tuple[int, int, str]]:
    """The files below a folder that are named as encodings and notes are: whatever a link leads to is left alone."""
    return (found for found in _files_below(folder) if _CACHED.fullmatch(found[2].rpartition("/")[2]))


def _files_below(folder: str | Path) -> Iterator[tuple[int, int, str]]:
    """Time of last use in nanoseconds, size and path of all files that stay while they are listed."""
    folders = [str(folder)]
    while folders:
        # Another job removes files too: whatever is gone is skipped.
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield status.st_mtime_ns, status.st_size, entry.path


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
