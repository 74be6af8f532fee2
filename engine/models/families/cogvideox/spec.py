"""The specification of CogVideoX 2B, 5B and 1.5 (Yang et al. 2024, arXiv:2408.06072). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_channels,
    require_multiple,
    require_one_scale,
    require_size,
    require_text_width,
)
from engine.models.parts.footprints import t5, transformer_model
from engine.models.parts.footprints.transformers import cogvideox
from engine.models.parts.footprints.video_vaes import cogvideox as vae
from engine.models.parts.t5 import tokens as t5_tokens
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload
from engine.task.plan.extent import Extent, latent_frames

TEXT: Final = "text_encoder"
_LATENT_STEP: Final = 4
"""Frames after the first one for each frame of the latents."""
_FRAME_STEP: Final = 8
"""Clips have 8k + 1 frames, as the model cards say: the VAE decodes an even number of frames of latents to other
numbers of frames than it encoded."""
_PATCH: Final = 2
"""The side of the square of latents that is one token of the transformer."""
_VAE_FACTOR: Final = 8
"""Pixels on each side of a position of the latents."""
_USUAL_SIDES: Final = {"sample_height": 60, "sample_width": 90}
_VAE_SIDES: Final = {"sample_height": 480, "sample_width": 720}
"""Pixels, in the VAE's configuration."""
_USUAL_FRAMES: Final = 49
_TEXT_LENGTH: Final = 226
_MOST_TEXT: Final = 512
_MOST_POSITIONS: Final = 1 << 30
"""Limit on the values of the table of positions, which is computed before weights are checked. The published one has 34
million."""
_HEAD_MULTIPLE: Final = 16
"""The rotations of the positions take a quarter and twice three eighths of an attention head, each an even number."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of CogVideoX: those that are given images or videos, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    require_bounds(config, "transformer", "vae", TEXT)
    _require_text_to_video(config)
    _require_vae(config("vae"))
    _require_tiles(config)
    _require_layers(config)
    given = require_size(config, TEXT, "d_model", 512)
    require_text_width(config, "text_embed_dim", 4096, given)


def _require_text_to_video(config: Configs) -> None:
    """Raise ModelError for a transformer that takes more than the latents of a clip and a text."""
    transformer = config("transformer")
    latents = require_size(config, "vae", "latent_channels", 16)
    taken = require_size(config, "transformer", "in_channels", 16)
    given = require_size(config, "transformer", "out_channels", 16)
    is_given_image = transformer.get("ofs_embed_dim") or transformer.get("use_learned_positional_embeddings")
    if is_given_image or (taken > latents and given == latents):
        raise ModelError(
            "the base model is a CogVideoX that is given an image or a video besides the text, which this program "
            "cannot train; the text-to-video models CogVideoX-2b, CogVideoX-5b and CogVideoX1.5-5B can be trained"
        )
    require_channels(taken, given, latents, "these parts are not those of CogVideoX")


def _require_vae(found: Mapping[str, Any]) -> None:
    """Raise ModelError unless a VAE reduces a clip as that of CogVideoX, and scales all channels alike."""
    widths, times = found.get("block_out_channels", [128, 256, 256, 512]), found.get("temporal_compression_ratio", 4)
    if not isinstance(widths, list) or 2 ** (len(widths) - 1) != _VAE_FACTOR or times != _LATENT_STEP:
        raise ModelError(
            f"the base model's vae/config.json has block_out_channels {str(widths)[:40]} and "
            f"temporal_compression_ratio {str(times)[:40]}: it is not that of CogVideoX"
        )
    require_one_scale(found, "CogVideoX")
    if found.get("shift_factor") is not None:
        raise ModelError("the base model's VAE has a shift_factor: it is not that of CogVideoX")


def _require_tiles(config: Configs) -> None:
    """Raise ModelError unless the tiles in which the VAE decodes clips can be joined."""
    height, width = (require_size(config, "vae", key, usual) for key, usual in _VAE_SIDES.items())
    try:
        vae.tiles(config("vae"))
    except ValueError:
        raise ModelError(
            f"the base model's vae/config.json has sample_height {str(height)[:40]} and sample_width "
            f"{str(width)[:40]}: clips cannot be decoded in tiles of half that size. Set them to "
            f"{_VAE_SIDES['sample_height']} and {_VAE_SIDES['sample_width']}; only the tiles depend on them"
        ) from None


def _require_layers(config: Configs) -> None:
    """Raise ModelError for transformers that Diffusers' class cannot be, or only by using up all memory."""
    found, head = config("transformer"), require_size(config, "transformer", "attention_head_dim", 64)
    depth, is_rotary = found.get("patch_size_t"), found.get("use_rotary_positional_embeddings", False)
    if found.get("patch_size", _PATCH) != _PATCH or depth not in (None, 1, 2) or type(is_rotary) is not bool:
        raise ModelError(
            f"the base model's transformer takes patches of {str(found.get('patch_size', _PATCH))[:40]} positions and "
            f"{str(depth)[:40]} frames of latents: it is not a CogVideoX"
        )
    if is_rotary and head % _HEAD_MULTIPLE:
        raise ModelError(
            f"the base model's transformer has attention heads of width {head}, its rotations of positions need a "
            f"multiple of {_HEAD_MULTIPLE}: download it again"
        )
    height, width, frames = (
        require_size(config, "transformer", key, usual)
        for key, usual in (*_USUAL_SIDES.items(), ("sample_frames", _USUAL_FRAMES))
    )
    tokens = (height // _PATCH) * (width // _PATCH) * latent_frames(frames, _LATENT_STEP)
    values = tokens * head * require_size(config, "transformer", "num_attention_heads", 30)
    length = require_size(config, "transformer", "max_text_seq_length", _TEXT_LENGTH)
    if (not is_rotary and values > _MOST_POSITIONS) or length > _MOST_TEXT:
        raise ModelError("the base model's transformer/config.json gives sizes that are too large: download it again")
    if found.get("temporal_compression_ratio", _LATENT_STEP) != _LATENT_STEP:
        raise ModelError("the base model's transformer is for latents of another VAE: it is not a CogVideoX")


def check_size(config: Configs, extent: Extent) -> None:
    """Raise TaskError unless a clip's sides in pixels are whole tokens, and not more than have positions."""
    require_multiple(extent, _PATCH * _VAE_FACTOR)
    found = config("transformer")
    if found.get("patch_size_t") is None or not found.get("use_rotary_positional_embeddings", False):
        return
    for side, key in ((extent.height, "sample_height"), (extent.width, "sample_width")):
        most = found.get(key, _USUAL_SIDES[key]) // _PATCH * _PATCH * _VAE_FACTOR
        if side > most:
            raise TaskError(
                f"train_args.resolution is {side}: this base model has positions for {most} pixels on this side; "
                "lower it"
            )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for CogVideoX. Modules keep Diffusers' names."""
    return {"modelspec.architecture": "cogvideox/lora", "modelspec.implementation": "diffusers"}


def refine(config: Configs) -> FamilySpec:
    """Return the row for a model: how long its texts are, and the frame rate of version 1.5.

    A table of positions has one for each token, so that texts are of that length.
    """
    found = config("transformer")
    length = found.get("max_text_seq_length", _TEXT_LENGTH)
    least = t5_tokens.LEAST if found.get("use_rotary_positional_embeddings", False) else length
    is_later = found.get("patch_size_t") is not None
    return replace(
        SPEC,
        caption_tokens=CaptionTokens(usual=length, most=length, step=1, least=least),
        frame_rate=16.0 if is_later else SPEC.frame_rate,
    )


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=partial(cogvideox.transformer, frames=latent_frames(workload.frames, _LATENT_STEP)),
        encoders={TEXT: t5.text_encoder},
        images=partial(vae.image_encoder, frames=workload.frames),
        reduction=vae.reduction,
    )


