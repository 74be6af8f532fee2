"""Write a file or a folder of files beside its place and put it there at once, so that it is whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.core.errors import OutputError
from engine.core.files import atomic_files


@dataclass(frozen=True, slots=True)
class Streamed:
    """The content of a file that is never in memory as a whole."""

    num_bytes: int
    """Its size, about: a header may not be counted."""
    pieces: Callable[[], Iterator[bytes | memoryview]]


Content = bytes | Path | Streamed
"""The content of a file: its bytes, a file on disk that has it, or what makes it."""

Written = Callable[[int], None]
"""Called with the number of bytes of each piece that was written."""


def require_free(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError if something is at `target`, unless it may be overwritten by its like."""
    if not os.path.lexists(target):
        if found := atomic_files.obstacle(target.parent):
            raise OutputError(f"cannot write {target}: {found}; remove it, or choose another place")
        return
    if not overwrite:
        raise OutputError(f"{target} is there already: choose another --output, or replace it with --overwrite")
    if target.is_symlink():
        raise OutputError(f"{target} is a link, which is not replaced: choose another --output")


def write_one(target: Path, content: Streamed, *, overwrite: bool, written: Written) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: it cannot be written, or something is at its place already.
    """
    if overwrite and target.is_dir():
        raise OutputError(f"{target} is a folder, and this format is a file: choose another --output")
    with _beside(target, overwrite=overwrite) as built:
        with _new_file(built) as file:
            _copy(content, file, written)
        require_free(target, overwrite=overwrite)
        built.replace(target)
        atomic_files.sync_folder(target.parent)


def write_folder(target: Path, files: Mapping[str, Content], *, overwrite: bool, written: Written) -> None:
    """Write a folder with these files, whole or not at all. Files on disk are linked where the file system can.

    Raises:
        OutputError: it cannot be written, or something is at its place already.
    """
    if overwrite and target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, and this format is a folder: choose another --output")
    if overwrite and not _is_like(target, files):
        raise OutputError(
            f"{target} is not a folder that an export made, so it is not replaced: choose another --output"
        )
    with _beside(target, overwrite=overwrite) as built:
        atomic_files.make_folder(built)
        folders = sorted({(built / name).parent for name in files} | {built})
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for name, content in files.items():
            _write(built / name, content, written)
        for folder in reversed(folders):
            atomic_files.sync_folder(folder)
        require_free(target, overwrite=overwrite)
        atomic_files.publish_folder(built, target, _replaced(target))


def _is_like(target: Path, files: Collection[str]) -> bool:
    """Return whether nothing is lost but an output of this kind: a missing or empty folder, or one with such files."""
    if not target.is_dir() or not any(target.iterdir()):
        return True
    return any((target / name).is_file() for name in files if "/" not in name)


def new_bytes(target: Path, files: Mapping[str, Content]) -> int:
    """Return about how many bytes on disk the files will take: those that can be linked take none."""
    device = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists()).stat().st_dev
    total = 0
    for content in files.values():
        if isinstance(content, Path):
            status = content.stat()
            total += 0 if status.st_dev == device else status.st_size
        else:
            total += content.num_bytes if isinstance(content, Streamed) else len(content)
    return total


@contextlib.contextmanager
def _beside(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the place where the output is built; what is left there is removed, whatever ends the block."""
    built = target.with_name(f".{target.name}.exporting")
    with atomic_files.writing_to(target.parent):
        _clean(target, built)  # what a killed export left
        require_free(target, overwrite=overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield built
        finally:
            _clean(target, built)


def _replaced(target: Path) -> Path:
    """Return where a folder lies while another one takes its place."""
    return target.with_name(f".{target.name}.exporting.replaced")


def _clean(target: Path, built: Path) -> None:
    """Remove what is beside the target, after restoring what was to be replaced and was not."""
    atomic_files.recover_folder(target, _replaced(target))
    atomic_files.remove(_replaced(target))
    atomic_files.remove(built)


def _write(path: Path, content: Content, written: Written) -> None:
    if isinstance(content, Path):
        source = content.resolve()  # the Hub's cache has links to its files
        try:
            os.link(source, path)
            written(source.stat().st_size)
            return
        except OSError:  # another file system, or one without links
            with _new_file(path) as file, source.open("rb") as original:
                shutil.copyfileobj(original, file, 1 << 20)
            written(source.stat().st_size)
            return
    with _new_file(path) as file:
        _copy(content, file, written)


def _copy(content: bytes | Streamed, file: BinaryIO, written: Written) -> None:
    for piece in content.pieces() if isinstance(content, Streamed) else (content,):
        file.write(piece)
        written(len(piece))


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, and sync what the block wrote."""
    with path.open("xb") as file:
        os.fchmod(file.fileno(), atomic_files.FILE_MODE)
        yield file
        file.flush()
        os.fsync(file.fileno())
