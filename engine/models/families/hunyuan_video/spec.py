"""The specification of HunyuanVideo (Kong et al. 2024, arXiv:2412.03603). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.families.hunyuan_video import webui
from engine.models.objectives.objective import TargetType
from engine.models.parts.config_checks import (
    require_bounds,
    require_channels,
    require_one_scale,
    require_size,
    whole_tokens,
)
from engine.models.parts.footprints import clip, language_model, transformer_model
from engine.models.parts.footprints.transformers import hunyuan_video
from engine.models.parts.footprints.video_vaes import hunyuan_video as vae
from engine.models.parts.qwen import tokens
from engine.models.parts.qwen.checks import require_states
from engine.models.spec import (
    CaptionTokens,
    Configs,
    DrawingDefaults,
    FamilySpec,
    Footprint,
    TextEncoder,
    Workload,
)
from engine.task.plan.extent import latent_frames

_END: Final = "<|eot_id|>"
_ANSWER: Final = f"{{}}{_END}"
TEMPLATE: Final = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{_ANSWER}"
)
"""The text that captions are put into (`DEFAULT_PROMPT_TEMPLATE` of Diffusers' pipeline)."""
INSTRUCTION_TOKENS: Final = 95
"""The first tokens of `TEMPLATE`, whose states the transformer does not get (`crop_start` there)."""
TEXT_LAYER: Final = -3
"""The layer of the language model whose states are the text, counted from the end."""
_LLAMA, _CLIP = "text_encoder", "text_encoder_2"
_MOST_TOKENS: Final = 256
_FRAME_STEP: Final = 4
"""Frames after the first one for each frame of the latents."""
_VAE_FACTOR: Final = 8
"""Pixels on each side of a position of the latents."""
_PATCH: Final = 2
"""The side of the square of latents that is one token of the transformer."""
_ROTATIONS: Final = "rope_axes_dim"
_OTHER_PARTS: Final = "these parts are not those of HunyuanVideo"
_LAYERS: Final = r"to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
_TARGETS: Final = rf"(transformer_blocks|single_transformer_blocks)\..*\.({_LAYERS})"
"""The layers that get an adapter: the attention of the blocks, as in finetrainers
(examples/training/sft/hunyuan_video/modal_labs_dissolve/train.sh in a-r-r-o-w/finetrainers)."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of HunyuanVideo: those that are given an image, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    require_bounds(config, "transformer", "vae", _CLIP)
    _require_text_to_video(config)
    _require_layers(config)
    _require_vae(config("vae"))
    require_states(config, "text_embed_dim", 4096, (TEXT_LAYER,))
    given = require_size(config, _CLIP, "hidden_size", 512)
    wanted = require_size(config, "transformer", "pooled_projection_dim", 768)
    if given != wanted:
        raise ModelError(
            f"the base model's transformer takes a pooled text of width {wanted}, {_CLIP} gives {given}: these parts "
            "are of different models"
        )


def _require_text_to_video(config: Configs) -> None:
    """Raise ModelError for a transformer that takes more than the latents of a clip and a text."""
    latents = require_size(config, "vae", "latent_channels", 16)
    taken = require_size(config, "transformer", "in_channels", 16)
    given = config("transformer").get("out_channels", 16) or taken
    if config("transformer").get("image_condition_type") is not None or (taken > latents and given == latents):
        raise ModelError(
            "the base model is a HunyuanVideo that is given an image besides the text, which this program cannot "
            "train; the text-to-video model can be trained"
        )
    require_channels(taken, given, latents, _OTHER_PARTS)


def _require_layers(config: Configs) -> None:
    """Raise ModelError for transformers of other layers than the published one, whose sizes may differ."""
    found, head = config("transformer"), require_size(config, "transformer", "attention_head_dim", 128)
    patches = (found.get("patch_size", _PATCH), found.get("patch_size_t", 1))
    if patches != (_PATCH, 1) or found.get("mlp_ratio", 4.0) != 4 or found.get("qk_norm", "rms_norm") != "rms_norm":
        raise ModelError(f"the base model's transformer/config.json has layers of another kind: {_OTHER_PARTS}")
    axes = found.get(_ROTATIONS, [16, 56, 56])
    is_even = isinstance(axes, list | tuple) and all(type(n) is int and n > 0 and n % 2 == 0 for n in axes)
    if not is_even or len(axes) != 3 or sum(axes) != head or type(found.get("guidance_embeds", True)) is not bool:
        raise ModelError(
            f"the base model's transformer/config.json has {_ROTATIONS} {str(axes)[:40]}, attention_head_dim {head} "
            f"and guidance_embeds {str(found.get('guidance_embeds'))[:40]}, which do not go together: download it again"
        )


def _require_vae(found: Mapping[str, Any]) -> None:
    """Raise ModelError unless a VAE reduces a clip as that of HunyuanVideo, and scales all channels alike."""
    factors = (found.get("spatial_compression_ratio", 8), found.get("temporal_compression_ratio", 4))
    if factors != (_VAE_FACTOR, _FRAME_STEP) or len(found.get("block_out_channels", [1] * 4)) != 4:
        raise ModelError("the base model's VAE reduces clips by other factors: it is not that of HunyuanVideo")
    require_one_scale(found, "HunyuanVideo")


def takes_guidance(config: Configs) -> bool:
    """Return whether the transformer is distilled on guidance, as the published one is."""
    return bool(config("transformer").get("guidance_embeds", True))


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for HunyuanVideo. Modules have the names of ComfyUI."""
    return {
        "modelspec.architecture": "hunyuan-video/lora",
        "modelspec.implementation": "https://github.com/Tencent/HunyuanVideo",
        "ss_base_model_version": "hunyuan_video",
    }


def _llama(config: Mapping[str, Any], /, *, length: int, value_bytes: int, is_float16: bool) -> TextEncoder:
    """Return the footprint of the language model, which also gets the instruction."""
    return language_model.text_encoder(config, length=INSTRUCTION_TOKENS + length, value_bytes=value_bytes)


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=partial(hunyuan_video.transformer, frames=latent_frames(workload.frames, _FRAME_STEP)),
        encoders={_LLAMA: _llama, _CLIP: clip.fixed_text_encoder},
        images=partial(vae.image_encoder, frames=workload.frames),
        reduction=vae.reduction,
    )


