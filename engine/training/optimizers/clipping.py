"""Clip gradients by their total norm."""

from __future__ import annotations

import torch


def clip_factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return the factor, at most 1, that makes gradients' total L2 norm at most `max_norm`; 0 turns clipping off.

    The rule is that of `torch.nn.utils.clip_grads_with_norm_`.

    Args:
        norm: the total norm, a float32 scalar.
        max_norm: the task's `train_args.max_grad_norm`.

    Returns:
        A float32 scalar on the norm's device.
    """
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0) if max_norm > 0 else torch.ones_like(norm)


def scale(gradients: list[torch.Tensor], factor: float) -> None:
    """Multiply gradients in place by a factor."""
    if gradients and factor != 1.0:
        torch._foreach_mul_(gradients, factor)
