"""A tiny Wan pipeline in Diffusers' layout: every part is the real class with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from tests.support import tiny_tokenizers
from tests.support.tiny import save_pipeline

TEXT_WIDTH = 24
CHANNELS = 4
VAES: dict[str, dict[str, Any]] = {
    "2.1": {},
    "2.2-5B": {
        "decoder_base_dim": 8,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}
"""The VAE's options in which versions differ."""


def build_wan(
    folder: Path,
    *,
    version: Literal["2.1", "2.2-5B"] = "2.1",
    scheduler: Literal["UniPC", "Euler"] = "UniPC",
    seed: int = 0,
) -> Path:
    """Write a Wan pipeline with random weights of the seed to `folder`, and return the folder.

    As in the real one, a position of the latents is 8 x 8 pixels (version 2.2-5B: 16 x 16) and, after the first frame,
    4 frames; a token is a square of 2 x 2 positions.
    """
    return save_pipeline(lambda: _pipeline(version, scheduler), Path(folder), seed)


def _pipeline(version: str, scheduler: str) -> WanPipeline:
    return WanPipeline(
        scheduler=_scheduler(scheduler),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, -0.4],
            latents_std=[1.5, 0.5, 2.0, 1.0],
            **VAES[version],
        ).eval(),
        text_encoder=build_text_encoder(),
        tokenizer=tiny_tokenizers.build_t5(),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=TEXT_WIDTH,
            ffn_dim=48,
            num_layers=2,
        ).eval(),
        transformer_2=None,
        expand_timesteps=version == "2.2-5B",
    )


def _scheduler(name: str) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    if name == "Euler":
        return FlowMatchEulerDiscreteScheduler(shift=5.0)
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def build_text_encoder() -> UMT5EncoderModel:
    """A UMT5 encoder of two layers for `tiny_tokenizers.build_t5`."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=256,
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    ).eval()
