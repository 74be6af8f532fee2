"""A record of the tensors that training a model keeps in memory, made from its configuration. No torch.

It counts what autograd keeps for the backward pass: the inputs of norms, activations, convolutions, products of two
tensors, and of linear layers that are adapted or trained; a frozen linear layer keeps nothing. Under autocast on CUDA
norms are computed in float32 (on a CPU they are not). Nothing is kept before the first layer with a gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from engine.models.quantization.rule import DEQUANTISING_BYTES

Config = Mapping[str, Any]
_Moment: TypeAlias = tuple[int, int]
"""A moment of the backward pass: bytes of the activations that are still kept, and number of the trained values up to
this layer, whose gradients are still to come."""

_MAX_LAYERS: Final = 1000
"""Limit on the number of layers: a malformed configuration could give any number."""


@dataclass(kw_only=True)
class Tape:
    """The counts of a model of which nothing is trained: parameters by number, kept activations in bytes.

    Gradients may flow through it all the same (`is_traced`). Its subclasses count what training adds to each layer.
    """

    width: int
    """Bytes of a value in the task's precision."""
    norm_width: int
    """Bytes of a value in the input or output of a norm."""
    is_traced: bool = False
    """True if gradients flow through the following layers."""
    parameters: int = 0
    """Number of the model's parameters, without those of adapters."""
    trained: int = 0
    """Number of trained values."""
    trained_shapes: Counter[tuple[int, ...]] = field(init=False, default_factory=Counter)
    """Number of trained tensors of each shape; a convolution's is that of a matrix."""
    frozen: int = 0
    """Number of the model's values that are not trained: parameters and buffers."""
    block_bytes: list[int] = field(init=False, default_factory=list)
    """Bytes of the frozen weights in each block."""
    stored: Callable[[str, int, int], int | None] = lambda name, rows, columns: None
    """Returns the bytes of a linear layer's matrix, by the layer's name, if it is quantised; else None."""
    quantised_bytes: int = 0
    """Bytes of the quantised matrices, which `frozen` does not count."""
    kept: int = 0
    """Bytes kept for the backward pass."""
    kept_outside: int = 0
    """Bytes kept with gradient checkpointing: outside of the blocks that are recomputed, and these blocks' inputs."""
    input_bytes: list[int] = field(init=False, default_factory=list)
    """Bytes of the inputs that gradient checkpointing keeps of each block."""
    largest: int = 0
    """Bytes that an operation takes at most besides what is kept, at least those of the largest kept tensor."""
    _moments: list[_Moment] = field(init=False, default_factory=list)
    """Moments of the backward pass, in the order of the forward pass."""
    _recomputed: list[_Moment] = field(init=False, default_factory=list)
    """The same with gradient checkpointing."""
    _without_inputs: list[_Moment] = field(init=False, default_factory=list)
    """The same with the blocks' inputs in main memory, but for those of the block that is computed again and of the one
    before it, which are copied back."""
    _block: int | None = None

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the model's values that are not trained."""
        return self.frozen * self.width + self.quantised_bytes

    def keep(self, values: int, width: int) -> None:
        """Record a tensor of so many values that is kept for the backward pass; `width` is the bytes of a value."""
        self.largest = max(self.largest, values * width)
        if not self.is_traced:
            return
        self.kept += values * width
        self._moments.append((self.kept, self.trained))
        if self._block is None:
            self.kept_outside += values * width
            self._recomputed.append((self.kept_outside, self.trained))
            self._without_inputs.append((self.kept_outside - sum(self.input_bytes), self.trained))
        else:
            self._block += values * width

    def passing(self, count: int) -> None:
        """Record `count` bytes of tensors that exist at the same time and are not kept."""
        self.largest = max(self.largest, count)

    @contextmanager
    def block(self, values: int, *, is_recomputed: bool = True) -> Iterator[None]:
        """Return a context for a block of which gradient checkpointing keeps only the input of so many values."""
        if not is_recomputed:
            yield
            return
        traced, before = self.is_traced, self.frozen_bytes
        self._block = 0
        yield
        self.block_bytes.append(self.frozen_bytes - before)
        inside, self._block = self._block, None
        # A block before the first layer with a gradient keeps nothing; the block with that layer keeps its input.
        if traced or self.is_traced:
            self.kept_outside += values * self.width
            self.input_bytes.append(values * self.width)
        # When the block is recomputed, the tensors of later layers are already freed.
        self._recomputed.append((self.kept_outside + inside, self.trained))
        self._without_inputs.append((self.kept_outside - sum(self.input_bytes[:-2]) + inside, self.trained))

    def peak(self, *, recompute: bool, offloads_inputs: bool = False, gradient_bytes: int = 0) -> int:
        """Return the peak bytes of the forward and backward pass.

        Args:
            recompute: whether gradient checkpointing is used.
            offloads_inputs: whether the blocks' inputs are in main memory meanwhile.
            gradient_bytes: bytes of each trained value's gradient, if gradients are made while activations are freed;
                0 if they are counted elsewhere.
        """
        moments = self._recomputed if recompute else self._moments
        if offloads_inputs:
            moments = self._without_inputs
        both = max((kept + gradient_bytes * (self.trained - to_come) for kept, to_come in moments), default=0)
        return max(both + self.largest, gradient_bytes * self.trained)

    def weights(self, count: int) -> None:
        """Record so many weights that keep nothing for the backward pass."""
        self.parameters += count
        self.frozen += count

    def matrix(self, rows: int, columns: int) -> None:
        """Record a weight matrix that keeps nothing for the backward pass."""
        self.weights(rows * columns)

    def buffers(self, count: int) -> None:
        """Record so many values of the model that are in its files and are not parameters."""
        self.frozen += count

    def norm(self, channels: int, rows: int, *, weights: int | None = None) -> None:
        """Record a norm over `rows` positions of all samples, with `weights` values; None is a scale and a shift."""
        self.weights(2 * channels if weights is None else weights)
        self.keep(channels * rows, self.norm_width)

    def scale(self, values: int, width: int) -> None:
        """Record a product of so many values with weights: its backward pass needs the values if these are trained."""

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """Record a convolution over `rows` positions of all samples; `is_kept` if its input is already counted."""
        self.matrix(outputs, inputs * size**2)
        self.weights(outputs)
        if not is_kept:
            self.keep(inputs * rows, self.width)

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        rows: int,
        *,
        input_width: int,
        is_kept: bool = False,
        bias: bool = True,
    ) -> bool:
        """Record a linear layer, and return whether its input is now kept as it is.

        Args:
            name: the layer's name.
            inputs: values of a row of its input.
            outputs: values of a row of its output.
            rows: positions of all samples.
            input_width: bytes of a value of its input.
            is_kept: whether its input is already counted.
            bias: whether it has a bias.
        """
        stored = self.stored(name, outputs, inputs)
        if stored is None:
            self.matrix(outputs, inputs)
        else:
            self.parameters += outputs * inputs
            self.quantised_bytes += stored
            self.passing(outputs * inputs * DEQUANTISING_BYTES)
        self.weights(bias * outputs)
        return False


