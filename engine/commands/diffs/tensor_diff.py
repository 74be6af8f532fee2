"""Compare safetensors files tensor by tensor, without having a file in memory as a whole. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.core.messages import plural
from engine.results.safetensors_file.reading import VALUE_BYTES, Entry, read_header

Bits = npt.NDArray[np.unsignedinteger[Any]]

_NAMES: Final = {
    **{"BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"},
}
"""The dtypes' names in messages, by their names in a file. They are numpy's, which has no bfloat16."""


class TensorFile:
    """A safetensors file on disk, of which nothing is read before it is used."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: it cannot be read.
            ValueError: it is malformed.
        """
        size = path.stat().st_size
        self._data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        self._offset = 0
        self.entries: dict[str, Entry] = read_header(self._fill, size)

    def _fill(self, buffer: memoryview) -> None:
        buffer[:] = self._data[self._offset : self._offset + len(buffer)].data
        self._offset += len(buffer)

    def bits(self, name: str) -> Bits:
        """Return a tensor's values as unsigned integers with their bits, without its shape."""
        entry = self.entries[name]
        data = self._data[self._offset + entry.start : self._offset + entry.end]
        return data.view(f"u{VALUE_BYTES[entry.dtype]}")

    def value(self, name: str, index: int) -> str:
        """Return one value as text."""
        return str(_numbers(self.bits(name)[index : index + 1], self.entries[name].dtype)[0])


def _numbers(bits: Bits, dtype: str) -> npt.NDArray[Any]:
    """Return the numbers that have these bits; the bits themselves if numpy has no such dtype."""
    if dtype == "BF16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(_NAMES.get(dtype, bits.dtype))


def first_tensor(found: Path, expected: Path) -> str:
    """Describe the first tensor of a re-run's file that differs in the result's file, which has other bytes.

    Raises:
        OSError: one of them cannot be read.
    """
    try:
        return _first_tensor(TensorFile(found), TensorFile(expected))
    except ValueError:
        return "not a valid safetensors file"


def _first_tensor(found: TensorFile, expected: TensorFile) -> str:
    for name, entry in sorted(expected.entries.items()):
        other = found.entries.get(name)
        if other is None:
            return f"tensor {name} is missing from the result"
        if (other.shape, other.dtype) != (entry.shape, entry.dtype):
            return f"tensor {name} is {_described(other)} in the result, {_described(entry)} in the re-run"
        differs = found.bits(name) != expected.bits(name)  # of bits: NaN equals NaN, and 0 differs from -0
        if differs.any():
            first = int(differs.argmax())
            values = f"{found.value(name, first)} in the result, {expected.value(name, first)} in the re-run"
            count = f"{np.count_nonzero(differs)} of {plural(differs.size, 'value')}"
            return f"tensor {name} differs in {count}, first at {first}: {values}"
    more = sorted(found.entries.keys() - expected.entries.keys())
    return f"tensor {more[0]!r} is only in the result" if more else "the same tensors, serialized differently"


def _described(entry: Entry) -> str:
    return f"{_NAMES.get(entry.dtype, entry.dtype)} {entry.shape}"
