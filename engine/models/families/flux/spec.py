"""The specification of FLUX.1 [dev] and [schnell] (Black Forest Labs, 2024). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from engine.core.errors import ModelError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_multiple,
    require_one_scale,
    require_shift,
    require_size,
)
from engine.models.parts.footprints import t5, transformer_model
from engine.models.parts.footprints.transformers import flux
from engine.models.parts.t5 import tokens as t5_tokens
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload
from engine.task.plan.extent import Extent

_TARGETS: Final = (
    *lora_targets.JOINT_ATTENTION,
    *(f"{block}.net.{layer}" for block in ("ff", "ff_context") for layer in ("0.proj", "2")),
)
"""The layers that get an adapter, as in Diffusers' trainer (examples/dreambooth/train_dreambooth_lora_flux.py)."""
_POSITIONS: Final = 4
"""Positions of the latents in one token."""
_FILL: Final = 6
"""The tokens of FLUX.1 Fill are so many times as wide: they also have the masked image, and the mask in pixels."""
_CONTROL: Final = 2
"""The tokens of FLUX.1 Canny and Depth are so many times as wide: they also have the control image."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of FLUX.1: those that are given a second image, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    require_bounds(config, "transformer", "vae", "text_encoder", "text_encoder_2")
    _require_text_to_image(config)
    require_shift(config("vae"))
    _require_heads(config("transformer"))
    for component, key, default, wanted_key, wanted_default in (
        ("text_encoder", "hidden_size", 512, "pooled_projection_dim", 768),
        ("text_encoder_2", "d_model", 512, "joint_attention_dim", 4096),
    ):
        given = require_size(config, component, key, default)
        wanted = require_size(config, "transformer", wanted_key, wanted_default)
        if given != wanted:
            raise ModelError(
                f"the base model's transformer expects text of width {wanted} from {component}, which gives {given}: "
                "these parts are of different models"
            )


def _require_text_to_image(config: Configs) -> None:
    """Raise ModelError unless a token of the transformer is a square of the VAE's latents."""
    latents = require_size(config, "vae", "latent_channels", 4) * _POSITIONS
    channels = require_size(config, "transformer", "in_channels", 64)
    if channels in (_FILL * latents, _CONTROL * latents):
        kind = "FLUX.1 Fill, which paints into images" if channels > _CONTROL * latents else "FLUX.1 Canny or Depth"
        raise ModelError(
            f"the base model is {kind}: it is given a second image, which this program cannot train; "
            "FLUX.1 [dev] and [schnell] can be trained"
        )
    given = config("transformer").get("out_channels")
    if channels != latents or given not in (None, latents) or config("transformer").get("patch_size", 1) != 1:
        raise ModelError(
            f"the base model's transformer takes tokens of {channels} values and gives {given or channels}, its VAE's "
            f"latents have {latents}: these parts are not those of FLUX.1"
        )
    require_one_scale(config("vae"), "FLUX.1")


def _require_heads(transformer: Mapping[str, Any]) -> None:
    """Raise ModelError unless the numbers of positions' rotations fill an attention head."""
    axes, head = transformer.get("axes_dims_rope", [16, 56, 56]), transformer.get("attention_head_dim", 128)
    is_known = isinstance(axes, list) and len(axes) == 3 and all(type(n) is int and n > 0 and n % 2 == 0 for n in axes)
    if not is_known or sum(axes) != head or type(transformer.get("guidance_embeds", False)) is not bool:
        raise ModelError(
            f"the base model's transformer/config.json has axes_dims_rope {str(axes)[:40]}, attention_head_dim "
            f"{str(head)[:40]} and guidance_embeds {str(transformer.get('guidance_embeds'))[:40]}, which do not go "
            "together: download it again"
        )


def check_size(config: Configs, extent: Extent) -> None:
    """Raise TaskError unless images of this size in pixels can be cut into tokens."""
    shrinks = 2 ** (len(config("vae").get("block_out_channels", (64,))) - 1)
    require_multiple(extent, 2 * shrinks)


def takes_guidance(config: Configs) -> bool:
    """Return whether the transformer is distilled on guidance, as that of FLUX.1 [dev] is."""
    return bool(config("transformer").get("guidance_embeds", False))


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for FLUX.1. Modules keep Diffusers' names."""
    return {
        "modelspec.architecture": f"flux-1-{'dev' if takes_guidance(config) else 'schnell'}/lora",
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": "flux1",
    }


def refine(config: Configs) -> FamilySpec:
    """Return the row for a model: [schnell] is distilled to few steps without guidance, on captions of 256 tokens.

    Black Forest Labs' own code encodes so many (black-forest-labs/flux, `load_t5`); guidance and steps are those of the
    examples of Diffusers' pipeline.
    """
    if takes_guidance(config):
        return SPEC
    return replace(
        SPEC,
        caption_tokens=replace(SPEC.caption_tokens, usual=256),
        drawing=DrawingDefaults(guidance_scale=0.0, num_inference_steps=4),
    )


def _footprint(config: Configs, workload: Workload) -> Footprint:
    return transformer_model.footprint(
        config,
        workload,
        transformer=flux.transformer,
        encoders={"text_encoder_2": t5.text_encoder},
        trained_encoders=SPEC.text_encoders,
    )


SPEC: Final = FamilySpec(
    pipeline="FluxPipeline",
    module="engine.models.families.flux.model",
    other_pipelines={
        "FluxImg2ImgPipeline": "an image-to-image pipeline; name the FluxPipeline of the same model",
        "FluxInpaintPipeline": "an inpainting pipeline; name the FluxPipeline of the same model",
        "FluxFillPipeline": "FLUX.1 Fill, an inpainting model",
        "FluxControlPipeline": "FLUX.1 Canny or Depth, which follow a control image",
        "FluxControlNetPipeline": "a FLUX.1 with a ControlNet",
        "FluxKontextPipeline": "FLUX.1 Kontext, an image-editing model",
        "FluxPriorReduxPipeline": "FLUX.1 Redux, which makes prompts of images",
        "ChromaPipeline": "Chroma, which has FLUX.1's layers but no CLIP and no guidance",
    },
    components=(
        "scheduler",
        "tokenizer",
        "tokenizer_2",
        "text_encoder",
        "text_encoder_2",
        "vae",
        "transformer",
    ),
    weighted=("text_encoder", "text_encoder_2", "vae", "transformer"),
    denoiser="transformer",
    text_encoders=("text_encoder",),
    fixed_text_encoders=("text_encoder_2",),
    classes={
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "vae": ("AutoencoderKL",),
        "transformer": ("FluxTransformer2DModel",),
    },
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    lora_targets=_TARGETS,
    text_lora_targets=lora_targets.CLIP,
    text_root=lora_targets.CLIP_ROOT,
    objective="flow",
    usual_sampling="logit_normal",
    medium="image",
    check=check,
    check_size=check_size,
    refine=refine,
    takes_guidance=takes_guidance,
    takes_negative_prompt=False,
    webui_metadata=webui_metadata,
    token_counter=t5_tokens.counter("tokenizer_2"),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"}),
    caption_tokens=CaptionTokens(usual=512, most=512, step=1, least=t5_tokens.LEAST),
    drawing=DrawingDefaults(guidance_scale=3.5, num_inference_steps=28),
    hub_tags=("flux", "flux-diffusers"),
    licences={"black-forest-labs/FLUX.1-dev": "other", "black-forest-labs/FLUX.1-schnell": "apache-2.0"},
    footprint=_footprint,
)
