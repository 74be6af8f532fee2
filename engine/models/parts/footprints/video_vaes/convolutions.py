"""Count the parameters of convolutions in time and space. No torch."""

from __future__ import annotations

from typing import Final

_CUBE: Final = 27
"""Positions of a kernel of 3 frames of 3 x 3."""


def convolution(inputs: int, outputs: int, positions: int = _CUBE) -> int:
    """Return the parameters of a convolution whose kernel has so many positions."""
    return inputs * outputs * positions + outputs
