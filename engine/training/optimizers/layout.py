"""The layouts of optimizers' states: which slots a parameter of some shape has. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]

BLOCK: Final = 256
"""The number of values of a slot in 8 bits that share a scale, as in bitsandbytes; Dettmers et al. have 2048."""
MIN_8_BIT: Final = 4096
"""The least number of values of a parameter whose slots are in 8 bits, as in bitsandbytes."""

_BYTES: Final = {"float32": 4, "uint8": 1}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that an optimizer keeps for a parameter."""

    shape: Shape
    dtype: Literal["float32", "uint8"] = "float32"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _BYTES[self.dtype]


Layout: TypeAlias = Callable[[Shape], Mapping[str, Slot]]
"""Returns the slots of a parameter by name, for its shape. They may differ from parameter to parameter."""


def like_parameter(*names: str) -> Layout:
    """Return the layout whose slots are float32 tensors of the parameter's shape."""
    return lambda shape: dict.fromkeys(names, Slot(shape))


def factored(shape: Shape) -> Mapping[str, Slot]:
    """Return Adafactor's slots: row and column means for matrices, and the mean squares themselves for the rest."""
    if len(shape) < 2:
        return {"exp_avg_sq": Slot(shape)}
    rows, columns = as_matrix(shape)
    return {"exp_avg_sq_row": Slot((rows,)), "exp_avg_sq_column": Slot((columns,))}


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Return the rows and columns of a parameter with two dimensions or more.

    A convolution has a row for each output channel, as its weights are multiplied: its last two dimensions alone, those
    of a 3 x 3 kernel, would save little.
    """
    return shape[0], math.prod(shape[1:])


def eight_bit(shape: Shape) -> Mapping[str, Slot]:
    """Return the slots of AdamW in 8 bits: codes and the scales of their blocks, or float32 for small parameters."""
    count = math.prod(shape)
    if count < MIN_8_BIT:
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), Slot(shape))
    codes, scales = Slot(shape, "uint8"), Slot((-(-count // BLOCK),))
    return {"exp_avg": codes, "exp_avg_scale": scales, "exp_avg_sq": codes, "exp_avg_sq_scale": scales}
