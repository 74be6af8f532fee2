"""The formats of quantised weights: each stores a matrix as codes with scales, and gives it back.

The arithmetic is elementwise in float32, rounded once to the dtype of the computation. So its bits do not depend on the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch.nn import functional

from engine.models.quantization.rule import BLOCK
from engine.task.task import Quantization

NF4: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""NormalFloat4 (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E): quantiles of a normal distribution."""

_MOST_INT8: Final = 127
_MOST_FP8: Final = 448
"""The largest value of float8_e4m3fn, which has no infinity."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix of shape (out, in)."""

    quantise: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Maps a float32 matrix to its codes, int8 or uint8, and its scales, float32, on its device."""
    dequantise: Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]
    """Maps codes, scales and the shape to the matrix, float32, in memory of its own."""


def nf4_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of the nearest NF4 value for each weight, divided by its block's largest magnitude.

    Blocks are runs of 64 values in row-major order, the last one padded with zeros.

    Args:
        weight: float32, any shape.

    Returns:
        Numbers from 0 to 15, int32 of shape (blocks, 64), and the magnitudes, float32 of shape (blocks, 1).
    """
    values = weight.flatten()
    blocks = functional.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    # A block of zeros has no scale; any positive scale gives zeros again.
    scaled = blocks * torch.where(largest > 0, largest, 1.0).reciprocal()
    codes = torch.tensor(NF4, dtype=torch.float32, device=weight.device)
    return torch.bucketize(scaled, (codes[1:] + codes[:-1]) / 2, out_int32=True), largest


def _to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack two codes of `nf4_codes` into a byte, the first one in its higher half."""
    codes, largest = nf4_codes(weight)
    pairs = codes.to(torch.uint8).view(-1, 2)
    return pairs[:, 0] * 16 + pairs[:, 1], largest.flatten()


def _from_nf4(codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    values = functional.embedding(codes.int(), _pairs(codes.device)).view(-1, BLOCK)
    return values.mul_(scales[:, None]).flatten()[: shape[0] * shape[1]].view(shape)


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """Return the two NF4 values of each byte: float32, shape (256, 2)."""
    return torch.tensor([(high, low) for high in NF4 for low in NF4], dtype=torch.float32, device=device)


def _row_scales(weight: torch.Tensor, most: int) -> torch.Tensor:
    """Return the scale of each row, with which its largest magnitude becomes `most`: float32, shape (out, 1)."""
    scales = weight.abs().amax(dim=1, keepdim=True) / most
    return torch.where(scales == 0, 1.0, scales)  # a row of zeros, or of numbers too small for a scale


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = _row_scales(weight, _MOST_INT8)
    codes = (weight / scales).round_().clamp_(-_MOST_INT8, _MOST_INT8)
    return codes.to(torch.int8), scales.flatten()


def _from_int8(codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return codes.to(torch.float32).mul_(scales[:, None])


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bits of the nearest float8_e4m3fn numbers: as bytes no cast of the module changes them."""
    scales = _row_scales(weight, _MOST_FP8)
    codes = (weight / scales).clamp_(-_MOST_FP8, _MOST_FP8)  # beyond it the cast gives NaN
    return codes.to(torch.float8_e4m3fn).view(torch.uint8), scales.flatten()


def _from_fp8(codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return codes.view(torch.float8_e4m3fn).to(torch.float32).mul_(scales[:, None])


FORMATS: Final[Mapping[Quantization, Format]] = {
    "int8": Format(_to_int8, _from_int8),
    "fp8": Format(_to_fp8, _from_fp8),
    "nf4": Format(_to_nf4, _from_nf4),
}
"""The formats by the task's words for them."""
