"""A small real Stable Diffusion 3 pipeline in Diffusers' layout. Run as a program it writes one:
`python -m tests.support.tiny_sd3 FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final, Literal

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.support import tiny, tiny_tokenizers

LAYERS: Final = 2
WIDTH: Final = 64 * LAYERS
"""ComfyUI takes the number of layers from the width."""
T5_WIDTH: Final = 64
VERSIONS: Final[dict[str, dict[str, Any]]] = {
    "3-medium": {},
    "3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "3.5-large": {"qk_norm": "rms_norm"},
}


def build_sd3(
    folder: Path,
    *,
    version: Literal["3-medium", "3.5-medium", "3.5-large"] = "3.5-medium",
    with_t5: bool = True,
    seed: int = 0,
    variant: Literal["fp16", "bf16"] | None = None,
    only_variant: bool = False,
) -> Path:
    """Write a Stable Diffusion 3 pipeline with random weights of the seed to `folder`, and return the folder.

    As in the real one, the latents have 16 channels, the two CLIP encoders differ in width, depth, activation and
    padding, and their states together are narrower than T5's. Positions end at 384 pixels.
    """
    return tiny.save_pipeline(lambda: _pipeline(version, with_t5), Path(folder), seed, variant, only_variant)


def _pipeline(version: str, with_t5: bool) -> StableDiffusion3Pipeline:
    first, second = tiny.build_tokenizer(), tiny.build_tokenizer(pad_token="!")
    configs = [
        tiny.text_config(first),
        tiny.text_config(
            second,
            hidden_size=tiny.XL_SECOND_HIDDEN,
            num_hidden_layers=3,
            projection_dim=tiny.XL_POOLED,
            hidden_act="gelu",
        ),
    ]
    encoders = [CLIPTextModelWithProjection(config).eval() for config in configs]
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=16,
            num_layers=LAYERS,
            attention_head_dim=32,
            num_attention_heads=WIDTH // 32,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=sum(config.projection_dim for config in configs),
            out_channels=16,
            pos_embed_max_size=24,
            **VERSIONS[version],
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.build_vae(
            scaling_factor=1.5305,
            latent_channels=16,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=encoders[0],
        tokenizer=first,
        text_encoder_2=encoders[1],
        tokenizer_2=second,
        text_encoder_3=build_t5(T5_WIDTH) if with_t5 else None,
        tokenizer_3=tiny_tokenizers.build_t5() if with_t5 else None,
    )


def build_t5(width: int) -> T5EncoderModel:
    """A T5 encoder of two layers, of the kind of T5 1.1, which is published with image models."""
    return T5EncoderModel(
        T5Config(
            vocab_size=256,  # as in the real one, more than the tokenizer has
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ).eval()


if __name__ == "__main__":
    print(build_sd3(Path(sys.argv[1])))
