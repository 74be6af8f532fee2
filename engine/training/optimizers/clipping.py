"""Clipping of gradients by their total norm."""

from __future__ import annotations

import torch


def clip(gradients: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale the gradients in place so that their total L2 norm is at most `max_norm`; 0 leaves them as they are.

    Returns:
        The total norm before: a float32 scalar on the gradients' device, not finite where a gradient is not.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        # The rule of `torch.nn.utils.clip_grads_with_norm_`, which wants parameters: multiplying by 1 costs less than
        # asking the device whether it is needed.
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
