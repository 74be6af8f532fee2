"""The specification of Wan 2.1, and 2.2's model of 5 billion parameters (Wan Team 2025, arXiv:2503.20314). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.families.wan.cleaning import clean
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_channel_scales,
    require_channels,
    require_multiple,
    require_size,
    require_text_width,
)
from engine.models.parts.footprints import t5, transformer_model
from engine.models.parts.footprints.transformers import wan
from engine.models.parts.footprints.video_vaes import wan as wan_vae
from engine.models.parts.t5 import tokens as t5_tokens
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload
from engine.task.plan.extent import Extent, latent_frames

FRAMES: Final = 4
"""Frames after the first one in one frame of the latents."""
_PATCH: Final = 2
"""The side of the square of latents that is one token."""
_IMAGE_KEYS: Final = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
"""Options of the transformer that only models have which are given images."""
_HEADS: Final = 6
"""The smallest attention head whose rotations have three axes."""
_OTHER_PARTS: Final = "these parts are not those of Wan"
_RENAMED: Final = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_RENAMED_IN_BLOCKS: Final = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "net.0.proj": "0",
    "net.2": "2",
}


def original_name(module: str) -> str:
    """Return the original model's name of a module of Diffusers' transformer, by which ComfyUI knows it."""
    if not module.startswith("blocks."):
        return _RENAMED.get(module, module)
    _, number, outer, inner = module.split(".", 3)
    return f"blocks.{number}.{_RENAMED_IN_BLOCKS.get(outer, outer)}.{_RENAMED_IN_BLOCKS.get(inner, inner)}"


def reduction(vae: Mapping[str, Any]) -> int:
    """Return how many pixels of a side are one position of the latents. Raises TypeError."""
    return wan_vae.reduction(vae)


def check(config: Configs) -> None:
    """Refuse other models with the classes of Wan: those with two denoisers or that are given images, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    if config("transformer_2"):
        raise ModelError(
            "the base model is a Wan 2.2 with two denoisers, one for high and one for low noise, which cannot be "
            "trained; Wan 2.1 and Wan 2.2 TI2V-5B have one"
        )
    require_bounds(config, "transformer", "vae", "text_encoder")
    transformer = config("transformer")
    if any(transformer.get(key) is not None for key in _IMAGE_KEYS):
        raise ModelError("the base model is a Wan that is given an image, which cannot be trained: use text-to-video")
    _require_text_to_video(config)
    _require_head(transformer, require_size(config, "transformer", "attention_head_dim", 128))
    require_channel_scales(config, "z_dim", 16)
    _require_reduction(config("vae"))
    given = require_size(config, "text_encoder", "d_model", 512)
    require_text_width(config, "text_dim", 4096, given)


def _require_text_to_video(config: Configs) -> None:
    """Raise ModelError unless a token of the transformer is a square of one frame of the VAE's latents."""
    channels = require_size(config, "vae", "z_dim", 16)
    taken = require_size(config, "transformer", "in_channels", 16)
    given = config("transformer").get("out_channels", 16) or taken
    otherwise = "text-to-video models can be trained, those that are given an image or a clip cannot"
    require_channels(taken, given, channels, otherwise)
    if config("transformer").get("patch_size", [1, 2, 2]) != [1, _PATCH, _PATCH]:
        raise ModelError(f"the base model's transformer takes patches of other sizes than 1 x 2 x 2: {_OTHER_PARTS}")


def _require_head(transformer: Mapping[str, Any], head: int) -> None:
    """Raise ModelError unless an attention head has room for the rotations of positions on three axes."""
    positions = transformer.get("rope_max_seq_len", 1024)
    if head % 2 or head < _HEADS or type(positions) is not int or not 0 < positions <= 1 << 16:
        raise ModelError(
            f"the base model's transformer/config.json has attention_head_dim {head} and rope_max_seq_len "
            f"{str(positions)[:40]}: download it again"
        )


