"""A working copy of the trained parameters in the precision of the computation, cast once per step.

Otherwise each layer would cast its own A and B in every micro-batch, and their gradients back, which at batch size 1 is
a fifth of all operations that the host launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from engine.training.methods.lora.formats.names import tensor_names
from engine.training.methods.lora.linear import LoraLinear, Taken

_ALIGNMENT: Final = 512
"""Alignment in bytes: that of a separate CUDA allocation. A kernel's bits depend on the alignment of a tensor."""


class WorkingCopy:
    """A copy of the parameters in a narrower dtype, if layers compute in one; a step's gradients are taken of it.

    Layers use the copy only inside `taken`, which updates it first. The bits are the same as if layers cast for
    themselves.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], layers: Mapping[str, LoraLinear], dtype: torch.dtype
    ) -> None:
        """
        Args:
            parameters: all trained parameters, float32, by name.
            layers: the layers that can compute with a copy, by full name. Unless they have all parameters, there is no
                copy: the gradients would have two dtypes.
            dtype: the dtype in which the layers compute.
        """
        self._parameters: list[torch.Tensor] = list(parameters.values())
        self._copies: list[torch.Tensor] = []
        self._taken = Taken()
        names = {name for module in layers for name in tensor_names(module)}
        if dtype == torch.float32 or names != set(parameters):
            return
        self._copies = _leaves(self._parameters, dtype)
        copies = dict(zip(parameters, self._copies, strict=True))
        for module, layer in layers.items():
            assert layer.copies is None, "the layers would leave another copy without gradients"
            down, up = tensor_names(module)
            layer.copies = (self._taken, copies[down], copies[up])

    @contextmanager
    def taken(self) -> Iterator[list[torch.Tensor]]:
        """Yield the tensors to take gradients of, in the order of the parameters, which must not change meanwhile."""
        if not self._copies:
            yield list(self._parameters)
            return
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._parameters)
        self._taken.now = True
        try:
            yield self._copies
        finally:
            self._taken.now = False


def _leaves(parameters: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return tensors of these shapes in one block of memory, each aligned like a separate allocation."""
    unit = _ALIGNMENT // dtype.itemsize
    places = [-(-parameter.numel() // unit) * unit for parameter in parameters]
    pieces = torch.split(torch.zeros(sum(places), dtype=dtype, device=parameters[0].device), places)
    return [
        piece[: parameter.numel()].view(parameter.shape).detach().requires_grad_()
        for piece, parameter in zip(pieces, parameters, strict=True)
    ]
