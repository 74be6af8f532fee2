"""The specification of Stable Diffusion 3 and 3.5. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.clip import tokens as clip_tokens
from engine.models.parts.config_checks import (
    require_bounds,
    require_multiple,
    require_one_scale,
    require_shift,
    require_size,
)
from engine.models.parts.footprints import t5, transformer_model
from engine.models.parts.footprints.transformers import sd3
from engine.models.parts.t5 import tokens as t5_tokens
from engine.models.single_file import SingleFile
from engine.models.spec import (
    CaptionTokens,
    Configs,
    DrawingDefaults,
    FamilySpec,
    Footprint,
    TokenCounter,
    Workload,
)
from engine.task.plan.extent import Extent

PATCH: Final = 2
"""The side of the square of latents that is one token of the transformer."""
T5: Final = "text_encoder_3"
_VAE_FACTOR: Final = 8
"""Pixels on each side of a position of the latents."""
_MOST_POSITIONS: Final = 1 << 30
"""Limit on the values of the table of positions, which is computed before weights are checked. Published models have
up to 227 million."""
_HUB: Final = "stabilityai/stable-diffusion-3"
_MODELS: Final = ("-medium-diffusers", ".5-medium", ".5-large")
"""The endings of the published models' names."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of Stable Diffusion 3, and parts that do not belong together.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    transformer, vae = config("transformer"), config("vae")
    require_bounds(config, "transformer", "vae", "text_encoder", "text_encoder_2", T5)
    _require_text_to_image(transformer, vae)
    require_shift(vae)
    _require_layers(config)
    _require_widths(config)


def check_size(config: Configs, extent: Extent) -> None:
    """Raise TaskError for sizes that are no whole number of tokens, or larger than the table of positions."""
    require_multiple(extent, PATCH * _VAE_FACTOR)
    most = _positions(config) * PATCH * _VAE_FACTOR
    if max(extent.size) > most:
        raise TaskError(
            f"train_args.resolution: images of {extent} pixels are larger than this base model's table of "
            f"positions, which ends at {most:,} pixels; use a smaller resolution"
        )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Stable Diffusion 3. Modules keep Diffusers' names.

    The architecture is the one that sd-scripts writes (library/sai_model_spec.py, and `model_type` in
    library/sd3_utils.py).
    """
    transformer = config("transformer")
    version = "medium"
    if transformer.get("qk_norm"):
        version = "5-medium" if transformer.get("dual_attention_layers") else "5-large"
    return {
        "modelspec.architecture": f"stable-diffusion-3-{version}/lora",
        "modelspec.implementation": "diffusers",
        "ss_v2": "False",
    }


def _token_counter(folder: Path, file: SingleFile | None, tokens: int) -> TokenCounter | None:
    """Return T5's counter, or CLIP's for a model without T5."""
    return t5_tokens.counter("tokenizer_3")(folder, file, tokens) or clip_tokens.counter(
        folder, file, clip_tokens.CHUNK_TOKENS
    )


def _require_text_to_image(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    channels = transformer.get("in_channels", 16)
    given, latents = transformer.get("out_channels", 16) or channels, vae.get("latent_channels", 4)
    if channels != latents or given != latents:
        raise ModelError(
            f"the base model's transformer takes {channels} channels and gives {given}, its VAE has {latents}: "
            "text-to-image models can be trained, inpainting and control models cannot"
        )
    require_one_scale(vae, "Stable Diffusion 3")


def _require_layers(config: Configs) -> None:
    """Raise ModelError for transformers that Diffusers' class cannot be, or only by using up all memory."""
    found = config("transformer")
    dual = found.get("dual_attention_layers") or []
    patch, width = require_size(config, "transformer", "patch_size", PATCH), _width(config)
    projected = require_size(config, "transformer", "caption_projection_dim", 1152)
    if patch != PATCH or projected != width or not all(type(layer) is int for layer in dual):
        raise ModelError(
            f"the base model's transformer has tokens of {patch} x {patch} latents, a width of {width} and captions "
            f"projected to {projected}: it is not that of a Stable Diffusion 3"
        )
    if found.get("qk_norm") not in (None, "rms_norm"):
        raise ModelError(
            f"the base model's transformer has qk_norm {str(found['qk_norm'])[:40]!r}: it is not a Stable Diffusion 3"
        )
    if _positions(config) ** 2 * width > _MOST_POSITIONS:
        raise ModelError("the base model's transformer/config.json gives sizes that are too large: download it again")


