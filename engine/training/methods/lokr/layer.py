"""The change that a LoKr adds to a layer's output, computed without forming W₁ ⊗ W₂."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from engine.training.methods.lokr.split import LEFT, RIGHT, RIGHT_DOWN, RIGHT_UP, Split


def change(layer: torch.nn.Linear | torch.nn.Conv2d, split: Split, x: torch.Tensor, *factors: torch.Tensor) -> Any:
    """Return (W₁ ⊗ W₂)·x.

    The inputs are seen as (inputs of W₁, inputs of W₂): W₂ maps the second axis, then W₁ the first. For a linear layer
    of n inputs and outputs that is about 2·n·√n multiplications a row instead of n².

    Args:
        layer: a layer without groups.
        split: its split.
        x: (…, inputs), or (samples, inputs, height, width) for a convolution.
        factors: the tensors of `Split.shapes`, in the dtype of `x`.

    Returns:
        The same shape as the layer's output.
    """
    left, *right = factors
    inner = split.left[1], split.right[1]
    if isinstance(layer, torch.nn.Linear):
        x = x.reshape(*x.shape[:-1], *inner)
        for matrix in reversed(right):
            x = functional.linear(x, matrix)
        return functional.linear(x.transpose(-1, -2), left).transpose(-1, -2).flatten(-2)
    samples, _, *size = x.shape
    first = right[-1].reshape(-1, *split.right[1:])
    x = layer._conv_forward(x.reshape(-1, inner[1], *size), first, None)
    if split.rank is not None:
        x = functional.conv2d(x, right[0][:, :, None, None])
    x = x.reshape(samples, inner[0], *x.shape[1:]).movedim(1, -1)
    return functional.linear(x, left).movedim(-1, 1).flatten(1, 2)


def product(factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return W₁ ⊗ W₂ as a matrix (outputs, inputs x kernel); `factors` has the tensors of `Split.shapes`, float32."""
    return torch.kron(factors[LEFT], right_matrix(factors))


def right_matrix(factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return W₂ as a matrix (outputs, inputs x kernel)."""
    return factors[RIGHT].flatten(1) if RIGHT in factors else factors[RIGHT_UP] @ factors[RIGHT_DOWN]