SPEC: Final = FamilySpec(
    pipeline="HunyuanVideoPipeline",
    module="engine.models.families.hunyuan_video.model",
    other_pipelines={
        "HunyuanVideoImageToVideoPipeline": "a HunyuanVideo that is given an image",
        "HunyuanVideoFramepackPipeline": "FramePack, which makes a video in pieces from an image",
        "HunyuanSkyreelsImageToVideoPipeline": "SkyReels, a HunyuanVideo that is given an image",
        "HunyuanVideo15Pipeline": "HunyuanVideo 1.5, which has other parts than HunyuanVideo",
        "HunyuanVideo15ImageToVideoPipeline": "HunyuanVideo 1.5, which has other parts than HunyuanVideo",
    },
    components=("scheduler", "tokenizer", "tokenizer_2", _LLAMA, _CLIP, "vae", "transformer"),
    weighted=(_LLAMA, _CLIP, "vae", "transformer"),
    classes={
        _LLAMA: ("LlamaModel",),
        _CLIP: ("CLIPTextModel",),
        "vae": ("AutoencoderKLHunyuanVideo",),
        "transformer": ("HunyuanVideoTransformer3DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=(_LLAMA, _CLIP),
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    lora_targets=_TARGETS,
    text_lora_targets=(),
    text_root=None,
    objective="flow",
    usual_sampling="logit_normal",
    token_side=_PATCH * _VAE_FACTOR,
    medium="video",
    frame_step=_FRAME_STEP,
    frame_rate=24.0,
    check=check,
    check_size=whole_tokens(_PATCH * _VAE_FACTOR),
    takes_guidance=takes_guidance,
    takes_negative_prompt=False,
    webui_metadata=webui_metadata,
    webui_rows=lambda config, module: webui.rows(config("transformer"), module),
    token_counter=tokens.counter(_ANSWER),
    caption_tokens=CaptionTokens(usual=_MOST_TOKENS, most=_MOST_TOKENS, step=1, least=2),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler"}),
    drawing=DrawingDefaults(guidance_scale=6.0, num_inference_steps=50),
    hub_tags=("hunyuan-video",),
    licences=dict.fromkeys(("hunyuanvideo-community/HunyuanVideo", "tencent/HunyuanVideo"), "other"),
    footprint=_footprint,
)
