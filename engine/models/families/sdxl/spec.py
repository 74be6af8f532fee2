"""The specification of Stable Diffusion XL. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.objectives.diffusion import schedulers
from engine.models.objectives.diffusion.spec import WEBUI_PREDICTION
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.clip import tokens as clip_tokens
from engine.models.parts.config_checks import require_bounds, require_one_scale, require_text_to_image
from engine.models.parts.footprints.stable_diffusion import footprint
from engine.models.spec import Configs, DrawingDefaults, FamilySpec, Footprint, Workload

_ADDED_WIDTH: Final = "projection_class_embeddings_input_dim"
_BLOCKS: Final = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def check(config: Configs) -> None:
    """Refuse other models with the classes of Stable Diffusion XL: the refiner, inpainting models, distilled UNets.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    unet, vae = config("unet"), config("vae")
    require_bounds(config, "unet", "vae", "text_encoder", "text_encoder_2")
    require_text_to_image(unet, vae)
    if unet.get("addition_embed_type") != "text_time":
        raise ModelError("the base model's UNet is not conditioned on image sizes: it is not a Stable Diffusion XL")
    _require_widths(unet, config("text_encoder"), config("text_encoder_2"))
    if unet.get("time_cond_proj_dim") is not None:
        raise ModelError("the base model's UNet takes the guidance scale as input: distilled models cannot be trained")
    blocks = {str(name) for key in ("down_block_types", "up_block_types") for name in _listed(unet, key)}
    if unet.get("class_embed_type") or unet.get("encoder_hid_dim_type") or not blocks <= _BLOCKS:
        raise ModelError("the base model's UNet has layers that Stable Diffusion XL does not have: it is another model")
    require_one_scale(vae, "Stable Diffusion XL")


def has_float32_vae(config: Configs) -> bool:
    """Return whether the VAE needs float32: it overflows in fp16, unless its configuration says otherwise."""
    return config("vae").get("force_upcast", True) is not False


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Stable Diffusion XL. Modules have Stability AI's names."""
    return {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": WEBUI_PREDICTION[prediction_type],
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
    }


def _require_widths(unet: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise ModelError unless the UNet's widths fit the text encoders.

    Its text states are those of both encoders, concatenated; its added embedding is the pooled text and six numbers.
    """
    wanted = _width("unet", unet, "cross_attention_dim", 1280)
    each, added = (_width("unet", unet, key) for key in ("addition_time_embed_dim", _ADDED_WIDTH))
    states = _width("text_encoder", first, "hidden_size", 512) + _width("text_encoder_2", second, "hidden_size", 512)
    pooled = _width("text_encoder_2", second, "projection_dim", 512)
    if added == 5 * each + pooled:
        raise ModelError(
            "the base model's UNet is conditioned on an aesthetic score: it is the refiner of Stable Diffusion XL, "
            "which cannot be trained; name the base model that it belongs to"
        )
    if wanted != states or added != 6 * each + pooled:
        raise ModelError(
            f"the base model's UNet expects text states of width {wanted} and a pooled text of width {added - 6 * each}"
            f", its text encoders give {states} and {pooled}: these parts are of different models"
        )


def _width(component: str, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int):
        raise ModelError(f"the base model's {component}/config.json gives {key} as {value!r}: download it again")
    return value


def _listed(config: Mapping[str, Any], key: str) -> list[Any]:
    value = config.get(key)
    return value if isinstance(value, list) else []


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return footprint(config, workload, text_encoders=SPEC.text_encoders, has_float32_vae=has_float32_vae(config))


SPEC: Final = FamilySpec(
    pipeline="StableDiffusionXLPipeline",
    module="engine.models.families.sdxl.model",
    other_pipelines={
        "StableDiffusionXLImg2ImgPipeline": "the refiner of Stable Diffusion XL, or another image-to-image model",
        "StableDiffusionXLInpaintPipeline": "an inpainting model",
        "StableDiffusionXLInstructPix2PixPipeline": "an image-editing model",
    },
    components=("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae", "unet"),
    weighted=("text_encoder", "text_encoder_2", "vae", "unet"),
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    lora_targets=lora_targets.ATTENTION,
    text_lora_targets=lora_targets.CLIP,
    text_root=lora_targets.CLIP_ROOT,
    objective="diffusion",
    medium="image",
    check=check,
    webui_metadata=webui_metadata,
    token_counter=clip_tokens.counter,
    caption_tokens=clip_tokens.CAPTION_TOKENS,
    schedulers=schedulers.FOR_IMAGES,
    drawing=DrawingDefaults(guidance_scale=7.5, num_inference_steps=30),
    hub_tags=("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    licences={"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"},
    footprint=_footprint,
)
