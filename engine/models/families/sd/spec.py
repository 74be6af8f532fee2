"""The specification of Stable Diffusion 1.x and 2.x. No torch."""

from __future__ import annotations

from typing import Final

from engine.core.errors import ModelError
from engine.models.objectives.diffusion import schedulers
from engine.models.objectives.diffusion.spec import WEBUI_PREDICTION
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.clip import tokens as clip_tokens
from engine.models.parts.config_checks import require_bounds, require_text_to_image
from engine.models.parts.footprints.stable_diffusion import footprint
from engine.models.spec import Configs, DrawingDefaults, FamilySpec, Footprint, Workload

_OPEN_CLIP_WIDTH: Final = 1024
"""The width of the text states of SD 2.x; those of 1.x are 768 wide."""
_V2: Final = ("", "-base", "-1", "-1-base")
"""The endings of the names of the models of version 2."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of Stable Diffusion: inpainting and depth models, parts of XL.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    unet, text_encoder = config("unet"), config("text_encoder")
    require_bounds(config, "unet", "vae", "text_encoder")
    require_text_to_image(unet, config("vae"))
    wanted, given = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if wanted != given:
        raise ModelError(
            f"the base model's UNet expects text states of width {wanted}, its text encoder gives {given}: "
            "these parts are of different models"
        )
    if unet.get("class_embed_type") or unet.get("addition_embed_type"):
        raise ModelError(
            "the base model's UNet is conditioned on more than a caption: it is not a Stable Diffusion 1.x or 2.x"
        )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Stable Diffusion 1.x or 2.x. Modules keep Diffusers' names."""
    suffix, kind = ("_v", "768-v") if prediction_type == "v_prediction" else ("", "512")
    is_v2 = config("unet").get("cross_attention_dim") == _OPEN_CLIP_WIDTH
    architecture = f"stable-diffusion-v2-{kind}" if is_v2 else "stable-diffusion-v1"
    return {
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": WEBUI_PREDICTION[prediction_type],
        "ss_base_model_version": f"sd_v{2 if is_v2 else 1}{suffix}",
        "ss_v2": str(is_v2),
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return footprint(config, workload, text_encoders=SPEC.text_encoders, has_float32_vae=False)


SPEC: Final = FamilySpec(
    pipeline="StableDiffusionPipeline",
    module="engine.models.families.sd.model",
    other_pipelines={
        "StableDiffusionInpaintPipeline": "an inpainting model",
        "StableDiffusionInstructPix2PixPipeline": "an image-editing model",
        "StableDiffusionDepth2ImgPipeline": "a depth-to-image model",
        "StableDiffusionUpscalePipeline": "an upscaler",
        "StableDiffusionLatentUpscalePipeline": "an upscaler",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "unet"),
    weighted=("text_encoder", "vae", "unet"),
    denoiser="unet",
    text_encoders=("text_encoder",),
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
    hub_tags=("stable-diffusion", "stable-diffusion-diffusers"),
    licences={
        **dict.fromkeys(
            (
                "CompVis/stable-diffusion-v1-4",
                "runwayml/stable-diffusion-v1-5",
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
            ),
            "creativeml-openrail-m",
        ),
        **dict.fromkeys(
            (f"{owner}/stable-diffusion-2{ending}" for owner in ("stabilityai", "sd2-community") for ending in _V2),
            "openrail++",
        ),
    },
    footprint=_footprint,
)
