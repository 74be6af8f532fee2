"""A record of the tensors that training a model keeps in memory, made from its configuration. No torch.

It counts what autograd keeps for the backward pass of frozen layers with adapters: the inputs of norms, activations,
convolutions, products of two tensors, and adapted layers; a frozen linear layer keeps nothing. Under autocast on CUDA
norms are computed in float32 (on a CPU they are not). Nothing is kept before the first adapted layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]

_MAX_LAYERS: Final = 1000
"""Limit on the number of layers: a malformed configuration could give any number."""


@dataclass(slots=True, kw_only=True)
class Tape:
    """The counts of a model: parameters by number, kept activations in bytes."""

    is_adapted: Callable[[str], bool]
    rank: int
    width: int
    """Bytes of a value in the task's precision."""
    norm_width: int
    """Bytes of a value in the input or output of a norm."""
    is_dropping: bool = False
    """True if adapters have dropout."""
    is_traced: bool = False
    """True if gradients flow through the following layers."""
    parameters: int = 0
    trained: int = 0
    """Trained parameters, those of the adapters."""
    kept: int = 0
    """Bytes kept for the backward pass."""
    kept_outside: int = 0
    """Bytes kept with gradient checkpointing: outside of the blocks that are recomputed, and these blocks' inputs."""
    highest: int = 0
    """The most bytes kept with gradient checkpointing while a block is recomputed."""
    largest: int = 0
    """Bytes of the largest single tensor."""
    _block: int | None = None

    def keep(self, values: int, width: int) -> None:
        """Record a tensor of so many values that is kept for the backward pass; `width` is the bytes of a value."""
        self.largest = max(self.largest, values * width)
        if not self.is_traced:
            return
        self.kept += values * width
        if self._block is None:
            self.kept_outside += values * width
        else:
            self._block += values * width

    @contextmanager
    def block(self, values: int, *, is_recomputed: bool = True) -> Iterator[None]:
        """Return a context for a block of which gradient checkpointing keeps only the input of so many values."""
        if not is_recomputed:
            yield
            return
        traced = self.is_traced
        self._block = 0
        yield
        inside, self._block = self._block, None
        # A block before the first adapted layer keeps nothing; the block with that layer keeps its input.
        if traced or self.is_traced:
            self.kept_outside += values * self.width
        # When the block is recomputed, the tensors of later layers are already freed.
        self.highest = max(self.highest, self.kept_outside + inside)

    def peak(self, *, recompute: bool) -> int:
        """Return the peak bytes of the forward and backward pass; `recompute` is gradient checkpointing."""
        kept = max(self.highest, self.kept_outside) if recompute else self.kept
        # The current operation needs about as much as the largest tensor, besides the kept tensors.
        return kept + self.largest

    def norm(self, channels: int, rows: int) -> None:
        self.parameters += 2 * channels
        self.keep(channels * rows, self.norm_width)

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """Record a convolution over `rows` positions of all samples; `is_kept` if its input is already counted."""
        self.parameters += inputs * outputs * size**2 + outputs
        if self.is_adapted(name):
            self.is_traced = True
            self.trained += self.rank * (inputs * size**2 + outputs)
            # PEFT casts the input again; with dropout it is another tensor, with a mask.
            copies = self.width if self.width < 4 or self.is_dropping else 0
            self.keep(inputs * rows, copies + self.is_dropping)
            self.keep(self.rank * rows, self.width)
        if not is_kept:
            self.keep(inputs * rows, self.width)

    def linear(
        self, name: str, inputs: int, outputs: int, rows: int, *, bias: bool = True, input_width: int = 0
    ) -> bool:
        """Record a linear layer, and return whether it has an adapter.

        `input_width` is the bytes of a value of its input, 0 if the input is already counted.
        """
        self.parameters += inputs * outputs + bias * outputs
        if not self.is_adapted(name):
            return False
        self.is_traced = True
        self.trained += self.rank * (inputs + outputs)
        self.keep(self.rank * rows, self.width)
        self.keep(inputs * rows, self.width + 1 if self.is_dropping else input_width)
        return True


def conv_parameters(inputs: int, outputs: int, size: int = 3) -> int:
    return inputs * outputs * size**2 + outputs


def linear_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def count_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_LAYERS:
        raise ValueError(f"{value!r} is not a number of layers")
    return value


def each_level(value: Any, length: int) -> list[int]:
    """Return a number for each resolution, from a list, or from one number for all of them. Raises ValueError."""
    found = [count_of(item) for item in value] if isinstance(value, list | tuple) else [count_of(value)] * length
    if len(found) != length or math.prod((len(found), sum(found))) > _MAX_LAYERS**2:
        raise ValueError(f"{value!r} is not for {length} resolutions")
    return found
