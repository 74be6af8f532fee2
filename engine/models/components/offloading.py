"""Keep a denoiser's blocks in main memory, and copy each of them to the device while it computes.

The next block is copied while one computes: the following one, or in the backward pass, where gradient checkpointing
computes the blocks again, the one before. A copy has the bits of its source, so no result depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import torch

_ALIGNMENT: Final = 512
"""Alignment in bytes: that of a separate CUDA allocation. A kernel's bits depend on the alignment of a tensor."""

_LEAST_PIECE: Final = 1 << 20
"""Bytes of the smallest piece of memory that holds a part of a block."""

_Owner: TypeAlias = "dict[str, Any]"
"""A module's own parameters or buffers by name."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One tensor of a block: whose it is, and where it lies in the block's memory."""

    owner: _Owner
    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the tensor in its block's memory."""
        return memory[self.start : self.start + self.num_bytes].view(self.dtype).view(self.shape)


class _Block:
    """The tensors of a block in main memory. In its modules, tensors of one value have their places."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._device, self._places = device, list(_places(module))
        self._size = sum(-(-place.num_bytes // _ALIGNMENT) * _ALIGNMENT for place in self._places)
        memory = torch.empty(self._size, dtype=torch.uint8)
        for place in self._places:
            tensor = place.owner[place.name]
            place.of(memory).copy_(tensor)
            stand_in = torch.zeros((), dtype=place.dtype, device=device).expand(place.shape)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            place.owner[place.name] = torch.nn.Parameter(stand_in, requires_grad=False) if is_parameter else stand_in
        self._pieces = list(_pinned(memory)) if device.type == "cuda" else [memory]

    def allocate(self) -> torch.Tensor:
        """Return memory on the device for the block's tensors."""
        return torch.empty(self._size, dtype=torch.uint8, device=self._device)

    def copy_to(self, memory: torch.Tensor) -> None:
        """Copy the block's tensors into such memory, on the current stream."""
        start = 0
        for piece in self._pieces:
            memory[start : start + len(piece)].copy_(piece, non_blocking=True)
            start += len(piece)

    @contextmanager
    def placed(self, memory: torch.Tensor) -> Iterator[None]:
        """Let the modules have their tensors in `memory`, to which `copy_to` has copied them.

        They are new tensors: what autograd keeps of them stays on the device as long as the backward pass needs it.
        """
        resting = [place.owner[place.name] for place in self._places]
        for place in self._places:
            place.owner[place.name] = place.of(memory)
        try:
            yield
        finally:
            for place, tensor in zip(self._places, resting, strict=True):
                place.owner[place.name] = tensor


def _places(module: torch.nn.Module) -> Iterator[_Place]:
    start = 0
    for part in module.modules():
        for owner in (part._parameters, part._buffers):
            for name, tensor in owner.items():
                if tensor is not None:
                    yield _Place(owner, name, start, tensor.dtype, tensor.shape)
                    start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _pinned(memory: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield page-locked copies of a tensor's parts, in order: torch rounds the bytes of each up to a power of two."""
    start = 0
    while start < len(memory):
        size = max(_LEAST_PIECE, 1 << ((len(memory) - start).bit_length() - 1))
        yield memory[start : start + size].pin_memory()
        start += size


class _Blocks:
    """Gives a denoiser's blocks their memory on the device, and begins to copy the one that comes next."""

    def __init__(self, blocks: Sequence[_Block], device: torch.device) -> None:
        self._blocks, self._device = blocks, device
        self._copying: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._last = -1
        self._ahead: tuple[int, torch.Tensor] | None = None

    def compute(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a block's own `forward` while its tensors are on the device."""
        coming, self._ahead = self._ahead, None
        _, memory = coming if coming is not None and coming[0] == index else self._copied(index)
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copying)
        backwards = index == self._last - 1 or index == self._last > 0
        self._last = index
        following = index - 1 if backwards else index + 1
        if 0 <= following < len(self._blocks):
            self._ahead = self._copied(following)
        with self._blocks[index].placed(memory):
            return forward(*args, **kwargs)

    @torch.no_grad()
    def _copied(self, index: int) -> tuple[int, torch.Tensor]:
        """Return a block's number and its memory, to which it is being copied.

        The memory is the current stream's, which may still use it for what was there before: the copy waits for that,
        and the current stream for the copy, before it uses or frees it.
        """
        memory = self._blocks[index].allocate()
        if self._copying is None:
            self._blocks[index].copy_to(memory)
        else:
            self._copying.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._copying):
                self._blocks[index].copy_to(memory)
        return index, memory


def offload(denoiser: torch.nn.Module, lists: Sequence[str], device: torch.device) -> None:
    """Move a frozen denoiser to a device, but keep its blocks in main memory until they compute.

    Parameters that are added to the blocks later are not moved. The blocks' weights cannot be read or changed any more.

    Args:
        denoiser: a module of Diffusers on the CPU; gradient checkpointing must compute each of its blocks again.
        lists: the names of its lists of blocks, in the order in which they compute.
        device: where it computes. On a CPU the blocks are copied from main memory to main memory.
    """
    modules = [block for name in lists for block in denoiser.get_submodule(name).children()]
    blocks = _Blocks([_Block(module, device) for module in modules], device)
    for index, module in enumerate(modules):
        # Instead of hooks of torch, which a recomputation that stops early would leave out.
        module.forward = partial(blocks.compute, index, module.forward)
    denoiser.to(device)
