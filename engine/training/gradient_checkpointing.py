"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174).

Only the inputs of the denoiser's blocks are kept; the backward pass computes the inside of each block again. The bits
do not change: deterministic operations on the same inputs, under the same autocast, give the same result, and the only
randomness in a block, the adapter's dropout, is addressed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from engine.models.components.block_inputs import BlockInputs


def recompute_activations(denoiser: Any, inputs: BlockInputs | None = None) -> None:
    """Let a Diffusers model recompute its blocks in the backward pass; without gradients it has no effect.

    Args:
        denoiser: the model.
        inputs: moves the inputs of the blocks to main memory meanwhile; None keeps them on the device.
    """
    denoiser.enable_gradient_checkpointing(partial(_offloaded, inputs) if inputs else _block)


def _block(module: torch.nn.Module, *args: Any) -> Any:
    # Nothing in a block draws from torch's generators, so their states need not be saved.
    return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)


def _offloaded(inputs: BlockInputs, module: torch.nn.Module, *args: Any) -> Any:
    return inputs.offloaded(partial(_block, module, *args))
