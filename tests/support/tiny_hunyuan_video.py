"""Small HunyuanVideo pipelines in Diffusers' layout, with random weights: the real classes."""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import LlamaConfig, LlamaModel

from engine.models.families.hunyuan_video.spec import INSTRUCTION_TOKENS, TEMPLATE
from tests.support import tiny, tiny_tokenizers

TEXT_WIDTH = 16
CHANNELS = 4


def build_hunyuan_video(folder: Path, *, guidance: bool = True, seed: int = 0) -> Path:
    """Write a HunyuanVideo pipeline with random weights of the seed to `folder`, and return the folder.

    With `guidance` its transformer is told a guidance scale, as that of the published model.
    """
    return tiny.save_pipeline(lambda: _pipeline(guidance), Path(folder), seed)


def _pipeline(guidance: bool) -> HunyuanVideoPipeline:
    words, tokenizer = (
        tiny_tokenizers.build_llama(TEMPLATE.partition("{}")[0], INSTRUCTION_TOKENS),
        tiny.build_tokenizer(),
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=build_hunyuan_video_vae(),
        text_encoder=LlamaModel(text).eval(),
        tokenizer=words,
        text_encoder_2=tiny.build_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=1,
            guidance_embeds=guidance,
            text_embed_dim=TEXT_WIDTH,
            pooled_projection_dim=tiny.HIDDEN,
            rope_axes_dim=(4, 6, 6),
        ).eval(),
    )


def build_hunyuan_video_vae(**changes: object) -> AutoencoderKLHunyuanVideo:
    """A VAE that shrinks sides by 8 and frames by 4; `changes` to its configuration."""
    return AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 16),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.476986,
        **changes,
    ).eval()
