"""Find the regular files in an uncompressed tar: plain headers are read here, all others by tarfile."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Final, cast

from engine.core.errors import DatasetError
from engine.core.limits import MAX_HEADER_BYTES, refuse_endless_number
from engine.core.messages import short

Member = tuple[str, int, int]
"""A member's name, and the offset and size of its content in bytes."""

BLOCK_BYTES: Final = 512
_NEAR_BYTES: Final = 16 << 10
_PLAIN: Final = re.compile(
    rb"""(.{100})(?:[0-7]{7}[\0 ]){3}([0-7]{11})[\0 ][0-7]{11}[\0 ]  # name; mode, user, group; size; time
    ([0-7]{6})\0[ ]([0\0x]).{100}  # checksum, type, target of a link
    ustar[\0 ].{66}(?:[0-7]{7}[\0 ]|\0{8}){2}\0  # magic; version, user, group; device; no prefix""",
    re.DOTALL | re.VERBOSE,
)
"""A header whose fields have their usual form (POSIX.1-1988, "ustar Interchange Format", and GNU tar's)."""
_OF_CHECKSUM: Final = 7 * ord(" ")
"""The share of the checksum's own field: it counts as blanks, of which it has one."""
_HARMLESS: Final = (b"mtime", b"atime", b"ctime")
"""Keywords of extended headers that do not matter for a member's content. The webdataset library writes one of them
before each member."""


class Nearby:
    """Reads an open file at rising offsets: each system call reads some bytes ahead."""

    def __init__(self, descriptor: int, num_bytes: int = _NEAR_BYTES) -> None:
        self._descriptor, self._num_bytes = descriptor, num_bytes
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the file. Raises OSError."""
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            self._data = os.pread(self._descriptor, max(size, self._num_bytes), offset)
            self._start, at = offset, 0
        return self._data[at : at + size]


def members(descriptor: int, label: str) -> Iterator[Member]:
    """Yield the regular files of a tar that is open for reading, in their order.

    Raises:
        DatasetError: it is truncated, or has a header larger than `MAX_HEADER_BYTES`.
        tarfile.TarError: it is no tar, or damaged.
        OSError: it cannot be read.
    """
    end, near = os.fstat(descriptor).st_size, Nearby(descriptor)
    # Uncompressed only ("r:"): a compressed tar has no random access; engine/data/fetch unpacks those.
    with BoundedHeaders(descriptor) as file, tarfile.open(fileobj=cast("io.FileIO", file), mode="r:") as tar:
        position = 0
        while True:
            # Global headers change the meaning of those that follow.
            member = None if tar.pax_headers else _plain(near, position)
            if member is None:
                found = tar.next()
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header: a gigabyte per million
                if found is None:
                    return
                if tar.offset <= position:  # tarfile would read the same members again and again
                    raise DatasetError(f"{label} has a member of negative size, {short(found.name)}: it is damaged")
                position = tar.offset
                if not found.isreg() or found.sparse is not None:
                    continue
                member = found.name, found.offset_data, found.size
            else:
                position = tar.offset = _padded(member[1] + member[2])
                tar.firstmember = None  # type: ignore[attr-defined]  # else tarfile returns it once more
            if member[1] + member[2] > end:
                raise DatasetError(f"{label} ends in the middle of {short(member[0])}: it is truncated")
            yield member


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _plain(near: Nearby, position: int) -> Member | None:
    """Return the regular file whose header begins at `position`; None if the header needs tarfile.

    About ten times as fast as tarfile, which takes a minute of CPU time for two million members.
    """
    header = _checked(near.read(position, BLOCK_BYTES))
    if header is not None and header[2] == b"x" and header[1] <= BLOCK_BYTES:
        if not _is_harmless(near.read(position + BLOCK_BYTES, header[1])):
            return None
        position += BLOCK_BYTES + _padded(header[1])
        header = _checked(near.read(position, BLOCK_BYTES))
    if header is None or header[2] not in b"0\0":
        return None
    name = header[0].partition(b"\0")[0]
    if name.endswith(b"/"):  # a folder in old tars
        return None
    return name.decode("utf-8", "surrogateescape"), position + BLOCK_BYTES, header[1]


def _checked(block: bytes) -> tuple[bytes, int, bytes] | None:
    """Return name, size and type from a plain header whose checksum fits."""
    fields = _PLAIN.match(block)
    if fields is None or len(block) < BLOCK_BYTES:
        return None
    name, size, checksum, kind = fields.groups()
    summed = block.translate(None, b"\0")  # most of a header is zeros, and adding them takes most of the time
    if int(checksum, 8) != sum(summed) - sum(checksum) + _OF_CHECKSUM:
        return None
    return name, int(size, 8), kind


def _is_harmless(records: bytes) -> bool:
    """Return whether an extended header has only keywords that do not matter: `LENGTH KEYWORD=VALUE` in each line."""
    for record in records.splitlines(keepends=True):
        length, _, rest = record.partition(b" ")
        keyword, _, value = rest.partition(b"=")
        if keyword not in _HARMLESS or not length.isdigit() or int(length) != len(record) or value[-1:] != b"\n":
            return False
    return True


class BoundedHeaders(io.FileIO):
    """A tar for tarfile that limits the size of headers: a header can claim a size that would fill the memory."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, closefd=False)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise DatasetError(f"it has a member with more than {MAX_HEADER_BYTES:,} bytes of headers; pack it again")
        header = super().read(size) or b""
        refuse_endless_number(header)
        return header
