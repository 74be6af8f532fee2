"""Main memory to which, and from which, a device copies beside its computations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

_LEAST_PIECE: Final = 1 << 20
"""Bytes of the smallest piece of memory."""


class MainMemory:
    """A number of bytes of main memory; for a GPU page-locked, so that it copies without waiting for the CPU.

    They are held in pieces whose sizes are powers of two: torch rounds page-locked memory up to such a size.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        is_pinned = device.type == "cuda"
        self._pieces = [torch.empty(piece, dtype=torch.uint8, pin_memory=is_pinned) for piece in _pieces(size)]

    def copy_from(self, source: torch.Tensor) -> None:
        """Copy these bytes, a one-dimensional uint8 tensor, on the current stream."""
        for piece, part in zip(self._pieces, self._split(source), strict=True):
            piece.copy_(part, non_blocking=True)

    def copy_to(self, target: torch.Tensor) -> None:
        """Copy the bytes to such a tensor, on the current stream."""
        for piece, part in zip(self._pieces, self._split(target), strict=True):
            part.copy_(piece, non_blocking=True)

    def _split(self, memory: torch.Tensor) -> Iterator[torch.Tensor]:
        start = 0
        for piece in self._pieces:
            yield memory[start : start + len(piece)]
            start += len(piece)


def _pieces(size: int) -> Iterator[int]:
    while size > 0:
        piece = min(size, max(_LEAST_PIECE, 1 << (size.bit_length() - 1)))
        yield piece
        size -= piece


class CopyStream:
    """A CUDA stream on which copies run beside the computations; on a CPU they are made at once.

    Memory of the current stream may be copied to or from if the current stream waits for the copy before the memory is
    freed: it is reused in the order of the stream that it was allocated on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def now(self) -> Any:
        """Return an event: all that the current stream was told to do so far. None on a CPU."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def copying(self, *, after: Any) -> Iterator[None]:
        """Let copies in this context begin after an event of `now`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let what the current stream is told from now on wait for the copies so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
