"""Unpack untrusted archives into a folder of plain files, or raise a typed error. Nothing is written elsewhere.

Two passes: the first reads every header and checks all names together, the second writes. Bytes are counted as they
come out, whatever headers claim; memory is bounded by the number of members, not by their sizes.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from engine.core.errors import DatasetError, first_line
from engine.core.files.atomic_files import FILE_MODE, FOLDER_MODE
from engine.core.limits import Budget, Limits
from engine.data.fetch.members import Listing, clean_name, is_webdataset, refused, too_many
from engine.data.fetch.sniffing import PACKED, TABLE_NAMES, Kind, sniff
from engine.data.fetch.streams import CHUNK_BYTES, ForwardFile, open_unpacked

__all__ = ["Kind", "extract", "sniff"]

_UNPACKED: Final = ".unpacked"
_DIRECTORY_BYTES_PER_FILE: Final = 256
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_ZIP_UTF8: Final = 0x800
_ZIP_SPLIT: Final = b"PK\x07\x08"
_ZIP_END_BYTES: Final = (64 << 10) + 22
JOIN_PARTS: Final = "join its parts (7-Zip unpacks them; `cat NAME.zip.*`, `zip -s 0`) and give the whole"


class SplitArchiveError(DatasetError):
    """The archive is one part of a split archive; the message says how to join the parts."""


def extract(archive: Path, into: Path, limits: Limits) -> None:
    """Unpack `archive` into the existing, empty folder `into`: regular files (0644) and folders (0755), nothing else.

    zip, tar, and gzip, bzip2 or xz around a tar or a single table. A single top folder is taken away. A table file,
    and a tar in WebDataset form, is *moved* into the folder under a name that says what it is (`data.parquet`,
    `data.tar`). Archives inside the archive stay as they are.

    Raises:
        DatasetError: not an archive or table, damaged, truncated, unsafe or too large; the message begins with what
            "it" (the file) is or does. `into` then holds rubbish.
        OSError: the file system refuses.
    """
    with _reading():
        kind = sniff(archive)
        if kind is Kind.ZIP:
            _extract_zip(archive, into, limits)
        elif kind is Kind.TAR or kind in PACKED:
            _extract_stream(archive, kind, into, limits)
        else:
            _move_table(archive, kind, into)


def notes_of(archive: Path, limits: Limits) -> list[str]:
    """Return notes about an archive, by its names alone, without unpacking. Raises as `extract`."""
    with _reading():
        if sniff(archive) is not Kind.ZIP:
            return []
        with _opened_zip(archive, limits) as file:
            listing = Listing(limits.max_files)
            for _ in _zip_files(file, listing):
                pass
            return listing.notes()


@contextmanager
def _reading() -> Iterator[None]:
    """Turn the standard library's errors about a broken archive into one DatasetError."""
    try:
        yield
    except EOFError:
        raise DatasetError("it is truncated: it ends too early; upload it again") from None
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,  # an OSError, so before the others of that kind
        zlib.error,
        lzma.LZMAError,
        # A nested chain of headers, impossible numbers, names in a false encoding, features that zipfile lacks.
        RecursionError,
        ValueError,
        OverflowError,
        NotImplementedError,
    ) as error:
        reason = ascii(first_line(error))[1:-1]
        raise DatasetError(f"it is damaged or truncated ({reason}); pack or upload it again") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise  # the disk failed, not the archive
        raise DatasetError("it is damaged: an offset in it points outside the file; pack or upload it again") from error


def _move_table(file: Path, kind: Kind, into: Path) -> None:
    if kind not in TABLE_NAMES:
        advice = {
            Kind.WEB_PAGE: "the URL must give the file itself, not a page about it",
            Kind.IMAGE: "a dataset needs images with captions in an archive or a table",
            Kind.VIDEO: "a dataset needs clips with captions in an archive or a table",
            Kind.POINTER: "the URL must give the file that it stands for",
        }.get(kind, "expected .zip, .tar (also .gz, .bz2, .xz), .parquet, .arrow, .jsonl, .json or .csv")
        raise DatasetError(f"it is {kind.value}: {advice}")
    file.chmod(FILE_MODE)
    file.rename(into / TABLE_NAMES[kind])


class _Writer:
    """Creates the files of one archive inside `into`, which nobody else writes to and which holds no links."""

    def __init__(self, into: Path, wrapper: str, budget: Budget) -> None:
        self._into = into
        self._wrapper = wrapper
        self._budget = budget
        self._made = {into}

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        target = self._into / path.removeprefix(self._wrapper)
        self._make(target.parent)
        write_chunks(target, chunks, self._budget)

    def _make(self, folder: Path) -> None:
        if folder not in self._made:
            self._make(folder.parent)
            folder.mkdir()
            folder.chmod(FOLDER_MODE)
            self._made.add(folder)


