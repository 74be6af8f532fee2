"""The published models' sizes, for tests of names and shapes: built on the meta device, without weights."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

XL_BASE_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""stabilityai/stable-diffusion-xl-base-1.0, `unet/config.json`: what differs from Diffusers' defaults."""


def xl_base_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**XL_BASE_UNET)
