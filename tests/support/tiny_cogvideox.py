"""Small CogVideoX pipelines in Diffusers' layout, with random weights: the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

from tests.support import tiny, tiny_tokenizers

Kind = Literal["2b", "5b", "1.5"]
T5_WIDTH = 24
CHANNELS = 4
TEXT_LENGTH = 24

_OWN: dict[Kind, dict[str, Any]] = {
    "2b": {},
    "5b": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}


def build_cogvideox(folder: Path, *, kind: Kind = "5b", seed: int = 0) -> Path:
    """Write a CogVideoX pipeline with random weights of the seed to `folder`, and return the folder.

    2B has a table of positions, and a noise schedule with its signal-to-noise ratio shifted by 3; 5B has rotations;
    1.5 takes two frames of latents at a time. The usual size is 64 x 96 pixels and 9 frames.
    """
    return tiny.save_pipeline(lambda: _pipeline(kind), Path(folder), seed)


def _pipeline(kind: Kind) -> CogVideoXPipeline:
    words = tiny_tokenizers.build_t5()
    scheduler = CogVideoXDDIMScheduler if kind == "2b" else CogVideoXDPMScheduler
    return CogVideoXPipeline(
        scheduler=scheduler(
            **tiny.BETAS,
            clip_sample=False,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0 if kind == "2b" else 1.0,
        ),
        vae=build_cogvideox_vae(scaling_factor=1.15258426 if kind == "2b" else 0.7, invert_scale_latents=kind == "1.5"),
        text_encoder=T5EncoderModel(_t5_config(len(words))).eval(),
        tokenizer=words,
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            time_embed_dim=8,
            text_embed_dim=T5_WIDTH,
            num_layers=2,
            sample_width=12,
            sample_height=8,
            sample_frames=9,
            max_text_seq_length=TEXT_LENGTH,
            **_OWN[kind],
        ).eval(),
    )


def build_cogvideox_vae(**changes: object) -> AutoencoderKLCogVideoX:
    """A VAE that shrinks sides by 8 and frames by 4, and decodes in tiles of 48 x 80 pixels; `changes` to its
    configuration."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 16),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=96,
        sample_width=160,
        **changes,
    ).eval()


def _t5_config(vocab_size: int) -> T5Config:
    return T5Config(
        vocab_size=vocab_size,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