def _require_widths(config: Configs) -> None:
    """Raise ModelError unless the transformer's text inputs are as wide as what the text encoders give."""
    wanted = require_size(config, "transformer", "joint_attention_dim", 4096)
    pooled = require_size(config, "transformer", "pooled_projection_dim", 2048)
    states, projected = (
        sum(require_size(config, name, key, 512) for name in SPEC.text_encoders)
        for key in ("hidden_size", "projection_dim")
    )
    if states > wanted or projected != pooled:
        raise ModelError(
            f"the base model's transformer expects text states of width {wanted} and a pooled text of width {pooled}, "
            f"its CLIP text encoders give {states} and {projected}: these parts are of different models"
        )
    if config(T5) and (given := require_size(config, T5, "d_model", 512)) != wanted:
        raise ModelError(
            f"the base model's transformer expects text states of width {wanted}, its T5 gives {given}: these parts "
            "are of different models"
        )


def _width(config: Configs) -> int:
    """Return the width of the transformer's states."""
    heads = require_size(config, "transformer", "num_attention_heads", 18)
    return heads * require_size(config, "transformer", "attention_head_dim", 64)


def _positions(config: Configs) -> int:
    """Return the number of tokens on a side of the table of positions."""
    return require_size(config, "transformer", "pos_embed_max_size", 96)


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=sd3.transformer,
        encoders={T5: t5.text_encoder},
        trained_encoders=SPEC.text_encoders,
        more_tokens=int(config("text_encoder").get("max_position_embeddings", 77)),
    )


SPEC: Final = FamilySpec(
    pipeline="StableDiffusion3Pipeline",
    module="engine.models.families.sd3.model",
    other_pipelines={
        "StableDiffusion3Img2ImgPipeline": "an image-to-image pipeline",
        "StableDiffusion3InpaintPipeline": "an inpainting model",
        "StableDiffusion3ControlNetPipeline": "a pipeline with a ControlNet",
        "StableDiffusion3ControlNetInpaintingPipeline": "an inpainting model with a ControlNet",
        "StableDiffusion3PAGPipeline": "a pipeline with another kind of guidance",
        "StableDiffusion3PAGImg2ImgPipeline": "an image-to-image pipeline",
    },
    components=(
        "scheduler",
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
        *("text_encoder", "text_encoder_2", T5),
        *("vae", "transformer"),
    ),
    weighted=("text_encoder", "text_encoder_2", T5, "vae", "transformer"),
    optional=("tokenizer_3", T5),
    classes={
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        T5: ("T5EncoderModel",),
        "vae": ("AutoencoderKL",),
        "transformer": ("SD3Transformer2DModel",),
    },
    denoiser="transformer",
    text_encoders=("text_encoder", "text_encoder_2"),
    fixed_text_encoders=(T5,),
    block_lists=("transformer_blocks",),
    lora_targets=lora_targets.JOINT_ATTENTION,
    text_lora_targets=lora_targets.CLIP,
    text_root=lora_targets.CLIP_ROOT,
    objective="flow",
    usual_sampling="logit_normal",
    medium="image",
    check=check,
    check_size=check_size,
    webui_metadata=webui_metadata,
    token_counter=_token_counter,
    caption_tokens=CaptionTokens(usual=256, most=512, step=1, least=t5_tokens.LEAST),
    drawing=DrawingDefaults(guidance_scale=7.0, num_inference_steps=28),
    hub_tags=("sd3", "sd3-diffusers"),
    licences=dict.fromkeys((f"{_HUB}{ending}" for ending in _MODELS), "other"),
    footprint=_footprint,
)
