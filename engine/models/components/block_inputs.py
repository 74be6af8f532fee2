"""Keep the inputs of a denoiser's blocks in main memory between the forward pass and their recomputation.

With gradient checkpointing they are most of what a long sequence keeps: one tensor of hidden states for each block. It
is copied out while its block computes, and copied back while the block after it is computed again. A copy has the bits,
the strides and the alignment of its source, so no result depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch.autograd.graph import saved_tensors_hooks

from engine.models.components.main_memory import CopyStream, MainMemory


class BlockInputs:
    """Moves the hidden states that blocks take, and give back in the same shape, to main memory and back.

    Other arguments, such as embeddings that all blocks share, stay on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, CopyStream(device)
        self.ahead: _Inputs | None = None
        """Inputs that are being copied back ahead of their use. Their memory must not be freed before `stream.join`."""
        self._latest: ReferenceType[_Inputs] | None = None

    def offloaded(self, compute: Callable[[], Any]) -> Any:
        """Call a checkpointed block, and move those of its inputs that the checkpoint keeps for the backward pass.

        Args:
            compute: calls the block by `torch.utils.checkpoint.checkpoint`, and returns its output: a tensor, or a
                tuple of tensors and others.
        """
        inputs = _Inputs(self, self._latest)
        with saved_tensors_hooks(inputs.pack, inputs.unpack):
            outputs = compute()
        inputs.leave(outputs if isinstance(outputs, tuple) else (outputs,))
        self._latest = ref(inputs)
        return outputs


@dataclass(frozen=True, slots=True)
class _Moved:
    """A storage's bytes in main memory, and where tensors lie in it, by their indices."""

    memory: MainMemory
    dtype: torch.dtype
    views: Mapping[int, tuple[torch.Size, tuple[int, ...], int | torch.SymInt]]
    """Shape, strides and offset of each tensor."""


class _Inputs:
    """The tensors that one block's checkpoint keeps; autograd holds it by its methods, as long as it needs them."""

    def __init__(self, own: BlockInputs, before: ReferenceType[_Inputs] | None) -> None:
        self._own, self._before = own, before
        self._tensors: dict[int, torch.Tensor] = {}
        self._moved: list[_Moved] = []
        self._ready, self._is_back = own.stream.now(), False

    def pack(self, tensor: torch.Tensor) -> int:
        """Take a tensor to keep, and return its index."""
        index = len(self._tensors)
        self._tensors[index] = tensor.detach()
        return index

    def unpack(self, index: int) -> torch.Tensor:
        """Return a tensor on the device; the first time, begin to copy the inputs of the block before."""
        if not self._is_back:
            self._is_back = True
            self._fetch()
            self._own.stream.join()
            self._own.ahead = None if self._before is None else self._before()
            if self._own.ahead is not None:
                self._own.ahead._fetch()
        return self._tensors[index]

    @torch.no_grad()
    def leave(self, outputs: tuple[Any, ...]) -> None:
        """Move the tensors that have the shape and dtype of an output to main memory."""
        for indices in self._alike(outputs):
            first = self._tensors[indices[0]]
            memory = MainMemory(first.untyped_storage().nbytes(), self._own.device)
            with self._own.stream.copying(after=self._ready):
                memory.copy_from(_whole_storage(first))
            taken = {index: self._tensors.pop(index) for index in indices}
            views = {index: (one.shape, one.stride(), one.storage_offset()) for index, one in taken.items()}
            self._moved.append(_Moved(memory, first.dtype, views))
            del first, taken
        # The device's memory is freed, and reused in the order of the current stream.
        self._own.stream.join()

    def _alike(self, outputs: tuple[Any, ...]) -> Iterator[list[int]]:
        """Yield the indices of tensors like an output, those in one storage together, if it holds nothing else."""
        kinds = {(one.shape, one.dtype) for one in outputs if isinstance(one, torch.Tensor)}
        groups: dict[tuple[int, torch.dtype], list[int]] = {}
        for index, tensor in self._tensors.items():
            if (tensor.shape, tensor.dtype) in kinds:
                groups.setdefault((tensor.untyped_storage()._cdata, tensor.dtype), []).append(index)
        for indices in groups.values():
            size = self._tensors[indices[0]].untyped_storage().nbytes()
            if size <= sum(self._tensors[index].nbytes for index in indices):
                yield indices

    @torch.no_grad()
    def _fetch(self) -> None:
        """Begin to copy what was moved back to the device; its main memory is freed after the copy."""
        for moved in self._moved:
            memory = torch.empty(moved.memory.size, dtype=torch.uint8, device=self._own.device)
            with self._own.stream.copying(after=self._own.stream.now()):
                moved.memory.copy_to(memory)
            self._tensors |= {index: memory.view(moved.dtype).as_strided(*view) for index, view in moved.views.items()}
        self._moved.clear()


def _whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return all bytes of a tensor's storage."""
    count = tensor.untyped_storage().nbytes() // tensor.itemsize
    return tensor.as_strided((count,), (1,), 0).view(torch.uint8)
