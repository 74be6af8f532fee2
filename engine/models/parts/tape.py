"""A record of what training a model keeps in memory, filled in by walking its configuration. No torch.

Counted is what autograd keeps for the backward pass of frozen layers with adapters: the inputs of norms, activations,
convolutions, of products of two tensors and of adapted layers; a frozen linear layer keeps nothing. Under autocast on
CUDA norms are computed in float32 (on a CPU they are not). Nothing is kept before the first adapted layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]

_MAX_LAYERS: Final = 1000
"""The highest count of layers that is accepted; more is no model, and walking it would take forever."""


@dataclass(slots=True, kw_only=True)
class Tape:
    """What a walk finds: parameters by number, activations in bytes."""

    is_adapted: Callable[[str], bool]
    rank: int
    width: int
    """Bytes of a value in the task's precision."""
    norm_width: int
    """Bytes of a value that goes into or comes out of a norm."""
    is_dropping: bool = False
    is_traced: bool = False
    """Whether gradients flow through what comes next."""
    parameters: int = 0
    trained: int = 0
    """Trained parameters, which adapters have."""
    kept: int = 0
    """For the backward pass, all in all."""
    kept_outside: int = 0
    """Of them, outside of the blocks that are computed again with gradient checkpointing, and these blocks' inputs."""
    highest: int = 0
    """With gradient checkpointing, the most that is kept while one of these blocks is computed again."""
    largest: int = 0
    """The largest single tensor."""
    _block: int | None = None

    def keep(self, values: int, width: int) -> None:
        """Something kept for the backward pass."""
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
        """A block whose input of so many values is all that is kept of it with gradient checkpointing."""
        if not is_recomputed:
            yield
            return
        traced = self.is_traced
        self._block = 0
        yield
        inside, self._block = self._block, None
        # A block before the first adapted layer keeps nothing; the first one that holds such a layer, its input.
        if traced or self.is_traced:
            self.kept_outside += values * self.width
        # By then, what came after it has been used and let go.
        self.highest = max(self.highest, self.kept_outside + inside)

    def peak(self, *, recompute: bool) -> int:
        """Bytes at the peak of the forward and backward pass; `recompute` is gradient checkpointing."""
        kept = max(self.highest, self.kept_outside) if recompute else self.kept
        # Besides what is kept there is what is being computed: about as much as the largest tensor.
        return kept + self.largest

    def norm(self, channels: int, rows: int) -> None:
        self.parameters += 2 * channels
        self.keep(channels * rows, self.norm_width)

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """A convolution that reads `rows` places of all samples; `is_kept` when something else keeps its input."""
        self.parameters += inputs * outputs * size**2 + outputs
        if self.is_adapted(name):
            self.is_traced = True
            self.trained += self.rank * (inputs * size**2 + outputs)
            # PEFT's path casts the input once more; dropped, it is another tensor, with a mask.
            copies = self.width if self.width < 4 or self.is_dropping else 0
            self.keep(inputs * rows, copies + self.is_dropping)
            self.keep(self.rank * rows, self.width)
        if not is_kept:
            self.keep(inputs * rows, self.width)

    def linear(
        self, name: str, inputs: int, outputs: int, rows: int, *, bias: bool = True, input_width: int = 0
    ) -> bool:
        """A linear layer; `input_width` of its input where nothing else keeps that. True when it is adapted."""
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
        raise ValueError(f"{value!r} is no number of layers")
    return value


def each_level(value: Any, length: int) -> list[int]:
    """One number for each resolution, from a list or a number for all of them."""
    found = [count_of(item) for item in value] if isinstance(value, list | tuple) else [count_of(value)] * length
    if len(found) != length or math.prod((len(found), sum(found))) > _MAX_LAYERS**2:
        raise ValueError(f"{value!r} is not for {length} resolutions")
    return found
