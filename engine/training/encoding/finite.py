"""Refuse encodings with values that are not finite: every loss that is computed from them would be NaN."""

from __future__ import annotations

import torch

from engine.core.errors import NonFiniteError
from engine.models.family import Tensors


def require_finite_latents(moments: Tensors, name: str) -> None:
    """Raise NonFiniteError if the moments of a sample's latents are not finite; `name` is for the message."""
    if not _are_finite(moments):
        raise NonFiniteError(
            f"the VAE computes values that are not finite from {name}: set mixed_precision to bf16 or no, or take "
            "another VAE (model.components.vae)"
        )


def require_finite_caption(conditioning: Tensors, caption: str) -> None:
    """Raise NonFiniteError if the conditioning of a caption is not finite; `caption` is for the message."""
    if not _are_finite(conditioning):
        raise NonFiniteError(
            f"a text encoder computes values that are not finite from the caption {caption}: set mixed_precision to "
            "bf16 or no"
        )


def _are_finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
