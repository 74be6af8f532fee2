"""Pack latents into tokens of 2 x 2 positions, which transformers without a patch embedding of their own take.

These transformers are told where a token is by three numbers, of which the first is 0 for a single image.
"""

from __future__ import annotations

from typing import Final

import torch

SIDE: Final = 2
"""Positions of the latents on each side of a token."""


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (B, C, H, W) as tokens (B, H/2 x W/2, C x 4), row by row.

    Within a token, the 4 positions of a channel are neighbours. H and W must be even.
    """
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * SIDE**2)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens (B, H/2 x W/2, C x 4) as latents (B, C, H, W): the inverse of `pack`."""
    squares = tokens.reshape(len(tokens), height // SIDE, width // SIDE, -1, SIDE, SIDE)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def image_ids(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (0, row, column) of each token of latents of this height and width: float32, shape (H/2 x W/2, 3)."""
    rows, columns = torch.arange(height // SIDE, device=device), torch.arange(width // SIDE, device=device)
    return torch.cartesian_prod(torch.zeros(1, device=device), rows.float(), columns.float())
