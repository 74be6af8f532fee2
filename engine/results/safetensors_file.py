"""The layout of safetensors files: eight bytes with the header's length, the header as JSON, the tensors' bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return what comes before the tensors, padded as the library does, so that they are aligned to eight bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header and the tensors' bytes of a file that the safetensors library has written or accepted."""
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    return header, memoryview(data)[start:]


def pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in pieces, first its header, then each tensor, so that it is never in memory as a whole.

    Together they are the bytes that `safetensors.torch.save` returns. A tensor on a GPU is copied to the host only when
    it is written.

    Args:
        tensors: float32 tensors of any shape, by name.
    """
    import torch

    ordered, header, end = sorted(tensors.items()), {}, 0
    for name, tensor in ordered:
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    yield encode_header(header)
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().numpy().data
