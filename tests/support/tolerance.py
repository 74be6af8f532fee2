"""Compare values that are computed in two ways: equal but for the rounding, whatever kernels a processor is given.

A sum of n random terms has a rounding error that grows like √n · u, relative to the size of its terms' sum (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 2.8), and how it is rounded depends on the order in which
a kernel adds: with AVX-512 another than with AVX2. So a tolerance follows from the dtype, the size of the values and
the number of operations, and is never a constant. A fault changes values by orders of magnitude more.
"""

from __future__ import annotations

import math

import torch


def depth(*modules: torch.nn.Module) -> float:
    """The operations of a pass through networks: √n for each layer that sums n terms, one after the other."""
    layers = [layer for module in modules for layer in module.modules() if not list(layer.children())]
    return sum(math.sqrt(layer.weight[0].numel()) for layer in layers if getattr(layer, "weight", None) is not None)


def assert_equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor, *, operations: float) -> None:
    """Compare two tensors, shape and dtype included.

    Args:
        found: of any shape.
        expected: its largest value says how large the rounded ones are.
        operations: how many roundings of values of that size one value comes of: n for a sum of n terms that cancel
            each other like random ones, `depth` for a pass through a network.
    """
    allowed = operations * torch.finfo(expected.dtype).eps * expected.detach().abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
