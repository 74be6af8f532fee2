"""A tiny LTX-Video pipeline in Diffusers' layout: every part is the real class with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from transformers import T5Config, T5EncoderModel

from tests.support import tiny_tokenizers
from tests.support.tiny import save_pipeline

TEXT_WIDTH = 24
CHANNELS = 8
VERSIONS: dict[str, dict[str, Any]] = {
    "0.9.0": {},
    "0.9.1": {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, True, False, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    },
}
"""The VAE's options in which versions differ."""
VERSIONS["0.9.5"] = VERSIONS["0.9.1"] | {
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "block_out_channels": (4, 8, 16, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, True, True),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_inject_noise": (False, False, False, False),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}


def build_ltx(folder: Path, *, version: Literal["0.9.0", "0.9.1", "0.9.5"] = "0.9.0", seed: int = 0) -> Path:
    """Write an LTX-Video pipeline with random weights of the seed to `folder`, and return the folder.

    As in the real one, a position of the latents is 32 x 32 pixels and, after the first frame, 8 frames.
    """
    return save_pipeline(lambda: _pipeline(version), Path(folder), seed)


def _pipeline(version: str) -> LTXPipeline:
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        vae=_vae(VERSIONS[version]),
        text_encoder=build_text_encoder(TEXT_WIDTH),
        tokenizer=tiny_tokenizers.build_t5(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=TEXT_WIDTH,
        ).eval(),
    )


def _vae(options: dict[str, Any]) -> AutoencoderKLLTXVideo:
    plain = {
        "latent_channels": CHANNELS,
        "block_out_channels": (4, 8, 8, 8),
        "decoder_block_out_channels": (4, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "encoder_causal": True,
        "decoder_causal": False,
    }
    vae = AutoencoderKLLTXVideo(**plain | options).eval()
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, CHANNELS))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, CHANNELS))
    for name, weight in vae.named_parameters():
        if name.endswith(("per_channel_scale1", "per_channel_scale2")):  # zeros, so that noise would have no effect
            torch.nn.init.normal_(weight)
    return vae


def build_text_encoder(width: int) -> T5EncoderModel:
    """A T5 encoder of two layers, of the kind of T5 1.1, for `tiny_tokenizers.build_t5`."""
    return T5EncoderModel(
        T5Config(
            vocab_size=256,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            tie_word_embeddings=False,
        )
    ).eval()