def write_chunks(target: Path, chunks: Iterable[bytes], budget: Budget) -> None:
    """Write a new file, 0644, never through a link. Raises DatasetError when the budget is spent."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        for chunk in chunks:
            budget.spend(len(chunk))
            file.write(chunk)


# --- tar, plain or packed, and single packed files --------------------------------------------------------------------


def _extract_stream(archive: Path, kind: Kind, into: Path, limits: Limits) -> None:
    with open_unpacked(archive, kind, limits) as stream:
        if not stream.begins_tar():
            _extract_single(archive, stream, into, limits)
            return
        listing = Listing(limits.max_files)
        for _, path in _tar_files(stream, listing):
            listing.add(path)
        stream.drain()
    wrapper = listing.wrapper()
    if is_webdataset(listing.paths):
        _keep_tar(archive, kind, into, limits)
        return
    writer = _Writer(into, wrapper, Budget(limits, archive.stat().st_size))
    with open_unpacked(archive, kind, limits) as stream:
        for member, path in _tar_files(stream, Listing(limits.max_files)):
            stream.seek(member.offset_data)
            writer.write(path, stream.content(member.size))


def _extract_single(archive: Path, stream: ForwardFile, into: Path, limits: Limits) -> None:
    """Unpack a compressed file that is no tar: it must be a table."""
    unpacked = into / _UNPACKED
    write_chunks(unpacked, stream.rest(), Budget(limits, archive.stat().st_size))
    kind = sniff(unpacked)
    if kind is Kind.ZIP or kind is Kind.TAR or kind in PACKED:
        raise DatasetError(f"it is {kind.value} packed once more; upload the inner file itself")
    _move_table(unpacked, kind, into)


def _keep_tar(archive: Path, kind: Kind, into: Path, limits: Limits) -> None:
    target = into / "data.tar"
    if kind is Kind.TAR:
        archive.chmod(FILE_MODE)
        archive.rename(target)
        return
    with open_unpacked(archive, kind, limits) as stream:
        write_chunks(target, stream.rest(), Budget(limits, archive.stat().st_size))


def _tar_files(stream: ForwardFile, listing: Listing) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the regular files to keep, with their checked paths. Raises DatasetError for links and devices."""
    tar = tarfile.TarFile(fileobj=cast("IO[bytes]", stream), encoding="utf-8", errors="surrogateescape")
    while (member := tar.next()) is not None:
        stream.begin_member()
        # tarfile keeps every member and every global header it has seen.
        tar.members.clear()  # type: ignore[attr-defined]
        tar.pax_headers.clear()  # type: ignore[attr-defined]
        listing.count()
        path = clean_name(member.name)
        if not member.isdir():
            _check_tar_member(member)
            if path is not None:
                yield member, path
    if not stream.ended_in_zeros:
        # tarfile takes a broken or missing header for the end.
        raise EOFError


def _check_tar_member(member: tarfile.TarInfo) -> None:
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a named pipe",
    }
    if member.type in kinds:
        raise refused(member.name, kinds[member.type])
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or member.sparse is not None:
        raise refused(member.name, "not a regular file")
    if member.size < 0:
        raise refused(member.name, "of negative size")


# --- zip --------------------------------------------------------------------------------------------------------------


class _ZipSource(io.FileIO):
    """Check the central directory's size before zipfile reads it at once and makes an object of each entry."""

    def __init__(self, path: Path, max_files: int) -> None:
        super().__init__(path)
        self._max_files = max_files

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size <= CHUNK_BYTES:
            return super().read(size) or b""
        if size > self._max_files * _DIRECTORY_BYTES_PER_FILE:
            raise DatasetError("its list of members is too long; use Parquet or WebDataset shards instead")
        data = super().read(size) or b""
        if data.count(b"PK\x01\x02") > self._max_files:
            raise too_many(self._max_files)
        return data


@contextmanager
def _opened_zip(archive: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    _refuse_part(archive)
    with _ZipSource(archive, limits.max_files) as source, zipfile.ZipFile(cast("IO[bytes]", source)) as file:
        yield file


def _extract_zip(archive: Path, into: Path, limits: Limits) -> None:
    with _opened_zip(archive, limits) as file:
        listing = Listing(limits.max_files)
        members = list(_zip_files(file, listing))
        listing.check_captions()
        writer = _Writer(into, listing.wrapper(), Budget(limits, archive.stat().st_size))
        for info, path in members:
            with file.open(info) as content:
                writer.write(path, _chunks(content))


def _refuse_part(archive: Path) -> None:
    """Refuse a part of a split zip by name. Raises DatasetError.

    The first one begins with a mark of its own or lacks the list of members, the last one's list says how many there
    are.
    """
    size = archive.stat().st_size
    with archive.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, size - _ZIP_END_BYTES))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if head == _ZIP_SPLIT or (place >= 0 and tail[place + 4 : place + 6] not in (b"\0\0", b"\xff\xff")):
        raise SplitArchiveError(f"it is a part of a split archive; {JOIN_PARTS}")
    if place < 0:
        raise SplitArchiveError(
            f"it is truncated, or the first part of a split archive: upload it again, or {JOIN_PARTS}"
        )


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


def _zip_files(file: zipfile.ZipFile, listing: Listing) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Return the files to keep, with their checked paths, and add all names to `listing`."""
    for info in file.infolist():
        listing.count()
        name, told = _zip_name(info)
        path = _zip_path(info, name)
        if path is not None:
            listing.add(path, told=told)
            yield info, path


def _zip_path(info: zipfile.ZipInfo, name: str) -> str | None:
    """Return the checked path of a file to keep. Raises DatasetError unless it is a plain file or folder."""
    path = clean_name(name)
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        raise refused(name, "a symbolic link")
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(name, "not a regular file")
    if name.endswith("/") or mode == stat.S_IFDIR:
        return None
    if info.flag_bits & _ZIP_ENCRYPTED:
        raise refused(name, "encrypted")
    if info.compress_type not in _ZIP_METHODS:
        raise refused(name, f"packed by zip method {info.compress_type}, not by the usual deflate")
    return path


def _zip_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return the name as stored, and whether its encoding is unknown.

    `ZipInfo.filename` ends at a NUL, names are often UTF-8 without saying so, and Windows PowerShell writes them with
    backslashes.
    """
    name, told = info.orig_filename, True
    if not info.flag_bits & _ZIP_UTF8:
        try:
            name = name.encode("cp437").decode()
        except UnicodeDecodeError:
            told = False
    return name.replace("\\", "/"), told
