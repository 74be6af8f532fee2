"""The specification of Z-Image (Z-Image Team 2025, arXiv:2511.22699). No torch."""

from __future__ import annotations

from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_multiple,
    require_one_scale,
    require_shift,
    require_size,
)
from engine.models.parts.footprints import language_model, transformer_model
from engine.models.parts.footprints.transformers import z_image
from engine.models.parts.qwen import tokens
from engine.models.parts.qwen.checks import TEXT, require_states
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload
from engine.task.plan.extent import Extent

TEXT_LAYER: Final = -2
"""The layer of the language model whose states are the text, counted from the end."""
_MOST_POSITIONS: Final = 1 << 16
_MOST_TOKENS: Final = 512
_CHAT_TOKENS: Final = 8
"""The tokens of `tokens.CHAT`."""
_TEXT_POSITIONS: Final = _MOST_TOKENS + 2
"""A caption's tokens have the positions from 1 on, padded to a multiple of 32; the image has the one after them."""
_OTHER_PARTS: Final = "these parts are not those of Z-Image"


def check(config: Configs) -> None:
    """Refuse other models with the classes of Z-Image: those that are also given images, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    transformer = config("transformer")
    require_bounds(config, "transformer", "vae", "text_encoder")
    if transformer.get("siglip_feat_dim") is not None:
        raise ModelError(
            "the base model is Z-Image-Omni, which is given images besides the text: it cannot be trained; Z-Image and "
            "Z-Image-Turbo can"
        )
    if transformer.get("all_patch_size", [2]) != [2] or transformer.get("all_f_patch_size", [1]) != [1]:
        raise ModelError("the base model's transformer takes patches of other sizes than 2 x 2: it is not a Z-Image")
    given = require_size(config, "vae", "latent_channels", 4)
    wanted = require_size(config, "transformer", "in_channels", 16)
    if given != wanted:
        raise ModelError(
            f"the base model's transformer takes {wanted} channels, its VAE's latents have {given}: {_OTHER_PARTS}"
        )
    require_shift(config("vae"))
    require_one_scale(config("vae"), "Z-Image")
    _require_positions(config)
    require_states(config, "cap_feat_dim", 2560, (TEXT_LAYER,))


def _require_positions(config: Configs) -> None:
    """Raise ModelError unless the rotations of the positions fill an attention head, and are not too many."""
    transformer = config("transformer")
    dims, lengths = transformer.get("axes_dims", [32, 48, 48]), transformer.get("axes_lens", [1024, 512, 512])
    width, heads = (require_size(config, "transformer", key, n) for key, n in (("dim", 3840), ("n_heads", 30)))
    is_known = all(isinstance(values, list) and len(values) == 3 and _are_counts(values) for values in (dims, lengths))
    if not is_known or any(n % 2 for n in dims) or sum(dims) * heads != width or lengths[0] < _TEXT_POSITIONS:
        raise ModelError(
            f"the base model's transformer/config.json has axes_dims {str(dims)[:40]}, axes_lens {str(lengths)[:40]}, "
            f"dim {width} and n_heads {heads}, which do not go together: download it again"
        )


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and 0 < value <= _MOST_POSITIONS for value in values)


def check_size(config: Configs, extent: Extent) -> None:
    """Raise TaskError unless the sides of an image, in pixels, are whole tokens, not more than have positions."""
    require_multiple(extent, SPEC.token_side)
    _, *most = config("transformer").get("axes_lens", [1024, 512, 512])
    if max(extent.size) > min(most) * SPEC.token_side:
        raise TaskError(
            f"train_args.resolution is {max(extent.size)}: this base model has positions for {min(most)} tokens on a "
            f"side, which are {min(most) * SPEC.token_side} pixels; lower it"
        )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Z-Image. Modules keep Diffusers' names."""
    return {
        "modelspec.architecture": "Z-Image/lora",
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": "zimage",
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    encoders = {TEXT: language_model.text_encoder}
    return transformer_model.footprint(config, workload, transformer=z_image.transformer, encoders=encoders)


SPEC: Final = FamilySpec(
    pipeline="ZImagePipeline",
    module="engine.models.families.z_image.model",
    other_pipelines={
        "ZImageOmniPipeline": "Z-Image-Omni, which is given images besides the text",
        "ZImageImg2ImgPipeline": "an image-to-image model",
        "ZImageInpaintPipeline": "an inpainting model",
        "ZImageControlNetPipeline": "a model with a ControlNet",
        "ZImageControlNetInpaintPipeline": "a model with a ControlNet",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "transformer"),
    weighted=("text_encoder", "vae", "transformer"),
    classes={
        TEXT: ("Qwen3Model", "Qwen3ForCausalLM"),
        "vae": ("AutoencoderKL",),
        "transformer": ("ZImageTransformer2DModel",),
    },
    denoiser="transformer",
    text_encoders=(),
    fixed_text_encoders=("text_encoder",),
    block_lists=("noise_refiner", "context_refiner", "layers"),
    lora_targets=lora_targets.ATTENTION,
    text_lora_targets=(),
    text_root=None,
    objective="flow",
    usual_sampling="logit_normal",
    medium="image",
    check=check,
    check_size=check_size,
    webui_metadata=webui_metadata,
    token_counter=tokens.counter(tokens.CHAT),
    caption_tokens=CaptionTokens(usual=_MOST_TOKENS, most=_MOST_TOKENS, step=1, least=_CHAT_TOKENS + 1),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler"}),
    drawing=DrawingDefaults(guidance_scale=0.0, num_inference_steps=9),
    no_guidance=0.0,
    hub_tags=("z-image", "z-image-diffusers"),
    licences=dict.fromkeys(("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"), "apache-2.0"),
    footprint=_footprint,
)
