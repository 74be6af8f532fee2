"""Write safetensors files tensor by tensor, so that the file is never in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch


def pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in pieces: first its header, then each tensor.

    Together they are the bytes that `safetensors.torch.save` returns. A tensor on a GPU is copied to the host only when
    it is written.

    Args:
        tensors: float32 tensors of any shape, by name.
    """
    ordered, header, end = sorted(tensors.items()), {}, 0
    for name, tensor in ordered:
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to eight bytes
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().numpy().data
