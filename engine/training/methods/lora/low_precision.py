"""The trained parameters in the precision that layers compute in, cast once a step: each layer would cast its own A and
B in every micro-batch, and their gradients back, which at batch 1 is a fifth of all that the host has to launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from engine.training.methods.lora.linear import LoraLinear, Taken
from engine.training.methods.lora.names import tensor_names

_ALIGNMENT: Final = 512
"""Bytes: as CUDA's allocator places a tensor of its own. Where a tensor begins is part of the bits of a kernel."""


class WorkingCopy:
    """What a step's gradients are taken of: a copy of the parameters in a narrower dtype, where layers compute in one.

    Layers look at the copy inside of `taken` alone, which makes it anew: it is never older than the parameters. The
    bits are those of layers that cast for themselves.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], layers: Mapping[str, LoraLinear], dtype: torch.dtype
    ) -> None:
        """
        Args:
            parameters: all that is trained, float32, by their names.
            layers: those that compute with a copy where there is one, by their full names. Unless all parameters are
                theirs there is none: the gradients would be of two dtypes.
            dtype: that the layers compute in.
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
        """What to take gradients of, in the order of the parameters, which must not change inside of the block."""
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
    """Tensors of these shapes in one piece of memory, each beginning as far into it as one of its own might."""
    unit = _ALIGNMENT // dtype.itemsize
    places = [-(-parameter.numel() // unit) * unit for parameter in parameters]
    pieces = torch.split(torch.zeros(sum(places), dtype=dtype, device=parameters[0].device), places)
    return [
        piece[: parameter.numel()].view(parameter.shape).detach().requires_grad_()
        for piece, parameter in zip(pieces, parameters, strict=True)
    ]
