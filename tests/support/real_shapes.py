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


SD3_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
"""stabilityai/stable-diffusion-3-medium-diffusers, `transformer/config.json`."""

SD35_MEDIUM = SD3_MEDIUM | {
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13)),
}
"""stabilityai/stable-diffusion-3.5-medium."""

SD35_LARGE = SD3_MEDIUM | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
"""stabilityai/stable-diffusion-3.5-large."""

FLUX1_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
"""black-forest-labs/FLUX.1-dev; schnell has no guidance."""

T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
"""The text encoder of both, google/t5-v1_1-xxl."""

VAE_16 = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""The VAE of both, and of Z-Image."""


QWEN_IMAGE: dict[str, object] = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "out_channels": 16,
}
"""Qwen/Qwen-Image: the defaults of Diffusers' class."""

Z_IMAGE = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "cap_feat_dim": 2560}
"""Tongyi-MAI/Z-Image: the defaults of Diffusers' class."""

FLUX2_DEV = {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48}
"""black-forest-labs/FLUX.2-dev: the defaults of Diffusers' class."""

FLUX2_KLEIN = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
"""FLUX.2 [klein] with 4 billion parameters; its text is three states of a Qwen 3 of width 2560, side by side."""

QWEN3_4B = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""Qwen/Qwen3-4B, the text encoder of Z-Image; with a head, which has no weights of its own, that of FLUX.2 [klein]."""

COGVIDEOX_2B = {"num_layers": 30}
"""zai-org/CogVideoX-2b, `transformer/config.json`: but for this, its sizes are the defaults of Diffusers' class."""

COGVIDEOX_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
"""zai-org/CogVideoX-5b: the same."""

COGVIDEOX_15 = COGVIDEOX_5B | {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_frames": 81,
    "sample_height": 300,
    "sample_width": 300,
}
"""zai-org/CogVideoX1.5-5B: the same."""

LLAMA_3_8B = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128320,
}
"""The text encoder of HunyuanVideo, whose transformer and VAE have the defaults of Diffusers' classes."""

QWEN25_VL_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
    "tie_word_embeddings": False,
}
"""Qwen/Qwen2.5-VL-7B-Instruct, the text encoder of Qwen-Image."""

LTX: dict[str, object] = {"num_layers": 28}
"""Lightricks/LTX-Video, `transformer/config.json`, of 2 billion parameters: the defaults of Diffusers' class."""

WAN_1B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
"""Wan-AI/Wan2.1-T2V-1.3B-Diffusers, `transformer/config.json`."""

WAN_14B: dict[str, object] = {"num_layers": 40}
"""Wan-AI/Wan2.1-T2V-14B-Diffusers: the defaults of Diffusers' class."""

LTX_091_VAE = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_inject_noise": [True, True, True, False],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True] * 3,
    "timestep_conditioning": True,
    "upsample_factor": [2, 2, 2],
    "upsample_residual": [True] * 3,
}
"""The VAE of LTX-Video 0.9.1, as Diffusers' conversion script makes it; that of 0.9.0: the defaults of its class."""

LTX_095_VAE = LTX_091_VAE | {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "decoder_inject_noise": [False] * 4,
    "decoder_layers_per_block": [5, 5, 5, 5],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "layers_per_block": [4, 6, 6, 2, 2],
    "spatial_compression_ratio": 32,
    "spatio_temporal_scaling": [True] * 4,
    "temporal_compression_ratio": 8,
}
"""That of 0.9.5."""

WAN_22_5B = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
"""Wan-AI/Wan2.2-TI2V-5B-Diffusers."""

WAN_22_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
"""Its VAE, without the published statistics of the latents."""

UMT5_XXL = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
"""Wan's text encoder, google/umt5-xxl."""

VAE_FLUX2 = VAE_16 | {"latent_channels": 32, "use_quant_conv": True, "use_post_quant_conv": True}


def xl_base_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**XL_BASE_UNET)
