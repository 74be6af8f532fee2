"""Compressed files as forward-only streams of bounded memory, with the methods that tarfile uses."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

from engine.core.errors import DatasetError
from engine.core.limits import MAX_HEADER_BYTES, Budget, Limits, refuse_endless_number
from engine.data.fetch.sniffing import Kind, is_tar_header

CHUNK_BYTES: Final = 1 << 20
XZ_MEMORY_BYTES: Final = 256 << 20
_PACKED_BYTES: Final = 32 << 10
"""Given to a decompressor at once: it hands the rest back at the end of each stream, of which there may be one every
14 bytes."""

_BLOCK: Final = 512


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Streams(io.RawIOBase):
    """One or more bzip2 or xz streams, one after the other (as parallel compressors write them)."""

    def __init__(self, file: IO[bytes], new: Callable[[], _Decompressor]) -> None:
        self._file = file
        self._new = new
        self._decompressor = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while True:
            packed = self._input()
            if packed is None:
                return 0
            data = self._decompress(packed, len(view))
            if data:
                view[: len(data)] = data
                return len(data)

    def _input(self) -> bytes | None:
        """Return the next input; None at the end. Raises EOFError if a stream is truncated."""
        if self._decompressor.eof:
            # xz streams may be padded by zeros.
            rest = self._decompressor.unused_data.lstrip(b"\x00")
            while not rest:
                packed = self._file.read(_PACKED_BYTES)
                if not packed:
                    return None
                rest = packed.lstrip(b"\x00")
            self._decompressor = self._new()
            return rest
        if not self._decompressor.needs_input:
            return b""
        packed = self._file.read(_PACKED_BYTES)
        if not packed:
            raise EOFError
        return packed

    def _decompress(self, packed: bytes, max_length: int) -> bytes:
        try:
            return self._decompressor.decompress(packed, max_length)
        except OSError as error:
            # bz2 raises OSError for invalid data, which must not be taken for a disk error.
            raise DatasetError(f"it is damaged ({error}); pack or upload it again") from error


class ForwardFile:
    """A binary file read from front to back; what tarfile may read as headers of one member is bounded."""

    def __init__(self, file: IO[bytes], budget: Budget | None) -> None:
        self._file = file
        self._budget = budget
        self._position = 0
        self._header_bytes = 0
        self._last = b""
        self._peeked = b""

    def begins_tar(self) -> bool:
        """Return whether the file is a tar. Call it before anything is read."""
        self._peeked = self._file.read(_BLOCK)
        return is_tar_header(self._peeked)

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Header bytes, for tarfile. A pax header may claim gigabytes and would be read into memory."""
        self._header_bytes += size
        if size < 0 or self._header_bytes > MAX_HEADER_BYTES:
            raise DatasetError(f"it has a member with more than {MAX_HEADER_BYTES:,} bytes of headers; pack it again")
        self._last = self._read(size)
        refuse_endless_number(self._last)
        return self._last

    def begin_member(self) -> None:
        """Note that a member's headers were read: what follows belongs to the next member."""
        self._header_bytes = 0

    @property
    def ended_in_zeros(self) -> bool:
        """Return whether the last block read was the zeros that end a tar."""
        return self._last == bytes(_BLOCK)

    def seek(self, position: int) -> None:
        """Seek forward. Raises ValueError for a step back, EOFError past the end."""
        if position < self._position:
            raise ValueError("overlapping members")
        if self._budget is None and not self._peeked:
            self._file.seek(position)
            self._position = position
            return
        for _ in self.content(position - self._position):
            pass

    def content(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes in chunks. Raises EOFError if there are fewer."""
        while size:
            chunk = self._read(min(size, CHUNK_BYTES))
            if not chunk:
                raise EOFError
            size -= len(chunk)
            yield chunk

    def rest(self) -> Iterator[bytes]:
        """Yield the rest, in chunks."""
        while chunk := self._read(CHUNK_BYTES):
            yield chunk

    def drain(self) -> None:
        """Read to the end of a packed file, where its checksum is."""
        if self._budget is not None:
            for _ in self.rest():
                pass

    def _read(self, size: int) -> bytes:
        head, self._peeked = self._peeked[:size], self._peeked[size:]
        data = head + self._file.read(size - len(head))
        self._position += len(data)
        if self._budget is not None:
            self._budget.spend(len(data))
        return data


@contextmanager
def open_unpacked(path: Path, kind: Kind, limits: Limits) -> Iterator[ForwardFile]:
    """Open the content of a file of kind TAR (as it is), GZIP, BZIP2 or XZ (decompressed, within the limits)."""
    with path.open("rb") as file:
        budget = None if kind is Kind.TAR else Budget(limits, path.stat().st_size)
        unpacked: IO[bytes] = file
        if kind is Kind.GZIP:
            unpacked = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif kind is Kind.BZIP2:
            unpacked = _buffered(_Streams(file, bz2.BZ2Decompressor))
        elif kind is Kind.XZ:
            unpacked = _buffered(_Streams(file, _new_xz))
        yield ForwardFile(unpacked, budget)


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)


def _buffered(raw: io.RawIOBase) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(raw, CHUNK_BYTES))
