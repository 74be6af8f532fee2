"""The pseudo-Huber losses of Khrapov et al. 2024 (arXiv:2403.16728), sections 3.2 and 3.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Errors = Callable[[torch.Tensor], torch.Tensor]
"""Maps differences, float32, shape (B, …), to errors of the same shape."""


def pseudo_huber(thresholds: torch.Tensor, kind: Literal["huber", "smooth_l1"]) -> Errors:
    """Return the function from differences to errors, scaled as in kohya's sd-scripts and in Diffusers' example.

    `huber` is 2c·(√(d² + c²) - c), near d² for small d; `smooth_l1` is 2·(√(d² + c²) - c), near 2|d| for large d.

    Args:
        thresholds: c of each sample, float32, shape (B,).
        kind: the loss.
    """

    def errors(differences: torch.Tensor) -> torch.Tensor:
        c = thresholds.reshape(-1, *[1] * (differences.ndim - 1))
        root = torch.sqrt(differences.square() + c.square()) - c
        return 2.0 * root if kind == "smooth_l1" else 2.0 * c * root

    return errors
