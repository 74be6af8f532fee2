"""LoftQ (Li et al. 2023, arXiv:2310.08659): start an adapter so that a 4-bit base plus adapter is close to the base.

This is one iteration of its algorithm 1: quantise the weight, then take the adapter from the singular value
decomposition of the quantisation error. PEFT's implementation needs scipy, bitsandbytes and a CUDA device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.models.quantization.formats import NF4, nf4_codes


def quantise(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight of a 4-bit base: the nearest NF4 code of each value, times its block's largest magnitude.

    Blocks are runs of 64 values in row-major order. The input has any shape and floating dtype; the result has the same
    shape, dtype and device, and its own memory. The arithmetic is elementwise float32, so its bits do not depend on the
    device.
    """
    codes, largest = nf4_codes(weight.detach().to(torch.float32))
    values = torch.tensor(NF4, dtype=torch.float32, device=weight.device)[codes] * largest
    return values.flatten()[: weight.numel()].reshape(weight.shape).to(weight.dtype)


def init(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return start values of an adapter that compensate for quantising `weight`, as far as `rank` allows.

    Args:
        weight: a linear layer's weight of shape (out, in), any floating dtype.
        rank: at most min(out, in).

    Returns:
        A₀ of shape (rank, in) and B₀ of shape (out, rank), float32 on the CPU, and `quantise(weight)`. Among products
        of that rank, B₀·A₀ makes quantised + B₀·A₀ the nearest to `weight`.
    """
    quantised = quantise(weight)
    # On the CPU in float64: there the decomposition of equal matrices is equal. It runs once per training.
    residual = weight.detach().to("cpu", torch.float64) - quantised.to("cpu", torch.float64)
    left, singular, right = torch.linalg.svd(residual, full_matrices=False)
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    # A pair of singular vectors is defined up to its sign: the largest component of the right one is made positive.
    peaks = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(peaks < 0, -1.0, 1.0)
    root = singular.sqrt()
    a = root[:, None] * right * signs
    b = left * root * signs.T
    # Row-major, as when read from a file: a kernel's bits depend on a parameter's memory layout.
    return a.to(torch.float32).contiguous(), b.to(torch.float32).contiguous(), quantised


@torch.no_grad()
def replace_weights(layers: Mapping[str, torch.nn.Linear], rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Quantise the layers' weights in place; return A₀ and B₀ of each, as `init` does."""
    starts = {}
    for name, layer in layers.items():
        a, b, layer.weight.data = init(layer.weight, rank)
        starts[name] = (a, b)
    return starts


@torch.no_grad()
def requantise_weights(layers: Mapping[str, torch.nn.Linear]) -> None:
    """Quantise the layers' weights in place, as `replace_weights` did at the start of the training."""
    for layer in layers.values():
        layer.weight.data = quantise(layer.weight)
