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

from engine.models.components.main_memory import CopyStream, MainMemory

_ALIGNMENT: Final = 512
"""Alignment in bytes: that of a separate CUDA allocation. A kernel's bits depend on the alignment of a tensor."""

_ATTRIBUTE: Final = "offloaded_blocks"
"""Attribute of an offloaded denoiser that holds its `_Blocks`."""

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
        self._main = MainMemory(self._size, device)
        self._main.copy_from(memory)

    def allocate(self) -> torch.Tensor:
        """Return memory on the device for the block's tensors."""
        return torch.empty(self._size, dtype=torch.uint8, device=self._device)

    def copy_to(self, memory: torch.Tensor) -> None:
        """Copy the block's tensors into such memory, on the current stream."""
        self._main.copy_to(memory)

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


class _Blocks:
    """Gives a denoiser's blocks their memory on the device, and begins to copy the one that comes next."""

    def __init__(self, blocks: Sequence[_Block], device: torch.device) -> None:
        self._blocks, self._stream = blocks, CopyStream(device)
        self._last = -1
        self._ahead: tuple[int, torch.Tensor] | None = None

    def compute(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a block's own `forward` while its tensors are on the device."""
        coming, self._ahead = self._ahead, None
        _, memory = coming if coming is not None and coming[0] == index else self._copied(index)
        self._stream.join()
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

        The memory may still be used for what was there before: the copy waits for that.
        """
        memory = self._blocks[index].allocate()
        with self._stream.copying(after=self._stream.now()):
            self._blocks[index].copy_to(memory)
        return index, memory

    def placed(self) -> Iterator[int]:
        """Yield the blocks' numbers, each while its tensors are on the device."""
        for index, block in enumerate(self._blocks):
            _, memory = self._copied(index)
            self._stream.join()
            with block.placed(memory):
                yield index


def offload(denoiser: torch.nn.Module, lists: Sequence[str], device: torch.device) -> None:
    """Move a frozen denoiser to a device, but keep its blocks in main memory until they compute.

    Parameters that are added to the blocks later are not moved. The blocks' weights cannot be read or changed any more.

    Args:
        denoiser: a module of Diffusers on the CPU; gradient checkpointing must compute each of its blocks again.
        lists: the names of its lists of blocks, in the order in which they compute.
        device: where it computes. On a CPU the blocks are copied from main memory to main memory.
    """
    names = _names(denoiser, lists)
    modules = [denoiser.get_submodule(name) for name in names]
    blocks = _Blocks([_Block(module, device) for module in modules], device)
    for index, module in enumerate(modules):
        # Instead of hooks of torch, which a recomputation that stops early would leave out.
        module.forward = partial(blocks.compute, index, module.forward)
    vars(denoiser)[_ATTRIBUTE] = blocks, names
    denoiser.to(device)


def named_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a module's parameters with their names; those of offloaded blocks with the values that they compute with.

    A tensor of an offloaded block is valid until the next one is asked for.
    """
    blocks, names = vars(module).get(_ATTRIBUTE, (None, ()))
    inside = tuple(f"{name}." for name in names)
    yield from ((name, tensor) for name, tensor in module.named_parameters() if not name.startswith(inside))
    if blocks is not None:
        for index in blocks.placed():
            yield from module.get_submodule(names[index]).named_parameters(prefix=names[index])


def _names(denoiser: torch.nn.Module, lists: Sequence[str]) -> list[str]:
    return [f"{name}.{key}" for name in lists for key, _ in denoiser.get_submodule(name).named_children()]
