"""Clip gradients by their total norm."""

from __future__ import annotations

import torch


def clip(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients in place so that their total L2 norm is at most `max_norm`; 0 turns clipping off.

    Returns:
        The total norm before clipping: a float32 scalar on the gradients' device, not finite if a gradient is not.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        # The rule of `torch.nn.utils.clip_grads_with_norm_`, which works on parameters. Multiplying by 1 is cheaper
        # than waiting for the device to know whether clipping is needed.
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
