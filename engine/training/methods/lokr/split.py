"""The split of a layer's weight into a Kronecker product by a LoKr, and the names of the factors. No torch.

The change of a weight is ΔW = W₁ ⊗ W₂ (Yeh et al. 2023, arXiv:2309.14859, section 3). W₂ is itself a product of two
matrices where the rank is low enough. The names, the split and the rule for W₂ are those of LyCORIS
(lycoris/modules/lokr.py) and of PEFT (peft/tuners/lokr/layer.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from engine.core.errors import TaskError

LEFT: Final = ".lokr_w1"
RIGHT: Final = ".lokr_w2"
RIGHT_UP: Final = ".lokr_w2_a"
RIGHT_DOWN: Final = ".lokr_w2_b"
ENDS: Final = (LEFT, RIGHT, RIGHT_UP, RIGHT_DOWN)
"""The ends of all tensors' names. W₂ is either one tensor, or `lokr_w2_a` times `lokr_w2_b`."""


@dataclass(frozen=True, slots=True)
class Split:
    """The shapes of a layer's factors, whose Kronecker product has the shape of its weight."""

    left: tuple[int, int]
    """W₁: (outputs, inputs)."""
    right: tuple[int, ...]
    """W₂: (outputs, inputs), and a convolution's kernel."""
    rank: int | None
    """The rank of W₂ as a matrix (outputs, inputs x kernel); None where it is one tensor."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the trained tensors by the ends of their names."""
        if self.rank is None:
            return {LEFT: self.left, RIGHT: self.right}
        outputs, inputs, *kernel = self.right
        for size in kernel:
            inputs *= size
        return {LEFT: self.left, RIGHT_UP: (outputs, self.rank), RIGHT_DOWN: (self.rank, inputs)}


def split(name: str, shape: tuple[int, ...], rank: int, factor: int | None) -> Split:
    """Return how a weight of this shape is split.

    Args:
        name: the layer's name, for messages.
        shape: (outputs, inputs), and a convolution's kernel.
        rank: `lora.rank`.
        factor: `lora.factor`.

    Raises:
        TaskError: the factor is too large for the layer: LyCORIS and PEFT would split it in different ways.
    """
    outputs, inputs, *kernel = shape
    for size in (outputs, inputs):
        if factor and size % factor == 0 and factor**2 > size:
            raise TaskError(
                f"lora.factor: {factor} is more than the square root of {size}, a size of {name}: lower it, or leave "
                "it out"
            )
    (left_out, right_out), (left_in, right_in) = (divide(size, factor) for size in (outputs, inputs))
    low = rank < max(right_out, right_in) / 2
    return Split((left_out, left_in), (right_out, right_in, *kernel), rank if low else None)


def divide(size: int, factor: int | None) -> tuple[int, int]:
    """Return the two numbers whose product is `size`, the smaller first.

    The smaller one is `factor` if that divides the size; else the two are as near to each other as possible, with the
    smaller one at most `factor`.
    """
    if factor and size % factor == 0:
        return factor, size // factor
    most = min(factor or size, math.isqrt(size))
    small = next(number for number in range(most, 0, -1) if size % number == 0)
    return small, size // small


def splits_of(layers: Mapping[str, tuple[int, ...]], rank: int, factor: int | None) -> dict[str, Split]:
    """Return the splits of the weights with these shapes, by the layers' names. Raises TaskError as `split`."""
    return {name: split(name, shape, rank, factor) for name, shape in sorted(layers.items())}


def tensor_shapes(splits: Mapping[str, Split]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all trained tensors by name, sorted."""
    found = {f"{name}{end}": shape for name, one in splits.items() for end, shape in one.shapes.items()}
    return dict(sorted(found.items()))


def modules_of(names: Iterable[str]) -> list[str]:
    """Return the layers that have factors with these names, sorted."""
    return sorted(name.removesuffix(LEFT) for name in names if name.endswith(LEFT))