SPEC: Final = FamilySpec(
    pipeline="CogVideoXPipeline",
    module="engine.models.families.cogvideox.model",
    other_pipelines={
        "CogVideoXImageToVideoPipeline": "a CogVideoX that is given an image",
        "CogVideoXVideoToVideoPipeline": "a video-to-video pipeline; name the CogVideoXPipeline of the same model",
        "CogVideoXFunControlPipeline": "CogVideoX-Fun, which follows a control video",
    },
    components=("scheduler", "tokenizer", TEXT, "vae", "transformer"),
    weighted=(TEXT, "vae", "transformer"),
    classes={
        TEXT: ("T5EncoderModel",),
        "vae": ("AutoencoderKLCogVideoX",),
        "transformer": ("CogVideoXTransformer3DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=(TEXT,),
    block_lists=("transformer_blocks",),
    lora_targets=lora_targets.ATTENTION,
    text_lora_targets=(),
    text_root=None,
    objective="diffusion",
    medium="video",
    frame_step=_FRAME_STEP,
    frame_rate=8.0,
    check=check,
    check_size=check_size,
    refine=refine,
    webui_metadata=webui_metadata,
    has_webui=False,
    token_counter=t5_tokens.counter("tokenizer"),
    caption_tokens=CaptionTokens(usual=_TEXT_LENGTH, most=_TEXT_LENGTH, step=1, least=t5_tokens.LEAST),
    schedulers=frozenset({"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}),
    drawing=DrawingDefaults(guidance_scale=6.0, num_inference_steps=50),
    hub_tags=("cogvideox", "cogvideox-diffusers"),
    licences={
        f"{owner}/{name}": licence
        for owner in ("THUDM", "zai-org")
        for name, licence in (("CogVideoX-2b", "apache-2.0"), ("CogVideoX-5b", "other"), ("CogVideoX1.5-5B", "other"))
    },
    footprint=_footprint,
)
