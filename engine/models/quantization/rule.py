"""The choice of a denoiser's weights that are quantised, and the bytes that they take. No torch."""

from __future__ import annotations

import re
from typing import Final

from engine.task.task import Quantization

BLOCK: Final = 64
"""The number of successive weights that share one scale with `nf4`, as in QLoRA."""

DEQUANTISING_BYTES: Final = 6
"""Bytes for each weight of a layer while it is dequantised: its float32 value, and that in the computation's dtype."""

_SCALE_BYTES: Final = 4
"""Bytes of a scale, which is float32."""

_IN_A_BLOCK: Final = re.compile(r"(?:\w+\.\d+|mid_block)\.")
"""The beginning of the names of layers in a denoiser's blocks: a numbered part, or the middle of a UNet."""


def is_in_a_block(name: str) -> bool:
    """Return whether a layer belongs to one of a denoiser's repeated blocks, whose linear layers are quantised.

    The layers around the blocks stay as they are: embeddings of time, text and latents, and the last layers. So do the
    blocks' norms, biases and convolutions.

    Args:
        name: the layer's name in the denoiser.
    """
    return _IN_A_BLOCK.match(name) is not None


def quantised_bytes(quantization: Quantization, name: str, rows: int, columns: int) -> int | None:
    """Return the bytes of a linear layer's quantised matrix with its scales; None if it is not quantised."""
    if not is_in_a_block(name):
        return None
    if quantization == "nf4":
        blocks = -(-rows * columns // BLOCK)
        return blocks * (BLOCK // 2 + _SCALE_BYTES)
    return rows * columns + rows * _SCALE_BYTES
