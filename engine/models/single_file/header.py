"""Read the header of an untrusted safetensors file: names, dtypes and shapes of its tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError

MAX_HEADER_BYTES: Final = 16 << 20
"""Limit on the header: that of a whole Stable Diffusion XL has 0.4 MB. Parsed, it takes about ten times its bytes."""

_PEEK_BYTES: Final = 512
_ITEM_BITS: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_OTHER_FORMATS: Final = (
    (b"PK\x03\x04", "is a pickled checkpoint (.ckpt, .pt), which can run code"),
    (b"\x80\x02", "is a pickle (.ckpt, .bin), which can run code"),
    (b"\x80\x04", "is a pickle (.ckpt, .bin), which can run code"),
    (b"GGUF", "is a GGUF file, whose weights are quantised"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
    (b"<", "is a web page, not a file of weights"),
)
_ADVICE: Final = {
    "pickle": "convert it to safetensors (docs/task.md says how)",
    "GGUF": "use the model's fp16 or full-precision .safetensors file",
    "LFS": "get it by `git lfs pull`",
    "web": "give the address of the download itself (on the Hub, /resolve/ in place of /blob/)",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry in the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)
    """Its first byte, counted from the end of the header."""


@dataclass(frozen=True, slots=True)
class Header:
    """A safetensors file's header."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(path: Path, name: str) -> Header:
    """Read and check a safetensors file's header. `name` is the file's name in messages.

    Every tensor is inside the file and has the number of bytes of its shape and dtype, so that sizes computed from the
    shapes cannot exceed the file's.

    Raises:
        ModelError: it is not a safetensors file (the message names its format, if known), truncated, or malformed.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(_PEEK_BYTES)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(MAX_HEADER_BYTES, size - 8) or start[8:9] != b"{":
                raise ModelError(_not_safetensors(name, start))
            file.seek(8)
            data = file.read(length)
    except OSError as error:
        raise ModelError(f"the base model {name} cannot be read ({error.strerror})") from None
    try:
        entries = json.loads(data)
        metadata = entries.pop("__metadata__", None) or {}
        tensors = {key: _tensor(entry, size - 8 - length) for key, entry in entries.items()}
        return Header(tensors, {str(key): str(value) for key, value in metadata.items()})
    except EOFError:
        raise ModelError(f"the base model {name} is cut short; copy or download it again") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"the base model {name} has a malformed header ({type(error).__name__})") from None


def _tensor(entry: Any, num_bytes: int) -> Tensor:
    """Return one entry. Raises EOFError if its bytes are beyond the end of the file, ValueError if it is malformed."""
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("not a natural number")
    if end > num_bytes:
        raise EOFError
    # An unknown dtype is accepted here; its tensors are refused where weights are expected.
    bits = _ITEM_BITS.get(dtype)
    if begin > end or (bits and math.prod(shape) * bits != (end - begin) * 8):
        raise ValueError("shape and bytes disagree")
    return Tensor(str(dtype), shape, begin)


def _not_safetensors(name: str, start: bytes) -> str:
    for magic, what in _OTHER_FORMATS:
        if start.lstrip().startswith(magic):
            advice = next((text for word, text in _ADVICE.items() if word in what), "")
            return f"the base model {name} {what}; {advice}"
    return f"the base model {name} is not a safetensors file, or it is cut short; copy or download it again"
