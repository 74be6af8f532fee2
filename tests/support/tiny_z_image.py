"""A tiny Z-Image pipeline in Diffusers' layout: every part is the real class with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.support.tiny import build_vae, save_pipeline
from tests.support.tiny_tokenizers import build_qwen

TEXT_WIDTH = 16
CHANNELS = 4


def build_z_image(folder: Path, *, seed: int = 0) -> Path:
    """Write a Z-Image pipeline with random weights of the seed to `folder`, and return the folder."""
    return save_pipeline(_pipeline, Path(folder), seed)


def _pipeline() -> ZImagePipeline:
    tokenizer = build_qwen()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(scaling_factor=0.3611, latent_channels=CHANNELS, shift_factor=0.1159),
        text_encoder=Qwen3Model(text).eval(),
        tokenizer=tokenizer,
        transformer=_transformer(),
    )


def _transformer() -> ZImageTransformer2DModel:
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    ).eval()
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # zeros, or in older versions any memory
        torch.nn.init.normal_(token)
    return transformer
