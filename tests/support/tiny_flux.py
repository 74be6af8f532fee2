"""Small FLUX.1 pipelines in Diffusers' layout, with random weights: the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

from tests.support import tiny, tiny_tokenizers

T5_WIDTH = 24
CHANNELS = 16


def build_flux(
    folder: Path,
    *,
    guidance: bool = True,
    seed: int = 0,
    variant: Literal["fp16", "bf16"] | None = None,
    only_variant: bool = False,
) -> Path:
    """Write a FLUX.1 pipeline with random weights of the seed to `folder`, and return the folder.

    With `guidance` it is like FLUX.1 [dev]: told a guidance scale, and its scheduler shifts noise levels by the
    image's size; without like FLUX.1 [schnell]. `variant` and `only_variant` as in `tiny.build_sd`.
    """
    return tiny.save_pipeline(lambda: _pipeline(guidance), Path(folder), seed, variant, only_variant)


def _pipeline(guidance: bool) -> FluxPipeline:
    tokenizer, words = tiny.build_tokenizer(), tiny_tokenizers.build_t5()
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(dynamic if guidance else {"shift": 1.0})),
        vae=tiny.build_vae(
            0.3611, CHANNELS, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, force_upcast=True
        ),
        text_encoder=tiny.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(_t5_config(len(words))).eval(),
        tokenizer_2=words,
        transformer=FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=tiny.HIDDEN,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )


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