@dataclass(kw_only=True)
class AdapterTape(Tape):
    """The counts of a frozen model with low-rank adapters."""

    is_adapted: Callable[[str], bool]
    rank: int
    is_dropping: bool = False
    """True if adapters have dropout."""

    def conv(self, name: str, inputs: int, outputs: int, rows: int, *, size: int = 3, is_kept: bool = False) -> None:
        """See `Tape.conv`."""
        if self.is_adapted(name):
            self.is_traced = True
            self._adapt(inputs * size**2, outputs)
            # PEFT casts the input again; with dropout it is another tensor, with a mask.
            copies = self.width if self.width < 4 or self.is_dropping else 0
            self.keep(inputs * rows, copies + self.is_dropping)
            self.keep(self.rank * rows, self.width)
        super().conv(name, inputs, outputs, rows, size=size, is_kept=is_kept)

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        rows: int,
        *,
        input_width: int,
        is_kept: bool = False,
        bias: bool = True,
    ) -> bool:
        """See `Tape.linear`."""
        super().linear(name, inputs, outputs, rows, input_width=input_width, is_kept=is_kept, bias=bias)
        if not self.is_adapted(name):
            return False
        self.is_traced = True
        self._adapt(inputs, outputs)
        self.keep(self.rank * rows, self.width)
        own = 0 if is_kept else input_width
        self.keep(inputs * rows, self.width + 1 if self.is_dropping else own)
        return True

    def _adapt(self, inputs: int, outputs: int) -> None:
        """Record the two matrices of an adapter."""
        self.trained += self.rank * (inputs + outputs)
        self.trained_shapes[self.rank, inputs] += 1
        self.trained_shapes[outputs, self.rank] += 1


@dataclass(kw_only=True)
class WholeTape(Tape):
    """The counts of a model of which all weights are trained."""

    def weights(self, count: int) -> None:
        """See `Tape.weights`."""
        self._train(count)

    def matrix(self, rows: int, columns: int) -> None:
        """See `Tape.matrix`."""
        self._train(rows, columns)

    def _train(self, *shape: int) -> None:
        count = math.prod(shape)
        self.parameters += count
        self.trained += count
        self.trained_shapes[shape] += 1
        self.is_traced = True

    def scale(self, values: int, width: int) -> None:
        """See `Tape.scale`."""
        self.keep(values, width)

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        rows: int,
        *,
        input_width: int,
        is_kept: bool = False,
        bias: bool = True,
    ) -> bool:
        """See `Tape.linear`."""
        super().linear(name, inputs, outputs, rows, input_width=input_width, is_kept=is_kept, bias=bias)
        # Autocast casts the input for each layer anew, and the layer keeps that.
        if input_width != self.width or not is_kept:
            self.keep(inputs * rows, self.width)
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
