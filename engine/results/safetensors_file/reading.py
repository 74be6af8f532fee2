"""Read safetensors files that anybody may have written, tensor by tensor, and check their SHA-256 on the way.

A file is read once, from its begin to its end, so that it may come from another process. Nothing is believed before it
is checked: a header cannot ask for more memory than the file has bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import torch

_MAX_HEADER_BYTES: Final = 16 << 20
"""Upper bound for a header, whose values take twenty times as much memory. A tensor takes about 120 bytes."""
_MAX_DIMENSIONS: Final = 16
_CHUNK_BYTES: Final = 16 << 20
VALUE_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of a value of each dtype that a header may name."""


class DamagedFileError(Exception):
    """An error for a file whose SHA-256 is not the expected one, or that ends too early."""


class Reader(Protocol):
    """A file that is read from its begin to its end, without seeking."""

    size: int
    """Number of bytes of the whole file."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Read at most `len(buffer)` bytes and return their number, 0 at the end. Raises OSError."""
        ...


class FileReader:
    """A local file; see `Reader`."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def readinto(self, buffer: memoryview, /) -> int:
        """See `Reader.readinto`."""
        return self._file.readinto(buffer) or 0


@contextmanager
def open_file(path: Path) -> Iterator[Reader]:
    """Open a local file. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        yield FileReader(file)


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of a tensor in a header."""

    dtype: str
    """The dtype as it is spelled in the file, such as F32."""
    shape: tuple[int, ...]
    start: int
    """The number of bytes between the header and its values."""
    end: int


def read_header(fill: Callable[[memoryview], None], size: int) -> dict[str, Entry]:
    """Read the header of a safetensors file. Return what it says of each tensor, in the order of their values.

    Args:
        fill: reads the next bytes into the whole of a buffer.
        size: number of bytes of the file.

    Raises:
        ValueError: it is malformed, or does not describe each byte of the file exactly once.
    """
    if size < 8:
        raise ValueError("it is too short")
    length = bytearray(8)
    fill(memoryview(length))
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its header has {header_bytes:,} bytes")
    text = bytearray(header_bytes)
    fill(memoryview(text))
    return _parse_header(bytes(text), size - 8 - header_bytes)


def _parse_header(text: bytes, num_bytes: int) -> dict[str, Entry]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    entries = {name.encode().decode(): _entry(name, value) for name, value in header.items()}  # no half characters
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            raise ValueError(f"tensor {name[:100]!r} does not begin where the one before it ends")
        end = entry.end
    if end != num_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, but {num_bytes:,} are there")
    return ordered


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header repeats a name")
    return found


def _entry(name: str, value: Any) -> Entry:
    """Return the entry of a tensor. Raises ValueError if it is malformed."""
    problem = ValueError(f"its header is malformed at {name[:100]!r}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise problem
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in VALUE_BYTES or not _are_counts(shape) or not _are_counts(offsets):
        raise problem
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(extent, 1) for extent in shape) >= 2**48 or len(offsets) != 2:
        raise problem
    start, end = offsets
    if end - start != math.prod(shape) * VALUE_BYTES[dtype]:
        raise problem
    return Entry(dtype, tuple(shape), start, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def read(
    reader: Reader, sha256: str, *, wanted: Callable[[str, Entry], bool] = lambda name, entry: True
) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Each tensor gets memory of its own, aligned as torch's own allocations are.

    Args:
        reader: the file at its begin.
        sha256: the expected SHA-256 of the whole file, in hex.
        wanted: returns whether to keep a tensor, for its name and its entry; called in the order of the file.

    Returns:
        The wanted tensors by name: float32, float16, bfloat16 or uint8, on the CPU.

    Raises:
        DamagedFileError: the file has another SHA-256, or ends too early.
        ValueError: it has this SHA-256, but is malformed, or a wanted tensor is of another dtype.
        OSError: it cannot be read.
    """
    hashed = _Hashed(reader)
    try:
        found = _read(hashed, wanted)
    except ValueError:
        hashed.require(sha256)  # if the file is damaged, that is the reason
        raise
    hashed.require(sha256)
    return found


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._digest = hashlib.sha256()
        self._rest = self.size = reader.size

    def fill(self, buffer: memoryview) -> None:
        """Read the next bytes into the whole buffer. Raises DamagedFileError if the file ends before, and OSError."""
        while buffer:
            count = self._reader.readinto(buffer[:_CHUNK_BYTES])
            if not count:
                raise DamagedFileError("it ends too early")
            self._digest.update(buffer[:count])
            self._rest -= count
            buffer = buffer[count:]

    def skip(self, count: int) -> None:
        """Hash the next bytes only. Raises the errors of `fill`."""
        scratch = memoryview(bytearray(min(count, _CHUNK_BYTES)))
        while count:
            part = scratch[:count]
            self.fill(part)
            count -= len(part)

    def require(self, sha256: str) -> None:
        """Read the rest, and check the SHA-256. Raises the errors of `fill`."""
        self.skip(self._rest)
        if self._digest.hexdigest() != sha256:
            raise DamagedFileError("its SHA-256 is another one")


def _read(file: _Hashed, wanted: Callable[[str, Entry], bool]) -> dict[str, torch.Tensor]:
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
    found: dict[str, torch.Tensor] = {}
    for name, entry in read_header(file.fill, file.size).items():
        if not wanted(name, entry):
            file.skip(entry.end - entry.start)
            continue
        if entry.dtype not in dtypes:
            raise ValueError(f"tensor {name[:100]!r} is {entry.dtype}")
        found[name] = torch.empty(entry.shape, dtype=dtypes[entry.dtype])
        file.fill(found[name].view(-1).view(torch.uint8).numpy().data)
    return found
