"""The specification of LTX-Video (HaCohen et al. 2024, arXiv:2501.00103). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_channels,
    require_size,
    require_text_width,
    whole_tokens,
)
from engine.models.parts.footprints import t5, transformer_model
from engine.models.parts.footprints.transformers import ltx
from engine.models.parts.footprints.video_vaes import ltx as vae
from engine.models.parts.t5 import tokens as t5_tokens
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload
from engine.task.plan.extent import latent_frames

SIDE: Final = 32
"""Pixels of a side in one position of the latents, which is one token (section 2.1)."""
FRAMES: Final = 8
"""Frames after the first one in one frame of the latents."""
_OTHER_PARTS: Final = "these parts are not those of LTX-Video"
_HALVES: Final = {"conv": (2, 2), "spatial": (2, 1), "temporal": (1, 2), "spatiotemporal": (2, 2)}
"""`downsample_type` of the VAE -> by what it divides the sides, and the frames."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of LTX-Video, and parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    require_bounds(config, "transformer", "vae", "text_encoder")
    transformer = config("transformer")
    channels = require_size(config, "vae", "latent_channels", 128)
    taken = require_size(config, "transformer", "in_channels", 128)
    given = transformer.get("out_channels", 128) or taken
    require_channels(taken, given, channels, _OTHER_PARTS)
    if (transformer.get("patch_size", 1), transformer.get("patch_size_t", 1)) != (1, 1):
        raise ModelError(f"the base model's transformer takes patches of several positions: {_OTHER_PARTS}")
    _require_widths(config)
    _require_reduction(config("vae"))


def _require_widths(config: Configs) -> None:
    """Raise ModelError unless the transformer takes the text encoder's states."""
    heads, head = (
        require_size(config, "transformer", key, default)
        for key, default in (("num_attention_heads", 32), ("attention_head_dim", 64))
    )
    inner = require_size(config, "transformer", "cross_attention_dim", 2048)
    if heads * head != inner:
        raise ModelError(
            f"the base model's transformer/config.json has num_attention_heads {heads}, attention_head_dim {head} and "
            f"cross_attention_dim {inner}, which do not go together: download it again"
        )
    given = require_size(config, "text_encoder", "d_model", 512)
    require_text_width(config, "caption_channels", 4096, given)


def _require_reduction(vae: Mapping[str, Any]) -> None:
    """Raise ModelError unless the VAE divides sides by 32 and frames by 8, as its configuration says."""
    scaled = vae.get("spatio_temporal_scaling", [True, True, True, False])
    kinds = vae.get("downsample_type", ["conv"] * 4)
    side, frames = vae.get("patch_size", 4), vae.get("patch_size_t", 1)
    if isinstance(scaled, list) and isinstance(kinds, list) and type(side) is type(frames) is int:
        for kind in (kind for kind, is_scaled in zip(kinds, scaled, strict=False) if is_scaled):
            by = _HALVES.get(kind, (1, 1)) if isinstance(kind, str) else (1, 1)
            side, frames = side * by[0], frames * by[1]
    said = (vae.get("spatial_compression_ratio") or SIDE, vae.get("temporal_compression_ratio") or FRAMES)
    if (side, frames) != (SIDE, FRAMES) or said != (SIDE, FRAMES):
        raise ModelError(
            f"the base model's VAE does not divide sides by {SIDE} and frames by {FRAMES}: it is not that of LTX-Video"
        )
    if type(vae.get("timestep_conditioning", False)) is not bool:
        raise ModelError(
            f"the base model's vae/config.json gives timestep_conditioning as "
            f"{str(vae['timestep_conditioning'])[:40]!r}: download it again"
        )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for LTX-Video. Modules have the names of the original model."""
    return {
        "modelspec.architecture": "ltx-video/lora",
        "modelspec.implementation": "https://github.com/Lightricks/LTX-Video",
        "ss_base_model_version": "ltx_video",
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=partial(ltx.transformer, frames=latent_frames(workload.frames, FRAMES)),
        encoders={"text_encoder": t5.text_encoder},
        images=partial(vae.image_encoder, frames=workload.frames),
        reduction=lambda vae: SIDE,
    )


SPEC: Final = FamilySpec(
    pipeline="LTXPipeline",
    module="engine.models.families.ltx.model",
    other_pipelines={
        "LTXConditionPipeline": "an LTX-Video 0.9.5 or later, which is given images and places frames otherwise",
        "LTXImageToVideoPipeline": "an image-to-video pipeline; name the LTXPipeline of the same model",
        "LTXLatentUpsamplePipeline": "an upscaler",
        "LTXI2VLongMultiPromptPipeline": "an image-to-video pipeline",
        "LTX2Pipeline": "LTX-2, which makes sound as well",
        "LTX2ImageToVideoPipeline": "LTX-2, which makes sound as well",
        "LTX2ConditionPipeline": "LTX-2, which makes sound as well",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "transformer"),
    weighted=("text_encoder", "vae", "transformer"),
    classes={
        "text_encoder": ("T5EncoderModel",),
        "vae": ("AutoencoderKLLTXVideo",),
        "transformer": ("LTXVideoTransformer3DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=("text_encoder",),
    block_lists=("transformer_blocks",),
    lora_targets=lora_targets.ATTENTION,
    text_lora_targets=(),
    text_root=None,
    objective="flow",
    usual_sampling="logit_normal",
    token_side=SIDE,
    medium="video",
    frame_step=FRAMES,
    frame_rate=25.0,
    check=check,
    check_size=whole_tokens(SIDE),
    webui_metadata=webui_metadata,
    token_counter=t5_tokens.counter("tokenizer"),
    caption_tokens=CaptionTokens(usual=128, most=256, step=1, least=t5_tokens.LEAST),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler"}),
    drawing=DrawingDefaults(guidance_scale=3.0, num_inference_steps=50),
    argument_names={"frame_rate": "frame_rate"},
    hub_tags=("ltx-video",),
    licences={"Lightricks/LTX-Video": "other"},
    footprint=_footprint,
)
