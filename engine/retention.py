"""What of the cache is in use, and what is removed when it holds more than it may.

An entry is what is removed whole: a downloaded dataset, a model, a table, a note, an encoding. A process that uses a
large one has a shared lock on a file that stands for it, below `in_use/`, until it ends, however it ends; whoever
removes an entry needs that lock alone. These are locks on regular files, which machines that share a folder by NFS see
of each other. What is small is read at once, and found missing at worst.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .quoting import plural

_MARKS: Final = "in_use"
_DOOMED: Final = ".removed"
_ABANDONED_NS: Final = 24 * 3600 * 10**9
"""Age of a half-written table that no living process writes any more."""
_SMALL: Final = (("encoded", "encoding"), ("notes", "note"), ("sizes", "note"))

_CACHED: Final = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{32}\.tmp")
"""The names of encodings and notes, and of those that are being written."""

_held: dict[Path, int] = {}
"""Mark -> its open descriptor, for as long as this process lives."""


def hold(cache_dir: Path, entry: Path) -> None:
    """Keep `entry` from being removed while this process lives. Call it before looking whether the entry is there.

    Waits while the entry is just being removed. Where nothing can be locked (a cache that is read-only and has no mark
    of the entry, a file system without locks), nothing is held; what is outside of the cache is nobody's to remove.
    """
    mark = _mark_of(cache_dir, entry)
    if mark is None or mark in _held:
        return
    descriptor = _lock(mark, fcntl.LOCK_SH)
    if descriptor is not None:
        with contextlib.suppress(OSError):  # another user's mark, or a read-only cache
            os.utime(descriptor)  # used now
        _held[mark] = descriptor


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
    mark: Path | None
    """To be locked before it is removed; None for what is small."""


@dataclass(slots=True)
class Pruned:
    """What `prune` did."""

    removed: Counter[str] = field(default_factory=Counter)
    """Kind -> how many."""
    num_bytes_removed: int = 0
    num_bytes_left: int = 0
    num_in_use: int = 0
    """That had to stay, although the cache holds more than it may."""
    failures: list[str] = field(default_factory=list)

    @property
    def did_anything(self) -> bool:
        """Whether there was anything to remove, or would have been."""
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


def prune(cache_dir: Path, max_bytes: int) -> Pruned:
    """Remove the entries used least recently, and not in use, until all together take at most `max_bytes`."""
    found = sorted(_entries(cache_dir), key=lambda entry: (entry.used_ns, str(entry.path)))
    done = Pruned(num_bytes_left=sum(entry.num_bytes for entry in found))
    for entry in found:
        if done.num_bytes_left <= max_bytes:
            break
        try:
            if not _remove(entry, cache_dir):
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
    if entry.mark is None:
        entry.path.unlink()
        return True
    descriptor = _lock(entry.mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return False
    try:
        # At once under another name: what is there under its own is whole.
        doomed = entry.path.with_name(f".{uuid.uuid4().hex}{_DOOMED}")
        entry.path.rename(doomed)
        _discard(doomed)
        if entry.mark.parent == cache_dir / _MARKS:
            entry.mark.unlink()
    finally:
        os.close(descriptor)
    return True


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _lock(mark: Path, operation: int) -> int | None:
    """A descriptor of `mark` with the lock on it; None where it cannot be had."""
    while True:
        descriptor = _open(mark)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, operation)
            # Whoever removed the entry meanwhile has removed the mark too: then this lock is on nothing.
            if os.path.samestat(os.fstat(descriptor), mark.stat()):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            os.close(descriptor)
        except OSError:  # held by others, or a file system without locks
            os.close(descriptor)
            return None


def _open(mark: Path) -> int | None:
    """Open a mark, made where it is missing; only to be read where it is another user's or the cache is read-only."""
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            if flags & os.O_CREAT:
                mark.parent.mkdir(parents=True, exist_ok=True)
            return os.open(mark, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    return None


def _mark_of(cache_dir: Path, entry: Path) -> Path | None:
    """The file that stands for an entry; None for what is not in the cache."""
    root, path = Path(os.path.realpath(cache_dir)), Path(os.path.realpath(entry.parent), entry.name)
    if root not in path.parents:
        return None
    return cache_dir / _MARKS / hashlib.sha256(os.fsencode(path.relative_to(root))).hexdigest()[:32]


def _entries(cache_dir: Path) -> Iterator[_Entry]:
    for folder, kind in _SMALL:
        for used_ns, num_bytes, file in cached_files(cache_dir / folder):
            yield _Entry(Path(file), kind, num_bytes, used_ns, None)
    for path, kind in _large(cache_dir):
        yield from _large_entry(path, kind, _mark_of(cache_dir, path))
    for name, kind in (("datasets", "dataset"), ("models", "model")):
        urls = cache_dir / name / "url"
        unfinished = {part: part.stem for part in _listed(urls, "*.part")}
        for building in _listed(cache_dir / name / "content", ".*.building"):
            unfinished[building] = building.stem.removeprefix(".")
        for path, key in unfinished.items():
            if _mark_of(cache_dir, path) is not None:
                yield from _large_entry(path, f"unfinished {kind}", urls / f"{key}.lock")


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
    if _mark_of(cache_dir, repositories) is not None:
        for kind in ("model", "dataset"):
            yield from ((path, f"Hub {kind}") for path in _listed(repositories, f"{kind}s--*"))


def _large_entry(path: Path, kind: str, mark: Path | None) -> Iterator[_Entry]:
    """One that is really in the cache, by no link, and was not removed meanwhile."""
    if mark is None:
        return
    with contextlib.suppress(OSError):
        used_ns = max(at.lstat().st_mtime_ns for at in (path, mark) if at.exists())
        is_folder = path.is_dir() and not path.is_symlink()
        num_bytes = sum(size for _, size, _ in files_below(path)) if is_folder else path.lstat().st_size
        yield _Entry(path, kind, num_bytes, used_ns, mark)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """What is in a folder, but for what a process that was killed left half removed, which goes now."""
    for doomed in folder.glob(f".{'[0-9a-f]' * 32}{_DOOMED}"):
        with contextlib.suppress(OSError):
            _discard(doomed)
    return sorted(folder.glob(pattern))


def cached_files(folder: Path) -> Iterator[tuple[int, int, str]]:
    """`files_below`, of those that are named as encodings and notes are: whatever a link leads to is left alone."""
    return (found for found in files_below(folder) if _CACHED.fullmatch(found[2].rpartition("/")[2]))


def files_below(folder: str | Path) -> Iterator[tuple[int, int, str]]:
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
