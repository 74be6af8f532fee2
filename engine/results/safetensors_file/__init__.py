"""The layout of safetensors files: eight bytes with the header's length, the header as JSON, the tensors' bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES: Final = 5_000_000_000
"""The most bytes of tensors in one file of several; a single tensor may be larger."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that is fetched when it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count


def source_of(tensor: torch.Tensor) -> Source:
    """Return the source of a tensor in memory."""
    return Source(tuple(tensor.shape), tensor.dtype, lambda: tensor)


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


def shards(sources: Mapping[str, Source], stem: str) -> dict[str, dict[str, Source]]:
    """Return the tensors of each file by the files' names: `<stem>.safetensors`, or several if they are large."""
    files: list[dict[str, Source]] = [{}]
    size = 0
    for name, source in sorted(sources.items()):
        if files[-1] and size + source.num_bytes > MAX_SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][name] = source
        size += source.num_bytes
    if len(files) == 1:
        return {f"{stem}.safetensors": files[0]}
    return {f"{stem}-{k:05}-of-{len(files):05}.safetensors": own for k, own in enumerate(files, start=1)}


def in_order(sources: Mapping[str, Source]) -> list[str]:
    """Return the names of a file's tensors as their values follow each other: by name, and single bytes last.

    So the others are aligned, as they are in the library's files.
    """
    return sorted(sources, key=lambda name: (sources[name].dtype.itemsize == 1, name))


def pieces(
    sources: Mapping[str, torch.Tensor | Source], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in pieces, first its header, then each tensor, so that it is never in memory as a whole.

    Together they are the bytes that `safetensors.torch.save` returns. A tensor on a GPU is copied to the host only when
    it is written.

    Args:
        sources: tensors of any shape, by name: float32, float16, bfloat16 or uint8.
        metadata: the file's metadata.
    """
    import torch

    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
    all_sources = {name: one if isinstance(one, Source) else source_of(one) for name, one in sources.items()}
    ordered = {name: all_sources[name] for name in in_order(all_sources)}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, source in ordered.items():
        start, end = end, end + source.num_bytes
        header[name] = {"dtype": kinds[source.dtype], "shape": list(source.shape), "data_offsets": [start, end]}
    yield encode_header(header)
    for source in ordered.values():
        yield source.read().detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
