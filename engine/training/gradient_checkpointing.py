"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): keep the inputs of the denoiser's blocks, not what is
computed inside; the backward pass computes that again, block by block.

The bits do not depend on it: deterministic operations on the same inputs, under the same autocast, give the same, and
what is random in a block, the adapter's dropout, is addressed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recompute_activations(denoiser: Any) -> None:
    """Let a model of Diffusers' compute its blocks again in the backward pass; without gradients nothing changes."""
    denoiser.enable_gradient_checkpointing(_block)


def _block(module: torch.nn.Module, *args: Any) -> Any:
    # torch's generators, which nothing in a block draws from, need not be saved and set back for each of them.
    return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)