def _require_reduction(vae: Mapping[str, Any]) -> None:
    """Raise ModelError unless the VAE divides frames by 4, and sides as its configuration says, by a divisor of 64.

    Tiles, and the distances between them, are multiples of 64 pixels.
    """
    times, widths = vae.get("temperal_downsample", [False, True, True]), vae.get("dim_mult", [1, 2, 4, 4])
    patch = vae.get("patch_size")
    is_known = (
        isinstance(times, list)
        and all(type(item) is bool for item in times)
        and isinstance(widths, list)
        and len(widths) == len(times) + 1
        and (patch is None or (type(patch) is int and patch > 0))
        and type(vae.get("is_residual", False)) is bool
        and 64 % reduction(vae) == 0
    )
    if not is_known or 2 ** sum(times) != FRAMES or reduction(vae) != vae.get("scale_factor_spatial", 8):
        raise ModelError(
            f"the base model's VAE does not divide frames by {FRAMES}, or sides not as its configuration says: "
            f"{_OTHER_PARTS}"
        )


def check_size(config: Configs, extent: Extent) -> None:
    """Raise TaskError unless the sides of a clip, in pixels, are whole tokens, and not more than have positions."""
    side = reduction(config("vae")) * _PATCH
    require_multiple(extent, side)
    most = config("transformer").get("rope_max_seq_len", 1024)
    if max(extent.size) > most * side or (extent.frames - 1) // FRAMES >= most:
        raise TaskError(
            f"train_args.resolution, num_frames: {extent} is more than the {most * side:,} pixels of a side and "
            f"{(most - 1) * FRAMES + 1:,} frames for which this base model has positions; lower them"
        )


def refine(config: Configs) -> FamilySpec:
    """Return the row for a model: 2.2's VAE has positions of 16 x 16 pixels, and its clips 24 frames a second.

    The frame rate is that of its authors (Wan-Video/Wan2.2, `wan_ti2v_5B.py`: `sample_fps`).
    """
    side = reduction(config("vae")) * _PATCH
    return SPEC if side == SPEC.token_side else replace(SPEC, token_side=side, frame_rate=24.0)


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Wan. Modules have the names of the original model."""
    return {
        "modelspec.architecture": "wan2.1/lora"
        if reduction(config("vae")) * _PATCH == SPEC.token_side
        else "wan2.2/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "ss_base_model_version": "wan",
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=partial(wan.transformer, frames=latent_frames(workload.frames, FRAMES)),
        encoders={"text_encoder": t5.text_encoder},
        images=partial(wan_vae.image_encoder, frames=workload.frames, tiles=wan_vae.TILES),
        reduction=wan_vae.reduction,
    )


SPEC: Final = FamilySpec(
    pipeline="WanPipeline",
    module="engine.models.families.wan.model",
    other_pipelines={
        "WanImageToVideoPipeline": "an image-to-video model",
        "WanVACEPipeline": "Wan VACE, which is given a clip to edit",
        "WanVideoToVideoPipeline": "a video-to-video pipeline; name the WanPipeline of the same model",
        "WanAnimatePipeline": "Wan Animate, which is given a clip and an image",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "transformer", "transformer_2"),
    weighted=("text_encoder", "vae", "transformer"),
    optional=("transformer_2",),
    classes={
        "text_encoder": ("UMT5EncoderModel",),
        "vae": ("AutoencoderKLWan",),
        "transformer": ("WanTransformer3DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=("text_encoder",),
    block_lists=("blocks",),
    lora_targets=lora_targets.ATTENTION,
    text_lora_targets=(),
    text_root=None,
    objective="flow",
    usual_sampling="logit_normal",
    medium="video",
    frame_step=FRAMES,
    frame_rate=16.0,
    check=check,
    check_size=check_size,
    refine=refine,
    webui_metadata=webui_metadata,
    token_counter=t5_tokens.counter("tokenizer", clean),
    caption_tokens=CaptionTokens(usual=512, most=512, step=1, least=t5_tokens.LEAST),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"}),
    drawing=DrawingDefaults(guidance_scale=5.0, num_inference_steps=50),
    hub_tags=("wan",),
    licences=dict.fromkeys(
        (
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        ),
        "apache-2.0",
    ),
    footprint=_footprint,
)
