"""The specification of Qwen-Image (Wu et al. 2025, arXiv:2508.02324). No torch."""

from __future__ import annotations

from typing import Final

from engine.core.errors import ModelError
from engine.models.objectives.objective import TargetType
from engine.models.parts import lora_targets
from engine.models.parts.config_checks import (
    require_bounds,
    require_channel_scales,
    require_rotations,
    require_size,
    whole_tokens,
)
from engine.models.parts.footprints import language_model, transformer_model
from engine.models.parts.footprints.transformers import qwen_image
from engine.models.parts.footprints.video_vaes import wan as wan_vae
from engine.models.parts.qwen import tokens
from engine.models.parts.qwen.checks import TEXT, require_states
from engine.models.spec import CaptionTokens, Configs, DrawingDefaults, FamilySpec, Footprint, Workload

INSTRUCTION: Final = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_ANSWER: Final = "{}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE: Final = INSTRUCTION + _ANSWER
"""The text that captions are put into (`prompt_template_encode` of Diffusers' pipeline)."""
INSTRUCTION_TOKENS: Final = 34
"""The tokens of `INSTRUCTION`, whose states the transformer does not get (`prompt_template_encode_start_idx`)."""
_ANSWER_TOKENS: Final = 5
"""The tokens of `_ANSWER`."""
MOST_TOKENS: Final = 1024
_TOKEN_SIDE: Final = 16
"""Pixels of a side in one token: 2 x 2 positions of the latents, of 8 x 8 pixels each."""
_POSITIONS: Final = 4
"""Positions of the latents in one token."""
_VARIANTS: Final = {
    "zero_cond_t": "Qwen-Image-Edit",
    "use_additional_t_cond": "Qwen-Image-Layered",
    "use_layer3d_rope": "Qwen-Image-Layered",
    "guidance_embeds": "a Qwen-Image that is distilled on guidance",
}
"""Options of the transformer that only other models have -> what they are."""


def check(config: Configs) -> None:
    """Refuse other models with the classes of Qwen-Image: those that are also given images, parts of others.

    Raises:
        ModelError: the model is of another kind; the message gives the reason.
    """
    transformer = config("transformer")
    require_bounds(config, "transformer", "vae", "text_encoder")
    for key, kind in _VARIANTS.items():
        if transformer.get(key, False) is not False:
            raise ModelError(f"the base model is {kind}, which cannot be trained; Qwen-Image can")
    _require_text_to_image(config)
    require_rotations(config, axes=3)
    require_channel_scales(config, "z_dim", 16)
    require_states(config, "joint_attention_dim", 3584, (-1,))


def _require_text_to_image(config: Configs) -> None:
    """Raise ModelError unless a token of the transformer is a square of the VAE's latents."""
    channels = require_size(config, "vae", "z_dim", 16)
    taken = require_size(config, "transformer", "in_channels", 64)
    given = require_size(config, "transformer", "out_channels", 16) * _POSITIONS
    if not taken == given == channels * _POSITIONS or config("transformer").get("patch_size", 2) != 2:
        raise ModelError(
            f"the base model's transformer takes tokens of {taken} values and gives {given}, its VAE's latents have "
            f"{channels * _POSITIONS}: these parts are not those of Qwen-Image"
        )


def webui_metadata(config: Configs, prediction_type: TargetType) -> dict[str, str]:
    """Return the web interfaces' metadata for Qwen-Image. Modules keep Diffusers' names."""
    return {
        "modelspec.architecture": "Qwen-Image/lora",
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": "qwen_image",
    }


def _footprint(config: Configs, workload: Workload) -> Footprint:
    encoders = {TEXT: language_model.text_encoder}
    return transformer_model.footprint(
        config,
        workload,
        transformer=qwen_image.transformer,
        encoders=encoders,
        images=wan_vae.image_encoder,
        reduction=wan_vae.reduction,
    )


SPEC: Final = FamilySpec(
    pipeline="QwenImagePipeline",
    module="engine.models.families.qwen_image.model",
    other_pipelines={
        "QwenImageEditPipeline": "Qwen-Image-Edit, an image-editing model",
        "QwenImageEditPlusPipeline": "Qwen-Image-Edit, an image-editing model",
        "QwenImageEditInpaintPipeline": "Qwen-Image-Edit, an image-editing model",
        "QwenImageLayeredPipeline": "Qwen-Image-Layered, which takes an image apart",
        "QwenImageImg2ImgPipeline": "an image-to-image model",
        "QwenImageInpaintPipeline": "an inpainting model",
        "QwenImageControlNetPipeline": "a model with a ControlNet",
        "QwenImageControlNetInpaintPipeline": "a model with a ControlNet",
    },
    components=("scheduler", "tokenizer", "text_encoder", "vae", "transformer"),
    weighted=("text_encoder", "vae", "transformer"),
    classes={
        TEXT: ("Qwen2_5_VLForConditionalGeneration",),
        "vae": ("AutoencoderKLQwenImage",),
        "transformer": ("QwenImageTransformer2DModel",),
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
    medium="image",
    argument_names={"guidance_scale": "true_cfg_scale"},
    check=check,
    check_size=whole_tokens(_TOKEN_SIDE),
    token_side=_TOKEN_SIDE,
    webui_metadata=webui_metadata,
    token_counter=tokens.counter(_ANSWER),
    caption_tokens=CaptionTokens(usual=512, most=MOST_TOKENS, step=1, least=_ANSWER_TOKENS + 1),
    schedulers=frozenset({"FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"}),
    drawing=DrawingDefaults(guidance_scale=4.0, num_inference_steps=50),
    empty_prompt=" ",  # with none at all, the pipeline has no guidance
    hub_tags=("qwen-image", "qwen-image-diffusers"),
    licences=dict.fromkeys(("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"), "apache-2.0"),
    footprint=_footprint,
)
